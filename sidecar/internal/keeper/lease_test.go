package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/internal/keyservice"
	"github.com/datakeys/datakeys/sidecar/internal/secrets"
)

var (
	throttled = status.Error(codes.ResourceExhausted, "too many calls")
	errTooOld = status.Error(codes.Unimplemented, "unknown method Renew")
)

// issuing is a bench whose sidecar has issued o1 just now.
func issuing(t *testing.T, leases Leases, f func(b *bench, k *Keeper)) {
	t.Helper()
	withKeeper(t, []string{"orders"}, func(b *bench) {
		k := New([]string{"orders"}, b.source, b.service, b.store, leases, b.logs.Logger())
		b.source["orders"] = "o1"
		b.run(k, time.Nanosecond)
		b.wants("orders", "plaintext of o1")
		f(b, k)
	})
}

// lasts lets the keeper work until orders is not as it is any more, at most for that long, and returns how long that was. It asks ten
// times a second, as an application does.
func (b *bench) lasts(k *Keeper, most time.Duration) time.Duration {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); k.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	start, before := time.Now(), b.published("orders", 0)
	for time.Since(start) < most && b.published("orders", 0) == before {
		b.pass(100 * time.Millisecond)
	}
	return time.Since(start)
}

// checkBetween checks how long something took.
func (b *bench) checkBetween(what string, got, least, most time.Duration) {
	b.Helper()
	if got < least || got > most {
		b.Errorf("%s: got %v, want %v to %v", what, got, least, most)
	}
}

func TestLeasesAreRenewedInTime(t *testing.T) {
	for name, l := range map[string]Leases{
		"the usual lease":    usual,
		"the shortest lease": {MinLease, 0},
		"the longest lease":  {MaxLease, MaxCoast},
	} {
		t.Run(name, func(t *testing.T) {
			issuing(t, l, func(b *bench, k *Keeper) {
				hours := 6 * time.Hour
				if got := b.lasts(k, hours); got < hours {
					b.Errorf("it ended after %v: %s", got, b.published("orders", 0))
				}
				last := time.Duration(0)
				different := map[time.Duration]bool{}
				for _, when := range b.service.renewedWhen {
					b.checkBetween("the time to the next renewal", when-last, l.Lease/2, l.Lease*2/3)
					different[when-last] = true
					last = when
				}
				if len(different) < 10 {
					b.Errorf("%d renewals came after %d different times: sidecars would stay in step", len(b.service.renewed), len(different))
				}
				if len(b.service.asked) != 1 {
					b.Errorf("%d times were blobs opened, want once", len(b.service.asked))
				}
			})
		})
	}
}

// One call renews everything, and generations that are wrapped alike are asked about once.
func TestOneCallRenewsAllOfThePod(t *testing.T) {
	withKeeper(t, []string{"orders", "payments"}, func(b *bench) {
		secret := func(name string) *secrets.Secret {
			s := numbered(name, 3).secret()
			s.Newest.Renewal = keyservice.Renewal{Name: name, KeyVersion: 2}
			for i := range s.Older {
				s.Older[i].Renewal = keyservice.Renewal{Name: name, KeyVersion: 1}
			}
			return s
		}
		b.source["orders"], b.source["payments"] = secret("orders"), secret("payments")
		k := b.keeper("orders", "payments")
		b.run(k, time.Minute)
		b.wantsGeneration("payments", 1, "plaintext of payments.1")
		for _, call := range b.service.renewed {
			if call != "orders orders payments payments " { //nolint:dupword // each twice
				b.Errorf("got the call %q, want one for each version of a data key", call)
			}
		}
		if n := len(b.service.renewed); n < 6 || n > 8 {
			b.Errorf("got %d calls in a minute", n)
		}
	})
}

