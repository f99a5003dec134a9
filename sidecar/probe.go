package sidecar

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/datakeys/datakeys/sidecar/internal/keystore"
)

// Wait asks this often. It is short because an application waits for it, and asking is cheap.
const waitInterval = 10 * time.Millisecond

// maxReadyAnswer bounds what is read of an answer: MaxDataKeys reasons.
const maxReadyAnswer = 1 << 20

// notReadyError says which data keys are not issued, and why.
type notReadyError struct {
	keys []keystore.Status
}

// Error implements error.
func (e *notReadyError) Error() string {
	parts := make([]string, len(e.keys))
	for i, k := range e.keys {
		parts[i] = fmt.Sprintf("data key %q is not issued (%s: %s): %s", k.Name, k.State, k.Reason, k.Message)
	}
	return strings.Join(parts, "; ")
}

func (e *notReadyError) refused() bool {
	for _, k := range e.keys {
		if k.State == keystore.StateRefused {
			return true
		}
	}
	return false
}

// Ready asks the sidecar on that socket once. It returns nil if every data key can be issued, else an error with the
// reasons.
func Ready(ctx context.Context, socket string) error {
	c, err := dial(ctx, socket)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	return c.ready(ctx)
}

// Wait asks until every data key can be issued. It returns an error with the reasons as soon as one is refused, or when
// the context ends. A socket that is not there yet is waited for.
func Wait(ctx context.Context, socket string) error {
	var (
		c    *probe
		last error // the last reason that the sidecar gave, or why it gives none
	)
	defer func() { _ = c.Close() }()
	for {
		var err error
		if c == nil {
			c, err = dial(ctx, socket)
		}
		if err == nil {
			err = c.ready(ctx)
		}
		var notReady *notReadyError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &notReady):
			if last = err; notReady.refused() {
				return err
			}
		case ctx.Err() != nil:
			// What the end of the waiting broke off is no reason.
		case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOTSOCK):
			return err // this does not pass
		default: // the sidecar has not started yet, or starts again
			_ = c.Close()
			c, last = nil, err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited in vain: %w", cmp.Or(last, err))
		case <-time.After(waitInterval):
		}
	}
}

// probe is a connection for GET /readyz.
type probe struct {
	net.Conn
	in *bufio.Reader
}

func dial(ctx context.Context, socket string) (*probe, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("no sidecar answers: %w", err)
	}
	return &probe{Conn: c, in: bufio.NewReader(c)}, nil
}

// Close closes the connection, if there is one.
func (p *probe) Close() error {
	if p == nil {
		return nil
	}
	return p.Conn.Close()
}

func (p *probe) ready(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = p.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(p, "GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return fmt.Errorf("asking the sidecar: %w", err)
	}
	response, err := http.ReadResponse(p.in, nil)
	if err != nil {
		return fmt.Errorf("asking the sidecar: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxReadyAnswer))
	if err != nil {
		return fmt.Errorf("asking the sidecar: %w", err)
	}
	if response.StatusCode == http.StatusOK {
		return nil
	}
	var answer problem
	if err := json.Unmarshal(body, &answer); err != nil || len(answer.DataKeys) == 0 {
		return fmt.Errorf("asking the sidecar: it answers %s", response.Status)
	}
	return &notReadyError{keys: answer.DataKeys}
}
