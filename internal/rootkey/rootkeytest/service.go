// Package rootkeytest has the services of root keys for tests: fakes of the interfaces of Vault's transit engine, AWS KMS and
// Alibaba Cloud KMS, and a real KMS v2 plugin in front of SoftHSM.
package rootkeytest

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Mischief says how a fake service answers instead of doing what it is asked.
type Mischief int

const (
	// Honest does what is asked.
	Honest Mischief = iota
	// Drop ends the connection without an answer, as a service that is not there.
	Drop
	// FailHTTP answers that the service has failed.
	FailHTTP
	// Hang answers nothing until the client goes.
	Hang
	// NoBody answers success and not a byte more.
	NoBody
	// NoMembers answers success and an object that has no members.
	NoMembers
	// WrongMembers answers success and an object whose members are of other JSON types than they should be.
	WrongMembers
	// NotJSON answers success and text.
	NotJSON
	// Huge answers success and does not end.
	Huge
	// HugePacked is Huge with gzip as its content encoding, which unpacks to a thousand times what is sent.
	HugePacked
	// Echo refuses the request and quotes it.
	Echo
	// Redirect sends the client to where it has just asked.
	Redirect
	// WrongPlaintext opens what it is given and answers other bytes of the same length.
	WrongPlaintext
	// OtherKey answers as if another key had been used.
	OtherKey
)

// AnyOperation stands for every operation of a service.
const AnyOperation = ""

// maxRequestSize bounds what the fake services read.
const maxRequestSize = 1 << 20

// Service is what the fake services have in common: a TLS server on loopback that can be told to misbehave.
type Service struct {
	server *httptest.Server
	hung   chan string
	left   chan string

	mu       sync.Mutex
	release  chan struct{}
	mischief map[string]Mischief
	calls    []string
}

// start serves answer, whose operation of a request names. wrong is the answer with members of other types.
func (s *Service) start(operation func(*http.Request, []byte) string, wrong string, answer func(http.ResponseWriter, *http.Request, []byte, Mischief)) {
	s.hung = make(chan string, 16)
	s.left = make(chan string, 16)
	s.release = make(chan struct{})
	s.mischief = map[string]Mischief{}
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequestSize))
		if err != nil {
			return
		}
		op := operation(r, body)
		s.mu.Lock()
		s.calls = append(s.calls, op)
		m, ok := s.mischief[op]
		if !ok {
			m = s.mischief[AnyOperation]
		}
		s.mu.Unlock()
		if !s.misbehave(w, r, m, op, body, wrong) {
			answer(w, r, body, m)
		}
	}))
	s.server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // clients go as they are made to
	s.server.StartTLS()
}

// misbehave reports whether it has answered.
func (s *Service) misbehave(w http.ResponseWriter, r *http.Request, m Mischief, op string, body []byte, wrong string) bool {
	switch m {
	case Drop:
		drop(w)
	case FailHTTP:
		http.Error(w, "{}", http.StatusInternalServerError)
	case Hang:
		s.mu.Lock()
		release := s.release
		s.mu.Unlock()
		s.hung <- op
		select {
		case <-r.Context().Done():
			s.left <- op
		case <-release:
			drop(w)
		}
	case NoBody:
		w.WriteHeader(http.StatusOK)
	case NoMembers:
		_, _ = io.WriteString(w, "{}")
	case WrongMembers:
		_, _ = io.WriteString(w, wrong)
	case NotJSON:
		_, _ = io.WriteString(w, "<html>Welcome!</html>")
	case Huge:
		_, _ = io.WriteString(w, `{"Plaintext":"`)
		s.pour(w, r, bytes.Repeat([]byte("A"), 64<<10))
	case HugePacked:
		w.Header().Set("Content-Encoding", "gzip")
		s.pour(w, r, packedZeros())
	case Redirect:
		w.Header().Set("Location", r.URL.String())
		w.WriteHeader(http.StatusTemporaryRedirect)
	case Echo:
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.Copy(w, io.MultiReader(strings.NewReader(r.URL.String()), bytes.NewReader(body)))
	default:
		return false
	}
	return true
}

// drop ends the connection.
func drop(w http.ResponseWriter) {
	if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = conn.Close()
	}
}

// answerJSON writes an answer as JSON.
func answerJSON(w http.ResponseWriter, contentType string, status int, members map[string]any) {
	b, err := json.Marshal(members)
	if err != nil {
		drop(w)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(b) // an error is the client's, who went
}

// pour writes b again and again, at most 64 MiB, until the client has enough.
func (s *Service) pour(w io.Writer, r *http.Request, b []byte) {
	for range (64 << 20) / len(b) {
		if _, err := w.Write(b); err != nil || r.Context().Err() != nil {
			return
		}
	}
}

// Host returns the host and port of the server.
func (s *Service) Host() string { return strings.TrimPrefix(s.server.URL, "https://") }

// Certificate returns the certificate to trust, in PEM.
func (s *Service) Certificate() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.server.Certificate().Raw})
}

// certificateFile is a file with the certificate to trust.
func (s *Service) certificateFile(t testing.TB) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(name, s.Certificate(), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// Misbehave makes an operation, or AnyOperation, answer so from now on.
func (s *Service) Misbehave(operation string, m Mischief) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mischief[operation] = m
}

// Behave makes every operation honest.
func (s *Service) Behave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.mischief)
}

// Hung tells the operations that hang, when they do.
func (s *Service) Hung() <-chan string { return s.hung }

// Left tells the operations that hung until the client went.
func (s *Service) Left() <-chan string { return s.left }

// Release ends what hangs: those connections break.
func (s *Service) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.release)
	s.release = make(chan struct{})
}

// Calls returns the operations that were asked for since the last call of Calls, in their order.
func (s *Service) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := s.calls
	s.calls = nil
	return calls
}

// Close ends the server and what hangs in it.
func (s *Service) Close() {
	s.Release()
	s.server.CloseClientConnections()
	s.server.Close()
}
