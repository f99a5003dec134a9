package seal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"
)

const (
	// maxSteps bounds how often one Tend writes, or tries to while others write.
	maxSteps = 32
	// rewrapInterval is how long a manager waits at least before it wraps anew what its root key calls stale: a service that
	// changes its mind with every answer must not make it write without end.
	rewrapInterval = time.Hour
	// returnInterval is how long a manager leaves it be where the installation relied on its root key and then on the previous one
	// again: another manager has the two the other way round, and they would undo each other's work with every look.
	returnInterval = time.Hour
)

// step is one write of the Secret with the sealing keys, what it changes, and what to say of it once it is done.
type step struct {
	secret  Secret
	changes []Change
	says    string
	about   []any
}

// Tend learns what other managers did, and does what there is to do: it goes on with a change of the root key, and the
// leader wraps anew what its root key calls stale. Every step begins with what is durable now, is one compare-and-swap, and
// is followed by a look at what came of it. Where there is nothing to do, nothing is written.
func (k *Keyring) Tend(ctx context.Context, leads bool) error {
	done, err := k.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	return k.write(ctx, func(ctx context.Context, l *layout) (*step, error) {
		if err := k.checkNewest(l); err != nil && !l.pending() { // a rotation brings back what it had begun
			return nil, err
		}
		return k.nextStep(ctx, l, leads)
	})
}

// write makes one write after the other, each from what it has just read, until next has none.
func (k *Keyring) write(ctx context.Context, next func(context.Context, *layout) (*step, error)) error {
	for range maxSteps {
		l, err := k.read(ctx)
		if err != nil {
			if l != nil && ctx.Err() == nil {
				k.judge(l) // that it does not open any more is to be seen too
			}
			return err
		}
		s, err := next(ctx, l)
		k.judge(l)
		if err != nil || s == nil {
			return err
		}
		if err := k.config.record(ctx, s.changes); err != nil {
			return err
		}
		err = k.config.Store.Update(ctx, s.secret)
		if errors.Is(err, ErrSecretChanged) {
			continue // somebody else was quicker: look again
		}
		if err != nil {
			return fmt.Errorf("writing Secret %s: %w", SealingKeysSecret, err)
		}
		k.config.Logger.Info(s.says, s.about...)
	}
	return fmt.Errorf("secret %s is being changed all the time", SealingKeysSecret)
}

// nextStep is the next write of a change of the root key, nil where there is none.
func (k *Keyring) nextStep(ctx context.Context, l *layout, leads bool) (*step, error) {
	if err := k.openCurrent(ctx, k.mayMakeRootKey(l)); err != nil {
		return nil, err
	}
	tag := tagOf(k.current.ID())
	if len(l.missing(tag)) > 0 {
		if k.config.PreviousRootKey == "" {
			return nil, nil // it runs by what it knows; the verdict says so
		}
		return k.addRootKey(ctx, l)
	}
	if s, err := k.replace(ctx, l, tag); s != nil || err != nil {
		return s, err
	}
	if s, err := k.checkAll(ctx, l, tag); s != nil || err != nil {
		return s, err
	}
	if l.index.SettledOn == tag {
		k.settled = k.config.Clock.Now()
	}
	switch {
	case l.index.SettledOn != tag && k.replaces(ctx, l.settledOn()):
		return k.settle(ctx, l, tag)
	case l.index.SettledOn == tag && k.config.PreviousRootKey == "" && len(k.toDrop(l)) > 0:
		drop := k.toDrop(l)
		// What this process opened when it started may be long ago, and the key be gone since, or be in its memory alone.
		if err := k.checkAnew(ctx, l); err != nil {
			return nil, fmt.Errorf("what other root keys wrapped is kept: %w", err)
		}
		return l.step("Dropped what other root keys had wrapped", func(data map[string][]byte, i *index) {
			maps.DeleteFunc(data, func(entry string, _ []byte) bool {
				_, of, _, ok := parseWrappedEntry(entry)
				return ok && drop[of]
			})
			maps.DeleteFunc(i.RootKeys, func(of string, _ listedRootKey) bool { return drop[of] })
		}, l.dropped(drop)...)
	case leads:
		return k.rewrapStale(ctx, l, tag)
	}
	return nil, nil
}

