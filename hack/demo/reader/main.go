// Command reader is the application of the demo's pods and of the end-to-end tests. It asks the socket as
// curl --unix-socket would, with Go's standard library alone.
//
//	reader sha256 NAME                        print the SHA-256 of a data key, never the key
//	reader serve NAME                         the same once for each change, until told to end
//	reader work [-keep] [-last TIME] NAME       encrypt and decrypt with a data key until told to end; print the ciphertexts
//	reader open NAME                            decrypt what work printed, from the standard input
//	reader get [-accept TYPE] [-method M] PATH  print status, content type and body of any answer: this prints keys
//	reader sleep                                do nothing until told to end
package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	// socketVariable is the variable by which the injector tells a container where its socket is.
	socketVariable = "DATAKEYS_SOCKET"
	defaultSocket  = "/run/datakeys/datakeys.sock"

	// maxAnswer bounds what is read of an answer. The longest, a data key of 1024 bytes with its blob and the largest
	// encryption context, is far below.
	maxAnswer = 1 << 20
)

const usage = `usage: reader sha256 NAME | serve NAME | work [-keep] [-last TIME] NAME | open NAME | get [-accept TYPE] [-method METHOD] PATH | sleep`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	r := &reader{
		client:   unixClient(cmp.Or(os.Getenv(socketVariable), defaultSocket)),
		interval: time.Second,
		pace:     100 * time.Millisecond,
		in:       os.Stdin,
		out:      os.Stdout,
	}
	err := r.run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "reader:", err)
		os.Exit(1)
	}
}

type reader struct {
	client *http.Client
	// interval is how often serve asks again.
	interval time.Duration
	// pace is how long work rests between two messages.
	pace time.Duration
	in   io.Reader
	out  io.Writer
}

func (r *reader) run(ctx context.Context, arguments []string) error {
	if len(arguments) == 0 {
		return errors.New(usage)
	}
	switch verb, rest := arguments[0], arguments[1:]; {
	case verb == "sha256" && len(rest) == 1:
		sum, err := r.sha256(ctx, rest[0])
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(r.out, sum)
		return err
	case verb == "serve" && len(rest) == 1:
		return r.serve(ctx, rest[0])
	case verb == "work":
		return r.work(ctx, rest)
	case verb == "open" && len(rest) == 1:
		return r.open(ctx, rest[0])
	case verb == "get":
		return r.get(ctx, rest)
	case verb == "sleep" && len(rest) == 0:
		<-ctx.Done()
		return nil
	default:
		return errors.New(usage)
	}
}

// serve prints what sha256 says whenever it says something else, until the context ends. A pod that is refused its key
// stays up to be looked at.
func (r *reader) serve(ctx context.Context, name string) error {
	last := ""
	for {
		said, err := r.sha256(ctx, name)
		if err != nil {
			said = err.Error()
		}
		if said != last && ctx.Err() == nil {
			last = said
			if _, err := fmt.Fprintln(r.out, said); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(r.interval):
		}
	}
}

// sha256 returns the SHA-256 of a data key's raw bytes in hexadecimal.
func (r *reader) sha256(ctx context.Context, name string) (string, error) {
	got, err := r.ask(ctx, http.MethodGet, "/v1/data-keys/"+name, "application/octet-stream")
	if err != nil {
		return "", err
	}
	if got.code != http.StatusOK {
		return "", got.problem()
	}
	if got.contentType != "application/octet-stream" {
		return "", fmt.Errorf("the answer is %q and not the raw bytes that were asked for", got.contentType)
	}
	return fmt.Sprintf("%x", sha256.Sum256(got.body)), nil
}

// get prints any answer as it came.
func (r *reader) get(ctx context.Context, arguments []string) error {
	flags := flag.NewFlagSet("get", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	accept := flags.String("accept", "", "")
	method := flags.String("method", http.MethodGet, "")
	if err := flags.Parse(arguments); err != nil || flags.NArg() != 1 {
		return errors.New(usage)
	}
	got, err := r.ask(ctx, *method, flags.Arg(0), *accept)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(r.out, "HTTP %d %s\n%s", got.code, got.contentType, got.body)
	return err
}

// answer is what came back to a request.
type answer struct {
	code        int
	status      string
	contentType string
	body        []byte
}

// problem is the error that an answer tells of by its problem details (RFC 9457), which hold no key.
func (a *answer) problem() error {
	var problem struct {
		Reason string `json:"reason"`
		Detail string `json:"detail"`
	}
	if err := json.Unmarshal(a.body, &problem); err != nil {
		return fmt.Errorf("HTTP %s without problem details", a.status)
	}
	return fmt.Errorf("HTTP %s: %s: %s", a.status, problem.Reason, problem.Detail)
}

// ask makes one request.
func (r *reader) ask(ctx context.Context, method, path, accept string) (*answer, error) {
	request, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, nil)
	if err != nil {
		return nil, err
	}
	if accept != "" {
		request.Header.Set("Accept", accept)
	}
	response, err := r.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	return &answer{response.StatusCode, response.Status, response.Header.Get("Content-Type"), body}, nil
}

// unixClient dials the socket, whatever the host in the URL. Each request has its own connection, so that a sidecar that
// started again is found.
func unixClient(socket string) *http.Client {
	return &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var dialer net.Dialer
				return dialer.DialContext(ctx, "unix", socket)
			},
		},
	}
}
