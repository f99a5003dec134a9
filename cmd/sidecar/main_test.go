package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

// What one sidecar may cost; there is one in every pod.
const (
	maxBinary   = 14_000_000
	maxResident = 20_000_000
)

// releaseTags are what hack/images.sh builds with.
const releaseTags = "-tags=grpcnotrace"

// build builds the sidecar as it is released and returns its path.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sidecar")
	cmd := exec.CommandContext(t.Context(), "go", "build", releaseTags, "-trimpath", "-ldflags=-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// runBinary runs it to its end and returns the exit code and what it said.
func runBinary(t *testing.T, env []string, binary string, args ...string) (code int, output string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = env
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// TestLinksLittle: what is linked is in every pod, and no sidecar has a use for these. Templates cost the most: for what calls methods by
// their names, the linker keeps all methods there are.
func TestLinksLittle(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", releaseTags, "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	forbidden := regexp.MustCompile(`^(k8s\.io|sigs\.k8s\.io)/|^github\.com/(aws|aliyun|alibabacloud|hashicorp|Azure)|azure|cloud\.google\.com|` +
		`^github\.com/datakeys/datakeys/(controllers|api/v1alpha1|internal/(kms|seal|inject|certs))|^(testing|net/http/pprof|plugin|text/template|html/template)$`)
	seen := 0
	for dep := range strings.Lines(string(out)) {
		dep = strings.TrimSpace(dep)
		if forbidden.MatchString(dep) {
			t.Errorf("the sidecar links %s", dep)
		}
		if dep == "github.com/datakeys/datakeys/internal/envelope" || dep == "google.golang.org/grpc" {
			seen++
		}
	}
	if seen != 2 {
		t.Error("the list lacks what the sidecar does link")
	}
}

// TestBinary runs the sidecar and its commands as the kubelet does.
func TestBinary(t *testing.T) {
	binary := build(t)
	if info, err := os.Stat(binary); err != nil || info.Size() > maxBinary {
		t.Errorf("the binary has %d bytes, %v: must be at most %d", info.Size(), err, maxBinary)
	} else {
		t.Logf("binary: %d bytes", info.Size())
	}

	service, mount := sidecartest.NewKeyService(t), sidecartest.NewMount(t)
	dir, err := os.MkdirTemp("", "dk") //nolint:usetesting // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket, token := filepath.Join(dir, "s"), filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("pod-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	plaintext := []byte("0123456789abcdef0123456789ABCDEF")
	mount.Put(t, "orders", map[string][]byte{"ciphertextBlob": service.Seal(t, "orders", 1, plaintext, nil)})
	mount.Put(t, "denied", map[string][]byte{"ciphertextBlob": service.Seal(t, "denied", 1, plaintext, nil)})
	service.Refuse("denied", codes.PermissionDenied, "may not decrypt datakeyrequests/denied")

	start := func(names string) (pid int, stop func()) {
		cmd := exec.CommandContext(context.WithoutCancel(t.Context()), binary, "--data-keys="+names, "--keys-dir="+mount.Dir,
			"--token-file="+token, "--socket="+socket, "--key-service="+service.Address)
		cmd.Env = []string{"DATAKEYS_ROOTS=" + string(service.Roots)}
		var log bytes.Buffer
		cmd.Stderr = &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd.Process.Pid, func() {
			t.Helper()
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("after SIGTERM: %v\n%s", err, &log)
			}
			if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after SIGTERM the socket is left: %v", err)
			}
			if bytes.Contains(log.Bytes(), plaintext) {
				t.Error("the log holds the plaintext")
			}
		}
	}

	if code, out := runBinary(t, nil, binary, "ready", "--socket="+socket); code != 1 || !strings.Contains(out, "no sidecar answers") {
		t.Errorf("ready without a sidecar: got %d, %q", code, out)
	}
	if code, out := runBinary(t, nil, binary, "wait", "--socket="+socket, "--timeout=50ms"); code != 1 ||
		!strings.Contains(out, "waited in vain: no sidecar answers") {
		t.Errorf("wait without a sidecar: got %d, %q", code, out)
	}

	pid, stop := start("orders")
	if code, out := runBinary(t, nil, binary, "wait", "--socket="+socket, "--timeout=1m"); code != 0 || out != "" {
		t.Errorf("wait: got %d, %q", code, out)
	}
	if code, out := runBinary(t, nil, binary, "ready", "--socket="+socket); code != 0 || out != "" {
		t.Errorf("ready: got %d, %q", code, out)
	}
	serveSome(t, socket)
	checkProcess(t, pid)
	stop()

	_, stop = start("orders,denied")
	defer stop()
	if code, out := runBinary(t, nil, binary, "wait", "--socket="+socket, "--timeout=1m"); code != 1 ||
		!strings.Contains(out, `data key "denied" is not issued (Refused: AccessDenied): may not decrypt datakeyrequests/denied`) {
		t.Errorf("wait for a refused key: got %d, %q", code, out)
	}
	if code, out := runBinary(t, nil, binary, "ready", "--socket="+socket); code != 1 || !strings.Contains(out, "AccessDenied") {
		t.Errorf("ready with a refused key: got %d, %q", code, out)
	}
}

