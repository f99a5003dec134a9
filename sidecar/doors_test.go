package sidecar

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// testDoor is a front door that answers with its name and the body that it was sent.
type testDoor string

func (d testDoor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<10))
	if string(body) == "say nothing" {
		return
	}
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	answer := append([]byte(d+": "), body...)
	w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	if len(body) == 1<<10 {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	}
	_, _ = w.Write(answer)
	clear(answer)
}

func testDoors(dog *watchdog) *doors {
	return &doors{aws: testDoor("aws"), alibaba: testDoor("alibaba"), dog: dog, counts: newDoorCounts()}
}

// serveDoors serves the front doors beside the native API.
func serveDoors(t testing.TB, change func(*http.Server, *doors)) string {
	t.Helper()
	return serveStore(t, testStore(t), func(server *http.Server, _ *listener, dog *watchdog) {
		d := testDoors(dog)
		server.Handler = d.beside(server.Handler)
		if change != nil {
			change(server, d)
		}
	})
}

func postDoor(path, body string, headers ...string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n%s\r\n%s", path, len(body),
		strings.Join(append(headers, ""), "\r\n"), body)
}

func TestDoors(t *testing.T) {
	path := serveDoors(t, nil)
	for name, test := range map[string]struct {
		request string
		status  int
		want    string // in the body
		header  string // in the header
	}{
		"AWS KMS":         {postDoor("/", "body", "X-Amz-Target: TrentService.Decrypt"), 200, "aws: body", ""},
		"its lower case":  {postDoor("/", "body", "x-amz-target: TrentService.Decrypt"), 200, "aws: body", ""},
		"an empty target": {postDoor("/", "", "X-Amz-Target:"), 200, "aws: ", ""},
		"Alibaba":         {postDoor("/", "body", "x-kms-apiname: Decrypt"), 200, "alibaba: body", ""},
		"a query":         {postDoor("/?x=1", "body", "x-kms-apiname: Decrypt"), 200, "alibaba: body", ""},
		"chunks": {
			"POST / HTTP/1.1\r\nHost: l\r\nX-Amz-Target: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n",
			200, "aws: body", "",
		},
		"neither": {
			postDoor("/", "{}"), 400, "has neither the header X-Amz-Target of AWS KMS nor the header x-kms-apiname", "Connection: close",
		},
		"neither, natively": {
			postDoor("/", ""), 400, "the native API has the paths /v1/data-keys, /v1/data-keys/{name}, ", "",
		},
		"no answer":         {postDoor("/", "say nothing", "X-Amz-Target: x"), 500, "InternalError", ""},
		"GET":               {get("/", "X-Amz-Target: x"), 405, `\"GET\" is not a method of this path`, "Allow: POST"},
		"OPTIONS":           {"OPTIONS / HTTP/1.1\r\nHost: l\r\n\r\n", 405, "are asked with POST", "Allow: POST"},
		"the native API":    {get("/healthz"), 200, `"status":"ok"`, ""},
		"another path":      {postDoor("/kms", "", "X-Amz-Target: x"), 404, "UnknownPath", ""},
		"more than it read": {postDoor("/", strings.Repeat("x", 2<<10), "X-Amz-Target: x"), 413, "aws: xxx", "Connection: close"},
		"a body that never comes": {
			"POST / HTTP/1.1\r\nHost: l\r\nContent-Length: 5\r\n\r\n", 400, "UnknownProtocol", "Connection: close",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, raw := dialSocket(t, path), &bytes.Buffer{}
			write(t, c, test.request)
			response, body := readReply(t, bufio.NewReader(io.TeeReader(c, raw)), http.MethodPost)
			header, _, _ := strings.Cut(raw.String(), "\r\n\r\n")
			if response.StatusCode != test.status || !bytes.Contains(body, []byte(test.want)) || !strings.Contains(header, test.header) {
				t.Errorf("got %s\n%s\nwant %d, %q, %q", header, body, test.status, test.want, test.header)
			}
			media := response.Header.Get("Content-Type")
			if response.StatusCode >= 400 && response.StatusCode != http.StatusRequestEntityTooLarge && media != "application/problem+json" {
				t.Errorf("got no problem details but %q", media)
			}
		})
	}
}

