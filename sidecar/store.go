package sidecar

import (
	"iter"
	"sync/atomic"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
)

// dataKey is what can be answered about one data key at one moment. It never changes; the store swaps it.
type dataKey struct {
	// generation is answered where none is asked for. It holds the state of the data key.
	*generation
	// generations are all that are known, the newest first, the one above among them if it has a number.
	generations []*generation
}

// find returns a generation by its number, nil where there is none. 0 stands for none that is asked for; and as long as the
// data key is not issued, nothing else is known of a number that is not known.
func (k *dataKey) find(number uint32) *generation {
	if number == 0 {
		return k.generation
	}
	for _, g := range k.generations {
		if g.number == number {
			return g
		}
	}
	if k.issued == nil {
		return k.generation
	}
	return nil
}

// generation is what can be answered about one generation of a data key at one moment. It never changes either.
type generation struct {
	dataKeyStatus
	// number is the generation, 0 where that is not known.
	number uint32
	// issued is set in StateIssued.
	issued *issued
}

// dataKeyStatus is the public part of a generation: with the other generations an item of GET /v1/data-keys.
type dataKeyStatus struct {
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

// issued is a plaintext with its answer, all but the plaintext rendered. Whoever reads the plaintext holds it meanwhile;
// when the last holder lets go, it is destroyed. No lock is taken, so that answering never waits for publishing.
type issued struct {
	plaintext envelope.Plaintext
	answer    answer
	lease     lease
	holders   atomic.Int64
}

// newIssued takes over the plaintext of a blob, which is leased for that long since then. The caller is its first holder. bound is what
// renderBound gave.
func newIssued(s dataKeyStatus, plaintext envelope.Plaintext, blob, publicKey, bound []byte, since time.Time, leased time.Duration) *issued {
	i := &issued{plaintext: plaintext, answer: newAnswer(s, blob, publicKey, plaintext.Len(), bound), lease: lease{start: since}}
	i.lease.set(since.Add(leased))
	i.holders.Store(1)
	return i
}

// leaseUntil moves the end of the lease.
func (i *issued) leaseUntil(until time.Time) { i.lease.set(until) }

// leaseOver reports whether the plaintext may be issued no more.
func (i *issued) leaseOver() bool { return i.lease.over() }

// hold reports whether the plaintext is still there; if so, the caller must call release.
func (i *issued) hold() bool {
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

func (i *issued) release() {
	if i.holders.Add(-1) == 0 {
		i.plaintext.Destroy()
	}
}

// lease says until when a plaintext may be issued. Only the keeper moves that: a lease is not prolonged by being used. The time is
// monotonic: setting the clock changes nothing.
type lease struct {
	start time.Time
	until atomic.Int64 // nanoseconds after start
}

func (l *lease) set(until time.Time) { l.until.Store(int64(until.Sub(l.start))) }

// over is asked for every answer with a plaintext.
func (l *lease) over() bool { return int64(time.Since(l.start)) >= l.until.Load() }

// leaseExpired is what is said of a generation whose lease is over.
func leaseExpired(name string) dataKeyStatus {
	return dataKeyStatus{
		Name: name, State: StatePending, Reason: ReasonLeaseExpired,
		Message: "the key service has not renewed it for too long: it is issued again when the key service has answered",
	}
}

// renewals count what became of data keys that were to be renewed. They are in the store, for whoever shows them.
type renewals struct {
	renewed, refused, failed atomic.Int64
	// coasting says that the last renewal failed.
	coasting atomic.Bool
}

// store holds what is published. Any number may read it while one publishes.
type store struct {
	current  atomic.Pointer[snapshot]
	renewals renewals
}

// snapshot is everything that is answered from, at one moment.
type snapshot struct {
	byName map[string]*dataKey
	// list is the answer of GET /v1/data-keys.
	list []byte
	// unready are the data keys that are not issued.
	unready []dataKeyStatus
	// replaced is closed when this is no longer the current snapshot.
	replaced chan struct{}
}

// now returns what is answered from at this moment.
func (s *store) now() *snapshot { return s.current.Load() }

// newStore returns a store in which every name is pending for the reason Starting.
func newStore(names []string) *store {
	s := &store{}
	keys := make([]*dataKey, len(names))
	for i, name := range names {
		keys[i] = &dataKey{generation: &generation{dataKeyStatus: dataKeyStatus{
			Name: name, State: StatePending, Reason: ReasonStarting, Message: "the sidecar has just started",
		}}}
	}
	s.publish(keys)
	return s
}

// publish replaces what is answered from now on and lets go of the plaintexts that are no longer in it. The store is the
// first holder of the ones that are.
func (s *store) publish(keys []*dataKey) {
	next := &snapshot{byName: make(map[string]*dataKey, len(keys)), replaced: make(chan struct{})}
	kept := map[*issued]bool{}
	for _, k := range keys {
		next.byName[k.Name] = k
		if k.State != StateIssued {
			next.unready = append(next.unready, k.dataKeyStatus)
		}
		for i := range k.plaintexts() {
			kept[i] = true
		}
	}
	next.list = renderList(keys)
	last := s.current.Swap(next)
	if last == nil {
		return
	}
	close(last.replaced)
	for _, k := range last.byName {
		for i := range k.plaintexts() {
			if !kept[i] {
				i.release()
			}
		}
	}
}

// plaintexts yields every plaintext of a data key, once.
func (k *dataKey) plaintexts() iter.Seq[*issued] {
	return func(yield func(*issued) bool) {
		for _, g := range k.generations {
			if g.issued != nil && !yield(g.issued) {
				return
			}
		}
	}
}

// get returns what is known of a data key, nil for a name that is not the sidecar's, and of the generation of that number, or
// of the one that stands for 0; nil for one that it does not have. In StateIssued the caller holds the generation's plaintext
// and must release it.
func (s *store) get(name string, number uint32) (*dataKey, *generation) {
	for {
		k := s.now().byName[name]
		if k == nil {
			return nil, nil
		}
		g := k.find(number)
		if g == nil || g.issued == nil {
			return k, g
		}
		if g.issued.leaseOver() { // the keeper may have been stopped, or starved
			return k, &generation{dataKeyStatus: leaseExpired(name), number: g.number}
		}
		if g.issued.hold() {
			return k, g
		}
		// Replaced between the two: the newer one is published already.
	}
}

// close forgets and destroys every plaintext.
func (s *store) close() {
	last := s.now()
	keys := make([]*dataKey, 0, len(last.byName))
	for name := range last.byName {
		keys = append(keys, &dataKey{generation: &generation{dataKeyStatus: dataKeyStatus{
			Name: name, State: StatePending, Reason: ReasonStopping, Message: "the sidecar is about to exit",
		}}})
	}
	s.publish(keys)
}