// There may be more than fit into a call.
func TestRenewalsOfVeryMany(t *testing.T) {
	names := []string{"orders"}
	for i := range 59 {
		names = append(names, fmt.Sprint("n", i))
	}
	withKeeper(t, names, func(b *bench) {
		for _, name := range names {
			b.source[name] = numbered(name, 3) // each blob by another version
		}
		k := b.keeper(names...)
		b.run(k, usual.Lease)
		var items int
		for _, call := range b.service.renewed {
			n := len(strings.Fields(call))
			if items += n; n > kmsv1.MaxBatch {
				b.Errorf("a call is for %d", n)
			}
		}
		if items != 180 || len(b.service.renewed) != 2 {
			b.Errorf("got %d data keys in %d calls", items, len(b.service.renewed))
		}
		b.run(k, time.Minute)
		b.wantsGeneration("n58", 1, "plaintext of n58.1")
	})
}

// TestADenialEndsADataKey: at the next renewal, with the reason, and it comes back when it is allowed.
func TestADenialEndsADataKey(t *testing.T) {
	for name, test := range map[string]struct {
		err  error
		want string
	}{
		"a permission is taken away":     {denied, "Refused AccessDenied"},
		"the key is disabled":            {disabled, "Refused MasterKeyState"},
		"the key is gone":                {status.Error(codes.NotFound, "x"), "Refused MasterKeyNotFound"},
		"the token is not good any more": {status.Error(codes.Unauthenticated, "x"), "Refused Unauthenticated"},
	} {
		for way, set := range map[string]func(*fakeService){
			"of one key":     func(s *fakeService) { s.refuse["o1"] = test.err },
			"of the request": func(s *fakeService) { s.all = test.err },
		} {
			t.Run(name+", "+way, func(t *testing.T) {
				issuing(t, usual, func(b *bench, k *Keeper) {
					set(b.service)
					b.checkBetween("until it ended", b.lasts(k, time.Hour), usual.Lease/2, usual.Lease*2/3+pollInterval)
					b.wants("orders", test.want)
					b.checkWiped()
					asked := len(b.service.asked)
					b.run(k, time.Minute)
					b.wants("orders", test.want)
					if n := len(b.service.asked) - asked; n < 6 || n > 12 {
						b.Errorf("it was asked for %d times in a minute", n)
					}
					if n := len(b.service.renewed); n != 1 {
						b.Errorf("it was to be renewed %d times, want once", n)
					}
					b.service.all, b.service.refuse = nil, nil
					b.run(k, refusalRetry)
					b.wants("orders", "plaintext of o1")
				})
			})
		}
	}
}

// TestOutages: an issued data key outlasts them for the coast time, and no longer; its lease if that is longer.
func TestOutages(t *testing.T) {
	for name, test := range map[string]struct {
		err   error
		coast time.Duration
		want  time.Duration
	}{
		"no connection":                       {status.Error(codes.Unavailable, "x"), time.Minute, time.Minute},
		"too slow":                            {context.DeadlineExceeded, time.Minute, time.Minute},
		"a fault of the key service":          {status.Error(codes.Internal, "x"), time.Minute, time.Minute},
		"no status at all":                    {errors.New("x"), time.Minute, time.Minute},
		"the usual coast time":                {status.Error(codes.Unavailable, "x"), DefaultCoast, DefaultCoast},
		"no coast time":                       {status.Error(codes.Unavailable, "x"), 0, usual.Lease},
		"a coast time shorter than the lease": {status.Error(codes.Unavailable, "x"), time.Second, usual.Lease},
		"throttled, which is no outage":       {throttled, time.Hour, usual.Lease},
	} {
		for way, set := range map[string]func(*fakeService){
			"of one key":     func(s *fakeService) { s.refuse["o1"] = test.err },
			"of the request": func(s *fakeService) { s.all = test.err },
		} {
			t.Run(name+", "+way, func(t *testing.T) {
				issuing(t, Leases{usual.Lease, test.coast}, func(b *bench, k *Keeper) {
					set(b.service)
					b.checkBetween("until it ended", b.lasts(k, 2*time.Hour), test.want, test.want+100*time.Millisecond)
					b.wants("orders", "Pending LeaseExpired")
					b.run(k, time.Minute) // an outage does not hide why
					b.wants("orders", "Pending LeaseExpired")
					b.checkWiped()

					b.service.all, b.service.refuse = nil, nil
					b.run(k, lastRetry)
					b.wants("orders", "plaintext of o1")
					if got := b.lasts(k, time.Hour); got < time.Hour {
						b.Errorf("afterwards it ended after %v", got)
					}
				})
			})
		}
	}
}

