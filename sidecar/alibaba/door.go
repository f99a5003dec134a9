// Package alibaba is the front door of the sidecar for clients of an Alibaba Cloud KMS instance (dkms-gcs-0.2): it reads their protobuf,
// asks the key service, and answers in their words. docs/alibaba-kms.md says what holds of each operation.
package alibaba

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/internal/requestid"
)

const (
	// maxBody is the most bytes of a request's body: what is in the fields of the largest legal one, a Decrypt, and 8 KiB more, so
	// that a field that is only a little too long is named.
	maxBody = maxCiphertext + maxAAD + maxKeyID + 8<<10
	// usualBody holds nearly every body, and every answer to it.
	usualBody = 4 << 10
)

// Config is what a Door works with.
type Config struct {
	// KeyService is asked as the pod, whose token the client brings. Required.
	KeyService kmsv1.KeyServiceClient
	// Logger takes what goes wrong. Required.
	Logger *slog.Logger
	// Count, if set, is told of each answer: the operation, "other" where there is none of that name, and the code of the error, "OK" for
	// none. Nothing that a client has made up is among them.
	Count func(operation, code string)
}

// Door answers "POST /" with a header x-kms-apiname. Requests of another method or path are not for it.
type Door struct {
	kms     kmsv1.KeyServiceClient
	log     *slog.Logger
	count   func(operation, code string)
	newID   func() string
	buffers sync.Pool    // of *[usualBody]byte, each for the body that came and then for the one that goes
	failed  atomic.Int64 // the second of the last failure
}

// New returns a door.
func New(c Config) *Door {
	if c.Count == nil {
		c.Count = func(string, string) {}
	}
	return &Door{
		kms: c.KeyService, log: c.Logger, count: c.Count, newID: requestid.New,
		buffers: sync.Pool{New: func() any { return new([usualBody]byte) }},
	}
}

// ServeHTTP implements http.Handler.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	buffer, _ := d.buffers.Get().(*[usualBody]byte) // there is nothing else in it
	defer d.buffers.Put(buffer)
	c := &call{kms: d.kms, requestID: d.newID(), body: buffer[:0]}
	defer c.wipe()

	status, code := http.StatusOK, "OK"
	answer, err := c.serve(r)
	clear(c.body)
	if err != nil {
		f := c.failure(err)
		status, code, answer = f.status, f.code, f.message(c.requestID)
		d.note(r.Context(), c, f, err)
	}
	body, err := proto.MarshalOptions{}.MarshalAppend(buffer[:0], answer)
	if err != nil { // a string of the key service is no UTF-8
		f := internal("The answer of the key service could not be encoded.")
		status, code = f.status, f.code
		body, _ = proto.Marshal(f.message(c.requestID))
	}
	defer clear(body)
	h := w.Header()
	h["Content-Type"] = protobufType
	h["Cache-Control"] = noStore
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	if c.unread && r.ContentLength != 0 {
		h["Connection"] = closing
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that is gone needs no answer
	operation := c.name
	if _, ok := operations[operation]; !ok {
		operation = "other"
	}
	d.count(operation, code)
}

// Header values of answers.
var (
	protobufType = []string{mediaProtobuf}
	noStore      = []string{"no-store"}
	closing      = []string{"close"} // else net/http would first wait for the rest of the body
)

// serve reads a request and returns its answer.
func (c *call) serve(r *http.Request) (proto.Message, error) {
	c.unread = true
	c.name = value(r.Header, "X-Kms-Apiname")
	o, err := checkHeader(r.Header, c.name)
	if err != nil {
		return nil, err
	}
	if r.ContentLength > maxBody {
		return nil, errTooLarge
	}
	if err := c.read(r.Body); err != nil {
		return nil, err
	}
	c.unread = false
	c.door = o.door
	ctx, cancel := context.WithTimeout(r.Context(), o.timeout)
	defer cancel()
	return o.answer(ctx, c)
}

// read reads the body into c.body, which grows as it comes: who sends it slowly holds no memory that he did not fill. What is left
// behind is cleared.
func (c *call) read(body io.Reader) error {
	for {
		if len(c.body) == cap(c.body) {
			grown := make([]byte, len(c.body), min(2*cap(c.body), maxBody+1))
			copy(grown, c.body)
			clear(c.body)
			c.body = grown
		}
		n, err := body.Read(c.body[len(c.body):cap(c.body)])
		c.body = c.body[:len(c.body)+n]
		switch {
		case len(c.body) > maxBody:
			return errTooLarge
		case err == io.EOF:
			return nil
		case err != nil:
			return invalid("The body could not be read to its end.")
		}
	}
}

// note logs a failure: one that the client is not to blame for at most once a second, all others for who debugs.
func (d *Door) note(ctx context.Context, c *call, f *failure, err error) {
	level := slog.LevelDebug
	if f.status >= http.StatusInternalServerError && ctx.Err() == nil { // else the client is gone, and nobody else to blame
		if now := time.Now().Unix(); d.failed.Swap(now) != now {
			level = slog.LevelWarn
		}
	}
	d.log.Log(ctx, level, "a call of a client of Alibaba Cloud KMS failed",
		"operation", c.name, "code", f.code, "requestId", c.requestID, "error", err.Error())
}
