package kms

import (
	"testing"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
)

// However many are missed, a bounded number is remembered, for two seconds, and then there is room for others.
func TestMissesAreRememberedForAMoment(t *testing.T) {
	m, now := misses{seen: map[miss]finding{}}, time.Unix(0, 0)
	missed := func() miss {
		one := miss{keyID: envelope.NewKeyID()}
		m.add(one, ErrMaterialMissing, now)
		return one
	}
	first := missed()
	now = now.Add(missAge - 1)
	for range 2 * maxMisses {
		missed()
	}
	if len(m.seen) != maxMisses {
		t.Errorf("%d are remembered, want %d", len(m.seen), maxMisses)
	}
	if m.recent(first, now) == nil {
		t.Error("one was forgotten too soon")
	}
	if now = now.Add(1); m.recent(first, now) != nil {
		t.Error("one is remembered for too long")
	}
	now = now.Add(missAge)
	if last := missed(); m.recent(last, now) == nil {
		t.Error("there is no room for another although all the others are old")
	}
}
