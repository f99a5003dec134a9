package sidecar

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReady(t *testing.T) {
	s := newStore([]string{"orders"})
	path := serveStore(t, s, nil)
	if err := Ready(t.Context(), path); err == nil || !strings.Contains(err.Error(), `"orders" is not issued (Pending: Starting)`) {
		t.Errorf("before: got %v", err)
	}
	s.publish([]*dataKey{issuedKey(t, "orders", testPlaintext)})
	if err := Ready(t.Context(), path); err != nil {
		t.Errorf("after: got %v", err)
	}
	if err := Ready(t.Context(), filepath.Join(t.TempDir(), "s")); err == nil || !strings.Contains(err.Error(), "no sidecar answers") {
		t.Errorf("without a sidecar: got %v", err)
	}
}

func TestWaitThroughARestart(t *testing.T) {
	s := newStore([]string{"orders"})
	path := filepath.Join(shortDir(t), "s")
	waited := make(chan error, 1)
	go func() { waited <- Wait(t.Context(), path) }() // no socket yet

	asked := make(chan struct{})
	first, err := listen(t.Context(), path, 1)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		(&api{store: s}).ServeHTTP(w, r)
		select {
		case asked <- struct{}{}:
		case <-r.Context().Done():
		}
	})}
	go func() { _ = server.Serve(first) }()
	<-asked
	_ = server.Close() // the sidecar is killed while it is asked

	s.publish([]*dataKey{issuedKey(t, "orders", testPlaintext)})
	second, err := listen(t.Context(), path, 1)
	if err != nil {
		t.Fatal(err)
	}
	server = newServer(s, (&logs{}).logger(), newWatchdog())
	go func() { _ = server.Serve(second) }()
	defer func() { _ = server.Close() }()
	if err := <-waited; err != nil {
		t.Error(err)
	}
}

func TestWaitGivesTheLastReason(t *testing.T) {
	for name, test := range map[string]struct {
		socket func(t *testing.T) string
		want   string
	}{
		"a data key that does not come": {
			func(t *testing.T) string {
				t.Helper()
				return serveStore(t, newStore([]string{"orders"}), nil)
			}, `"orders" is not issued`,
		},
		"no sidecar": {
			func(t *testing.T) string {
				t.Helper()
				return filepath.Join(shortDir(t), "s")
			}, "no sidecar answers",
		},
		"something else behind the socket": {
			func(t *testing.T) string {
				t.Helper()
				path := filepath.Join(shortDir(t), "s")
				l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
				if err != nil {
					t.Fatal(err)
				}
				server := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute}
				go func() { _ = server.Serve(l) }()
				t.Cleanup(func() { _ = server.Close() })
				return path
			}, "it answers 404",
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, errors.New("in vain"))
			defer cancel()
			err := Wait(ctx, test.socket(t))
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "waited in vain") {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
