package sidecar

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/datakeys/datakeys/internal/porttest"
)

// whole is a whole sidecar, as Run runs it, whose watchdog the test may hurry.
type whole struct {
	*pod
	dog     *watchdog
	targets map[string]target
}

// target is a way to ask for the plaintext secretData.
type target struct {
	dial    func(testing.TB) net.Conn
	path    string
	headers string // all but those about the body
	body    string
	answer  []byte // what the answer has in it
}

func newWhole(t testing.TB) *whole {
	t.Helper()
	w := &whole{pod: newPod(t, "orders"), dog: newWatchdog()}
	w.put(t, "orders", 1, testPlaintext)
	w.config.LoopbackPort = int(porttest.Reserve(t).Port())
	w.startWith(t, w.dog)
	t.Cleanup(func() {
		w.stop()
		if err := <-w.done; err != nil {
			t.Error(err)
		}
	})
	if err := w.wait(t); err != nil {
		t.Fatal(err)
	}
	blob := w.service.Seal(t, "orders", 7, secretData, nil)
	host := "Host: localhost:" + strconv.Itoa(w.config.LoopbackPort) + "\r\n"
	socket := func(t testing.TB) net.Conn { t.Helper(); return dialSocket(t, w.config.Socket) }
	port := func(t testing.TB) net.Conn { t.Helper(); return dialPort(t, w.config.LoopbackPort) }
	native := target{
		socket, "/v1/data-keys/orders/decrypt", host + "Content-Type: application/json\r\n",
		`{"ciphertext":"` + b64(sealedMessage(t, testPlaintext, 1, nil, secretData)) + `"}`, []byte(b64(secretData)),
	}
	aws := target{
		socket, "/", host + "X-Amz-Target: TrentService.Decrypt\r\nContent-Type: application/x-amz-json-1.1\r\n",
		`{"CiphertextBlob":"` + b64(blob) + `"}`, []byte(b64(secretData)),
	}
	alibaba := target{
		socket, "/", host + "x-kms-apiname: AdvanceDecrypt\r\nx-kms-apiversion: dkms-gcs-0.2\r\nContent-Type: application/x-protobuf\r\n",
		string(protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), blob)), secretData,
	}
	awsPort, alibabaPort := aws, alibaba
	awsPort.dial, alibabaPort.dial = port, port
	w.targets = map[string]target{
		"the native API": native, "AWS KMS on the socket": aws, "AWS KMS on the port": awsPort,
		"Alibaba Cloud KMS on the socket": alibaba, "Alibaba Cloud KMS on the port": alibabaPort,
	}
	return w
}

// head is the head of a request for the target, to the end of it.
func (x target) head(headers ...string) string {
	return "POST " + x.path + " HTTP/1.1\r\n" + x.headers + strings.Join(append(headers, "\r\n"), "\r\n")
}

func (x target) request() string { return x.head(fmt.Sprint("Content-Length: ", len(x.body))) + x.body }

// check has everybody else served, each on a connection of his own.
func (w *whole) check(t *testing.T) {
	t.Helper()
	for name, x := range w.targets {
		c := x.dial(t)
		write(t, c, x.request())
		if response, body := readReply(t, bufio.NewReader(c), http.MethodPost); response.StatusCode != http.StatusOK ||
			!bytes.Contains(body, x.answer) {
			t.Errorf("%s, for another client: got %s %q", name, response.Status, body)
		}
		_ = c.Close()
	}
}

// slow is a client that says something, and then a byte more each second, for as long as it may.
type slow struct {
	says, more string
	seconds    int // until it is cut off
}

