package sidecar

import (
	"bufio"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/datakeys/datakeys/sidecar/internal/keystore"
)

func TestListenRefuses(t *testing.T) {
	dir := shortDir(t)
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ path, want string }{
		"an abstract socket":          {"@datakeys", "abstract"},
		"an abstract socket by NUL":   {"\x00datakeys", "abstract"},
		"a relative path":             {"run/s", "absolute path"},
		"no path":                     {"", "absolute path"},
		"a path of 108 bytes":         {"/" + strings.Repeat("x", 107), "has 108 bytes: must be at most 107"},
		"a directory that is missing": {filepath.Join(dir, "missing", "s"), "its directory must exist and be writable for UID"},
		"a file in place of a directory": {
			filepath.Join(dir, "file", "s"), "not a directory",
		},
		"a file that is no socket": {filepath.Join(dir, "file"), "is no socket: name another path"},
		"a directory":              {filepath.Join(dir, "d"), "is no socket"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := listen(t.Context(), test.path, 1)
			if err == nil {
				_ = l.Close()
				t.Fatal("it listens")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
	if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "kept" {
		t.Errorf("the file is now %q, %v", b, err)
	}
}

// TestListenWithoutPermission needs a UID that permissions hold for.
func TestListenWithoutPermission(t *testing.T) {
	dir := shortDir(t)
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	l, err := listen(t.Context(), filepath.Join(dir, "s"), 1)
	if os.Getuid() == 0 { // root may write anywhere: there is nothing to refuse
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
		return
	}
	if err == nil || !strings.Contains(err.Error(), "must exist and be writable for UID") {
		t.Errorf("got %v", err)
	}
}

func TestListenLongestPath(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, strings.Repeat("x", maxSocketPath-len(dir)-1))
	l, err := listen(t.Context(), path, 1)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}

func TestListenReplacesAStaleSocket(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "s")
	for _, stale := range []string{path, bindPath(path)} { // killed while serving, and while starting
		old, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		old.SetUnlinkOnClose(false)
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l, err := listen(t.Context(), path, 1)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o666 {
		t.Errorf("got %v, %v; want a socket that anybody may connect to", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("got %v, %v; want the socket alone", entries, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket is left")
	}
}

// TestListenerLeavesItsSuccessor: what a second sidecar has put in place, the first does not take away.
func TestListenerLeavesItsSuccessor(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	first, err := listen(t.Context(), path, 1)
	if err != nil {
		t.Fatal(err)
	}
	second, err := listen(t.Context(), path, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	server := newServer(keystore.New(nil), slog.New(slog.DiscardHandler), newWatchdog())
	go func() { _ = server.Serve(second) }()
	defer func() { _ = server.Close() }()
	if response, _ := roundTrip(t, path, get("/healthz")); response.StatusCode != http.StatusOK {
		t.Errorf("got %s", response.Status)
	}
}

// serveBounded serves, on a socket with so many places.
func serveBounded(t *testing.T, places int, change func(*http.Server)) (path string, l *listener) {
	t.Helper()
	path = serveStore(t, testStore(t), func(server *http.Server, made *listener, _ *watchdog) {
		l = made
		l.bounded = newBounded(l.Listener, places)
		if change != nil {
			change(server)
		}
	})
	return path, l
}

// TestTheLongestIdleMakesWay: of connections without a whole request, and for nobody before somebody needs the place.
func TestTheLongestIdleMakesWay(t *testing.T) {
	for name, c := range map[string]struct {
		says, rest string
		answered   bool // what it says, but for the rest
	}{
		"connections that say nothing":     {"", get("/healthz"), false},
		"connections that begin to ask":    {"GET /healthz HTTP/1.1\r\nHo", "st: l\r\n\r\n", false},
		"connections that have asked":      {get("/healthz"), get("/healthz"), true},
		"connections that begin once more": {get("/healthz") + "GET ", "/healthz HTTP/1.1\r\nHost: l\r\n\r\n", true},
	} {
		t.Run(name, func(t *testing.T) {
			const places, more = 3, 4
			path, l := serveBounded(t, places, nil)
			var all []net.Conn
			for i := range places + more {
				conn := dialSocket(t, path)
				all = append(all, conn)
				write(t, conn, c.says)
				if c.answered {
					readReply(t, bufio.NewReader(conn), http.MethodGet)
					for !allIdle(l) { // the server may note it after the next one's
						runtime.Gosched()
					}
				}
				if i >= places {
					if n, err := all[i-places].Read(make([]byte, 1)); err == nil {
						t.Errorf("connection %d: got %d bytes, want its end", i-places, n)
					}
				}
			}
			for _, conn := range all[more:] {
				write(t, conn, c.rest)
				if response, _ := readReply(t, bufio.NewReader(conn), http.MethodGet); response.StatusCode != http.StatusOK {
					t.Errorf("one of those that are left: got %s", response.Status)
				}
			}
		})
	}
}

// allIdle reports whether every connection is known to wait for a request.
func allIdle(l *listener) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		if c.idleSince.Load() == 0 {
			return false
		}
	}
	return true
}

// TestWhoHasAskedDoesNotMakeWay: a request that the sidecar has not come to read is no time that its client has wasted.
func TestWhoHasAskedDoesNotMakeWay(t *testing.T) {
	for network, address := range map[string]string{"unix": filepath.Join(shortDir(t), "s"), "tcp4": "127.0.0.1:0"} {
		t.Run(network, func(t *testing.T) {
			inner, err := net.Listen(network, address)
			if err != nil {
				t.Fatal(err)
			}
			l := newBounded(inner, 1)
			defer l.Close()
			client, err := net.Dial(network, inner.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			accepted, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			c := accepted.(*conn) //nolint:forcetypeassert // what the listener gives
			write(t, client, "GET ")
			if _, err := c.stream.Read(make([]byte, 1)); err != nil { // what is left has come, too
				t.Fatal(err)
			}
			longAgo := func() { c.idleSince.Store(int64(-time.Hour)) }
			longAgo()
			if l.makeWay(); c.idleSince.Load() == 0 {
				t.Fatal("it made way, although it had asked")
			}
			if _, err := c.stream.Read(make([]byte, 8)); err != nil {
				t.Fatal(err)
			}
			longAgo()
			if after := l.makeWay(); after != 0 || c.idleSince.Load() != 0 {
				t.Fatalf("it makes no way: to be tried again after %v", after)
			}
			if n, err := client.Read(make([]byte, 1)); err == nil {
				t.Errorf("got %d bytes, want the end", n)
			}
		})
	}
}

// TestRequestsDoNotMakeWay: where each connection has one under way, the next waits for its end, or for the end of the listener.
func TestRequestsDoNotMakeWay(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	path, l := serveBounded(t, 2, func(server *http.Server) {
		server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/wait" {
				started <- struct{}{}
				<-release
			}
			w.WriteHeader(http.StatusNoContent)
		})
	})
	first, second := dialSocket(t, path), dialSocket(t, path)
	for _, c := range []net.Conn{first, second} {
		write(t, c, get("/wait"))
		<-started
	}
	third := dialSocket(t, path)
	write(t, third, get("/"))
	if after := l.makeWay(); after != minIdle {
		t.Errorf("got %v, want to try again after %v", after, minIdle)
	}
	release <- struct{}{} // one of them ends, and is idle for minIdle
	if response, _ := readReply(t, bufio.NewReader(third), http.MethodGet); response.StatusCode != http.StatusNoContent {
		t.Errorf("got %s", response.Status)
	}
	fourth := dialSocket(t, path)
	write(t, fourth, get("/wait"))
	<-started
	waits := dialSocket(t, path)
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if n, err := waits.Read(make([]byte, 1)); err == nil {
		t.Errorf("got %d bytes, want its end", n)
	}
	close(release)
	answered := 0
	for _, c := range []net.Conn{first, second, fourth} {
		if response, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil {
			_ = response.Body.Close()
			answered++
		}
	}
	if answered != 3 {
		t.Errorf("%d requests that were under way were answered, want 3", answered)
	}
}
