package client

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
)

// AEAD encrypts and authenticates with a data key, in this process. What it makes are messages of docs/format.md, which name their
// generation; the sidecar's decrypt reads them, too. It is safe for concurrent use, and one for each data key is enough.
//
// A data key is used for Options.KeyAge after it was asked for, never longer, and then cleared. A use in the second half of that time
// has it asked for again without waiting, so that a sidecar that is back within that half is not missed. Callers that need the same key
// at the same time wait for one answer. If the sidecar refuses the key, it is cleared at once. So after the sidecar issues a key no more,
// an AEAD encrypts and decrypts with it for at most that time.
type AEAD struct {
	client *Client
	name   string

	mu      sync.Mutex
	keys    map[uint32]*held   // by the generation that was asked for, 0 for the newest
	fetches map[uint32]*flight // under way, by the same
	closed  bool
}

// held is a data key in use.
type held struct {
	*DataKey
	ends   time.Time   // from when it must not be used
	again  time.Time   // from when it is to be asked for again
	expiry *time.Timer // clears it if nobody comes
}

// flight is a fetch that callers wait for.
type flight struct {
	done chan struct{}
	key  *held
	err  error
}

// AEAD returns an AEAD of a data key, whose newest generation it gets first: so a data key that cannot be used is known here. It must be a
// symmetric one of 16 bytes or more.
func (c *Client) AEAD(ctx context.Context, name string) (*AEAD, error) {
	a := &AEAD{client: c, name: name, keys: map[uint32]*held{}, fetches: map[uint32]*flight{}}
	if _, err := a.key(ctx, 0); err != nil {
		a.Close() // a key that still comes is for nobody
		return nil, err
	}
	return a, nil
}

// Close clears the keys. Every later use fails.
func (a *AEAD) Close() {
	a.mu.Lock()
	a.closed = true
	dropped := a.keys
	a.keys = map[uint32]*held{}
	a.mu.Unlock()
	for _, k := range dropped {
		k.drop()
	}
}

// Seal encrypts a plaintext of at most 1 MiB with the newest generation, and binds it to associated data, at most 8192 bytes that are not
// secret and that whoever opens it states again; nil is none. The ciphertext is 98 bytes larger than the plaintext. The context is for
// getting the key, where that is due.
func (a *AEAD) Seal(ctx context.Context, plaintext, associatedData []byte) (ciphertext []byte, err error) {
	if n := len(plaintext); n > envelope.MaxMessageSize {
		return nil, refusal(ReasonBodyTooLarge, "the plaintext has %d bytes: at most %d are encrypted at once", n, envelope.MaxMessageSize)
	}
	if err := checkAssociated(associatedData); err != nil {
		return nil, err
	}
	out := make([]byte, 0, envelope.MessageOverhead+len(plaintext))
	err = a.use(ctx, 0, func(k *held) error {
		ciphertext, err = k.Plaintext.plaintext.SealMessage(out, k.Generation, envelope.AssociatedData{Raw: associatedData}, plaintext)
		return err
	})
	return ciphertext, err
}

// Open decrypts what Seal, or Client.Encrypt, returned, with the generation that the ciphertext names. It returns no plaintext unless
// the ciphertext and the associated data are what they were.
func (a *AEAD) Open(ctx context.Context, ciphertext, associatedData []byte) (plaintext []byte, err error) {
	if err := checkAssociated(associatedData); err != nil {
		return nil, err
	}
	m, err := envelope.ParseMessage(ciphertext)
	if err != nil {
		return nil, a.translate(err)
	}
	if m.Generation > math.MaxInt32 {
		return nil, refusal(ReasonUnknownGeneration, "the data key %s has no generation %d", a.name, m.Generation)
	}
	out := make([]byte, 0, m.Size())
	err = a.use(ctx, m.Generation, func(k *held) error {
		plaintext, err = k.Plaintext.plaintext.OpenMessage(out, m, envelope.AssociatedData{Raw: associatedData})
		return err
	})
	return plaintext, err
}

// use calls f with a generation, the newest for 0, which may be cleared at any time: then f is called with the one that follows it.
func (a *AEAD) use(ctx context.Context, generation uint32, f func(*held) error) error {
	for {
		k, err := a.key(ctx, generation)
		if err != nil {
			return err
		}
		if err := f(k); !errors.Is(err, envelope.ErrDestroyed) {
			return a.translate(err)
		}
	}
}

