package sidecar

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// conn is a connection of an application. It writes answers with plaintext itself: net/http would copy them into
// buffers of its own, which it keeps for later and never clears.
//
// The way past them: a ResponseWriter of net/http copies from a reader by its connection's ReadFrom, where there is one.
// sendSecret has the header flushed, which Write holds back, and then the body copied; ReadFrom sends both with one
// write, and clears them.
type conn struct {
	stream
	free func() // called once, when the connection is closed
	once sync.Once
	// expires is the tick of the watchdog at which it closes the connection.
	expires atomic.Int64
	// idleSince is when it began to wait for a request, as sinceStart tells; 0 while one is under way.
	idleSince atomic.Int64

	hold   bool
	buffer []byte // the header while it is held back, then header and body
}

// stream is a *net.UnixConn or a *net.TCPConn.
type stream interface {
	net.Conn
	syscall.Conn
	// CloseWrite lets a client that still sends read its answer to the end: net/http looks for it.
	CloseWrite() error
}

var start = time.Now()

// sinceStart is the time that has passed since about the start of the process. It is never 0.
func sinceStart() time.Duration { return time.Since(start) + 1 }

// wait notes that the connection waits for a request from now on.
func (c *conn) wait() { c.idleSince.Store(int64(sinceStart())) }

// isAsked reports whether the client has sent something that nobody has read yet.
func (c *conn) isAsked() (asked bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	_ = raw.Control(func(fd uintptr) {
		n, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		asked = err == nil && n > 0
	})
	return asked
}

// maxKeptBuffer is the largest buffer that a connection keeps for its next answer. Nearly all data keys fit.
const maxKeptBuffer = 16 << 10

// Read implements net.Conn. What net/http reads into has held an earlier request of this connection, and a body may have been plaintext:
// it is gone while the connection is idle.
func (c *conn) Read(p []byte) (int, error) {
	clear(p)
	return c.stream.Read(p)
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	if c.hold {
		c.buffer = append(c.buffer, p...)
		return len(p), nil
	}
	return c.stream.Write(p)
}

// ReadFrom implements io.ReaderFrom. It returns how many bytes of the body it sent.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	body, ok := r.(secretReader)
	if !ok {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	header := len(c.buffer)
	c.buffer = body.AppendTo(c.buffer)
	n, err := c.stream.Write(c.buffer)
	clear(c.buffer)
	if c.buffer = c.buffer[:0]; cap(c.buffer) > maxKeptBuffer {
		c.buffer = nil
	}
	return int64(max(0, n-header)), err
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.once.Do(c.free)
	return c.stream.Close()
}

// secretBody is the body of an answer with a plaintext.
type secretBody interface {
	// Size is how many bytes AppendTo appends.
	Size() int
	// AppendTo appends the body to out, which grows before, so that no copy stays behind. Clearing it is up to the caller.
	AppendTo(out []byte) []byte
}

// secretReader lets a secretBody go where net/http takes a reader.
type secretReader struct{ secretBody }

// Read implements io.Reader. It fails: only conn.ReadFrom may see the bytes.
func (secretReader) Read([]byte) (int, error) {
	return 0, errors.New("internal error: net/http did not copy by the connection's ReadFrom")
}

// connKey is the key of a request's conn in its context.
type connKey struct{}

// withConn is the ConnContext of the server.
func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// sendSecret answers r with the body. The headers are set, Content-Length among them.
func sendSecret(w http.ResponseWriter, r *http.Request, body secretBody) error {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		return errors.New("internal error: not a connection of the sidecar")
	}
	flusher, ok1 := w.(http.Flusher)
	from, ok2 := w.(io.ReaderFrom)
	if !ok1 || !ok2 {
		return errors.New("internal error: not a response of net/http")
	}
	c.hold = true
	flusher.Flush()
	_, err := from.ReadFrom(secretReader{body})
	c.hold = false
	return err
}
