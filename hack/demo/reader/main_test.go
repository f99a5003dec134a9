package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// serve answers every request on a unix socket with the given status and body, and returns the socket's path.
func serve(t *testing.T, status int, body string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return socket
}

func TestAsk(t *testing.T) {
	const plaintext = "c2VjcmV0c2VjcmV0" // "secretsecret"
	tests := map[string]struct {
		status    int
		body      string
		want      string
		wantError string
	}{
		"a data key is shown by its SHA-256 alone": {
			status: http.StatusOK,
			body:   `{"name":"orders","generation":1,"keyId":"k","keyVersion":2,"plaintext":"` + plaintext + `"}`,
			want: "data key orders, generation 1, 12 bytes, wrapped by version 2 of master key k\n" +
				"sha256 5f7365c0a79c6a0582c33798fadb2458dc42a2d61cc4124c4e30c68deaa39357\n",
		},
		"a refusal is shown as it came": {
			status:    http.StatusForbidden,
			body:      `{"status":403}`,
			wantError: `HTTP 403 application/json {"status":403}`,
		},
		"an answer that is broken is not quoted": {
			status:    http.StatusOK,
			body:      plaintext,
			wantError: "the answer is not the JSON of a data key",
		},
		"an answer without a key is an error": {
			status:    http.StatusOK,
			body:      `{}`,
			wantError: "the answer holds no plaintext",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := run(t.Context(), []string{"http://localhost/v1/data-keys/orders"}, serve(t, test.status, test.body), &out)
			if got := errorText(err); got != test.wantError {
				t.Errorf("got error %q, want %q", got, test.wantError)
			}
			if got := out.String(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if strings.Contains(out.String()+errorText(err), plaintext) {
				t.Error("the key is in the output")
			}
		})
	}
}

func TestStayEndsWhenTold(t *testing.T) {
	tests := map[string]struct {
		socket func(*testing.T) string
	}{
		"after an answer": {
			socket: func(t *testing.T) string { return serve(t, http.StatusForbidden, "{}") },
		},
		"while there is no socket": {
			socket: func(t *testing.T) string { return filepath.Join(t.TempDir(), "none") },
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			asked := writer(func() { cancel() })
			if err := run(ctx, []string{"stay", "http://localhost/"}, test.socket(t), asked); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestWithoutSidecar(t *testing.T) {
	err := run(t.Context(), []string{"http://localhost/"}, "", &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "datakeys.io/inject") {
		t.Errorf("got %v, want the way out", err)
	}
}

func TestUsage(t *testing.T) {
	for _, arguments := range [][]string{nil, {"stay"}, {"a", "b", "c"}} {
		if err := run(t.Context(), arguments, "none", &bytes.Buffer{}); err == nil || !strings.HasPrefix(err.Error(), "usage:") {
			t.Errorf("run(%q): got %v, want the usage", arguments, err)
		}
	}
}

// writer calls a function at every write.
type writer func()

func (w writer) Write(p []byte) (int, error) {
	w()
	return len(p), nil
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