// TestSlowClientsOfAWholeSidecar: whoever sends slowly is cut off in time, with no answer that looks like success; and all others are served
// meanwhile.
func TestSlowClientsOfAWholeSidecar(t *testing.T) {
	w := newWhole(t)
	all := map[string]slow{}
	dials := map[string]func(testing.TB) net.Conn{}
	for name, x := range w.targets {
		busy := int(maxBusy / tick)
		body := busy
		if x.path == doorPath {
			body = int(maxDoor / tick)
		}
		for what, s := range map[string]slow{
			"nothing":                     {"", "", busy},
			"a head that does not end":    {"POST " + x.path + " HTTP/1.1\r\nHo", "", busy},
			"a head, a byte each second":  {"", x.head(), busy},
			"a body that never comes":     {x.head("Content-Length: 1000"), "", body},
			"a body, a byte each second":  {x.head("Content-Length: 1000"), x.body + strings.Repeat(" ", 1000), body},
			"chunks that never come":      {x.head("Transfer-Encoding: chunked"), "", body},
			"a chunk, a byte each second": {x.head("Transfer-Encoding: chunked") + "fff\r\n", strings.Repeat(" ", 1000), body},
			"a chunk beyond all memory":   {x.head("Transfer-Encoding: chunked") + "7fffffffffffffff\r\n", strings.Repeat(" ", 1000), body},
			"a trailer that does not end": {x.head("Transfer-Encoding: chunked") + "0\r\nX: ", strings.Repeat("y", 1000), body},
		} {
			all[name+": "+what], dials[name+": "+what] = s, x.dial
		}
	}
	type end struct {
		name, got string
		err       error
	}
	ended := make(chan end, len(all))
	conns := map[string]net.Conn{}
	for name, s := range all {
		c := dials[name](t)
		conns[name] = c
		write(t, c, s.says)
		go func() {
			got, err := io.ReadAll(c)
			ended <- end{name, string(got), err}
		}()
	}
	const slack = 5 // seconds that have gone by before the sidecar had read all that was said
	for second := range int(maxDoor/tick) + 2*slack {
		w.check(t)
		w.dog.look()
		for name, s := range all {
			if second < len(s.more) && conns[name] != nil {
				_, _ = io.WriteString(conns[name], s.more[second:second+1]) // it may be cut off
			}
		}
		for waiting := true; waiting; {
			select {
			case e := <-ended:
				delete(conns, e.name)
				if strings.Contains(e.got, "HTTP/1.1 2") {
					t.Errorf("%s: got %q", e.name, e.got)
				}
				if e.err != nil && !errors.Is(e.err, syscall.ECONNRESET) && !errors.Is(e.err, syscall.EPIPE) {
					t.Errorf("%s: got %v, want the end of the connection", e.name, e.err)
				}
				if second > all[e.name].seconds+slack {
					t.Errorf("%s: cut off after %d s, want %d", e.name, second, all[e.name].seconds)
				}
			default:
				waiting = false
			}
		}
	}
	w.check(t)
	for len(conns) > 0 {
		e := <-ended
		t.Errorf("%s: not cut off in time", e.name)
		delete(conns, e.name)
	}
}

// TestClientsThatReadNothing, and ask without end, are cut off when no more fits on the way; all others are served meanwhile.
func TestClientsThatReadNothing(t *testing.T) {
	w := newWhole(t)
	ended := make(chan error, len(w.targets))
	for _, x := range w.targets {
		c := x.dial(t)
		request := strings.Repeat(x.head("Content-Length: 2")+"{}", 100) // refused at once
		go func() {
			for {
				if _, err := io.WriteString(c, request); err != nil {
					ended <- err
					return
				}
			}
		}()
	}
	for left := len(w.targets); left > 0; {
		w.check(t)
		w.dog.look()
		select {
		case err := <-ended:
			left--
			if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Errorf("got %v, want the end of the connection", err)
			}
		default:
		}
	}
}

// TestPatienceWithSlowClients: who sends a byte at a time, and has it all there in time, gets his answer.
func TestPatienceWithSlowClients(t *testing.T) {
	w := newWhole(t)
	for name, x := range w.targets {
		for how, request := range map[string]string{
			"with its length": x.request(),
			"in chunks":       x.head("Transfer-Encoding: chunked") + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(x.body), x.body),
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				c := x.dial(t)
				for i := range len(request) {
					write(t, c, request[i:i+1])
				}
				if response, body := readReply(t, bufio.NewReader(c), http.MethodPost); response.StatusCode != http.StatusOK ||
					!bytes.Contains(body, x.answer) {
					t.Errorf("got %s %q", response.Status, body)
				}
			})
		}
	}
}

