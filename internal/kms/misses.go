package kms

import (
	"sync"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
)

// miss is a key that does not exist, or with a version a version of it.
type miss struct {
	keyID      envelope.KeyID
	version    uint32
	materialID envelope.MaterialID
}

// misses keep blobs that cannot be opened from the API server. A blob names any key that its maker likes, and "not found"
// costs a read. So what was not found is remembered for a moment. Who makes up a new name each time is stopped by the limit
// on the refusals of a pod. There is none on looking: it would count keys that are not loaded and not those that are, and so
// tell strangers which is which.
type misses struct {
	mu    sync.Mutex
	seen  map[miss]finding
	swept time.Time
}

// finding is what came of looking, and until when it counts.
type finding struct {
	err   error
	until time.Time
}

// recent returns what came of looking for m a moment ago, or nil. No blob can be made before its version is in the
// store, so this hides nothing from an honest caller.
func (s *misses) recent(m miss, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f, ok := s.seen[m]; ok && now.Before(f.until) {
		return f.err
	}
	return nil
}

// add remembers what came of looking for m.
func (s *misses) add(m miss, err error, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) >= maxMisses && now.Sub(s.swept) >= missAge { // sooner there is little to sweep
		s.swept = now
		for old, f := range s.seen {
			if !now.Before(f.until) {
				delete(s.seen, old)
			}
		}
	}
	if len(s.seen) < maxMisses {
		s.seen[m] = finding{err: err, until: now.Add(missAge)}
	}
}
