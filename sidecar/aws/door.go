package aws

import (
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/internal/requestid"
)

const (
	// callTimeout is the most that the key service may take to answer. Clients wait longer, and try again.
	callTimeout = 5 * time.Second
	// pairTimeout is the same for a key pair, of which one of RSA takes seconds, and at times many: what the key service takes at most.
	pairTimeout = 15 * time.Second
)

// KeyService is what the door has done. kmsv1.KeyServiceClient is one; the pod's token is its business. A request is not to be used after
// its call has returned, since its plaintext is cleared then.
type KeyService interface {
	GenerateDataKey(context.Context, *kmsv1.GenerateDataKeyRequest, ...grpc.CallOption) (*kmsv1.GenerateDataKeyResponse, error)
	GenerateDataKeyWithoutPlaintext(context.Context, *kmsv1.GenerateDataKeyWithoutPlaintextRequest,
		...grpc.CallOption) (*kmsv1.GenerateDataKeyWithoutPlaintextResponse, error)
	GenerateDataKeyPair(context.Context, *kmsv1.GenerateDataKeyPairRequest, ...grpc.CallOption) (*kmsv1.GenerateDataKeyPairResponse, error)
	GenerateDataKeyPairWithoutPlaintext(context.Context, *kmsv1.GenerateDataKeyPairWithoutPlaintextRequest,
		...grpc.CallOption) (*kmsv1.GenerateDataKeyPairWithoutPlaintextResponse, error)
	Encrypt(context.Context, *kmsv1.EncryptRequest, ...grpc.CallOption) (*kmsv1.EncryptResponse, error)
	Decrypt(context.Context, *kmsv1.DecryptRequest, ...grpc.CallOption) (*kmsv1.DecryptResponse, error)
	ReEncrypt(context.Context, *kmsv1.ReEncryptRequest, ...grpc.CallOption) (*kmsv1.ReEncryptResponse, error)
	GenerateRandom(context.Context, *kmsv1.GenerateRandomRequest, ...grpc.CallOption) (*kmsv1.GenerateRandomResponse, error)
	DescribeKey(context.Context, *kmsv1.DescribeKeyRequest, ...grpc.CallOption) (*kmsv1.DescribeKeyResponse, error)
	ListKeys(context.Context, *kmsv1.ListKeysRequest, ...grpc.CallOption) (*kmsv1.ListKeysResponse, error)
	ListAliases(context.Context, *kmsv1.ListAliasesRequest, ...grpc.CallOption) (*kmsv1.ListAliasesResponse, error)
}

// Config is what a Door needs.
type Config struct {
	// KeyService answers. Required.
	KeyService KeyService
	// Logger takes what goes wrong. No member of a request or an answer that may be secret is given to it. Required.
	Logger *slog.Logger
	// Count, if set, is told of each answer: the operation, "other" where it is none of the key service's, and the name of the exception,
	// "OK" for none. Nothing that a client has made up is among them.
	Count func(operation, code string)
}

// Door is an http.Handler for the protocol of AWS KMS. It takes POST / with the header X-Amz-Target.
type Door struct {
	kms   KeyService
	log   *slog.Logger
	count func(operation, code string)
	// large is how many bytes of large bodies are held now.
	large atomic.Int64
	// logged is when a failure was logged last, in nanoseconds of the process.
	logged   atomic.Int64
	unlogged atomic.Int64
}

// New returns a Door.
func New(c Config) *Door {
	if c.Count == nil {
		c.Count = func(string, string) {}
	}
	return &Door{kms: c.KeyService, log: c.Logger, count: c.Count}
}

// ServeHTTP implements http.Handler.
func (d *Door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := newExchange()
	defer x.release()
	e := d.serve(x, r)
	d.answer(w, r, x, e)
	d.count(outcome(x, e))
}

// outcome is what is counted of an answer.
func outcome(x *exchange, e *exception) (operation, code string) {
	operation, code = "other", "OK"
	if x.operation != nil {
		operation = x.operation.name
	}
	if e != nil {
		code = e.name
	}
	return operation, code
}

