package keeper

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/internal/keyservice"
	"github.com/datakeys/datakeys/sidecar/internal/keystore"
)

// Bounds of the leases. api/v1alpha1 and the manager have the same.
const (
	MinLease     = 5 * time.Second
	MaxLease     = 5 * time.Minute
	DefaultLease = 15 * time.Second
	MaxCoast     = 24 * time.Hour
	DefaultCoast = time.Hour
)

// Leases say for how long a data key is issued without being renewed.
type Leases struct {
	// Lease counts from when the request was sent that got the data key, or renewed it.
	Lease time.Duration
	// Coast takes the place of Lease while the key service cannot be reached, where it is longer.
	Coast time.Duration
}

// The parts of a lease. A renewal is sent when between a half and two thirds of it are over. It is answered, or given up, a quarter
// later, so that an outage is known before the lease ends; and what else is asked for meanwhile takes no longer either.
func (l Leases) renewBy() time.Duration     { return l.Lease * 2 / 3 }
func (l Leases) renewAfter() time.Duration  { return l.Lease/3 + jitter(l.Lease/3) }
func (l Leases) callTimeout() time.Duration { return min(keyservice.CallTimeout, l.Lease/4) }

// Validate returns the bound that they break.
func (l Leases) Validate() error {
	switch {
	case l.Lease < MinLease || l.Lease > MaxLease:
		return fmt.Errorf("lease %v: must be %v to %v", l.Lease, MinLease, MaxLease)
	case l.Coast < 0 || l.Coast > MaxCoast:
		return fmt.Errorf("coast time %v: must be 0s to %v", l.Coast, MaxCoast)
	}
	return nil
}

// held are the generations that are issued, by what is asked to renew them, in the order of names.
func (k *Keeper) held() (all []keyservice.Renewal, by map[keyservice.Renewal][]wanted) {
	by = map[keyservice.Renewal][]wanted{}
	for _, name := range k.names {
		d := k.kept[name]
		for _, g := range d.all() {
			if g.Issued == nil {
				continue
			}
			if by[g.renewal] == nil {
				all = append(all, g.renewal)
			}
			by[g.renewal] = append(by[g.renewal], wanted{g, d})
		}
	}
	return all, by
}

// renewalDue reports whether it is time to renew: before anything is asked for that could last beyond that time.
func (k *Keeper) renewalDue(now time.Time) bool {
	if k.renewAt.IsZero() {
		return false
	}
	ahead := time.Duration(0)
	if k.unrenewed == 0 && len(k.due(now)) > 0 {
		ahead = patience + k.leases.callTimeout()
	}
	return !k.renewAt.After(now.Add(ahead))
}

// renew asks whether what is issued may go on to be: one call for all of the pod, or one for each kmsv1.MaxBatch. After a call that failed
// it asks for nothing more.
func (k *Keeper) renew(ctx context.Context) {
	all, by := k.held()
	if len(all) == 0 {
		k.renewAt, k.unrenewed = time.Time{}, 0
		k.store.Renewals.Coasting.Store(false)
		return
	}
	start := time.Now()
	var failure error
	var refused []wanted
	given := false
	for rest := all; len(rest) > 0; {
		batch := rest[:min(len(rest), kmsv1.MaxBatch)]
		sent := time.Now()
		answers, err := k.callRenew(ctx, batch)
		if err != nil && ctx.Err() != nil {
			return // the sidecar stops
		}
		if err != nil {
			batch, answers = rest, slices.Repeat([]error{err}, len(rest))
		}
		for i, r := range batch {
			switch k.renewed(by[r], answers[i], sent) {
			case renewalRefused:
				refused = append(refused, by[r]...)
			case renewalFailed:
				failure = answers[i]
			case renewalGiven:
				given = true
			}
		}
		rest = rest[len(batch):]
	}
	k.askAgain(refused)
	k.scheduleRenewal(ctx, start, failure, given)
}

func (k *Keeper) callRenew(ctx context.Context, batch []keyservice.Renewal) ([]error, error) {
	ctx, cancel := context.WithTimeout(ctx, k.leases.callTimeout())
	defer cancel()
	return k.service.Renew(ctx, batch)
}

// renewalResult is what became of a renewal.
type renewalResult int

const (
	renewalGiven renewalResult = iota
	renewalRefused
	renewalFailed
)