// TestDoorKeepsItsConnection: one connection, answer after answer, with the native API between them.
func TestDoorKeepsItsConnection(t *testing.T) {
	c := dialSocket(t, serveDoors(t, nil))
	in := bufio.NewReader(c)
	for range 3 {
		for request, want := range map[string]string{
			postDoor("/", "one", "X-Amz-Target: x"):  "aws: one",
			postDoor("/", "two", "x-kms-apiname: x"): "alibaba: two",
			get("/healthz"):                          `{"status":"ok"}` + "\n",
		} {
			write(t, c, request)
			if response, body := readReply(t, in, http.MethodPost); response.StatusCode != http.StatusOK || string(body) != want {
				t.Fatalf("got %v %q, want %q", response, body, want)
			}
		}
	}
}

// TestDoorAnswersAreCleared looks at the buffer of the connection after an answer of a front door.
func TestDoorAnswersAreCleared(t *testing.T) {
	conns := make(chan *conn, 1)
	path := serveDoors(t, func(server *http.Server, _ *doors) {
		inner := server.ConnContext
		server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
			conns <- c.(*conn) //nolint:forcetypeassert // what the listener gives
			return inner(ctx, c)
		}
	})
	c := dialSocket(t, path)
	write(t, c, postDoor("/", string(testPlaintext), "X-Amz-Target: x")+get("/healthz", "Connection: close"))
	answers, err := io.ReadAll(c)
	if err != nil || bytes.Count(answers, []byte("200 OK")) != 2 || !bytes.Contains(answers, testPlaintext) {
		t.Fatalf("got %v and %d bytes, want two answers", err, len(answers))
	}
	buffer := (<-conns).buffer
	buffer = buffer[:cap(buffer)]
	if len(buffer) < len(testPlaintext) {
		t.Fatalf("the buffer holds %d bytes: the answer did not go through it", len(buffer))
	}
	if i := slices.IndexFunc(buffer, func(b byte) bool { return b != 0 }); i >= 0 {
		t.Errorf("byte %d of the buffer is left", i)
	}
}

// TestDoorMayTakeItsTime: longer than a request of the native API, and not for ever.
func TestDoorMayTakeItsTime(t *testing.T) {
	reached, ended := make(chan struct{}), make(chan struct{})
	var dog *watchdog
	path := serveDoors(t, func(_ *http.Server, d *doors) {
		dog = d.dog
		d.aws = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.ReadAll(r.Body)
			close(reached)
			<-r.Context().Done()
			close(ended)
		})
	})
	c := dialSocket(t, path)
	write(t, c, postDoor("/", "body", "X-Amz-Target: x"))
	<-reached
	for range int(maxDoor / tick) {
		dog.look()
	}
	select {
	case <-ended:
		t.Error("ended too early")
	default:
	}
	dog.look()
	<-ended
}

// serveLoopback serves the port with the front doors of tests.
func serveLoopback(t testing.TB, conns int) (port int) {
	t.Helper()
	tcp, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port = tcp.Addr().(*net.TCPAddr).Port
	server := newLoopbackServer(testDoors(newWatchdog()), port, slog.New(slog.DiscardHandler))
	l := newBounded(tcp, conns)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close(); <-done })
	return port
}

