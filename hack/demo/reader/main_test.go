package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	plaintext    = "secretsecret"
	plaintextSum = "5f7365c0a79c6a0582c33798fadb2458dc42a2d61cc4124c4e30c68deaa39357" // sha256sum
)

// fake is what the fake sidecar answers.
type fake struct {
	status      int
	contentType string
	body        string
}

// serve answers on a unix socket, each request with the next answer and then always with the last.
func serve(t *testing.T, answers ...fake) *http.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	next := make(chan fake, len(answers))
	for _, a := range answers[:len(answers)-1] {
		next <- a
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := answers[len(answers)-1]
		select {
		case a = <-next:
		default:
		}
		w.Header().Set("Content-Type", a.contentType)
		w.Header().Set("Request", r.Method+" "+r.URL.Path+" "+r.Header.Get("Accept"))
		w.WriteHeader(a.status)
		_, _ = w.Write([]byte(strings.ReplaceAll(a.body, "REQUEST", w.Header().Get("Request"))))
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return unixClient(socket)
}

var (
	issued = fake{status: http.StatusOK, contentType: "application/octet-stream", body: plaintext}
	denied = fake{
		status: http.StatusForbidden, contentType: "application/problem+json",
		body: `{"status":403,"reason":"AccessDenied","detail":"no"}`,
	}
)

func TestRun(t *testing.T) {
	tests := map[string]struct {
		arguments []string
		answer    fake
		want      string
		wantError string
	}{
		"sha256 prints the hash of the raw bytes": {
			arguments: []string{"sha256", "orders"},
			answer:    issued,
			want:      plaintextSum + "\n",
		},
		"sha256 tells a refusal as it came": {
			arguments: []string{"sha256", "orders"},
			answer:    denied,
			wantError: "HTTP 403 Forbidden: AccessDenied: no",
		},
		"sha256 does not hash an answer of another kind": {
			arguments: []string{"sha256", "orders"},
			answer:    fake{status: http.StatusOK, contentType: "application/json", body: plaintext},
			wantError: `the answer is "application/json" and not the raw bytes that were asked for`,
		},
		"sha256 does not quote an error that is no problem details": {
			arguments: []string{"sha256", "orders"},
			answer:    fake{status: http.StatusBadGateway, body: plaintext},
			wantError: "HTTP 502 Bad Gateway without problem details",
		},
		"get prints any answer": {
			arguments: []string{"get", "-accept", "text/plain", "-method", "POST", "/readyz"},
			answer:    fake{status: http.StatusMethodNotAllowed, contentType: "application/problem+json", body: "REQUEST"},
			want:      "HTTP 405 application/problem+json\nPOST /readyz text/plain",
		},
		"get without a path":      {arguments: []string{"get"}, answer: issued, wantError: usage},
		"get with a wrong flag":   {arguments: []string{"get", "-x", "/"}, answer: issued, wantError: usage},
		"no verb":                 {answer: issued, wantError: usage},
		"an unknown verb":         {arguments: []string{"put", "/"}, answer: issued, wantError: usage},
		"a name too many":         {arguments: []string{"sha256", "a", "b"}, answer: issued, wantError: usage},
		"sleep takes no argument": {arguments: []string{"sleep", "5"}, answer: issued, wantError: usage},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			r := &reader{client: serve(t, test.answer), out: &out}
			got := ""
			if err := r.run(t.Context(), test.arguments); err != nil {
				got = err.Error()
			}
			if got != test.wantError {
				t.Errorf("got error %q, want %q", got, test.wantError)
			}
			if diff := cmp.Diff(test.want, out.String()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if strings.Contains(out.String()+got, plaintext) {
				t.Error("the key is in the output")
			}
		})
	}
}

func TestServeSaysEachChangeOnce(t *testing.T) {
	lines := make(chan string, 10)
	ctx, cancel := context.WithCancel(t.Context())
	r := &reader{client: serve(t, denied, denied, issued), interval: time.Millisecond, out: channel(lines)}
	done := make(chan error, 1)
	go func() { done <- r.run(ctx, []string{"serve", "orders"}) }()
	for _, want := range []string{"HTTP 403 Forbidden: AccessDenied: no\n", plaintextSum + "\n"} {
		if got := <-lines; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestEndsWhenTold(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, arguments := range [][]string{{"sleep"}, {"serve", "orders"}} {
		r := &reader{client: unixClient(filepath.Join(t.TempDir(), "none")), interval: time.Hour, out: &bytes.Buffer{}}
		if err := r.run(ctx, arguments); err != nil {
			t.Errorf("%q: %v", arguments, err)
		}
	}
}

// channel sends every write.
type channel chan<- string

func (c channel) Write(p []byte) (int, error) {
	c <- string(p)
	return len(p), nil
}
