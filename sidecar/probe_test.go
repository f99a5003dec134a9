package sidecar

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/datakeys/datakeys/sidecar/internal/keystore"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

func TestReady(t *testing.T) {
	s := keystore.New([]string{"orders"})
	path := serveStore(t, s, nil)
	if err := Ready(t.Context(), path); err == nil || !strings.Contains(err.Error(), `"orders" is not issued (Pending: Starting)`) {
		t.Errorf("before: got %v", err)
	}
	s.Publish([]*keystore.DataKey{sidecartest.IssuedKey(t, "orders", testPlaintext)})
	if err := Ready(t.Context(), path); err != nil {
		t.Errorf("after: got %v", err)
	}
	if err := Ready(t.Context(), filepath.Join(t.TempDir(), "s")); err == nil || !strings.Contains(err.Error(), "no sidecar answers") {
		t.Errorf("without a sidecar: got %v", err)
	}
}

func TestWaitThroughARestart(t *testing.T) {
	s := keystore.New([]string{"orders"})
	path := filepath.Join(shortDir(t), "s")
	waited := make(chan error, 1)
	go func() { waited <- Wait(t.Context(), path) }() // no socket yet

	asked := make(chan struct{})
	first, err := listen(t.Context(), path, 1)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler(s).ServeHTTP(w, r)
		select {
		case asked <- struct{}{}:
		case <-r.Context().Done():
		}
	})}
	go func() { _ = server.Serve(first) }()
	<-asked
	_ = server.Close() // the sidecar is killed while it is asked

	s.Publish([]*keystore.DataKey{sidecartest.IssuedKey(t, "orders", testPlaintext)})
	second, err := listen(t.Context(), path, 1)
	if err != nil {
		t.Fatal(err)
	}
	server = newServer(s, (&sidecartest.Logs{}).Logger(), newWatchdog())
	go func() { _ = server.Serve(second) }()
	defer func() { _ = server.Close() }()
	if err := <-waited; err != nil {
		t.Error(err)
	}
}

func TestWaitGivesTheLastReason(t *testing.T) {
	for name, test := range map[string]struct {
		answers http.Handler // nil: nothing listens on the socket
		want    string
	}{
		"a data key that does not come":    {handler(keystore.New([]string{"orders"})), `"orders" is not issued`},
		"no sidecar":                       {nil, "no sidecar answers"},
		"something else behind the socket": {http.NotFoundHandler(), "it answers 404"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			path := filepath.Join(shortDir(t), "s")
			if test.answers == nil {
				cancel() // every reason that there can be is the same
			} else {
				l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
				if err != nil {
					t.Fatal(err)
				}
				var asked atomic.Int64
				server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if asked.Add(1) == 2 { // the first answer has arrived
						cancel()
					}
					test.answers.ServeHTTP(w, r)
				})}
				go func() { _ = server.Serve(l) }()
				t.Cleanup(func() { _ = server.Close() })
			}
			err := Wait(ctx, path)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "waited in vain") {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
