package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/datakeys/datakeys/internal/porttest"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

// crowd is how many connections one process of the pod opens and leaves open, some at a time.
const crowd, openers = 10_000, 2

const (
	// maxWait is how long a client waits for its answer beside a crowd. Without one it is well under a millisecond.
	maxWait = 5 * time.Second
	// maxCrowded is what a sidecar may be resident with beside a crowd: the least that its container may be limited to is 32 MiB.
	maxCrowded = 28 << 20
)

// TestACrowdOfConnections: whoever opens connections without end, on the socket or on the port, keeps nobody else out, and takes little of
// the memory that a sidecar's container has.
func TestACrowdOfConnections(t *testing.T) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	files.Cur = files.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil || files.Max < crowd+1000 {
		t.Fatalf("RLIMIT_NOFILE is %d, %v: this test opens %d connections", files.Max, err, crowd)
	}
	s := startServing(t, build(t))
	getKey := "GET /v1/data-keys/orders HTTP/1.1\r\nHost: localhost\r\n\r\n"
	for name, each := range map[string]struct {
		to       net.Addr
		ask      string // by others
		says     string
		answered bool
	}{
		"connections to the socket that say nothing":     {s.socket, getKey, "", false},
		"connections to the socket that begin a request": {s.socket, getKey, "POST / HTTP/1.1\r\nHost: loc", false},
		"connections to the socket that have asked once": {s.socket, getKey, s.askDoor, true},
		"connections to the port that say nothing":       {s.port, s.askDoor, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			done := make(chan struct{})
			others := s.others(t, each.to, each.ask, done)
			start := time.Now()
			conns, refused := s.crowd(t, each.to, each.says, each.answered)
			t.Logf("%d connections, %d not made, in %v", len(conns), refused, time.Since(start))
			s.answer(t, each.to, each.ask) // one that comes last
			close(done)
			t.Logf("others: %s; resident: %d bytes", <-others, residentOf(t, s.cmd.Process.Pid))
			if n := residentOf(t, s.cmd.Process.Pid); n > maxCrowded {
				t.Errorf("resident: %d bytes: must be at most %d", n, maxCrowded)
			}
			for _, c := range conns {
				_ = c.Close()
			}
		})
	}
	s.stop(t)
}

// serving is a sidecar of the binary that is released.
type serving struct {
	socket, port net.Addr
	askDoor      string // a request for a front door that it answers itself, with 400
	cmd          *exec.Cmd
}

func startServing(t *testing.T, binary string) *serving {
	t.Helper()
	service, mount := sidecartest.NewKeyService(t), sidecartest.NewMount(t)
	dir, err := os.MkdirTemp("", "dk") //nolint:usetesting // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("pod-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	mount.Put(t, "orders", map[string][]byte{"ciphertextBlob": service.Seal(t, "orders", 1, []byte("0123456789abcdef0123456789ABCDEF"), nil)})
	reserved := porttest.Reserve(t)
	s := &serving{socket: &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"}, port: net.TCPAddrFromAddrPort(reserved)}
	port := strconv.Itoa(int(reserved.Port()))
	s.askDoor = "POST / HTTP/1.1\r\nHost: localhost:" + port + "\r\nX-Amz-Target: TrentService.Decrypt\r\nContent-Length: 2\r\n\r\n{}"
	s.cmd = exec.CommandContext(context.WithoutCancel(t.Context()), binary, "--data-keys=orders", "--keys-dir="+mount.Dir,
		"--token-file="+token, "--socket="+s.socket.String(), "--loopback-port="+port, "--key-service="+service.Address)
	s.cmd.Env = []string{"DATAKEYS_ROOTS=" + string(service.Roots)}
	s.cmd.Stderr = os.Stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.cmd.Process.Kill(); _ = s.cmd.Wait() })
	if code, out := runBinary(t, nil, binary, "wait", "--socket="+s.socket.String(), "--timeout=1m"); code != 0 {
		t.Fatalf("wait: got %d, %q", code, out)
	}
	return s
}

// stop sees that it still runs, and ends it.
func (s *serving) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// crowd opens connections, says something on each, and reads one answer where there is one.
func (s *serving) crowd(t *testing.T, to net.Addr, says string, answered bool) (conns []net.Conn, refused int) {
	t.Helper()
	var (
		mu  sync.Mutex
		all sync.WaitGroup
	)
	for range openers {
		all.Go(func() {
			for range crowd / openers {
				c, err := dial(to)
				mu.Lock()
				if err != nil {
					refused++
					mu.Unlock()
					continue
				}
				conns = append(conns, c)
				mu.Unlock()
				_, _ = io.WriteString(c, says) // the sidecar may have closed it already
				if answered {
					_ = c.SetReadDeadline(time.Now().Add(maxWait))
					_, _ = c.Read(make([]byte, 4096))
				}
			}
		})
	}
	all.Wait()
	return conns, refused
}

func dial(to net.Addr) (net.Conn, error) {
	return (&net.Dialer{Timeout: maxWait}).Dial(to.Network(), to.String())
}

// others asks all the time, on a connection of its own each time, until done, and tells how long that took.
func (s *serving) others(t *testing.T, to net.Addr, request string, done <-chan struct{}) <-chan string {
	t.Helper()
	told := make(chan string, 1)
	go func() {
		n, worst := 0, time.Duration(0)
		defer func() { told <- fmt.Sprintf("%d answers, in %v at most", n, worst) }()
		for {
			select {
			case <-done:
				return
			default:
			}
			start := time.Now()
			s.answer(t, to, request)
			worst = max(worst, time.Since(start))
			n++
		}
	}()
	return told
}

// answer asks on a new connection, and on another one where it came to ask too late itself: what says nothing for 20 ms may have to make way.
func (s *serving) answer(t *testing.T, to net.Addr, request string) {
	t.Helper()
	deadline := time.Now().Add(maxWait)
	c, err := dial(to)
	for errors.Is(err, syscall.EAGAIN) && time.Now().Before(deadline) { // the queue of the socket is full: see unix(7)
		c, err = dial(to)
	}
	if err != nil {
		t.Errorf("not connected: %v", err)
		return
	}
	defer func() { _ = c.Close() }()
	connected := time.Now()
	_ = c.SetDeadline(deadline)
	_, err = io.WriteString(c, request)
	late := time.Since(connected) >= 20*time.Millisecond
	var response *http.Response
	if err == nil {
		response, err = http.ReadResponse(bufio.NewReader(c), nil)
	}
	switch {
	case err != nil && late:
		s.answer(t, to, request)
		return
	case err != nil:
		t.Errorf("no answer: %v", err)
		return
	}
	body, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if err != nil || len(body) == 0 || response.StatusCode >= http.StatusInternalServerError {
		t.Errorf("got %s %q, %v", response.Status, body, err)
	}
}