// translate makes the errors of the format what the sidecar makes of them.
func (a *AEAD) translate(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, envelope.ErrNotMine):
		return refusal(ReasonUnknownFormat, "the ciphertext is of another format, or of a version of it that is not known here")
	case errors.Is(err, envelope.ErrBroken):
		return refusal(ReasonCiphertextBroken, "the ciphertext is damaged, or was made with another data key or with other associated data")
	default: // ErrInvalid, and all but the data key has been looked at
		return refusal(ReasonUnsuitableDataKey, "the data key %s: %v", a.name, err)
	}
}

// key returns a generation to use, the newest for 0, and has it fetched where that is due.
func (a *AEAD) key(ctx context.Context, generation uint32) (*held, error) {
	now := time.Now()
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil, refusal(ReasonClosed, "the AEAD of the data key %s is closed", a.name)
	}
	if k := a.keys[0]; k != nil && k.Generation == generation && now.Before(k.ends) {
		generation = 0 // what is newest later may be another
	}
	k := a.keys[generation]
	if k != nil && !now.Before(k.ends) { // its timer is late
		k = nil
	}
	if k != nil && now.Before(k.again) {
		a.mu.Unlock()
		return k, nil
	}
	f := a.fetches[generation]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		a.fetches[generation] = f
		go a.fetch(context.WithoutCancel(ctx), generation, f)
	}
	a.mu.Unlock()
	if k != nil {
		return k, nil
	}
	select {
	case <-f.done:
		return f.key, f.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// fetch gets a generation for those who wait for it and those who come.
func (a *AEAD) fetch(ctx context.Context, generation uint32, f *flight) {
	asked, age := time.Now(), a.client.keyAge
	// What comes later could not be used. The callers that wait have contexts of their own.
	ctx, cancel := context.WithTimeoutCause(ctx, age, unreachable(fmt.Errorf("no answer in %v", age)))
	defer cancel()
	f.key, f.err = a.get(ctx, generation)

	a.mu.Lock()
	delete(a.fetches, generation)
	dropped := a.keys[generation]
	switch {
	case f.err == nil && a.closed:
		dropped = f.key // whose users find it cleared, and the AEAD closed
	case f.err == nil:
		k := f.key
		k.ends, k.again = asked.Add(age), asked.Add(age/2)
		k.expiry = time.AfterFunc(time.Until(k.ends), func() { a.expire(generation, k) })
		a.keys[generation] = k
	case dropped != nil && temporary(f.err):
		dropped.again = time.Now().Add(jitter(age / 8))
		dropped = nil
	default:
		delete(a.keys, generation)
	}
	a.mu.Unlock()
	if dropped != nil {
		dropped.drop()
	}
	close(f.done)
}

// get gets a generation that can be encrypted with.
func (a *AEAD) get(ctx context.Context, generation uint32) (*held, error) {
	k, err := a.client.dataKey(ctx, a.name, generation)
	if err != nil {
		return nil, err
	}
	n := k.Plaintext.Len()
	if k.KeyPairSpec == "" && n >= envelope.MinMessageKeySize && n <= envelope.MaxMessageKeySize {
		return &held{DataKey: k}, nil
	}
	k.Destroy()
	what := fmt.Sprintf("has %d bytes", n)
	if k.KeyPairSpec != "" {
		what = "is a key pair"
	}
	return nil, refusal(ReasonUnsuitableDataKey, "the data key %s %s: encrypting takes a symmetric one of %d to %d bytes", a.name, what,
		envelope.MinMessageKeySize, envelope.MaxMessageKeySize)
}

// expire ends a key that nobody has asked for again.
func (a *AEAD) expire(generation uint32, k *held) {
	a.mu.Lock()
	if a.keys[generation] == k {
		delete(a.keys, generation)
	}
	a.mu.Unlock()
	k.Destroy()
}

// drop clears a key that is replaced, refused or closed.
func (k *held) drop() {
	if k.expiry != nil {
		k.expiry.Stop()
	}
	k.Destroy()
}

// jitter returns d less a random part of up to a half.
func jitter(d time.Duration) time.Duration {
	return d - rand.N(d/2+1) //nolint:gosec // nothing secret depends on it
}
