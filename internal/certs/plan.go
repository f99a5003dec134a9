package certs

import (
	"cmp"
	"slices"
	"time"
)

const (
	year = 8766 * time.Hour // 365.25 days

	// rootLifetime is how long a root is valid.
	rootLifetime = 10 * year
	// successorLeft is what is left of the newest root's life when its successor is made.
	successorLeft = rootLifetime / 2
	// trustedBeforeSigning is how long a successor is in the bundle before it signs. It then begins to sign a year before
	// the old root's end: leeway for a cluster that was switched off when its time came.
	trustedBeforeSigning = successorLeft - year
	// handoverLeft is when a successor signs at the latest. It matters only if the successor was made late: then every day
	// that the old root goes on is a day more for the pods that know no other.
	handoverLeft = 7 * 24 * time.Hour

	// leafLifetime is how long a leaf is valid; it is replaced after leafRenewAfter. Far shorter than handoverLeft, so that
	// no leaf outlives its root.
	leafLifetime   = 24 * time.Hour
	leafRenewAfter = leafLifetime * 2 / 3
	// clockSkew is how far certificates are dated back, for verifiers whose clock is behind.
	clockSkew = time.Hour
)

// plan is what a set of roots means at one moment.
type plan struct {
	// signing is the root that signs leaves, nil if none is valid.
	signing *root
	// trusted are the roots of the bundle, the oldest first: all that have not expired.
	trusted []*root
	// makeRoot says that a further root has to be made.
	makeRoot bool
}

// planAt decides from the time and the roots alone, so that all replicas come to the same decision.
//
// No plan removes a root from the Secret: they are small, there is a new one every five years, and a clock that jumped
// ahead must not destroy what is still needed after it was set right.
func planAt(now time.Time, roots []*root) plan {
	// As they were made, and not as they end: whoever trusts a root trusts those of lower numbers, but not one that a clock which was
	// behind made later.
	sorted := slices.SortedStableFunc(slices.Values(roots), func(a, b *root) int { return cmp.Compare(a.number, b.number) })
	var p plan
	p.makeRoot = true
	for _, r := range sorted {
		if !now.Before(r.cert.NotAfter) {
			continue // expired
		}
		p.trusted = append(p.trusted, r)
		if now.Before(r.cert.NotBefore) {
			continue // made by a clock that was ahead; it neither signs nor counts as a successor
		}
		if p.signing == nil || !now.Before(handover(p.signing, r)) {
			p.signing = r
		}
		p.makeRoot = r.cert.NotAfter.Sub(now) < successorLeft
	}
	return p
}

// handover is the moment when successor takes over from old.
func handover(old, successor *root) time.Time {
	trusted := successor.cert.NotBefore.Add(clockSkew + trustedBeforeSigning)
	latest := old.cert.NotAfter.Add(-handoverLeft)
	if trusted.After(latest) {
		return latest
	}
	return trusted
}
