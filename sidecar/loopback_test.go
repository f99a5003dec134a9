package sidecar

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/porttest"
)

// decryptDoor is a front door whose body is a kmsv1.DecryptRequest, and whose answer is the plaintext.
type decryptDoor struct{ service kmsv1.KeyServiceClient }

func (d decryptDoor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	request := &kmsv1.DecryptRequest{}
	if err = errors.Join(err, proto.Unmarshal(body, request)); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	response, err := d.service.Decrypt(r.Context(), request)
	if err != nil {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(response.GetPlaintext())))
	_, _ = w.Write(response.GetPlaintext())
}

func decryptDoors(service kmsv1.KeyServiceClient, _ *slog.Logger) doors {
	return doors{aws: decryptDoor{service}, alibaba: http.NotFoundHandler(), counts: newDoorCounts()}
}

func TestRunServesTheFrontDoors(t *testing.T) {
	p := newPod(t, "orders")
	p.put(t, "orders", 1, testPlaintext)
	p.config.LoopbackPort = int(porttest.Reserve(t).Port())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- run(ctx, p.config, decryptDoors, newWatchdog()) }()
	if err := p.wait(t); err != nil {
		t.Fatal(err)
	}

	blob := p.service.Seal(t, "orders", 7, []byte("another plaintext"), nil)
	body, err := proto.Marshal(&kmsv1.DecryptRequest{CiphertextBlob: blob})
	if err != nil {
		t.Fatal(err)
	}
	host := "localhost:" + strconv.Itoa(p.config.LoopbackPort)
	request := strings.Replace(postDoor("/", string(body), "X-Amz-Target: x"), "localhost", host, 1)
	for name, c := range map[string]net.Conn{"the socket": dialSocket(t, p.config.Socket), "the port": dialPort(t, p.config.LoopbackPort)} {
		write(t, c, request)
		in := bufio.NewReader(c)
		if response, plaintext := readReply(t, in, http.MethodPost); string(plaintext) != "another plaintext" {
			t.Errorf("%s: got %s, %q", name, response.Status, plaintext)
		}
		write(t, c, strings.Replace(get("/v1/data-keys/orders", "Accept: "+mediaBytes), "localhost", host, 1))
		want := http.StatusNotFound
		if name == "the socket" {
			want = http.StatusOK
		}
		if response, _ := readReply(t, in, http.MethodGet); response.StatusCode != want {
			t.Errorf("%s: a data key: got %s, want %d", name, response.Status, want)
		}
	}
	if c, err := net.Dial("tcp", strings.Replace(host, "localhost", "127.0.0.2", 1)); err == nil {
		_ = c.Close()
		t.Error("the port is open on another address than 127.0.0.1")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", host); err == nil {
		_ = c.Close()
		t.Error("the port is still open")
	}
	checkHides(t, "the log", p.logs.String(), []byte("another plaintext"))
}

// TestRunEndsWhereThePortIsTaken: before it serves anything.
func TestRunEndsWhereThePortIsTaken(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := newPod(t, "orders")
	p.config.LoopbackPort = l.Addr().(*net.TCPAddr).Port
	err = Run(t.Context(), p.config)
	want := "loopback port " + strconv.Itoa(p.config.LoopbackPort) + ": another process of the pod listens on it: choose another port in the " +
		"pod's annotation datakeys.io/loopback-port"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, err := os.Lstat(p.config.Socket); err == nil {
		t.Error("there is a socket")
	}
}

// TestRunFreesThePort: where the socket cannot be made, the port is not left open.
func TestRunFreesThePort(t *testing.T) {
	p := newPod(t, "orders")
	p.config.LoopbackPort, p.config.Socket = int(porttest.Reserve(t).Port()), "/proc/1/no-such-directory/s"
	if err := Run(t.Context(), p.config); err == nil || !strings.Contains(err.Error(), "its directory must exist") {
		t.Errorf("got %v", err)
	}
	c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(p.config.LoopbackPort))
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want a port that nobody listens on", err)
	}
	if err == nil {
		_ = c.Close()
	}
}
