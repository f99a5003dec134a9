package aws

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
)

const (
	// maxBody is the largest legal request, which is one of ReEncrypt, and 8 KiB: two contexts of which each byte is escaped, ten grant
	// tokens, a blob and two keys.
	maxBody = 2*(6*maxContextSize+6*maxContextPairs) + maxGrantTokens*(maxGrantToken+4) + maxBlob/3*4 + 2*maxKeyID + 8<<10
	// usualBody is the most that nearly all requests have, and what is kept to be used again.
	usualBody = 8 << 10
	// maxLarge bounds what larger ones may hold at a time: a sidecar is small.
	maxLarge = 2 << 20
)

// exchange is a request and its answer. It is used again, for the buffers.
type exchange struct {
	operation *operation
	body      []byte
	parser    parser
	request   request
	out       []byte
	unread    bool  // not all of the body was read
	large     int64 // of body, as it is counted in Door.large
	door      *Door
	cause     error // what the key service said, for the log
}

var exchanges = sync.Pool{New: func() any { return &exchange{body: make([]byte, 0, usualBody), out: make([]byte, 0, usualBody)} }}

func newExchange() *exchange { return exchanges.Get().(*exchange) } //nolint:forcetypeassert // see exchanges

// release clears what may be secret and gives the exchange back.
func (x *exchange) release() {
	clear(x.body)
	clear(x.out)
	x.parser.wipe()
	x.request.wipe()
	if x.large > 0 {
		x.door.large.Add(-x.large)
	}
	*x = exchange{body: x.body[:0], out: x.out[:0]}
	if cap(x.body) <= usualBody && cap(x.out) <= 2*usualBody {
		exchanges.Put(x)
	}
}

// readBody reads the body of a request, and no more than there may be of it. It gets memory as it comes: who sends it slowly holds little
// more than he has sent.
func (d *Door) readBody(x *exchange, r *http.Request) *exception {
	size := maxBody + 1 // not said: as much as comes
	x.unread = true
	switch {
	case r.ContentLength > maxBody:
		return tooLarge()
	case r.ContentLength >= 0:
		size = int(r.ContentLength)
	}
	for {
		n, err := io.ReadFull(r.Body, x.body[len(x.body):min(size, cap(x.body))])
		x.body = x.body[:len(x.body)+n]
		switch {
		case len(x.body) > maxBody:
			return tooLarge()
		case err == nil && len(x.body) < size:
			if !d.grow(x, min(size, 2*cap(x.body))) {
				return newException(throttling, "too many large requests at once: try again")
			}
		case err == nil, r.ContentLength < 0 && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)):
			x.unread = false
			return nil
		default:
			return newException(serialization, "the body of the request ended early")
		}
	}
}

// grow makes the body's memory so large, if there may be as much.
func (d *Door) grow(x *exchange, size int) bool {
	more := int64(size) - x.large
	x.door, x.large = d, int64(size)
	if d.large.Add(more) > maxLarge {
		return false
	}
	grown := make([]byte, len(x.body), size)
	copy(grown, x.body)
	clear(x.body)
	x.body = grown
	return true
}

func tooLarge() *exception {
	return newException(serialization, "the body of the request must have at most %d bytes", maxBody)
}

// The answer is an object that is written member by member, a secret one last: so it is never moved.

// begin begins the answer, with room for blobs of so many bytes.
func (x *exchange) begin(blobs int) {
	x.out = append(slices.Grow(x.out[:0], 1024+base64.StdEncoding.EncodedLen(blobs)), '{')
}

func (x *exchange) end() { x.out = append(x.out, '}') }

func (x *exchange) name(name string) {
	if len(x.out) > 1 {
		x.out = append(x.out, ',')
	}
	x.out = append(x.out, '"')
	x.out = append(x.out, name...)
	x.out = append(x.out, `":`...)
}

func (x *exchange) text(name, value string) {
	x.name(name)
	x.out = appendString(x.out, value)
}

func (x *exchange) blob(name string, value []byte) {
	x.name(name)
	x.out = append(x.out, '"')
	x.out = base64.StdEncoding.AppendEncode(x.out, value)
	x.out = append(x.out, '"')
}

// plaintext ends the answer with a secret, which its owner clears.
func (x *exchange) plaintext(name string, value []byte) {
	x.out = slices.Grow(x.out, len(name)+base64.StdEncoding.EncodedLen(len(value))+len(`,"":""}`))
	x.blob(name, value)
	x.end()
}

// object answers with a value without secrets that encoding/json knows.
func (x *exchange) object(v any) *exception {
	b, err := json.Marshal(v)
	if err != nil {
		return newException(kmsInternal, "internal error")
	}
	x.out = append(x.out[:0], b...)
	return nil
}

// appendString appends a JSON string.
func appendString(out []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil { // never of a string
				return append(out, `""`...)
			}
			return append(out, quoted...)
		}
	}
	out = append(out, '"')
	out = append(out, s...)
	return append(out, '"')
}
