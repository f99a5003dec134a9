package kms

import (
	"strconv"
	"testing"
	"time"
)

func TestBudgets(t *testing.T) {
	begin := time.Unix(0, 0)
	at := func(seconds float64) time.Time { return begin.Add(time.Duration(seconds * float64(time.Second))) }
	newBudgets := func(debt float64) *budgets {
		return &budgets{budgetRule: budgetRule{rate: 2, burst: 5, debt: debt}, most: 10}
	}

	b := newBudgets(4)
	for i := range 5 {
		if !b.spend("a", 1, at(0)) {
			t.Fatalf("the burst ended after %d", i)
		}
	}
	for _, step := range []struct {
		seconds float64
		left    bool
	}{
		{0, false}, {0.25, false}, {0.5, true}, {-1000, false}, // the last: a clock that goes back
	} {
		if got := b.left("a", at(step.seconds)); got != step.left {
			t.Errorf("after %v s: left is %v, want %v", step.seconds, got, step.left)
		}
	}
	if !b.left("b", at(0)) {
		t.Error("another has nothing left either")
	}
	if b.take("a", 3, at(0.5)); b.spend("a", 1, at(1.75)) { // 1 less 3
		t.Error("a debt was not paid")
	}
	if !b.spend("a", 1, at(2)) {
		t.Error("a debt was paid and the budget is empty")
	}
	if b.take("a", 1000, at(2)); b.spend("a", 1, at(4.25)) {
		t.Error("a great debt was forgiven too soon")
	}
	if !b.spend("a", 1, at(4.5)) { // -4, and 5 came back
		t.Error("more is owed than may be")
	}
	for range 5 {
		if !b.spend("a", 1, at(1000)) {
			t.Fatal("a long pause did not fill the budget")
		}
	}
	if b.spend("a", 1, at(1000)) {
		t.Error("a long pause gave more than the burst")
	}
	if b.spend("c", 5.5, at(1000)); b.left("c", at(1000.5)) || !b.left("c", at(1000.75)) {
		t.Error("what a call costs more than is left is not owed")
	}
}

// However many there are, a bounded number is remembered, and those who owe are not the first to be forgotten.
func TestBudgetsForgetFullOnesFirst(t *testing.T) {
	begin := time.Unix(0, 0)
	b := &budgets{budgetRule: budgetRule{rate: 1, burst: 1, debt: 100}, most: 10}
	b.take("owes", 50, begin)
	for i := range 1000 {
		now := begin.Add(time.Duration(i) * time.Second / 5)
		b.spend(strconv.Itoa(i), 1, now) // full again a second later
		if len(b.of) > 10 {
			t.Fatalf("%d are remembered", len(b.of))
		}
		if now.Before(begin.Add(50*time.Second)) && b.left("owes", now) {
			t.Fatalf("the debt was forgotten after %v", now.Sub(begin))
		}
	}
	for i := range 100 { // all at once: some have to be forgotten
		b.spend("x"+strconv.Itoa(i), 1, begin)
		if len(b.of) > 10 {
			t.Fatalf("%d are remembered", len(b.of))
		}
	}
}

// BenchmarkBudgets is what the budgets cost every call.
func BenchmarkBudgets(b *testing.B) {
	l := newLimits(Limits{Calls: 1e9, CallsBurst: 1e9, Refusals: 1, RefusalsBurst: 1})
	now := time.Now()
	const pod = "33333333-3333-4333-8333-333333333333"
	b.ReportAllocs()
	for b.Loop() {
		if !l.refusals.left(pod, now) || !l.calls.spend(pod, 1, now) {
			b.Fatal("nothing is left")
		}
	}
}
