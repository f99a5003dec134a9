package sidecar

import (
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
	server := newServer(newStore(nil), slog.New(slog.DiscardHandler), newWatchdog())
	go func() { _ = server.Serve(second) }()
	defer func() { _ = server.Close() }()
	if response, _ := roundTrip(t, path, get("/healthz")); response.StatusCode != http.StatusOK {
		t.Errorf("got %s", response.Status)
	}
}