// An outage is asked about again, with growing pauses, and costs nothing when it is over in time.
func TestAnOutageThatEndsIsNotNoticed(t *testing.T) {
	issuing(t, usual, func(b *bench, k *Keeper) {
		b.service.all = status.Error(codes.Unavailable, "away")
		if got := b.lasts(k, 10*time.Minute); got < 10*time.Minute {
			b.Fatalf("it ended after %v", got)
		}
		if !b.store.Renewals.Coasting.Load() {
			b.Error("nobody is told that it coasts")
		}
		if n := len(b.service.renewedWhen); n < 60 || n > 140 {
			b.Errorf("got %d calls in 10 minutes", n)
		}
		for i := 1; i < len(b.service.renewedWhen); i++ {
			most := min(firstRetry<<min(i-1, 20), lastRetry)
			b.checkBetween(fmt.Sprint("the pause before call ", i), b.service.renewedWhen[i]-b.service.renewedWhen[i-1], most/2, most)
		}
		b.service.all, b.service.renewedWhen = nil, nil
		b.run(k, lastRetry)
		if b.store.Renewals.Coasting.Load() || len(b.service.renewedWhen) == 0 {
			b.Error("it still coasts")
		}
		b.wants("orders", "plaintext of o1")
		if len(b.service.asked) != 1 {
			b.Errorf("its blob was opened %d times, want once", len(b.service.asked))
		}
		// The next outage is one of its own: the coast time counts from the last success.
		b.service.all = status.Error(codes.Unavailable, "away")
		since := time.Since(b.service.started) - slices.Max(b.service.renewedWhen)
		b.checkBetween("the second outage", b.lasts(k, 2*time.Hour)+since, usual.Coast, usual.Coast+100*time.Millisecond)
		if want := `"msg":"leases are not renewed","code":"Unavailable","message":"away","lease":"15s","coastTime":"1h0m0s"}`; !strings.Contains(
			b.logs.String(), want) {
			b.Errorf("got the log\n%swant %s", b.logs, want)
		}
		for _, sentence := range []string{`"msg":"leases are not renewed"`, `"msg":"leases are renewed again"`} {
			if n := strings.Count(b.logs.String(), sentence); n < 1 || n > 2 {
				b.Errorf("%s was logged %d times", sentence, n)
			}
		}
	})
}

func TestADenialEndsADataKeyThatCoasts(t *testing.T) {
	issuing(t, usual, func(b *bench, k *Keeper) {
		b.service.all = status.Error(codes.Unavailable, "away")
		b.run(k, 5*time.Minute)
		b.wants("orders", "plaintext of o1")
		b.service.all, b.service.refuse["o1"] = nil, denied
		b.checkBetween("until it ended", b.lasts(k, time.Hour), 0, lastRetry+100*time.Millisecond)
		b.wants("orders", "Refused AccessDenied")
	})
}

// Who is throttled has reached the key service: a coast that began before ends with the lease.
func TestWhoIsThrottledDoesNotCoast(t *testing.T) {
	issuing(t, usual, func(b *bench, k *Keeper) {
		b.service.all = status.Error(codes.Unavailable, "away")
		b.run(k, 5*time.Minute)
		b.wants("orders", "plaintext of o1")
		b.service.all = throttled
		b.run(k, lastRetry+pollInterval)
		b.wants("orders", "Pending LeaseExpired")
	})
}

