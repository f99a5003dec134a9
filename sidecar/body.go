package sidecar

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"sync/atomic"

	"github.com/datakeys/datakeys/internal/envelope"
)

// Limits of a request with a body.
const (
	// maxPlaintext is the most bytes that are encrypted or decrypted by one request. The format allows for more; but what is larger is
	// better encrypted where it is, with the data key, than carried to the sidecar and back.
	maxPlaintext = 64 << 10
	// maxJSONBody has room for the largest ciphertext and associated data in base64, with some of it escaped.
	maxJSONBody = 128 << 10
	// firstRead is how much memory a body gets before its bytes have come. Then it is as much again as has come.
	firstRead = 4 << 10

	// maxRoom is the most memory that bodies under way have, and roomFactor how much a request needs at most, for each byte of its
	// body: for the body, what is decoded of it, what becomes of it, and the answer. So maxConns bodies of 8 KiB always have room.
	maxRoom    = 8 << 20
	roomFactor = 4
)

// room is the memory of the bodies that are under way.
type room struct{ taken atomic.Int64 }

func (r *room) take(n int) bool {
	if r.taken.Add(int64(n)) <= maxRoom {
		return true
	}
	r.give(n)
	return false
}

func (r *room) give(n int) { r.taken.Add(-int64(n)) }

// hidden is bytes that no printer finds: none looks into a function.
type hidden func() []byte

func hide(b []byte) hidden { return func() []byte { return b } }

// body is the body of a request. It may be plaintext.
type body struct {
	bytes   hidden
	decoded hidden // what readCrypt decoded of it
	room    *room
}

func newBody(r *room) *body { return &body{bytes: hide(nil), decoded: hide(nil), room: r} }

// grow makes the memory n bytes large. While it is moved there is more of it than is counted, but nothing yet of what will become of it.
func (b *body) grow(n int) bool {
	old := b.bytes()
	if !b.room.take(roomFactor * (n - cap(old))) {
		return false
	}
	larger := append(make([]byte, 0, n), old...)
	clear(old[:cap(old)])
	b.bytes = hide(larger[:len(old):n])
	return true
}

// free clears the memory and gives it back.
func (b *body) free() {
	all := b.bytes()[:cap(b.bytes())]
	clear(all)
	clear(b.decoded())
	b.room.give(roomFactor * len(all))
	b.bytes, b.decoded = hide(nil), hide(nil)
}

// readBody reads the body of a request, of at most so many bytes, to its end. The caller must free it.
func (a *api) readBody(r *http.Request, most int) (*body, *problem) {
	b := newBody(&a.room)
	if p := b.fill(r, most); p != nil {
		b.free()
		return nil, p
	}
	return b, nil
}

func (b *body) fill(r *http.Request, most int) *problem {
	size := most + 1 // one more would show that it is too large
	switch {
	case r.ContentLength > int64(most):
		return bodyTooLarge(most)
	case r.ContentLength >= 0:
		size = int(r.ContentLength) + 1
	}
	for read := b.bytes(); ; {
		if len(read) == cap(read) {
			if !b.grow(min(size, max(firstRead, 2*cap(read)))) {
				return newProblem(http.StatusServiceUnavailable, reasonBusy, "too many large bodies are under way: try again").ref()
			}
			read = b.bytes()
		}
		n, err := r.Body.Read(read[len(read):cap(read)])
		read = read[:len(read)+n]
		b.bytes = hide(read)
		switch {
		case len(read) > most:
			return bodyTooLarge(most)
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return newProblem(http.StatusBadRequest, reasonBodyIncomplete, "the body is cut off, or its chunks are malformed").ref()
		}
	}
}

func bodyTooLarge(most int) *problem {
	return newProblem(http.StatusRequestEntityTooLarge, reasonBodyTooLarge,
		fmt.Sprintf("the body has more than %d bytes: at most %d are encrypted at once; for more, take the data key itself", most,
			maxPlaintext)).ref()
}

// unclearEnd reports whether somebody else, who passed the request on, may have taken another place for its end (RFC 9112, section 6.1): net/http
// passes over a length beside chunks, and over chunks in HTTP/1.0, and does not tell. Such a request is the last of its connection.
func unclearEnd(r *http.Request) bool { return r.ContentLength < 0 || !r.ProtoAtLeast(1, 1) }

// bodyMedia returns the media type of the body, mediaBytes or mediaJSON; "" for any other, and for one that is encoded.
func bodyMedia(h http.Header) string {
	if _, encoded := h["Content-Encoding"]; encoded {
		return ""
	}
	types := h["Content-Type"]
	switch {
	case len(types) == 0:
		return mediaBytes // RFC 9110, section 8.3
	case len(types) > 1:
		return ""
	case types[0] == mediaBytes || types[0] == mediaJSON:
		return types[0]
	}
	media, _, err := mime.ParseMediaType(types[0])
	if err != nil || media != mediaBytes && media != mediaJSON {
		return ""
	}
	return media
}

// associatedHeader is the header that states associated data beside a body of raw bytes, in base64.
const associatedHeader = "Datakeys-Associated-Data"

// associatedOf reads the header.
func associatedOf(h http.Header) ([]byte, error) {
	values := h[associatedHeader]
	switch {
	case len(values) == 0:
		return nil, nil
	case len(values) > 1:
		return nil, errors.New("must be there once")
	}
	b, err := strictBase64.AppendDecode(nil, []byte(values[0]))
	if err != nil {
		return nil, errors.New("must be base64 (RFC 4648, section 4)")
	}
	return b, checkAssociated(b)
}

func checkAssociated(b []byte) error {
	if len(b) > envelope.MaxRawSize {
		return fmt.Errorf("has %d bytes: must be at most %d", len(b), envelope.MaxRawSize)
	}
	return nil
}

var strictBase64 = base64.StdEncoding.Strict()
