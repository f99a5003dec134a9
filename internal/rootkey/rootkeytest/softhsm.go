package rootkeytest

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// SoftHSM is a Kubernetes KMS v2 plugin, test/softhsm-plugin, that runs as a process of its own and keeps its keys in a
// SoftHSM2 token of its own. The test's end kills it and removes the token.
type SoftHSM struct {
	// Socket is the path of the unix socket that the plugin listens on.
	Socket string

	dir     string // short: the path of a socket has 107 bytes at most
	running *exec.Cmd
}

// NewSoftHSM builds the plugin, makes a token with one key, and starts the plugin. SoftHSM2 and a C compiler must be installed.
func NewSoftHSM(t testing.TB) *SoftHSM {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "dk") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	h := &SoftHSM{Socket: filepath.Join(dir, "kms.sock"), dir: dir}

	//nolint:gosec // a test's own directory
	build := exec.CommandContext(t.Context(), "go", "build", "-o", h.path("softhsm-plugin"), "github.com/datakeys/datakeys/test/softhsm-plugin")
	build.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building test/softhsm-plugin, which needs a C compiler: %v\n%s", err, out)
	}
	pin := make([]byte, 16)
	rand.Read(pin)
	for name, content := range map[string]string{
		"pin":           hex.EncodeToString(pin),
		"softhsm2.conf": "directories.tokendir = " + h.path("tokens") + "\nobjectstore.backend = file\nlog.level = ERROR\n",
	} {
		if err := os.WriteFile(h.path(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(h.path("tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.do(t, "init")
	t.Cleanup(func() { h.Kill(t) })
	h.Start(t)
	return h
}

// RootKey returns the URI of the token's key as a root key.
func (h *SoftHSM) RootKey() (uri string) { return "kmsv2://" + h.Socket }

// Start starts the plugin and returns once it listens.
func (h *SoftHSM) Start(t testing.TB) {
	t.Helper()
	// t.Context ends before the clean-ups, which say how the process ends.
	cmd := h.command(context.WithoutCancel(t.Context()), t, "serve", "-socket", h.Socket)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "serving\n" {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Fatalf("the plugin does not serve: it says %q, %v\n%s", line, err, stderr.String())
	}
	h.running = cmd
}

// Rotate makes a new key in the token, as the tools of an HSM would. The plugin uses it from now on, and the others for what
// they encrypted.
func (h *SoftHSM) Rotate(t testing.TB) {
	t.Helper()
	h.do(t, "rotate")
}

// Stop has the plugin finish what it does and end.
func (h *SoftHSM) Stop(t testing.TB) {
	t.Helper()
	h.end(t, syscall.SIGTERM)
}

// Kill ends the plugin at once and leaves its socket behind. It does nothing where the plugin does not run.
func (h *SoftHSM) Kill(t testing.TB) {
	t.Helper()
	h.end(t, syscall.SIGKILL)
}

func (h *SoftHSM) end(t testing.TB, signal syscall.Signal) {
	t.Helper()
	if h.running == nil {
		return
	}
	if err := h.running.Process.Signal(signal); err != nil {
		t.Errorf("ending the plugin: %v", err)
	}
	err := h.running.Wait()
	if signal == syscall.SIGTERM && err != nil {
		t.Errorf("the plugin did not end well: %v", err)
	}
	h.running = nil
}

// do runs one of the plugin's commands that end.
func (h *SoftHSM) do(t testing.TB, name string) {
	t.Helper()
	if out, err := h.command(t.Context(), t, name).CombinedOutput(); err != nil {
		t.Fatalf("softhsm-plugin %s: %v\n%s", name, err, out)
	}
}

func (h *SoftHSM) command(ctx context.Context, t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	args = append([]string{name, "-module", softHSMModule(t), "-token", "datakeys", "-pin-file", h.path("pin")}, args...)
	cmd := exec.CommandContext(ctx, h.path("softhsm-plugin"), args...) //nolint:gosec // the test built it
	cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+h.path("softhsm2.conf"))
	return cmd
}

func (h *SoftHSM) path(name string) string { return filepath.Join(h.dir, name) }

// softHSMModule finds the PKCS#11 module of Debian's package.
func softHSMModule(t testing.TB) string {
	t.Helper()
	for _, pattern := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/*/softhsm/libsofthsm2.so"} {
		if found, err := filepath.Glob(pattern); err == nil && len(found) > 0 {
			return found[0]
		}
	}
	t.Fatal("SoftHSM2 is missing; install it as root: apt-get install softhsm2")
	return ""
}