// TestAStoppedProcess: whatever its lease was, it may be over when the process goes on, and that is known without the keeper.
func TestAStoppedProcess(t *testing.T) {
	for name, test := range map[string]struct {
		then     func(*fakeService)
		want     string
		reopened bool
	}{
		"then it is renewed":           {func(*fakeService) {}, "plaintext of o1", false},
		"then it is denied":            {func(s *fakeService) { s.refuse["o1"] = denied }, "Refused AccessDenied", false},
		"then there is an outage":      {func(s *fakeService) { s.all = status.Error(codes.Unavailable, "x") }, "plaintext of o1", false},
		"then the pod is throttled":    {func(s *fakeService) { s.all = throttled }, "Pending LeaseExpired", true},
		"then the key service is old":  {func(s *fakeService) { s.renewing = errTooOld }, "plaintext of o1", true},
		"then it is old and denies it": {func(s *fakeService) { s.renewing, s.refuse["o1"] = errTooOld, denied }, "Refused AccessDenied", true},
	} {
		t.Run(name, func(t *testing.T) {
			issuing(t, usual, func(b *bench, k *Keeper) {
				b.pass(usual.Lease - 2)
				b.wants("orders", "plaintext of o1")
				b.pass(1)
				b.wants("orders", "Pending LeaseExpired")
				b.pass(usual.Lease)
				b.wants("orders", "Pending LeaseExpired") // being asked for renews nothing
				test.then(b.service)
				b.run(k, time.Nanosecond)
				b.wants("orders", test.want)
				if got := len(b.service.asked) > 1; got != test.reopened {
					b.Errorf("its blob was opened again: %v", got)
				}
			})
		})
	}
}

// After a longer stop than the coast time an outage is no reason to issue anything.
func TestAProcessThatWasStoppedForTooLong(t *testing.T) {
	issuing(t, usual, func(b *bench, k *Keeper) {
		b.service.all = status.Error(codes.Unavailable, "away")
		b.pass(usual.Coast)
		b.run(k, time.Nanosecond)
		b.wants("orders", "Pending LeaseExpired")
	})
}

// A lease counts from when it was asked for, however long the answer took.
func TestALeaseCountsFromTheRequest(t *testing.T) {
	withKeeper(t, []string{"orders"}, func(b *bench) {
		k := b.keeper("orders")
		b.source["orders"] = "o1"
		b.service.meanwhile = func() { b.pass(4 * time.Second) }
		b.run(k, 4*time.Second+1)
		b.service.meanwhile = nil
		b.pass(usual.Lease - 4*time.Second - 2)
		b.wants("orders", "plaintext of o1")
		b.pass(2)
		b.wants("orders", "Pending LeaseExpired")

		b.service.whileRenewing = func() { b.pass(3 * time.Second) }
		b.run(k, 3*time.Second+1)
		b.pass(usual.Lease - 3*time.Second - 2)
		b.wants("orders", "plaintext of o1")
		b.pass(2)
		b.wants("orders", "Pending LeaseExpired")
	})
}

// A key service that hangs must not keep leases from being renewed, or from coasting: no reader may find a gap.
func TestAKeyServiceThatHangs(t *testing.T) {
	for _, lease := range []time.Duration{MinLease, DefaultLease, MaxLease} {
		t.Run(lease.String(), func(t *testing.T) {
			withKeeper(t, []string{"orders", "payments"}, func(b *bench) {
				k := New([]string{"orders", "payments"}, b.source, b.service, b.store, Leases{lease, time.Hour}, b.logs.Logger())
				b.source["orders"] = "o1"
				b.run(k, time.Nanosecond)
				b.service.hangs = true
				b.source["payments"] = "p1" // which is asked for again and again
				if got := b.lasts(k, 50*time.Minute); got < 50*time.Minute {
					b.Errorf("it ended after %v: %s", got, b.published("orders", 0))
				}
				// And one that is only slow.
				b.service.hangs = false
				b.run(k, time.Minute)
				b.wants("payments", "plaintext of p1")
				slow := func() { b.pass(min(keyservice.CallTimeout, lease/4) - time.Millisecond) }
				b.service.meanwhile, b.service.whileRenewing = slow, slow
				for i := range 300 {
					b.source["payments"] = fmt.Sprint("p", i)
					if got := b.lasts(k, time.Duration(i%7)*time.Second); b.published("orders", 0) != "plaintext of o1" {
						b.Fatalf("it ended after %v: %s", got, b.published("orders", 0))
					}
				}
			})
		})
	}
}

// TestAKeyServiceOfBeforeLeases: blobs are opened again and again instead, which asks the same.
func TestAKeyServiceOfBeforeLeases(t *testing.T) {
	issuing(t, usual, func(b *bench, k *Keeper) {
		b.service.renewing = errTooOld
		if got := b.lasts(k, time.Hour); got < time.Hour {
			b.Errorf("it ended after %v: %s", got, b.published("orders", 0))
		}
		if n, times := len(b.service.asked), len(b.service.renewed); n != times+1 {
			b.Errorf("its blob was opened %d times in an hour, and %d times was it to be renewed", n, times)
		}
		b.checkWiped()
		if n := strings.Count(b.logs.String(), "\n"); n != 1 {
			b.Errorf("got %d lines, want one of the data key's being issued:\n%s", n, b.logs)
		}
		b.service.refuse["o1"] = disabled
		b.checkBetween("until it ended", b.lasts(k, time.Hour), 0, usual.Lease*2/3+pollInterval)
		b.wants("orders", "Refused MasterKeyState")

		b.service.refuse = map[string]error{}
		b.run(k, refusalRetry)
		b.wants("orders", "plaintext of o1")
		b.service.all = status.Error(codes.Unavailable, "away")
		b.run(k, 30*time.Minute)
		b.wants("orders", "plaintext of o1") // it coasts as any other
		b.service.renewing, b.service.all = nil, nil
		asked := len(b.service.asked)
		b.run(k, time.Hour)
		b.wants("orders", "plaintext of o1")
		if len(b.service.asked) != asked {
			b.Error("its blob is opened although the key service renews")
		}
	})
}

// Without its Secret there is nothing to open anew: it coasts.
func TestAKeyServiceOfBeforeLeasesAndNoSecret(t *testing.T) {
	issuing(t, usual, func(b *bench, k *Keeper) {
		b.service.renewing = errTooOld
		b.source["orders"] = secrets.ErrMissing
		b.checkBetween("until it ended", b.lasts(k, 2*time.Hour), usual.Coast, usual.Coast+100*time.Millisecond)
		b.run(k, pollInterval+1)
		b.wants("orders", "Pending SecretNotFound")
		b.source["orders"] = "o1"
		b.run(k, lastRetry)
		b.wants("orders", "plaintext of o1")
	})
}

// A data key whose Secret is gone, or has another blob that does not open, is renewed as what it is.
func TestRenewalsGoOnWithoutTheSecret(t *testing.T) {
	for name, secret := range map[string]any{
		"no Secret":                 secrets.ErrMissing,
		"a Secret without a blob":   secrets.ErrInvalid,
		"a blob that does not open": "o2",
	} {
		t.Run(name, func(t *testing.T) {
			issuing(t, usual, func(b *bench, k *Keeper) {
				b.source["orders"] = secret
				b.service.refuse["o2"] = closed
				if got := b.lasts(k, 2*time.Hour); got < 2*time.Hour {
					b.Errorf("it ended after %v: %s", got, b.published("orders", 0))
				}
				if last := b.service.renewed[len(b.service.renewed)-1]; last != "o1 " {
					b.Errorf("renewed is %q", last)
				}
				b.service.refuse["o1"] = denied
				b.run(k, usual.Lease)
				if got := b.published("orders", 0); strings.HasPrefix(got, "plaintext") {
					b.Errorf("after a denial: got %q", got)
				}
			})
		})
	}
}

// TestNewGenerationsWhileItCoasts: they wait; the old ones end in time; and all come back.
func TestNewGenerationsWhileItCoasts(t *testing.T) {
	issuing(t, Leases{usual.Lease, 10 * time.Minute}, func(b *bench, k *Keeper) {
		b.service.all = status.Error(codes.Unavailable, "away")
		b.source["orders"] = generations{1: "o1", 2: "o2"}
		b.run(k, 9*time.Minute)
		b.wants("orders", "plaintext of o1")
		b.wantsGeneration("orders", 1, "plaintext of o1")
		b.wantsGeneration("orders", 2, "Pending KeyServiceUnavailable")
		b.run(k, 2*time.Minute)
		b.wants("orders", "Pending KeyServiceUnavailable") // it is of the newest
		b.wantsGeneration("orders", 1, "Pending LeaseExpired")
		b.service.all = nil
		b.run(k, lastRetry)
		b.wants("orders", "plaintext of o2")
		b.wantsGeneration("orders", 1, "plaintext of o1")
	})
}

// TestShortLeasesAfterAnOutage: a renewal that was put off in the outage, by up to 10 s, is in time for a lease of 5 s that begins after it.
func TestShortLeasesAfterAnOutage(t *testing.T) {
	for range 50 { // the pauses are random
		issuing(t, Leases{MinLease, time.Hour}, func(b *bench, k *Keeper) {
			away := status.Error(codes.Unavailable, "away")
			b.service.all = away
			b.run(k, time.Minute)
			b.service.all, b.service.asked = nil, nil
			b.source["orders"] = generations{1: "o1", 2: "o2"}
			b.run(k, time.Minute)
			b.wants("orders", "plaintext of o2")
			if got := len(b.service.asked); got != 1 {
				b.Errorf("asked %d times for the new generation: its lease ended", got)
			}

			b.service.all = away
			b.run(k, time.Minute)
			b.service.all = nil
			b.source["orders"] = generations{2: "o2", 3: "o3"}
			b.run(k, 100*time.Millisecond)
			b.service.all = away // before the first renewal
			b.run(k, 5*time.Minute)
			b.wants("orders", "plaintext of o3")
		})
	}
}

// An older generation whose own version is gone goes alone, and is asked for again as older ones are.
func TestADenialOfAnOlderGeneration(t *testing.T) {
	withKeeper(t, []string{"orders"}, func(b *bench) {
		k := b.keeper("orders")
		b.source["orders"] = numbered("orders", 3)
		b.run(k, time.Second)
		b.service.refuse["orders.1"] = status.Error(codes.NotFound, "no such version")
		b.run(k, 10*time.Minute)
		b.wants("orders", "plaintext of orders.3")
		b.wantsGeneration("orders", 2, "plaintext of orders.2")
		b.wantsGeneration("orders", 1, "Refused MasterKeyNotFound")
		if n := strings.Count(strings.Join(b.service.asked, ""), "orders.1 "); n < 5 || n > 25 {
			b.Errorf("it was asked for %d times in 10 minutes", n)
		}
		b.service.refuse = nil
		b.run(k, olderRetry)
		b.wantsGeneration("orders", 1, "plaintext of orders.1")
	})
}

// A denial is one of all generations: only the newest is asked for again, and the others when that is issued.
func TestADenialOfAllGenerations(t *testing.T) {
	withKeeper(t, []string{"orders"}, func(b *bench) {
		secret := numbered("orders", 3).secret()
		for _, e := range []*secrets.Entry{&secret.Newest, &secret.Older[0], &secret.Older[1]} {
			e.Renewal = keyservice.Renewal{Name: "orders"}
		}
		b.source["orders"] = secret
		k := b.keeper("orders")
		b.run(k, time.Second)
		b.service.refuse = map[string]error{"orders": denied, "orders.3": denied, "orders.2": denied, "orders.1": denied}
		b.service.asked = nil
		b.run(k, 10*time.Minute)
		for n := range uint32(4) {
			b.wantsGeneration("orders", n, "Refused AccessDenied")
		}
		for _, asked := range b.service.asked {
			if asked != "orders.3 " {
				b.Errorf("asked for %q", asked)
			}
		}
		b.service.refuse = nil
		b.run(k, refusalRetry)
		b.wantsGeneration("orders", 1, "plaintext of orders.1")
	})
}

// A denial that was short is over for all generations at once, those that the newest shares a renewal with too.
func TestAShortDenialOfAllGenerations(t *testing.T) {
	withKeeper(t, []string{"orders"}, func(b *bench) {
		secret := numbered("orders", 3).secret()
		secret.Newest.Renewal, secret.Older[0].Renewal = keyservice.Renewal{Name: "orders"}, keyservice.Renewal{Name: "orders"}
		b.source["orders"] = secret
		k := b.keeper("orders")
		b.run(k, time.Second)
		b.service.refuse = map[string]error{"orders": disabled, "orders.1": disabled}
		b.lasts(k, time.Hour)
		for n := range uint32(4) {
			b.wantsGeneration("orders", n, "Refused MasterKeyState")
		}
		b.service.refuse = nil
		b.run(k, refusalRetry)
		for n := range uint32(3) {
			b.wantsGeneration("orders", n+1, fmt.Sprint("plaintext of orders.", n+1))
		}
	})
}

// A data key whose renewals fail by themselves takes the time from no other: that is renewed as ever.
func TestAnOutageOfOneDataKey(t *testing.T) {
	for _, lease := range []time.Duration{MinLease, DefaultLease} {
		t.Run(lease.String(), func(t *testing.T) {
			withKeeper(t, []string{"orders", "payments"}, func(b *bench) {
				k := New([]string{"orders", "payments"}, b.source, b.service, b.store, Leases{lease, time.Hour}, b.logs.Logger())
				b.source["orders"], b.source["payments"] = "o1", "p1"
				b.run(k, time.Nanosecond)
				b.service.refuse["p1"] = status.Error(codes.Internal, "a fault")
				b.run(k, 50*time.Minute)
				b.wants("orders", "plaintext of o1")
				b.wants("payments", "plaintext of p1")
				if diff := cmp.Diff([]string{"o1 p1 "}, b.service.asked); diff != "" {
					b.Errorf("a lease ended, and what it was of was asked for again (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestRenewalsAreCounted(t *testing.T) {
	withKeeper(t, []string{"orders", "payments", "users"}, func(b *bench) {
		k := b.keeper("orders", "payments", "users")
		b.source["orders"], b.source["payments"], b.source["users"] = "o1", "p1", "u1"
		b.run(k, time.Second)
		b.service.refuse = map[string]error{"o1": denied, "p1": status.Error(codes.Unavailable, "x")}
		b.run(k, usual.Lease*2/3-time.Second)
		r := &b.store.Renewals
		got := fmt.Sprint(r.Refused.Load(), r.Failed.Load() > 0, r.Renewed.Load() > 0, r.Coasting.Load())
		if diff := cmp.Diff("1 true true true", got); diff != "" { //nolint:dupword // refused, failed, renewed, coasting
			b.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// The sidecar repeats the bounds, so as not to link what api/v1alpha1 imports.
func TestBoundsAreTheAPIs(t *testing.T) {
	declared, err := os.ReadFile(filepath.Join("..", "..", "..", "api", "v1alpha1", "leases.go"))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(string(declared)), " ")
	for _, want := range []string{
		"MinLeaseDuration = 5 * time.Second", "MaxLeaseDuration = 5 * time.Minute", "DefaultLeaseDuration = 15 * time.Second",
		"MaxCoastTime = 24 * time.Hour", "DefaultCoastTime = time.Hour",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("api/v1alpha1 does not say %s", want)
		}
	}
	if MinLease != 5*time.Second || MaxLease != 5*time.Minute || DefaultLease != 15*time.Second || MaxCoast != 24*time.Hour || DefaultCoast != time.Hour {
		t.Error("the sidecar has others")
	}
}

func TestLeasesHaveBounds(t *testing.T) {
	for name, test := range map[string]struct {
		leases Leases
		want   string
	}{
		"the usual":          {usual, ""},
		"the shortest":       {Leases{MinLease, 0}, ""},
		"the longest":        {Leases{MaxLease, MaxCoast}, ""},
		"none":               {Leases{}, "lease 0s: must be 5s to 5m0s"},
		"too short":          {Leases{MinLease - 1, 0}, "must be 5s to 5m0s"},
		"too long":           {Leases{MaxLease + 1, 0}, "must be 5s to 5m0s"},
		"too long a coast":   {Leases{MinLease, MaxCoast + 1}, "coast time 24h0m0.000000001s: must be 0s to 24h0m0s"},
		"a coast before now": {Leases{MinLease, -1}, "must be 0s to 24h0m0s"},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.leases.Validate()
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
