package rootkey

import (
	"context"
	"errors"
	"testing"
)

func TestBoundedDropsWhatComesTooLate(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	slots, release, dropped := make(chan struct{}, 1), make(chan struct{}), make(chan int)
	f := func() (int, error) {
		cancel()
		<-release
		return 7, nil
	}
	if _, err := bounded(ctx, slots, f, func(n int) { dropped <- n }); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, want Canceled", err)
	}
	if _, err := bounded(t.Context(), slots, f, func(int) {}); !errors.Is(err, errWrappingBusy) {
		t.Errorf("%v, want the word that too many calls hang", err)
	}
	close(release)
	if n := <-dropped; n != 7 {
		t.Errorf("dropped %d, want 7", n)
	}
	slots <- struct{}{} // blocks until the call has given its slot back
}

func TestBoundedOutlivesAPanic(t *testing.T) {
	slots := make(chan struct{}, 1)
	n, err := bounded(t.Context(), slots, func() (int, error) { panic("the answer") }, func(int) {})
	if n != 0 || !errors.Is(err, errWrappingNonsense) {
		t.Errorf("%d, %v, want no value and the word that the answer makes no sense", n, err)
	}
}
