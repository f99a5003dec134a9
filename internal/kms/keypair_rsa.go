package kms

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"runtime"
)

// rsaSlots is how many RSA keys are made at once. Each takes one processor for a quarter of a second (RSA_2048) to ten seconds
// (RSA_4096, a bad draw); half of the processors are left to everything else. The processors are the process's, and so is this.
var rsaSlots = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2))

// newRSAKey makes an RSA key, when it is its turn. Go's search for primes cannot be interrupted: a caller whose context ends leaves
// at once, and the search goes on, holding its slot, until it finds a key that is wiped.
func newRSAKey(ctx context.Context, bits int) (*rsa.PrivateKey, error) {
	return inSlot(ctx, rsaSlots, func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, bits) })
}

func inSlot(ctx context.Context, slots chan struct{}, generate func() (*rsa.PrivateKey, error)) (*rsa.PrivateKey, error) {
	const late = "the key pair was not made in time: try again"
	if ctx.Err() != nil { // or else select might take a slot all the same
		return nil, unavailable(context.Cause(ctx), late)
	}
	select {
	case slots <- struct{}{}:
	case <-ctx.Done():
		return nil, unavailable(context.Cause(ctx), late)
	}
	type result struct {
		key *rsa.PrivateKey
		err error
	}
	made := make(chan result)
	go func() {
		defer func() { <-slots }()
		var r result
		defer func() {
			if p := recover(); p != nil { // in a goroutine of its own, where it would end the process
				r = result{err: PanicError(p)}
			}
			select {
			case made <- r:
			case <-ctx.Done():
				if r.key != nil {
					wipe(r.key)
				}
			}
		}()
		r.key, r.err = generate()
	}()
	select {
	case r := <-made:
		return r.key, r.err
	case <-ctx.Done():
		return nil, unavailable(context.Cause(ctx), late)
	}
}
