// Package keystore holds what a sidecar answers about its data keys: the plaintexts that are issued, for as long as their leases last,
// and why the others are not. One writes, who keeps it true (package keeper); any number read.
package keystore

import (
	"iter"
	"sync/atomic"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
)

// DataKey is what can be answered about one data key at one moment. It never changes; the store swaps it.
type DataKey struct {
	// Generation is answered where none is asked for. It holds the state of the data key.
	*Generation
	// Generations are all that are known, the newest first, the one above among them if it has a number.
	Generations []*Generation
}

// find returns a generation by its number, nil where there is none. 0 stands for none that is asked for; and as long as the
// data key is not issued, nothing else is known of a number that is not known.
func (k *DataKey) find(number uint32) *Generation {
	if number == 0 {
		return k.Generation
	}
	for _, g := range k.Generations {
		if g.Number == number {
			return g
		}
	}
	if k.Issued == nil {
		return k.Generation
	}
	return nil
}

// Generation is what can be answered about one generation of a data key at one moment. It never changes either.
type Generation struct {
	Status
	// Number is the generation, 0 where that is not known.
	Number uint32
	// Issued is set in StateIssued.
	Issued *Issued
}

// Status is the public part of a generation: with the other generations an item of GET /v1/data-keys.
type Status struct {
	Name  string `json:"name"`
	State State  `json:"state"`
	// Reason and Message say why the data key is not issued.
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`

	Generation uint32 `json:"generation,omitempty"`
	KeyID      string `json:"keyId,omitempty"`
	KeyVersion int32  `json:"keyVersion,omitempty"`
	Algorithm  string `json:"algorithm,omitempty"`
	// KeyPairSpec is set for a key pair, whose plaintext is the private key.
	KeyPairSpec string `json:"keyPairSpec,omitempty"`
}

// Issued is a plaintext with its answer, all but the plaintext rendered. Whoever reads the plaintext holds it meanwhile;
// when the last holder lets go, it is destroyed. No lock is taken, so that answering never waits for publishing.
type Issued struct {
	Plaintext envelope.Plaintext
	answer    answer
	// start and until are the lease, until in nanoseconds after start: setting the clock changes nothing.
	start   time.Time
	until   atomic.Int64
	holders atomic.Int64
}

// NewIssued takes over the plaintext of a blob, which is leased for that long since then. The caller is its first holder. bound is what
// RenderBound gave.
func NewIssued(s Status, plaintext envelope.Plaintext, blob, publicKey, bound []byte, since time.Time, leased time.Duration) *Issued {
	i := &Issued{Plaintext: plaintext, answer: newAnswer(s, blob, publicKey, plaintext.Len(), bound), start: since}
	i.LeaseUntil(since.Add(leased))
	i.holders.Store(1)
	return i
}

// LeaseUntil moves the end of the lease. Only the keeper does: a lease is not prolonged by being used.
func (i *Issued) LeaseUntil(until time.Time) { i.until.Store(int64(until.Sub(i.start))) }

// LeaseOver reports whether the plaintext may be issued no more. It is asked for every answer with a plaintext.
func (i *Issued) LeaseOver() bool { return int64(time.Since(i.start)) >= i.until.Load() }

// Hold reports whether the plaintext is still there; if so, the caller must call Release.
func (i *Issued) Hold() bool {
	for {
		n := i.holders.Load()
		if n == 0 {
			return false
		}
		if i.holders.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Release lets go of a plaintext that was held.
func (i *Issued) Release() {
	if i.holders.Add(-1) == 0 {
		i.Plaintext.Destroy()
	}
}

// LeaseExpired is what is said of a generation whose lease is over.
func LeaseExpired(name string) Status {
	return Status{
		Name: name, State: StatePending, Reason: ReasonLeaseExpired,
		Message: "the key service has not renewed it for too long: it is issued again when the key service has answered",
	}
}

// Renewals count what became of data keys that were to be renewed. They are in the store, for whoever shows them.
type Renewals struct {
	Renewed, Refused, Failed atomic.Int64
	// Coasting says that the last renewal failed.
	Coasting atomic.Bool
}

// Store holds what is published. Any number may read it while one publishes.
type Store struct {
	Renewals Renewals

	current atomic.Pointer[Snapshot]
}

// Snapshot is everything that is answered from, at one moment.
type Snapshot struct {
	ByName map[string]*DataKey
	// List is the answer of GET /v1/data-keys.
	List []byte
	// Unready are the data keys that are not issued.
	Unready []Status
	// Replaced is closed when this is no longer the current one.
	Replaced chan struct{}
}

// Now returns what is answered from at this moment.
func (s *Store) Now() *Snapshot { return s.current.Load() }

// New returns a store in which every name is pending for the reason Starting.
func New(names []string) *Store {
	s := &Store{}
	keys := make([]*DataKey, len(names))
	for i, name := range names {
		keys[i] = &DataKey{Generation: &Generation{Status: Status{
			Name: name, State: StatePending, Reason: ReasonStarting, Message: "the sidecar has just started",
		}}}
	}
	s.Publish(keys)
	return s
}

// Publish replaces what is answered from now on and lets go of the plaintexts that are no longer in it. The store is the
// first holder of the ones that are.
func (s *Store) Publish(keys []*DataKey) {
	next := &Snapshot{ByName: make(map[string]*DataKey, len(keys)), Replaced: make(chan struct{})}
	kept := map[*Issued]bool{}
	for _, k := range keys {
		next.ByName[k.Name] = k
		if k.State != StateIssued {
			next.Unready = append(next.Unready, k.Status)
		}
		for i := range k.Plaintexts() {
			kept[i] = true
		}
	}
	next.List = renderList(keys)
	last := s.current.Swap(next)
	if last == nil {
		return
	}
	close(last.Replaced)
	for _, k := range last.ByName {
		for i := range k.Plaintexts() {
			if !kept[i] {
				i.Release()
			}
		}
	}
}

// Plaintexts yields every plaintext of a data key, once.
func (k *DataKey) Plaintexts() iter.Seq[*Issued] {
	return func(yield func(*Issued) bool) {
		for _, g := range k.Generations {
			if g.Issued != nil && !yield(g.Issued) {
				return
			}
		}
	}
}

// Get returns what is known of a data key, nil for a name that is not the sidecar's, and of the generation of that number, or
// of the one that stands for 0; nil for one that it does not have. In StateIssued the caller holds the generation's plaintext
// and must release it.
func (s *Store) Get(name string, number uint32) (*DataKey, *Generation) {
	for {
		k := s.Now().ByName[name]
		if k == nil {
			return nil, nil
		}
		g := k.find(number)
		if g == nil || g.Issued == nil {
			return k, g
		}
		if g.Issued.LeaseOver() { // the keeper may have been stopped, or starved
			return k, &Generation{Status: LeaseExpired(name), Number: g.Number}
		}
		if g.Issued.Hold() {
			return k, g
		}
		// Replaced between the two: the newer one is published already.
	}
}

// Close forgets and destroys every plaintext.
func (s *Store) Close() {
	last := s.Now()
	keys := make([]*DataKey, 0, len(last.ByName))
	for name := range last.ByName {
		keys = append(keys, &DataKey{Generation: &Generation{Status: Status{
			Name: name, State: StatePending, Reason: ReasonStopping, Message: "the sidecar is about to exit",
		}}})
	}
	s.Publish(keys)
}