// resources are what a client that is gone may not keep.
type resources struct{ goroutines, files int }

func resourcesNow(t testing.TB) resources {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return resources{runtime.NumGoroutine(), len(files)}
}

// settled are the resources when what goes has gone.
func settled(t testing.TB) resources {
	t.Helper()
	least := resourcesNow(t)
	for range 1000 {
		now := resourcesNow(t)
		least.goroutines, least.files = min(least.goroutines, now.goroutines), min(least.files, now.files)
		runtime.Gosched()
	}
	return least
}

// checkGivenBack waits until there are no more than before.
func checkGivenBack(t *testing.T, before resources) {
	t.Helper()
	deadline := time.Now().Add(time.Minute) // only a failure takes so long
	for now := resourcesNow(t); now.goroutines > before.goroutines || now.files > before.files; now = resourcesNow(t) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("there are %+v, and were %+v\n%s", now, before, stacks[:runtime.Stack(stacks, true)])
		}
		runtime.Gosched()
	}
}

// TestClientsThatDisconnect, wherever they are: nothing of them is left, and all others are served.
func TestClientsThatDisconnect(t *testing.T) {
	w := newWhole(t)
	w.check(t)
	before := settled(t)
	const each = 20
	for name, x := range w.targets {
		for where, says := range map[string]string{
			"before the head":     "",
			"in the head":         x.head()[:20],
			"behind the head":     x.head("Content-Length: 1000"),
			"in the body":         x.head("Content-Length: 1000") + x.body[:30],
			"in a chunk":          x.head("Transfer-Encoding: chunked") + "ff\r\n" + x.body[:30],
			"before the answer":   x.request(),
			"before many answers": strings.Repeat(x.request(), 50),
		} {
			for _, reset := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, reset: %t", name, where, reset), func(t *testing.T) {
					for range each {
						c := x.dial(t)
						write(t, c, says)
						if tcp, ok := c.(*net.TCPConn); ok && reset {
							_ = tcp.SetLinger(0) // a unix socket is always closed at once
						}
						_ = c.Close()
					}
				})
			}
		}
	}
	w.check(t)
	checkGivenBack(t, before)
}

// TestClientsThatDisconnectWhileTheyWait for the key service: their calls end, and those of others that travel in the same batch do not.
func TestClientsThatDisconnectWhileTheyWait(t *testing.T) {
	w := newWhole(t)
	w.check(t)
	before := settled(t)
	held, release := w.service.Hold()
	defer release()
	var leave, stay []net.Conn
	kept := map[net.Conn]target{}
	doors := func(each func(target)) {
		for _, x := range w.targets {
			if x.path == doorPath {
				each(x)
			}
		}
	}
	for range 10 {
		doors(func(x target) {
			gone, c := x.dial(t), x.dial(t)
			write(t, gone, x.request())
			write(t, c, x.request())
			leave, stay = append(leave, gone), append(stay, c)
			kept[c] = x
		})
	}
	for range 2 { // those under way; all others wait for them, as internal/keyservice has it
		<-held
	}
	for _, c := range leave {
		_ = c.Close()
	}
	native := w.targets["the native API"] // which asks no key service
	c := native.dial(t)
	write(t, c, native.request())
	if response, _ := readReply(t, bufio.NewReader(c), http.MethodPost); response.StatusCode != http.StatusOK {
		t.Errorf("got %s", response.Status)
	}
	_ = c.Close()
	release()
	var all sync.WaitGroup
	for _, c := range stay {
		all.Go(func() {
			response, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Errorf("no answer: %v", err)
				return
			}
			defer func() { _ = response.Body.Close() }()
			if body, err := io.ReadAll(response.Body); err != nil || !bytes.Contains(body, kept[c].answer) {
				t.Errorf("got %s %q, %v", response.Status, body, err)
			}
			_ = c.Close()
		})
	}
	all.Wait()
	w.check(t)
	checkGivenBack(t, before)
	checkHides(t, "the log", w.logs.String(), secretData)
}
