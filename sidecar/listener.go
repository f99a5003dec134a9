package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

const (
	// maxSocketPath is the most bytes of a socket's path: sun_path holds 108 with the zero at the end (unix(7)).
	maxSocketPath = 107
	// bindName is the name in the socket's directory under which a new socket is made ready. It is short, so that the
	// path is no longer than the final one.
	bindName = ".new"
	// maxConns is the most connections of the socket at a time. Each costs about 20 KiB of a sidecar that is to stay under 20 MiB.
	maxConns = 256
	// minIdle is how long a connection may wait for its next request, or for its first to be whole, whoever else waits for a place. A
	// crowd is let in and out again at the rate of maxConns for each minIdle.
	minIdle = 20 * time.Millisecond
)

func checkSocketPath(path string) error {
	switch {
	case strings.HasPrefix(path, "@"), strings.HasPrefix(path, "\x00"):
		return fmt.Errorf("socket %q: must be a path in a directory: an abstract socket would be open to every process "+
			"of the network namespace", path)
	case !filepath.IsAbs(path):
		return fmt.Errorf("socket %q: must be an absolute path", path)
	case len(path) > maxSocketPath || len(bindPath(path)) > maxSocketPath:
		return fmt.Errorf("socket %q: the path has %d bytes: must be at most %d (unix(7))", path, len(path), maxSocketPath)
	}
	return nil
}

func bindPath(path string) string { return filepath.Join(filepath.Dir(path), bindName) }

// bounded is a listener of so many connections at a time. Where there are as many, the one that waited longest for a request makes way for
// the next: so no crowd of idle connections, of clients that leave them open or begin a request and do not go on, keeps others out.
type bounded struct {
	net.Listener

	slots chan struct{} // holds one for each of conns
	mu    sync.Mutex
	conns map[*conn]struct{}

	closed chan struct{}
	once   sync.Once
}

func newBounded(l net.Listener, conns int) *bounded {
	return &bounded{Listener: l, slots: make(chan struct{}, conns), conns: map[*conn]struct{}{}, closed: make(chan struct{})}
}

// listener is the unix socket that issues data keys.
type listener struct {
	*bounded
	path string
	info fs.FileInfo // of our socket, to tell it from a successor's at the same path
	gone sync.Once
}

// listen makes a socket at path that any UID may connect to: who sees its directory is the pod's own choice of mounts.
// The directory must exist. A socket that is there already, left behind by a sidecar that was killed, is replaced at
// once: there is no moment without a socket or with one that nobody may open.
func listen(ctx context.Context, path string, conns int) (*listener, error) {
	if err := checkSocketPath(path); err != nil {
		return nil, err
	}
	if err := checkReplaceable(path); err != nil {
		return nil, err
	}
	bind := bindPath(path)
	if err := checkReplaceable(bind); err != nil {
		return nil, err
	}
	if err := os.Remove(bind); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket %q: %w", path, err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", bind)
	if err != nil {
		return nil, fmt.Errorf("socket %q: its directory must exist and be writable for UID %d: %w", path, os.Getuid(), err)
	}
	unix := l.(*net.UnixListener) //nolint:forcetypeassert // what the network "unix" gives
	unix.SetUnlinkOnClose(false)  // it would unlink the name that is renamed away
	info, err := publish(bind, path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socket %q: %w", path, err), unix.Close(), os.Remove(bind))
	}
	return &listener{bounded: newBounded(unix, conns), path: path, info: info}, nil
}

func publish(bind, path string) (fs.FileInfo, error) {
	// Connecting needs the permission to write.
	if err := os.Chmod(bind, 0o666); err != nil { //nolint:gosec // see listen
		return nil, err
	}
	info, err := os.Lstat(bind)
	if err != nil {
		return nil, err
	}
	return info, os.Rename(bind, path)
}

// checkReplaceable refuses to replace what is no socket: the path is a mistake then.
func checkReplaceable(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("socket: %q is there and is no socket: name another path, or remove it", path)
	}
	return nil
}

// Accept implements net.Listener. It accepts one connection more than there may be, which waits here for its place.
func (l *bounded) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if !l.take() {
		return nil, errors.Join(net.ErrClosed, accepted.Close())
	}
	c := &conn{stream: accepted.(stream)} //nolint:forcetypeassert // of a unix socket or of TCP
	c.free = func() { l.free(c) }
	c.wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[c] = struct{}{}
	return c, nil
}

func (l *bounded) free(c *conn) {
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
	<-l.slots
}

// take takes a slot, or returns false when the listener is closed.
func (l *bounded) take() bool {
	for {
		select {
		case l.slots <- struct{}{}:
			return true
		default:
		}
		after := l.makeWay()
		if after == 0 {
			continue
		}
		select {
		case l.slots <- struct{}{}:
			return true
		case <-l.closed:
			return false
		case <-time.After(after):
		}
	}
}

// makeWay closes the connection that has waited longest for a request, or finds that it does not wait any more. If no one has waited for
// minIdle yet, it returns when to try again.
func (l *bounded) makeWay() (after time.Duration) {
	oldest, since := l.longestIdle()
	if oldest == nil {
		return minIdle
	}
	if idle := sinceStart() - since; idle < minIdle {
		return minIdle - idle
	}
	next := int64(0)
	if oldest.isAsked() { // it is the sidecar that has not come to it yet, on a busy node or for want of processor time
		next = int64(sinceStart())
	}
	if oldest.idleSince.CompareAndSwap(int64(since), next) && next == 0 { // else it has a request by now
		_ = oldest.Close() // what waits for it fails, and the server notes that it is closed
	}
	return 0
}

// longestIdle is the connection that has waited longest for a request, and since when; nil where each has one under way.
func (l *bounded) longestIdle() (oldest *conn, since time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		if s := time.Duration(c.idleSince.Load()); s != 0 && (oldest == nil || s < since) {
			oldest, since = c, s
		}
	}
	return oldest, since
}

// Close implements net.Listener.
func (l *bounded) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// Close implements net.Listener. It removes the socket, unless another has replaced it.
func (l *listener) Close() error {
	l.gone.Do(func() {
		if info, err := os.Lstat(l.path); err == nil && os.SameFile(info, l.info) {
			_ = os.Remove(l.path)
		}
	})
	return l.bounded.Close()
}