func dialPort(t testing.TB, port int) net.Conn {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestLoopback(t *testing.T) {
	port := serveLoopback(t, maxLoopbackConns)
	for name, test := range map[string]struct {
		host, method, path string
		headers            []string
		status             int
		want               string // the reason of the problem, or the body
	}{
		"by address":                 {"127.0.0.1:PORT", "POST", "/", []string{"X-Amz-Target: x"}, 200, "aws: body"},
		"by name":                    {"localhost:PORT", "POST", "/", []string{"x-kms-apiname: x"}, 200, "alibaba: body"},
		"by NAME":                    {"LocalHost:PORT", "POST", "/", []string{"x-kms-apiname: x"}, 200, "alibaba: body"},
		"in the absolute form":       {"127.0.0.1:PORT", "POST", "http://127.0.0.1:PORT/", []string{"X-Amz-Target: x"}, 200, "aws: body"},
		"the absolute form, rebound": {"127.0.0.1:PORT", "POST", "http://evil.example:PORT/", []string{"X-Amz-Target: x"}, 421, "UnknownHost"},
		"rebound":                    {"evil.example:PORT", "POST", "/", []string{"X-Amz-Target: x"}, 421, "UnknownHost"},
		"rebound without a port":     {"evil.example", "POST", "/", []string{"X-Amz-Target: x"}, 421, "UnknownHost"},
		"no port":                    {"localhost", "POST", "/", []string{"X-Amz-Target: x"}, 421, "UnknownHost"},
		"another port":               {"localhost:1", "POST", "/", []string{"X-Amz-Target: x"}, 421, "UnknownHost"},
		"a port in another spelling": {"localhost:0PORT", "POST", "/", []string{"X-Amz-Target: x"}, 421, "UnknownHost"},
		"the other loopback address": {"[::1]:PORT", "POST", "/", []string{"X-Amz-Target: x"}, 421, "UnknownHost"},
		"a name below":               {"localhost.evil.example:PORT", "POST", "/", []string{"X-Amz-Target: x"}, 421, "UnknownHost"},
		"an empty host":              {"", "POST", "/", []string{"X-Amz-Target: x"}, 421, "UnknownHost"},
		"a page of another origin":   {"localhost:PORT", "POST", "/", []string{"X-Amz-Target: x", "Origin: https://evil.example"}, 403, "WebPage"},
		"a page without an origin":   {"localhost:PORT", "POST", "/", []string{"X-Amz-Target: x", "Origin: null"}, 403, "WebPage"},
		"a page of a new browser":    {"localhost:PORT", "POST", "/", []string{"X-Amz-Target: x", "Sec-Fetch-Site: same-origin"}, 403, "WebPage"},
		"a preflight": {
			"localhost:PORT", "OPTIONS", "/",
			[]string{"Origin: https://evil.example", "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: x-amz-target"},
			403, "WebPage",
		},
		"a data key":             {"localhost:PORT", "GET", "/v1/data-keys/orders", nil, 404, "UnknownPath"},
		"the list":               {"localhost:PORT", "GET", "/v1/data-keys", nil, 404, "UnknownPath"},
		"its health":             {"localhost:PORT", "GET", "/healthz", nil, 404, "UnknownPath"},
		"a front door elsewhere": {"localhost:PORT", "POST", "//", []string{"X-Amz-Target: x"}, 404, "UnknownPath"},
		"GET":                    {"localhost:PORT", "GET", "/", []string{"X-Amz-Target: x"}, 405, "MethodNotAllowed"},
		"no protocol":            {"localhost:PORT", "POST", "/", nil, 400, "UnknownProtocol"},
	} {
		t.Run(name, func(t *testing.T) {
			request := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 4\r\n%s\r\nbody", test.method, test.path, test.host,
				strings.Join(append(test.headers, ""), "\r\n"))
			c := dialPort(t, port)
			write(t, c, strings.ReplaceAll(request, "PORT", strconv.Itoa(port)))
			response, body := readReply(t, bufio.NewReader(c), test.method)
			if response.StatusCode != test.status {
				t.Errorf("got %s, want %d", response.Status, test.status)
			}
			got := string(body)
			if test.status != http.StatusOK {
				var p problem
				if err := json.Unmarshal(body, &p); err != nil {
					t.Fatalf("%v: %s", err, body)
				}
				got = p.Reason
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if h := response.Header.Get("Access-Control-Allow-Origin"); h != "" {
				t.Errorf("a page of %q is let in", h)
			}
			checkHides(t, "the answer", string(body), testPlaintext)
		})
	}
}

// TestLoopbackIsBounded: idle connections make way for those that come, and the others are served.
func TestLoopbackIsBounded(t *testing.T) {
	port := serveLoopback(t, 2)
	request := strings.Replace(postDoor("/", "body", "X-Amz-Target: x"), "localhost", "localhost:"+strconv.Itoa(port), 1)
	for range 6 {
		c := dialPort(t, port)
		write(t, c, request)
		if response, body := readReply(t, bufio.NewReader(c), http.MethodPost); response.StatusCode != http.StatusOK {
			t.Fatalf("got %s: %s", response.Status, body)
		}
	}
}
