package client

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"
)

// fakeSidecar answers in a bubble of testing/synctest, where there is no unix socket.
type fakeSidecar struct {
	client *Client

	mu    sync.Mutex
	calls []string
	// answer replaces the answer to a call that does not start a stream, unless it reports false.
	answer func(w http.ResponseWriter, r *http.Request) bool
	// generations are what is issued, the newest last.
	generations []string
	aad         []byte // stands before the plaintext
	stream      func(w http.ResponseWriter, r *http.Request)
	away        bool
	wrap        func(net.Conn) net.Conn
}

// newFakeSidecar returns a sidecar that is gone with the test.
func newFakeSidecar(t *testing.T, o Options, generations ...string) *fakeSidecar {
	t.Helper()
	if o.KeyAge == 0 {
		o.KeyAge = DefaultKeyAge
	}
	f := &fakeSidecar{generations: generations}
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	server := &http.Server{Handler: f}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	f.client = newClient(o, func(ctx context.Context) (net.Conn, error) {
		f.mu.Lock()
		away, wrap := f.away, f.wrap
		f.mu.Unlock()
		if away {
			return nil, errors.New("nobody listens")
		}
		c, err := l.dial(ctx)
		if err == nil && wrap != nil {
			c = wrap(c)
		}
		return c, err
	})
	t.Cleanup(func() {
		f.client.Close()
		_ = server.Close()
		<-done
		<-time.After(time.Millisecond) // calls under way end
	})
	return f
}

// goAway has the sidecar away, its connections with it, or back.
func (f *fakeSidecar) goAway(away bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = away
	if away {
		f.client.Close()
	}
}

// set changes the sidecar.
func (f *fakeSidecar) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// took returns the calls since the last time.
func (f *fakeSidecar) took() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	return calls
}

func (f *fakeSidecar) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.calls = append(f.calls, r.URL.RequestURI())
	stream, answer, generations, aad := f.stream, f.answer, f.generations, f.aad
	f.mu.Unlock()
	if stream != nil {
		stream(w, r)
		return
	}
	<-time.After(time.Nanosecond) // of the bubble: who does not wait for the answer is done before it comes
	if answer != nil && answer(w, r) {
		return
	}
	n := len(generations)
	if asked := r.URL.Query().Get("generation"); asked != "" {
		n, _ = strconv.Atoi(asked)
	}
	if n < 1 || n > len(generations) {
		problem(w, http.StatusNotFound, "UnknownGeneration")
		return
	}
	body, err := json.Marshal(map[string]any{"aad": aad, "name": "orders", "generation": n, "plaintext": []byte(generations[n-1])})
	if err != nil {
		panic(err)
	}
	w.Header().Set("Content-Type", mediaJSON)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
}

func problem(w http.ResponseWriter, status int, reason string) {
	body := `{"reason":"` + reason + `","detail":"because"}`
	w.Header().Set("Content-Type", mediaProblem)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write([]byte(body))
}

// pipeListener listens in this process.
type pipeListener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case l.conns <- there:
		return here, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }
