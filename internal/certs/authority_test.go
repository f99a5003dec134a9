package certs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	clocktesting "k8s.io/utils/clock/testing"
)

func newTestAuthority(t *testing.T, store Store) (*Authority, *clocktesting.FakeClock) {
	t.Helper()
	clock := clocktesting.NewFakeClock(epoch)
	return NewAuthority(store, clock, logr.Discard()), clock
}

func mustSync(t *testing.T, authorities ...*Authority) {
	t.Helper()
	for _, authority := range authorities {
		if err := authority.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTwoReplicasAtOnce: both have read before either writes, when there is no Secret, and when it needs a successor.
func TestTwoReplicasAtOnce(t *testing.T) {
	store := &memoryStore{}
	one, clock := newTestAuthority(t, store)
	two := NewAuthority(store, clock, logr.Discard())
	for round, at := range []time.Duration{0, 5*year + day, 10*year + 2*day} {
		clock.SetTime(epoch.Add(at))
		var mu sync.Mutex
		reads, both := 0, make(chan struct{})
		store.afterGet = func() {
			mu.Lock()
			reads++
			if reads == 2 {
				close(both)
			}
			mu.Unlock()
			<-both
		}
		var group sync.WaitGroup
		errs := make([]error, 2)
		for i, authority := range []*Authority{one, two} {
			group.Go(func() { errs[i] = authority.sync(t.Context()) })
		}
		group.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
		if got := len(store.roots(t)); got != round+1 {
			t.Errorf("round %d: %d roots, want %d", round, got, round+1)
		}
		if !bytes.Equal(one.RootsPEM(), two.RootsPEM()) || len(one.RootsPEM()) == 0 {
			t.Errorf("round %d: the replicas do not have the same roots", round)
		}
		if store.writes != 2*(round+1) {
			t.Errorf("round %d: %d writes so far, want both replicas to have tried each time", round, store.writes)
		}
	}
}

// TestKilledAtAWrite: a write that fails, before or after it was done, is followed by a new process that finds one root.
func TestKilledAtAWrite(t *testing.T) {
	for name, fail := range map[string]func(n int) (before, after bool){
		"before the write": func(n int) (bool, bool) { return n%2 == 1, false },
		"after the write":  func(n int) (bool, bool) { return false, n%2 == 1 },
	} {
		t.Run(name, func(t *testing.T) {
			store := &memoryStore{failWrite: fail}
			for i, at := range []time.Duration{0, 5*year + day} {
				var errs []error
				for range 2 {
					authority, clock := newTestAuthority(t, store)
					clock.SetTime(epoch.Add(at))
					errs = append(errs, authority.sync(t.Context()))
				}
				if !errors.Is(errs[0], errUnavailable) || errs[1] != nil {
					t.Fatalf("got %v, want the first to fail and the second to succeed", errs)
				}
				if got := len(store.roots(t)); got != i+1 {
					t.Errorf("%d roots, want %d", got, i+1)
				}
				store.writes = 0
			}
		})
	}
}

func TestSecretTakenAway(t *testing.T) {
	for name, take := range map[string]func(*memoryStore){
		"deleted": (*memoryStore).remove,
		"emptied": func(s *memoryStore) { s.change(func(data map[string][]byte) { clear(data) }) },
	} {
		t.Run(name, func(t *testing.T) {
			store := &memoryStore{}
			authority, clock := newTestAuthority(t, store)
			mustSync(t, authority)
			clock.SetTime(epoch.Add(6 * year))
			mustSync(t, authority)
			before := maps.Clone(store.secret.Data)
			take(store)
			mustSync(t, authority)
			if diff := cmp.Diff(before, store.secret.Data); diff != "" {
				t.Error("the roots that a running replica knew were not written again as they were")
			}
		})
	}
}

// TestForeignEntries: what is not ours in the Secret stays.
func TestForeignEntries(t *testing.T) {
	store := &memoryStore{}
	authority, clock := newTestAuthority(t, store)
	mustSync(t, authority)
	store.change(func(data map[string][]byte) { data["note"] = []byte("kept") })
	clock.SetTime(epoch.Add(5*year + day))
	mustSync(t, authority)
	if len(store.roots(t)) != 2 || string(store.secret.Data["note"]) != "kept" {
		t.Errorf("%d roots and note %q, want 2 and kept", len(store.roots(t)), store.secret.Data["note"])
	}
}

func TestBrokenSecret(t *testing.T) {
	other, err := newRoot(1, epoch)
	if err != nil {
		t.Fatal(err)
	}
	otherEntries, err := other.entries()
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		edit func(data map[string][]byte)
		want string
	}{
		"no certificate": {
			func(data map[string][]byte) { delete(data, "root-1.crt") },
			"entry root-1.key has no certificate beside it: root-1.crt is missing",
		},
		"no key": {
			func(data map[string][]byte) { delete(data, "root-1.key") },
			"entry root-1.key: must be exactly one PEM block of type PRIVATE KEY",
		},
		"a certificate that is none": {
			func(data map[string][]byte) { data["root-1.crt"] = []byte("x") },
			"entry root-1.crt: must be exactly one PEM block of type CERTIFICATE",
		},
		"two certificates in one entry": {
			func(data map[string][]byte) { data["root-1.crt"] = append(data["root-1.crt"], data["root-1.crt"]...) },
			"entry root-1.crt: must be exactly one PEM block of type CERTIFICATE",
		},
		"the key of another root": {
			func(data map[string][]byte) { data["root-1.key"] = otherEntries["root-1.key"] },
			"entry root-1.key: must be the key of root-1.crt",
		},
		"a number that is none": {
			func(data map[string][]byte) { data["root-01.crt"] = data["root-1.crt"] },
			"entry root-01.crt: the number of a root must be a positive decimal number",
		},
	} {
		t.Run(name, func(t *testing.T) {
			store := &memoryStore{}
			running, clock := newTestAuthority(t, store)
			mustSync(t, running)
			store.change(test.edit)
			broken := store.secret.DeepCopy()

			starting := NewAuthority(store, clock, logr.Discard())
			for _, authority := range []*Authority{running, starting} {
				err := authority.sync(t.Context())
				if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "restore it from a backup") {
					t.Errorf("got %v, want %q and the way out", err, test.want)
				}
			}
			if diff := cmp.Diff(broken.ResourceVersion, store.secret.ResourceVersion); diff != "" {
				t.Error("a broken Secret was written to")
			}
			if err := running.Ready(nil); err != nil {
				t.Errorf("a replica that has its roots stops: %v", err)
			}
			if err := starting.Ready(nil); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("a replica without roots: Ready says %v, want %q", err, test.want)
			}
		})
	}
}

