package sidecar

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
)

func unixDialer(path string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
}

// TestBuffersAreCleared looks at the buffer of the connection after its answers. That net/http has no part in it shows
// in every test that gets a plaintext: secretReader gives it none.
func TestBuffersAreCleared(t *testing.T) {
	conns := make(chan *conn, 1)
	path := serveStore(t, testStore(t), func(server *http.Server, _ *listener, _ *watchdog) {
		inner := server.ConnContext
		server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
			conns <- c.(*conn) //nolint:forcetypeassert // what the listener gives
			return inner(ctx, c)
		}
	})
	c := dialSocket(t, path)
	for _, accept := range []string{mediaJSON, mediaBytes} {
		if _, err := io.WriteString(c, get("/v1/data-keys/orders", "Accept: "+accept)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(c, get("/healthz", "Connection: close")); err != nil {
		t.Fatal(err)
	}
	answers, err := io.ReadAll(c)
	if err != nil || bytes.Count(answers, []byte("200 OK")) != 3 || !bytes.Contains(answers, testPlaintext) {
		t.Fatalf("got %v and %d bytes, want three answers", err, len(answers))
	}
	// The end of the connection comes after the last write.
	buffer := (<-conns).buffer
	buffer = buffer[:cap(buffer)]
	if len(buffer) < len(testPlaintext) {
		t.Fatalf("the buffer holds %d bytes: it was not used", len(buffer))
	}
	if i := slices.IndexFunc(buffer, func(b byte) bool { return b != 0 }); i >= 0 {
		t.Errorf("byte %d of the buffer is left", i)
	}
}

// TestLargeBufferIsNotKept: what one large answer needs is not held by the connection for its life.
func TestLargeBufferIsNotKept(t *testing.T) {
	conns := make(chan *conn, 1)
	var server *http.Server
	path := serveStore(t, testStore(t), func(s *http.Server, _ *listener, _ *watchdog) {
		server = s
		inner := server.ConnContext
		server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
			conns <- c.(*conn) //nolint:forcetypeassert // what the listener gives
			return inner(ctx, c)
		}
	})
	c := dialSocket(t, path)
	write(t, c, post(decryptOrders, mediaBytes, sealedMessage(t, testPlaintext, 3, nil, make([]byte, maxPlaintext)), "Connection: close"))
	answer, err := io.ReadAll(c)
	if err != nil || !bytes.Contains(answer, []byte("200 OK")) || len(answer) < maxPlaintext {
		t.Fatalf("got %d bytes, %v", len(answer), err)
	}
	if err := server.Shutdown(t.Context()); err != nil { // waits for the connection to be done with
		t.Fatal(err)
	}
	if n := cap((<-conns).buffer); n > maxKeptBuffer {
		t.Errorf("%d bytes are kept", n)
	}
}

// TestHandlerAloneGivesNothing: without a connection of the socket there is no way out for a plaintext.
func TestHandlerAloneGivesNothing(t *testing.T) {
	s := testStore(t)
	w := &bareWriter{header: http.Header{}}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/data-keys/orders", nil)
	if err != nil {
		t.Fatal(err)
	}
	handler(s).ServeHTTP(w, r)
	if w.body.Len() > 0 {
		t.Error("a body was written")
	}
}

type bareWriter struct {
	header http.Header
	body   bytes.Buffer
}

func (w *bareWriter) Header() http.Header         { return w.header }
func (w *bareWriter) Write(p []byte) (int, error) { return w.body.Write(p) }
func (*bareWriter) WriteHeader(int)               {}
