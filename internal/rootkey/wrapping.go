package rootkey

import (
	"context"
	"crypto/fips140"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/seal"
)

const (
	// wrappingTimeout bounds one Wrap or Unwrap with everything in it: credentials, connection, repetitions, answer.
	wrappingTimeout = 20 * time.Second

	// maxWrappingCalls bounds the calls that are under way, those included that nobody waits for any more.
	maxWrappingCalls = 4

	bindingSize  = sha256.Size
	bindingLabel = "datakeys.io/root-key-wrapping/binding/v1"
)

var (
	errWrappingBusy = errors.New("as many calls as may be under way hang in the service or in what gives credentials for it: " +
		"see why these do not answer; the manager tries again")
	errWrappingNonsense = errors.New("the service's answer is not what it was asked for: see what answers at its address")
)

// wrappingProvider is what the services behind go-kms-wrapping differ in.
type wrappingProvider interface {
	// connect returns a wrapper for one call: to unwrap stored, or to wrap where stored is nil. A wrapper of its own for
	// every call costs little, since there is one at the manager's start and one for each new sealing key, and what lies
	// between would outlive credentials and connections. Providers bound by ctx what the wrapper lets them bound.
	connect(ctx context.Context, stored *wrapping.BlobInfo) (wrapper, error)
	// authenticates reports whether the wrapper authenticates what wrapping.WithAad gives it.
	authenticates() bool
	// check refuses what neither the service can have answered nor Wrap can have stored. It returns seal.ErrOtherRootKey for
	// what another key of the same service made.
	check(b *wrapping.BlobInfo) error
	// explain says what an error of the wrapper means, without a word that the service wrote: what it says in an error
	// may hold what it was asked to encrypt. envelope.ErrBroken and seal.ErrOtherRootKey are for Decrypt alone.
	explain(err error) error
}

// wrapper is what is used of a wrapping.Wrapper.
type wrapper interface {
	Encrypt(ctx context.Context, plaintext []byte, options ...wrapping.Option) (*wrapping.BlobInfo, error)
	Decrypt(ctx context.Context, b *wrapping.BlobInfo, options ...wrapping.Option) ([]byte, error)
}

// wrappingRoot is a root key in a service that go-kms-wrapping can speak to.
type wrappingRoot struct {
	id       string
	provider wrappingProvider
	slots    chan struct{}
}

// openWrappingRoot reads the URI of a root key in Vault or OpenBao, AWS KMS or Alibaba Cloud KMS. It calls nobody: whether
// the service answers shows in Wrap and Unwrap. Credentials are never in the URI; the libraries read them from the
// environment and from files, as docs/root-keys.md lists. What the URI names, and where to look for it, no environment
// variable overrides.
func openWrappingRoot(_ context.Context, u *url.URL) (seal.RootKey, error) {
	r := &wrappingRoot{slots: make(chan struct{}, maxWrappingCalls)}
	var err error
	switch u.Scheme {
	case schemeTransit:
		r.id, r.provider, err = newTransitProvider(u)
	case schemeAWSKMS:
		r.id, r.provider, err = newAWSProvider(u)
	case schemeAlicloudKMS:
		r.id, r.provider, err = newAlicloudProvider(u)
	default:
		err = fmt.Errorf("the scheme must be %s, %s or %s", schemeTransit, schemeAWSKMS, schemeAlicloudKMS)
	}
	if err != nil {
		return nil, fmt.Errorf("root key %s: %w", withoutCredentials(u), err)
	}
	// The wrappers' own envelope is AES-GCM with a nonce that its caller draws, and Alibaba's requests are signed with
	// HMAC-SHA-1. Transit is asked over TLS and nothing else.
	if r.provider.authenticates() && fips140.Enforced() {
		return nil, fmt.Errorf("root key %s: cannot be used under GODEBUG=fips140=only: the client library encrypts by "+
			"AES-GCM with a nonce of its own: use fips140=on, or a root key by kmsv2:// or transit://", r.id)
	}
	return r, nil
}

func (r *wrappingRoot) ID() string { return r.id }

// Close has nothing to do: what a call needs ends with it.
func (r *wrappingRoot) Close() error { return nil }

// Wrap implements RootKey. ad is bound as the additional data of the wrapper's own encryption where there is one, and
// where the service encrypts p itself by a digest in front of p.
func (r *wrappingRoot) Wrap(ctx context.Context, p envelope.Plaintext, ad []byte) ([]byte, error) {
	binding := r.binding(ad)
	var secret []byte
	if !r.provider.authenticates() {
		secret = append(make([]byte, 0, bindingSize+p.Len()), binding...)
	}
	secret = p.AppendTo(insecuresecret.Token{}, secret)
	if p.IsZero() {
		return nil, envelope.ErrDestroyed
	}
	ctx, cancel := context.WithTimeout(ctx, wrappingTimeout)
	defer cancel()
	b, err := bounded(ctx, r.slots, func() (*wrapping.BlobInfo, error) {
		defer clear(secret)
		w, err := r.provider.connect(ctx, nil)
		if err != nil {
			return nil, r.explain(err, false)
		}
		b, err := w.Encrypt(ctx, secret, wrapping.WithAad(binding))
		return b, r.explain(err, false)
	}, func(*wrapping.BlobInfo) {})
	if errors.Is(err, errWrappingBusy) {
		clear(secret) // nobody else does
	}
	if err != nil {
		return nil, r.failure("wrapping", err)
	}
	if b == nil || b.GetKeyInfo() == nil {
		return nil, r.failure("wrapping", errWrappingNonsense)
	}
	if err := r.provider.check(b); err != nil {
		// Neither sentinel fits what the service has just answered.
		return nil, r.failure("wrapping", errWrappingNonsense)
	}
	wrapped, err := marshalWrapped(r.id, b)
	if err != nil {
		return nil, r.failure("wrapping", errWrappingNonsense)
	}
	return wrapped, nil
}