// TestStart: it is not ready without the API server, is as soon as it answers, and sees what another replica wrote within a
// minute. Time is the bubble's.
func TestStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &memoryStore{down: true}
		authority := NewAuthority(store, nil, logr.Discard())
		if authority.RootsPEM() != nil || authority.Ready(nil) == nil {
			t.Error("it has roots before it starts")
		}
		ended := make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { ended <- authority.Start(ctx) }()

		synctest.Wait()
		if err := authority.Ready(nil); !errors.Is(err, errUnavailable) {
			t.Errorf("Ready without the API server: %v, want %v", err, errUnavailable)
		}
		time.Sleep(2 * time.Second)
		store.mu.Lock()
		store.down = false
		store.mu.Unlock()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if err := authority.Ready(nil); err != nil {
			t.Fatalf("Ready: %v", err)
		}

		second, err := newRoot(2, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		entries, err := second.entries()
		if err != nil {
			t.Fatal(err)
		}
		store.change(func(data map[string][]byte) { maps.Copy(data, entries) })
		time.Sleep(resyncPeriod)
		synctest.Wait()
		if got := bytes.Count(authority.RootsPEM(), []byte("BEGIN CERTIFICATE")); got != 2 {
			t.Errorf("%d roots a minute later, want 2", got)
		}

		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Start: %v", err)
		}
	})
}

// TestFailuresBackOff counts the reads of ten minutes without the API server.
func TestFailuresBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		store := &memoryStore{down: true, afterGet: func() { reads++ }}
		authority := NewAuthority(store, nil, logr.Discard())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- authority.Start(ctx) }()
		time.Sleep(10 * time.Minute)
		cancel()
		<-ended
		// After 0, 1, 3, 7, 15, 31 and 63 seconds, then each minute.
		if reads != 15 {
			t.Errorf("%d reads, want 15", reads)
		}
	})
}

func TestChangesFasterThanRead(t *testing.T) {
	store := &memoryStore{}
	authority, clock := newTestAuthority(t, store)
	mustSync(t, authority)
	clock.SetTime(epoch.Add(6 * year))
	n := 0
	store.afterGet = func() {
		n++
		store.change(func(data map[string][]byte) { data["note"] = fmt.Append(nil, n) })
	}
	if err := authority.sync(t.Context()); err == nil || !strings.Contains(err.Error(), "changes faster than it can be read") {
		t.Errorf("got %v, want an end", err)
	}
}
