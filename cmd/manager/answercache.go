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
	half  int // how many answers each of the two below holds
	clock clock.PassiveClock

	mu sync.Mutex
	// New answers go to recent. When that is full it becomes older, and what was older is forgotten.
	recent, older map[K]keptAnswer[V]
}

type keptAnswer[V any] struct {
	value V
	until time.Time
}

// newAnswerCache returns a cache that remembers the last half of most answers, and at most that many.
func newAnswerCache[K comparable, V any](ttl time.Duration, most int) *answerCache[K, V] {
	return &answerCache[K, V]{ttl: ttl, half: most / 2, clock: clock.RealClock{}, recent: map[K]keptAnswer[V]{}}
}

// get returns the answer that was given to the question key less than ttl ago.
func (c *answerCache[K, V]) get(key K) (value V, found bool) {
	now := c.clock.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	a, found := c.known(key)
	if !found || !now.Before(a.until) {
		return value, false
	}
	return a.value, true
}

// known needs mu.
func (c *answerCache[K, V]) known(key K) (a keptAnswer[V], found bool) {
	if a, found = c.recent[key]; !found {
		a, found = c.older[key]
	}
	return a, found
}

// add remembers an answer to a question that was asked at a time, unless one is known that was asked for later.
func (c *answerCache[K, V]) add(key K, value V, asked time.Time) {
	until := asked.Add(c.ttl)
	c.mu.Lock()
	defer c.mu.Unlock()
	if a, found := c.known(key); found && a.until.After(until) {
		return
	}
	if _, found := c.recent[key]; !found && len(c.recent) >= c.half {
		c.older, c.recent = c.recent, map[K]keptAnswer[V]{}
	}
	c.recent[key] = keptAnswer[V]{value: value, until: until}
}
