package v1alpha1

import (
	"cmp"
	"slices"
)

// AliasHolder returns the MasterKey of a namespace that has an alias, or nil. The keys are all of that namespace that claim it in
// spec.aliases; others among them do not matter, nor does the order.
//
// Of those that claim it, the ones whose status.aliases has it too come first: who has it keeps it. Among equals the oldest has it,
// by creationTimestamp and then by UID, so that everybody who sees the same objects tells the same. A key that is Destroyed has no
// alias. One that is being deleted keeps its aliases while it is there.
//
// So the other claimant has an alias as soon as the spec of its holder lets it go, whatever the status of either says by then. And
// a status that was edited by hand gives a key nothing that its spec does not claim.
func AliasHolder(alias string, keys []MasterKey) (holder *MasterKey) {
	for i := range keys {
		if slices.Contains(keys[i].Spec.Aliases, alias) {
			holder = firstClaimant(alias, holder, &keys[i])
		}
	}
	return holder
}

// AliasHolders has the MasterKey that has each alias of one namespace: what AliasHolder returns of all keys that were added.
//
// +kubebuilder:object:generate=false
type AliasHolders map[string]*MasterKey

// Add takes the claims of one more MasterKey into account. It keeps k, and does not change it.
func (h AliasHolders) Add(k *MasterKey) {
	for _, alias := range k.Spec.Aliases {
		if holder := firstClaimant(alias, h[alias], k); holder != nil {
			h[alias] = holder
		}
	}
}

// HeldBy returns those of the aliases of k's spec that k has, in their order there: what belongs into its status.
func (h AliasHolders) HeldBy(k *MasterKey) (held []string) {
	for _, alias := range k.Spec.Aliases {
		if holder := h[alias]; holder != nil && holder.Name == k.Name {
			held = append(held, alias)
		}
	}
	return held
}

// firstClaimant returns the one of two claimants of an alias, the first of which may be nil, that comes before the other.
func firstClaimant(alias string, a, b *MasterKey) *MasterKey {
	switch {
	case b.Status.State == MasterKeyStateDestroyed:
		return a
	case a == nil:
		return b
	}
	hasA, hasB := slices.Contains(a.Status.Aliases, alias), slices.Contains(b.Status.Aliases, alias)
	if hasA != hasB {
		if hasA {
			return a
		}
		return b
	}
	older := cmp.Or(
		a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
		cmp.Compare(a.UID, b.UID),
		cmp.Compare(a.Name, b.Name), // of objects that no API server has named yet
	)
	if older > 0 {
		return b
	}
	return a
}