// renewed notes the answer to a renewal, whose request was sent then.
func (k *Keeper) renewed(all []wanted, answer error, sent time.Time) renewalResult {
	code := status.Code(answer)
	reason, denied := keystore.RefusalReason(code)
	denied = denied && !aboutBlob(reason) // which no renewal is
	result := renewalGiven
	for _, g := range all {
		switch {
		case g.Issued == nil: // refused with the newest generation, in this very call
		case answer == nil:
			g.prolong(sent, k.leases.Lease)
		case code == codes.Unimplemented && g.opened && g.sealed.CiphertextBlob != nil:
			// A key service of before leases. Opening the blob anew asks it the same, and costs it more.
			g.due = sent
		case denied:
			k.refuse(g.of, g.keptGeneration, reason, message(answer))
			result = renewalRefused
		default:
			k.coast(g.keptGeneration, code)
			result = renewalFailed
		}
	}
	switch {
	case answer == nil:
		k.store.Renewals.Renewed.Add(1)
	case denied:
		k.store.Renewals.Refused.Add(1)
	default:
		k.store.Renewals.Failed.Add(1)
	}
	return result
}

// prolong gives a generation a new lease. It counts from when the request was sent.
func (g *keptGeneration) prolong(sent time.Time, d time.Duration) {
	g.renewedAt = sent
	g.Issued.LeaseUntil(sent.Add(d))
	if g.opened { // else another blob waits to be opened
		g.due = time.Time{}
	}
}

// coast lets a generation go on through an outage. Whoever is throttled has reached the key service, so no outage keeps his data keys
// from being taken away, and he gets no more than his lease.
func (k *Keeper) coast(g *keptGeneration, code codes.Code) {
	d := k.leases.Lease
	if code != codes.ResourceExhausted {
		d = max(d, k.leases.Coast)
	}
	g.Issued.LeaseUntil(g.renewedAt.Add(d))
}

// askAgain says when to ask for generations whose renewal was refused, and what stands in their place.
func (k *Keeper) askAgain(refused []wanted) {
	again := time.Now().Add(jitter(refusalRetry))
	var older []wanted
	for _, g := range refused {
		switch {
		case g.sealed.CiphertextBlob == nil: // its Secret is gone
		case g.keptGeneration == g.of.newest:
			g.due = again
		case g.of.newest.denied(): // it comes back with that
			g.due = time.Time{}
		default:
			older = append(older, g)
		}
	}
	k.postpone(older)
	for _, g := range refused {
		k.settle(g.of, g.of.all())
	}
}

// scheduleRenewal says when to renew next, and tells of an outage when it begins and when it ends. One that leaves some leases renewed
// must not let those end.
func (k *Keeper) scheduleRenewal(ctx context.Context, start time.Time, failure error, given bool) {
	k.store.Renewals.Coasting.Store(failure != nil)
	if failure == nil {
		if k.unrenewed > 0 {
			k.log.LogAttrs(ctx, slog.LevelInfo, "leases are renewed again")
		}
		k.unrenewed, k.renewAt = 0, start.Add(k.leases.renewAfter())
		return
	}
	if k.unrenewed == 0 {
		k.log.LogAttrs(ctx, slog.LevelWarn, "leases are not renewed",
			slog.String("code", status.Code(failure).String()), slog.String("message", message(failure)),
			slog.String("lease", k.leases.Lease.String()), slog.String("coastTime", k.leases.Coast.String()))
	}
	k.renewAt = time.Now().Add(outageDelay(k.unrenewed))
	if soon := start.Add(k.leases.renewAfter()); given && soon.Before(k.renewAt) {
		k.renewAt = soon
	}
	k.unrenewed++
}

// expire takes away the generations whose lease is over. They are asked for like any that is not there.
func (k *Keeper) expire(now time.Time) {
	for _, name := range k.names {
		d := k.kept[name]
		before, ended := d.all(), false
		for _, g := range before {
			if g.Issued == nil || !g.Issued.LeaseOver() {
				continue
			}
			s := keystore.LeaseExpired(name)
			k.set(g, s.State, s.Reason, s.Message)
			k.note(d, g, s.Reason, s.Message)
			if ended = true; g.sealed.CiphertextBlob != nil {
				g.due = now
			}
		}
		if ended {
			k.settle(d, before)
		}
	}
}