// settle lets the installation rely on the root key, in the place of the previous one.
func (k *Keyring) settle(ctx context.Context, l *layout, tag string) (*step, error) {
	if wait := returnInterval - k.config.Clock.Since(k.settled); wait > 0 {
		return nil, fmt.Errorf("the installation relied on root key %s, and now on %s again, as by a manager with other flags or an older backup: "+
			"give all managers the same --root-key and --previous-root-key; this one goes on with its own in %s",
			k.current.ID(), l.settledOn().ID, wait.Round(time.Minute))
	}
	if err := k.checkAnew(ctx, l); err != nil {
		return nil, fmt.Errorf("not relying on root key %s yet: %w", k.current.ID(), err)
	}
	return l.step(fmt.Sprintf("Settled on root key %s: take a new backup of the Secrets of this namespace", k.current.ID()),
		func(_ map[string][]byte, i *index) { i.SettledOn = tag },
		Change{Action: ActionChangeRootKey, RootKey: k.current.ID(), Reason: "in the place of " + l.settledOn().ID})
}

// toDrop are the tags of root keys that are to go once the root key of the configuration is the only one there: those that were
// there when this process started. One that came since, a manager with newer flags is about to bring in. If that change is given
// up, the next process with these flags drops it.
func (k *Keyring) toDrop(l *layout) map[string]bool {
	drop := map[string]bool{}
	for _, tag := range l.tags()[1:] { // the first is settled on
		if k.found[tag] {
			drop[tag] = true
		}
	}
	return drop
}

func (l *layout) step(says string, edit func(data map[string][]byte, i *index), changes ...Change) (*step, error) {
	s, err := l.edit(edit)
	return &step{secret: s, changes: changes, says: says, about: []any{"secret", SealingKeysSecret}}, err
}

// dropped are the changes where these root keys are dropped.
func (l *layout) dropped(drop map[string]bool) []Change {
	var changes []Change
	for _, tag := range l.tags() {
		if drop[tag] {
			changes = append(changes, Change{Action: ActionDropRootKey, RootKey: l.index.RootKeys[tag].ID,
				Reason: "the installation relies on " + l.settledOn().ID + ", and no previous root key is set"})
		}
	}
	return changes
}

// mayMakeRootKey reports whether an embedded root key may be made: only as the new root key of an installation that is open
// by the previous one, and that never had it.
func (k *Keyring) mayMakeRootKey(l *layout) bool {
	return k.config.PreviousRootKey != "" && !l.listsURI(k.config.RootKey)
}

// replaces reports whether a root key is the previous one of the configuration. Its URI says so even if it is gone.
func (k *Keyring) replaces(ctx context.Context, root listedRootKey) bool {
	if k.config.PreviousRootKey == "" {
		return false
	}
	if k.config.PreviousRootKey == root.URI {
		return true
	}
	return k.openPrevious(ctx) == nil && k.previous.ID() == root.ID
}

// addRootKey wraps what the root key does not wrap yet. The others' entries stay.
func (k *Keyring) addRootKey(ctx context.Context, l *layout) (*step, error) {
	tag := tagOf(k.current.ID())
	added, err := k.wrapVersions(ctx, l, k.current, l.missing(tag))
	if err != nil {
		return nil, err
	}
	return l.step(fmt.Sprintf("Wrapped the sealing keys by root key %s", k.current.ID()), func(data map[string][]byte, i *index) {
		for v, wrapped := range added {
			data[wrappedEntry(v, tag)] = wrapped
		}
		i.RootKeys[tag] = listedRootKey{ID: k.current.ID(), URI: k.config.RootKey}
	}, Change{Action: ActionWrapSealingKeys, RootKey: k.current.ID(), Reason: "it does not wrap all of them yet"})
}

