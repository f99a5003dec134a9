package sidecar

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/datakeys/datakeys/internal/secrettest"
	"github.com/datakeys/datakeys/sidecar/internal/keystore"
)

// shortDir returns a directory whose path leaves room for a socket's name.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dk") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// checkHides fails the test if the text holds the plaintext, or a part of it.
func checkHides(t testing.TB, where, text string, plaintext []byte) {
	t.Helper()
	secrettest.CheckText(t, where, text, map[string][]byte{"plaintext": plaintext})
}

// handler is the native API without a server.
func handler(s *keystore.Store) http.Handler {
	return newServer(s, slog.New(slog.DiscardHandler), newWatchdog()).Handler
}

// serveStore serves what is published in s on a socket, whose path it returns.
func serveStore(t testing.TB, s *keystore.Store, change func(*http.Server, *listener, *watchdog)) string {
	t.Helper()
	path := filepath.Join(shortDir(t), "s")
	l, err := listen(t.Context(), path, maxConns)
	if err != nil {
		t.Fatal(err)
	}
	dog := newWatchdog()
	server := newServer(s, slog.New(slog.DiscardHandler), dog)
	if change != nil {
		change(server, l, dog)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close(); <-done })
	return path
}

func dialSocket(t testing.TB, path string) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(context.Background(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// reply is an answer that was read to its end.
type reply struct {
	StatusCode    int
	Status        string
	Header        http.Header
	ContentLength int64
}

// roundTrip sends a request as it is written and returns the answer with its body.
func roundTrip(t testing.TB, path, request string) (reply, []byte) {
	t.Helper()
	c := dialSocket(t, path)
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(request, " ")
	return readReply(t, bufio.NewReader(c), method)
}

func readReply(t testing.TB, in *bufio.Reader, method string) (reply, []byte) {
	t.Helper()
	response, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("no end of the answer: %v", err)
	}
	return reply{response.StatusCode, response.Status, response.Header, response.ContentLength}, body
}