// serveSome asks often enough for memory to show what serving costs.
func serveSome(t *testing.T, socket string) {
	t.Helper()
	const get = "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n"
	encrypt := func(n int) string {
		return fmt.Sprintf("POST /v1/data-keys/orders/encrypt HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", n, strings.Repeat("x", n))
	}
	requests := map[string]int{ // and how often, on each connection
		fmt.Sprintf(get, "/v1/data-keys/orders"): 500,
		fmt.Sprintf(get, "/metrics"):             10,
		encrypt(1 << 10):                         500,
		encrypt(64 << 10):                        50,
	}
	for range 20 {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		in := bufio.NewReader(c)
		for request, n := range requests {
			for range n {
				if _, err := c.Write([]byte(request)); err != nil {
					t.Fatal(err)
				}
				response, err := http.ReadResponse(in, nil)
				if err != nil || response.StatusCode != http.StatusOK {
					t.Fatalf("got %v, %v", response, err)
				}
				if _, err := io.Copy(io.Discard, response.Body); err != nil {
					t.Fatal(err)
				}
				_ = response.Body.Close()
			}
		}
	}
}

// checkProcess looks at a sidecar that serves, from outside.
func checkProcess(t *testing.T, pid int) {
	t.Helper()
	resident := residentOf(t, pid)
	if resident > maxResident {
		t.Errorf("resident: %d bytes: must be at most %d", resident, maxResident)
	}
	t.Logf("resident: %d bytes", resident)
	checkNoCore(t, pid)
}

// residentOf is the memory that a process has, in bytes.
func residentOf(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	match := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status)
	if match == nil {
		t.Fatalf("no VmRSS in\n%s", status)
	}
	kib, err := strconv.Atoi(string(match[1]))
	if err != nil {
		t.Fatal(err)
	}
	return kib * 1024
}

// checkNoCore looks for the part of coredump.Forbid that shows from outside whatever UID looks.
func checkNoCore(t *testing.T, pid int) {
	t.Helper()
	limits, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "limits"))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`Max core file size\s+0\s+0\s`).Match(limits) {
		t.Errorf("a core may be dumped:\n%s", limits)
	}
}

// TestCommandsAreClosedToo: a container that shares the pod's process namespace, and the sidecar's user and group, could
// otherwise read the token through /proc/PID/root of the commands that the kubelet runs in the sidecar's container.
func TestCommandsAreClosedToo(t *testing.T) {
	binary := build(t)
	for _, command := range []string{"wait", "ready"} {
		t.Run(command, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "dk") //nolint:usetesting // a socket's path must be short
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(dir, "s"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			cmd := exec.CommandContext(t.Context(), binary, command, "--socket="+l.Addr().String(), "--timeout=1m")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			checkNoCore(t, cmd.Process.Pid)
			if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			_ = c.Close()
		})
	}
}

func TestUsage(t *testing.T) {
	binary := build(t)
	for name, test := range map[string]struct {
		args []string
		code int
		want string
	}{
		"help":                     {[]string{"--help"}, 0, "-key-service host:port"},
		"no flags":                 {nil, 1, `data keys: "": must be the name of a DataKeyRequest`},
		"an unknown flag":          {[]string{"--verbose"}, 1, "flag provided but not defined: -verbose"},
		"an unknown command":       {[]string{"watch"}, 1, `"watch": is neither a flag nor a command`},
		"wait without a socket":    {[]string{"wait"}, 1, "--socket: must be the path"},
		"ready for no time":        {[]string{"ready", "--socket=/s", "--timeout=0s"}, 1, "--timeout: must be more than 0"},
		"wait with something more": {[]string{"wait", "--socket=/s", "orders"}, 1, `"orders": is neither`},
		"a port that is none":      {[]string{"--loopback-port=http"}, 1, "loopback-port"},
		"a privileged port":        {[]string{"--loopback-port=80"}, 1, "loopback port 80: must be 1024 to 65535"},
		"a lease too short":        {[]string{"--lease=1s"}, 1, "lease 1s: must be 5s to 5m0s"},
		"a coast time too long":    {[]string{"--coast=25h"}, 1, "coast time 25h0m0s: must be 0s to 24h0m0s"},
		"a log level that is none": {[]string{"--log-level=LOUD"}, 1, "log-level"},
	} {
		t.Run(name, func(t *testing.T) {
			if code, out := runBinary(t, nil, binary, test.args...); code != test.code || !strings.Contains(out, test.want) {
				t.Errorf("got %d, want %d with %q:\n%s", code, test.code, test.want, out)
			}
		})
	}
}

// The kubelet's event about a hook that failed does not repeat what the hook said: the container's last words do.
func TestWaitLeavesItsReason(t *testing.T) {
	words := filepath.Join(t.TempDir(), "termination-log")
	if err := os.WriteFile(words, []byte("something older and much longer than the reason that comes now, to see that nothing of it stays behind it: "+strings.Repeat("x", 300)), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"wait", "--socket=" + filepath.Join(t.TempDir(), "s"), "--timeout=1ms", "--termination-log=" + words}
	err := run(t.Context(), args, func(string) string { return "" }, io.Discard)
	if err == nil {
		t.Fatal("waited for nothing, and was content")
	}
	got, readErr := os.ReadFile(words)
	if readErr != nil || string(got) != err.Error()+"\n" {
		t.Errorf("the last words are %q, error %v; want %q", got, readErr, err)
	}
	absent := filepath.Join(t.TempDir(), "absent")
	if err := run(t.Context(), append(args[:3:3], "--termination-log="+absent), func(string) string { return "" }, io.Discard); err == nil {
		t.Fatal("waited for nothing, and was content")
	}
	if _, err := os.Stat(absent); !os.IsNotExist(err) {
		t.Errorf("a file was made where there was none: %v", err)
	}
}