func (k *Keyring) wrapVersions(ctx context.Context, l *layout, root RootKey, versions []uint32) (map[uint32][]byte, error) {
	all := map[uint32][]byte{}
	keys := k.keys.Load()
	for _, v := range versions {
		var err error
		if all[v], err = wrap(ctx, root, keys.versions[v], l.binding(v)); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// checkAll makes sure that every version opens under the root key. Where one does not and the installation has not relied
// on this root key yet, it is wrapped anew.
func (k *Keyring) checkAll(ctx context.Context, l *layout, tag string) (*step, error) {
	var broken []uint32
	var problem error
	for v := uint32(1); v <= l.index.Primary; v++ {
		_, err := k.open(ctx, k.current, l, v)
		if _, isFinal := errors.AsType[*SecretError](err); isFinal && l.index.SettledOn != tag {
			broken, problem = append(broken, v), err
		} else if err != nil {
			return nil, err
		}
	}
	if len(broken) == 0 || k.config.PreviousRootKey == "" {
		return nil, problem
	}
	return k.wrapAnew(ctx, l, broken, "what it wrapped does not open")
}

// rewrapStale wraps anew what the root key calls stale.
func (k *Keyring) rewrapStale(ctx context.Context, l *layout, tag string) (*step, error) {
	root, ok := k.current.(Staler)
	if !ok || k.config.Clock.Since(k.rewrapped) < rewrapInterval {
		return nil, nil
	}
	var stale []uint32
	for v := uint32(1); v <= l.index.Primary; v++ {
		if root.Stale(l.wrapped(v, tag)) {
			stale = append(stale, v)
		}
	}
	if len(stale) == 0 {
		return nil, nil
	}
	return k.wrapAnew(ctx, l, stale, "it was rotated behind its name")
}

// wrapAnew puts new entries beside those that they shall replace.
func (k *Keyring) wrapAnew(ctx context.Context, l *layout, versions []uint32, why string) (*step, error) {
	tag := tagOf(k.current.ID())
	anew, err := k.wrapVersions(ctx, l, k.current, versions)
	if err != nil {
		return nil, err
	}
	return l.step(fmt.Sprintf("Wrapped sealing keys anew by root key %s", k.current.ID()), func(data map[string][]byte, _ *index) {
		for v, wrapped := range anew {
			data[wrappedEntry(v, tag)+nextSuffix] = wrapped
		}
	}, Change{Action: ActionRewrapSealingKeys, RootKey: k.current.ID(), Reason: why})
}

// replace lets entries that were wrapped anew take the place of the old ones, each once it was read back and opened. One that
// does not open goes away, and the old one stays.
func (k *Keyring) replace(ctx context.Context, l *layout, tag string) (*step, error) {
	good, found := map[uint32][]byte{}, false
	keys := k.keys.Load()
	for v := uint32(1); v <= l.index.Primary; v++ {
		entry := wrappedEntry(v, tag) + nextSuffix
		wrapped, ok := l.secret.Data[entry]
		if !ok {
			continue
		}
		found = true
		sk, err := l.unwrapEntry(ctx, k.current, entry, v)
		if _, isFinal := errors.AsType[*SecretError](err); err != nil && !isFinal {
			return nil, err
		}
		if err == nil && sk.equal(keys.versions[v]) {
			good[v] = wrapped
		}
		sk.material.Destroy()
	}
	if !found {
		return nil, nil
	}
	k.rewrapped = k.config.Clock.Now()
	return l.step("Replaced wrapped sealing keys by those that were wrapped anew", func(data map[string][]byte, _ *index) {
		for v := uint32(1); v <= l.index.Primary; v++ {
			delete(data, wrappedEntry(v, tag)+nextSuffix)
			if wrapped, ok := good[v]; ok {
				data[wrappedEntry(v, tag)] = bytes.Clone(wrapped)
			}
		}
	}, Change{Action: ActionRewrapSealingKeys, RootKey: k.current.ID(), Reason: "what it wrapped anew was read back, and takes the place of the old where it opens"})
}
