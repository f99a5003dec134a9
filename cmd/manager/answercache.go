package main

import (
	"sync"
	"time"

	"k8s.io/utils/clock"
)

// answerCache remembers answers of the API server for a while: those of reviews, and who holds which alias. Neither the key, which
// may be a struct, nor the answer is boxed: every call of a pod looks here twice or more, and that costs no allocation.
type answerCache[K comparable, V any] struct {
	ttl   time.Duration
	most  int // how many answers are remembered
	clock clock.PassiveClock

	mu      sync.Mutex
	answers map[K]keptAnswer[V]
}

type keptAnswer[V any] struct {
	value V
	until time.Time
}

func newAnswerCache[K comparable, V any](ttl time.Duration, most int) *answerCache[K, V] {
	return &answerCache[K, V]{ttl: ttl, most: most, clock: clock.RealClock{}, answers: map[K]keptAnswer[V]{}}
}

// get returns the answer that was given to the question key less than ttl ago.
func (c *answerCache[K, V]) get(key K) (value V, found bool) {
	now := c.clock.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	a, found := c.answers[key]
	if !found || !now.Before(a.until) {
		return value, false
	}
	return a.value, true
}

// add remembers an answer to a question that was asked at a time, unless one is known that was asked for later. Where there are too
// many, old ones are forgotten first, and then any.
func (c *answerCache[K, V]) add(key K, value V, asked time.Time) {
	now, until := c.clock.Now(), asked.Add(c.ttl)
	c.mu.Lock()
	defer c.mu.Unlock()
	known, found := c.answers[key]
	if found && known.until.After(until) {
		return
	}
	if !found && len(c.answers) >= c.most {
		for old, a := range c.answers {
			if !now.Before(a.until) {
				delete(c.answers, old)
			}
		}
		for old := range c.answers {
			if len(c.answers) < c.most {
				break
			}
			delete(c.answers, old)
		}
	}
	c.answers[key] = keptAnswer[V]{value: value, until: until}
}