// Unwrap implements RootKey.
func (r *wrappingRoot) Unwrap(ctx context.Context, wrapped, ad []byte) (envelope.Plaintext, error) {
	id, b, err := parseWrapped(wrapped)
	if err != nil {
		return envelope.Plaintext{}, r.failure("unwrapping", err)
	}
	if id != r.id {
		return envelope.Plaintext{}, fmt.Errorf("root key %s: %w, %q", r.id, seal.ErrOtherRootKey, id)
	}
	if err := r.provider.check(b); err != nil {
		return envelope.Plaintext{}, r.failure("unwrapping", err)
	}
	binding := r.binding(ad)
	ctx, cancel := context.WithTimeout(ctx, wrappingTimeout)
	defer cancel()
	secret, err := bounded(ctx, r.slots, func() ([]byte, error) {
		w, err := r.provider.connect(ctx, b)
		if err != nil {
			return nil, r.explain(err, false)
		}
		secret, err := w.Decrypt(ctx, b, wrapping.WithAad(binding))
		return secret, r.explain(err, true)
	}, func(late []byte) { clear(late) })
	defer clear(secret)
	if err != nil {
		return envelope.Plaintext{}, r.failure("unwrapping", err)
	}
	rest := secret
	if !r.provider.authenticates() {
		if len(secret) < bindingSize {
			return envelope.Plaintext{}, r.failure("unwrapping", errWrappingNonsense)
		}
		if subtle.ConstantTimeCompare(secret[:bindingSize], binding) != 1 {
			return envelope.Plaintext{}, r.failure("unwrapping", envelope.ErrBroken)
		}
		rest = secret[bindingSize:]
	}
	p, err := envelope.PlaintextFromBytes(rest)
	if err != nil {
		return envelope.Plaintext{}, r.failure("unwrapping", errWrappingNonsense)
	}
	return p, nil
}

// KeyOf returns the service's name of the key that wrapped it: an ARN or a key ID, or of a transit key the version.
func (r *wrappingRoot) KeyOf(wrapped []byte) string {
	_, b, err := parseWrapped(wrapped)
	if err != nil {
		return ""
	}
	return quote(b.GetKeyInfo().GetKeyId())
}

var _ seal.KeyTeller = (*wrappingRoot)(nil)

// binding is what ties a wrapped key to this root key and to ad: a digest, so that its length says nothing and any ad fits.
func (r *wrappingRoot) binding(ad []byte) []byte {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(bindingLabel), []byte(r.id), ad} {
		_ = binary.Write(h, binary.BigEndian, uint64(len(part))) // a hash returns no error
		h.Write(part)
	}
	return h.Sum(nil)
}

// explain turns an error of a library into one of ours. One of ours that a library has wrapped loses that wrapping, which
// may quote the request. opening says that the service was asked to open what is stored.
func (r *wrappingRoot) explain(err error, opening bool) error {
	if err == nil {
		return nil
	}
	if ours, ok := errors.AsType[*wrappingError](err); ok {
		return ours
	}
	for _, sentinel := range []error{errWrappingNonsense, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, sentinel) {
			return sentinel
		}
	}
	err = r.provider.explain(err)
	if !opening && (errors.Is(err, seal.ErrOtherRootKey) || errors.Is(err, envelope.ErrBroken)) {
		return &wrappingError{problem: "the service refuses the request", remedy: "see its log, and that the URI names a symmetric key"}
	}
	return err
}

// failure names the root key.
func (r *wrappingRoot) failure(doing string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("the service, or what gives credentials for it, did not answer in time: see that the manager can reach it: %w", err)
	}
	return fmt.Errorf("root key %s: %s a sealing key: %w", r.id, doing, err)
}

// wrappingError is a failure in words of ours: what happened, and the way out.
type wrappingError struct {
	problem string
	remedy  string
}

func (e *wrappingError) Error() string { return e.problem + ": " + e.remedy }

// bounded calls f and waits for it as long as ctx lasts. f goes on where it does not heed ctx, which the wrappers do
// not everywhere; drop then gets what it returns. A panic in a client library, which an answer can cause that nobody
// foresaw, ends the call and not the process.
func bounded[T any](ctx context.Context, slots chan struct{}, f func() (T, error), drop func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var zero T
	select {
	case slots <- struct{}{}:
	default:
		return zero, errWrappingBusy
	}
	done := make(chan result)
	go func() {
		defer func() { <-slots }()
		res := result{err: errWrappingNonsense}
		func() {
			defer func() { _ = recover() }() // what was thrown may quote the answer
			res.value, res.err = f()
		}()
		select {
		case done <- res:
		case <-ctx.Done():
			drop(res.value)
		}
	}()
	select {
	case res := <-done:
		if res.err != nil && ctx.Err() != nil {
			drop(res.value)
			return zero, ctx.Err()
		}
		return res.value, res.err
	case <-ctx.Done():
		return zero, ctx.Err()
	}
}