// serve reads the request and has it answered in x.out. Its order of checks is that of AWS KMS: the body, each member by itself, the
// members together, and then what the key service says.
func (d *Door) serve(x *exchange, r *http.Request) *exception {
	if e := d.readBody(x, r); e != nil {
		return e
	}
	o, e := operationOf(r)
	if e != nil {
		return e
	}
	x.operation = o
	x.parser.in = x.body
	if e := x.request.parse(&x.parser, o); e != nil {
		return e
	}
	if e := x.request.check(o); e != nil {
		return e
	}
	if e := x.request.checkTogether(o); e != nil {
		return e
	}
	ctx, cancel := context.WithTimeout(r.Context(), o.timeout())
	defer cancel()
	return o.call(ctx, d, x)
}

// targetPrefix is the name of the service, before that of an operation.
const targetPrefix = "TrentService."

// operationOf returns the operation that a request is for.
func operationOf(r *http.Request) (*operation, *exception) {
	target := r.Header["X-Amz-Target"]
	if r.Method != http.MethodPost || len(target) != 1 {
		return nil, newException(unknownOperation, "a request must be POST / with one header X-Amz-Target: %s<operation>", targetPrefix)
	}
	name, ok := strings.CutPrefix(target[0], targetPrefix)
	if o := operations[name]; ok && o != nil {
		return o, nil
	}
	if way := elsewhere[name]; ok && way != "" {
		return nil, newException(unsupportedOperation, "%s is not offered by Datakeys: %s", name, way)
	}
	return nil, newException(unknownOperation, "X-Amz-Target %q is no operation of AWS KMS (2014-11-01)", shorten(target[0]))
}

// Header values of all answers.
var (
	contentType = []string{"application/x-amz-json-1.1"}
	noStore     = []string{"no-cache, no-store"}
)

// answer writes x.out, or e where there is one.
func (d *Door) answer(w http.ResponseWriter, r *http.Request, x *exchange, e *exception) {
	h := w.Header()
	h["Content-Type"] = contentType
	h["Cache-Control"] = noStore
	id := requestid.New()
	h["X-Amzn-Requestid"] = []string{id}
	if x.unread {
		h["Connection"] = []string{"close"} // else net/http would first wait for the body
	}
	if e != nil {
		d.note(r, x, e, id)
		h["X-Amzn-Errortype"] = []string{e.name}
		x.out = e.appendTo(x.out[:0])
	}
	h["Content-Length"] = []string{strconv.Itoa(len(x.out))}
	if e != nil {
		w.WriteHeader(e.status())
	}
	if _, err := w.Write(x.out); err != nil {
		d.log.Debug("a client was gone before its answer", "requestID", id, "error", err.Error())
	}
}

// note logs an exception: whatever the key service is to blame for once a second at most, the rest for who debugs.
func (d *Door) note(r *http.Request, x *exchange, e *exception, id string) {
	level := slog.LevelDebug
	if e.status() >= http.StatusInternalServerError && r.Context().Err() == nil { // else the client is gone, and nobody else to blame
		now := time.Since(started).Nanoseconds()
		last := d.logged.Load()
		if now-last < time.Second.Nanoseconds() || !d.logged.CompareAndSwap(last, now) {
			d.unlogged.Add(1)
		} else {
			level = slog.LevelWarn
		}
	}
	if !d.log.Enabled(r.Context(), level) {
		return
	}
	attributes := []any{"exception", e.name, "message", e.message, "requestID", id}
	if x.operation != nil {
		attributes = append(attributes, "operation", x.operation.name)
	}
	if x.cause != nil {
		attributes = append(attributes, "error", x.cause.Error())
	}
	if level == slog.LevelWarn {
		attributes = append(attributes, "moreBefore", d.unlogged.Swap(0))
	}
	d.log.Log(r.Context(), level, "an operation of AWS KMS was refused or failed", slices.Clip(attributes)...)
}

var started = time.Now().Add(-time.Minute) // so that the first failure is logged
