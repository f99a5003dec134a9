package sidecar

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/datakeys/datakeys/sidecar/internal/keyservice"
)

// Headers by which a request says whose protocol it speaks.
const (
	headerAWS     = "X-Amz-Target"
	headerAlibaba = "X-Kms-Apiname"
)

// doorPath is where the front doors are, as at the services whose protocols they speak.
const doorPath = "/"

// maxDoor is how long a connection may take from a front door's request to the end of its answer: the request may be long in coming,
// and the key service may take keyservice.DoorTimeout.
const maxDoor = keyservice.DoorTimeout + 5*time.Second

// doors are the front doors: the protocols of two key services, which their own clients speak.
type doors struct {
	aws, alibaba http.Handler
	dog          *watchdog
	counts       *doorCounts
}

// beside serves the front doors beside the native API, on the socket.
func (d *doors) beside(native http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != doorPath {
			native.ServeHTTP(w, r)
			return
		}
		d.serve(w, r, "; the native API has the paths "+strings.Join(routes[noRoute+1:], ", "))
	})
}

// serve answers a request for doorPath. What else there is, is told to whoever asks for no front door.
func (d *doors) serve(w http.ResponseWriter, r *http.Request, otherwise string) {
	var door http.Handler
	switch {
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		d.refuse(w, r, newProblem(http.StatusMethodNotAllowed, reasonMethodNotAllowed, fmt.Sprintf("%s is not a method of this path: AWS KMS "+
			"and Alibaba Cloud KMS are asked with POST%s", quote(r.Method), otherwise)))
		return
	case r.Header[headerAWS] != nil:
		door = d.aws
	case r.Header[headerAlibaba] != nil:
		door = d.alibaba
	default:
		d.refuse(w, r, newProblem(http.StatusBadRequest, reasonUnknownProtocol, fmt.Sprintf("the request has neither the header %s of AWS KMS "+
			"nor the header x-kms-apiname of an instance of Alibaba Cloud KMS%s", headerAWS, otherwise)))
		return
	}
	if c, ok := r.Context().Value(connKey{}).(*conn); ok {
		d.dog.allow(c, maxDoor)
	}
	if unclearEnd(r) {
		w.Header().Set("Connection", "close")
	}
	body := &doorRequest{ReadCloser: r.Body, ended: r.ContentLength == 0}
	r.Body = body
	answer := &doorAnswer{ResponseWriter: w, request: r, body: body}
	door.ServeHTTP(answer, r)
	// By it net/http knows that it was not read to its end: it lets the client read the answer before it closes.
	r.Body = body.ReadCloser
	if !answer.begun { // net/http would say 200 with nothing in it, which clients take for success
		d.refuse(w, r, newProblem(http.StatusInternalServerError, reasonInternalError, "internal error: the front door has no answer"))
	}
}

// refuse answers in no door's words, before the request was read to its end: net/http would first wait for the rest.
func (d *doors) refuse(w http.ResponseWriter, r *http.Request, p problem) {
	if r.ContentLength != 0 || unclearEnd(r) {
		w.Header().Set("Connection", "close")
	}
	p.write(w)
	d.counts.count(outcome{door: "none", operation: "other", code: p.Reason})
}

// doorRequest is the body of a request for a front door. It knows whether it was read to its end.
type doorRequest struct {
	io.ReadCloser
	ended bool
}

// Read implements io.Reader.
func (b *doorRequest) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.ended = b.ended || err == io.EOF
	return n, err
}

// doorAnswer takes the answer of a front door, which may hold plaintext. With a Content-Length it goes past the buffers of net/http, as
// every plaintext does.
type doorAnswer struct {
	http.ResponseWriter
	request *http.Request
	body    *doorRequest
	begun   bool
}

// WriteHeader implements http.ResponseWriter.
func (a *doorAnswer) WriteHeader(status int) {
	if !a.begun && !a.body.ended {
		a.Header().Set("Connection", "close") // as in refuse
	}
	a.begun = true
	a.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (a *doorAnswer) Write(p []byte) (int, error) {
	if !a.begun {
		a.WriteHeader(http.StatusOK)
	}
	if a.Header()["Content-Length"] == nil {
		return a.ResponseWriter.Write(p)
	}
	if err := sendSecret(a.ResponseWriter, a.request, doorBody(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// doorBody is the body of a front door's answer, or a part of it.
type doorBody []byte

func (b doorBody) Size() int { return len(b) }

func (b doorBody) AppendTo(out []byte) []byte { return append(out, b...) }
