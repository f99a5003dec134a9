package kms

import (
	"errors"
	"sync"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
)

// errBudget reports a namespace whose callers ask for too many keys that do not exist.
var errBudget = errors.New("too many unknown keys or versions were asked for from this namespace")

// miss is a key that does not exist, or with a version a version of it.
type miss struct {
	keyID      envelope.KeyID
	version    uint32
	materialID envelope.MaterialID
}

// misses keep hostile blobs from the API server. A blob names any key that its maker likes, and "not found" costs a read.
// So what was not found is remembered for a moment, and for those who make up a new name each time, each namespace has a
// budget.
type misses struct {
	budgets budgets // of namespaces

	mu   sync.Mutex
	seen map[miss]answer
}

// answer is what came of looking, and until when it counts.
type answer struct {
	err   error
	until time.Time
}

// recent returns what came of looking for m a moment ago, or nil. No blob can be made before its version is in the
// store, so this hides nothing from an honest caller.
func (s *misses) recent(m miss, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a, ok := s.seen[m]; ok && now.Before(a.until) {
		return a.err
	}
	return nil
}

// allowed reports whether callers of the namespace may make the key service look.
func (s *misses) allowed(namespace string, now time.Time) bool { return s.budgets.left(namespace, now) }

// add remembers what came of looking for m, and takes it from the budget of the namespace.
func (s *misses) add(namespace string, m miss, err error, now time.Time) {
	s.budgets.take(namespace, 1, now)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) >= maxMisses {
		for old, a := range s.seen {
			if !now.Before(a.until) {
				delete(s.seen, old)
			}
		}
	}
	if len(s.seen) < maxMisses {
		s.seen[m] = answer{err: err, until: now.Add(missAge)}
	}
}
