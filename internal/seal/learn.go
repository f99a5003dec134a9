package seal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
)

// meetInterval is how long a sealing key that is not in the Secret is not looked for again.
const meetInterval = time.Second

// meet looks for a sealing key that this manager has not met yet: another one may have made it since.
func (k *Keyring) meet(ctx context.Context, version uint32) (sealingKey, error) {
	done, err := k.takeTurn(ctx)
	if err != nil {
		return sealingKey{}, err
	}
	defer done()
	if sk, ok := k.keys.Load().versions[version]; ok {
		return sk, nil // somebody else met it in the meantime
	}
	if k.config.Clock.Since(k.missedAt) < meetInterval {
		if version != k.missed {
			return sealingKey{}, fmt.Errorf("sealing key %d is looked for in a moment, because another one was looked for in vain just now", version)
		}
		return sealingKey{}, envelope.ErrNotMine
	}
	if _, err := k.read(ctx); err != nil {
		return sealingKey{}, fmt.Errorf("looking for sealing key %d: %w", version, err)
	}
	if sk, ok := k.keys.Load().versions[version]; ok {
		return sk, nil
	}
	k.missed, k.missedAt = version, k.config.Clock.Now()
	return sealingKey{}, envelope.ErrNotMine
}

// read reads the Secret as it is now and learns what is new in it.
func (k *Keyring) read(ctx context.Context) (*layout, error) {
	l, err := readSealingKeys(ctx, k.config.Store)
	if errors.Is(err, ErrSecretNotFound) {
		return nil, &SecretError{
			Secret:  SealingKeysSecret,
			Problem: "is missing, although this manager runs with the sealing keys that were in it",
			Remedy:  "restore it from a backup; until then nothing new is sealed, because no manager that starts could open it",
		}
	}
	if err != nil {
		return nil, err
	}
	if l.installID != k.installID || l.keyID != k.id {
		return nil, &SecretError{
			Secret:  SealingKeysSecret,
			Problem: fmt.Sprintf("is that of another installation (%s), while this manager runs with the sealing keys of %s", l.installID, k.installID),
			Remedy:  "restore the Secret from a backup, or restart the manager if the other installation is the right one",
		}
	}
	return l, k.learn(ctx, l)
}

// learn makes the sealing keys of a layout this process's, which it opens by the root key or else by the previous one.
// What it has opened before it does not open again.
func (k *Keyring) learn(ctx context.Context, l *layout) error {
	errCurrent := k.openCurrent(ctx, false)
	if errCurrent == nil {
		errCurrent = k.learnBy(ctx, k.current, k.config.RootKey, l)
	} else if !l.listsURI(k.config.RootKey) {
		// That it cannot be opened is not what matters.
		errCurrent = errors.Join(l.notWrappedBy(ShownURI(k.config.RootKey), k.config.RootKey), errCurrent)
	}
	if errCurrent == nil || k.config.PreviousRootKey == "" {
		return errCurrent
	}
	errPrevious := k.openPrevious(ctx)
	if errPrevious == nil {
		errPrevious = k.learnBy(ctx, k.previous, k.config.PreviousRootKey, l)
	}
	if errPrevious == nil {
		return nil
	}
	return errors.Join(errCurrent, errPrevious)
}

func (k *Keyring) learnBy(ctx context.Context, root RootKey, uri string, l *layout) error {
	tag := tagOf(root.ID())
	if !l.lists(tag) {
		return l.notWrappedBy(root.ID(), uri)
	}
	known := k.keys.Load()
	learned := &sealingKeys{versions: map[uint32]sealingKey{}, primary: l.index.Primary}
	if known != nil {
		// What this manager knows it keeps, whatever became of the Secret: there may be nobody else who knows it.
		maps.Copy(learned.versions, known.versions)
		learned.primary = max(known.primary, learned.primary)
	}
	for v := uint32(1); v <= l.index.Primary; v++ {
		sk, err := k.open(ctx, root, l, v)
		if err != nil {
			return err
		}
		if _, ok := learned.versions[v]; ok {
			sk.material.Destroy() // it is the same
		} else {
			learned.versions[v] = sk
		}
	}
	if known == nil || learned.primary != known.primary || len(learned.versions) != len(known.versions) {
		k.keys.Store(learned)
	}
	return nil
}

// open makes sure that a version opens under a root key, as the sealing key that this process knows where it knows one. What
// this process knows and has opened before it does not open again: then it returns the zero sealingKey.
func (k *Keyring) open(ctx context.Context, root RootKey, l *layout, version uint32) (sealingKey, error) {
	entry := wrappedEntry(version, tagOf(root.ID()))
	wrapped := l.secret.Data[entry]
	if len(wrapped) == 0 {
		return sealingKey{}, &SecretError{
			Secret:  SealingKeysSecret,
			Problem: fmt.Sprintf("lacks an entry: it has no %s, the sealing key %d under root key %s", entry, version, root.ID()),
			Remedy:  "restore it from a backup",
		}
	}
	var known sealingKey
	knows := false
	if keys := k.keys.Load(); keys != nil {
		known, knows = keys.versions[version]
	}
	if knows && bytes.Equal(k.opened[entry], wrapped) {
		return sealingKey{}, nil
	}
	sk, err := l.unwrapEntry(ctx, root, entry, version)
	if err != nil {
		return sealingKey{}, err
	}
	if knows && !known.equal(sk) {
		sk.material.Destroy()
		return sealingKey{}, &SecretError{
			Secret:  SealingKeysSecret,
			Problem: fmt.Sprintf("has an entry %s that is another sealing key %d than the one that this manager runs with", entry, version),
			Remedy:  "restore it from a backup that has the right one, or restart the manager if the Secret is right",
		}
	}
	k.opened[entry] = bytes.Clone(wrapped)
	return sk, nil
}

// notWrappedBy is the error for a root key, opened by that URI, that wraps nothing here.
func (l *layout) notWrappedBy(root, uri string) error {
	settled := l.settledOn()
	remedy := fmt.Sprintf("set --root-key=%s again; to change the root key, set the new one as --root-key and %s as --previous-root-key",
		settled.URI, settled.URI)
	if l.listsURI(uri) {
		remedy = fmt.Sprintf("another key is in %s than before: bring the right one back", uri)
	}
	return &SecretError{
		Secret:  SealingKeysSecret,
		Problem: fmt.Sprintf("is wrapped by root key %s and not by %s", settled.ID, root),
		Remedy:  remedy,
	}
}

// openCurrent opens the root key, where it is not open yet.
func (k *Keyring) openCurrent(ctx context.Context, create bool) (err error) {
	if k.current == nil {
		k.current, err = k.config.openRootKey(ctx, k.config.RootKey, create)
	}
	return err
}

// openPrevious opens the previous root key, where it is not open yet.
func (k *Keyring) openPrevious(ctx context.Context) (err error) {
	if k.previous == nil {
		k.previous, err = k.config.openRootKey(ctx, k.config.PreviousRootKey, false)
	}
	return err
}

// CheckStored returns a *SecretError unless a manager that starts now would find the primary sealing key. It is asked before
// something new is sealed: what only running managers can open is lost with the last of them.
//
// It asks the root key for what this manager has not opened yet, and where the root key is embedded, and so near, for
// everything: a root key's service is needed at the start, and for a new sealing key.
func (k *Keyring) CheckStored(ctx context.Context) error {
	done, err := k.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	l, err := k.read(ctx)
	if err != nil {
		return err
	}
	if err := k.checkNewest(l); err != nil {
		return err
	}
	if _, embedded := k.current.(*embeddedRoot); !embedded || !l.lists(tagOf(k.current.ID())) {
		return nil
	}
	return k.checkAnew(ctx, l)
}

// checkAnew opens the root key as a manager that starts does, and every sealing key by it, whatever this one has opened before.
func (k *Keyring) checkAnew(ctx context.Context, l *layout) error {
	root, err := k.config.openRootKey(ctx, k.config.RootKey, false)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	fresh := &Keyring{config: k.config, opened: map[string][]byte{}}
	fresh.keys.Store(k.keys.Load()) // to compare with
	return fresh.learnBy(ctx, root, k.config.RootKey, l)
}

// checkNewest returns a *SecretError where the Secret is an older one: it lacks a sealing key that this manager seals by.
func (k *Keyring) checkNewest(l *layout) error {
	if l.index.Primary >= k.Primary() {
		return nil
	}
	return &SecretError{
		Secret:  SealingKeysSecret,
		Problem: fmt.Sprintf("does not hold the newest sealing key of this manager, %d, any more", k.Primary()),
		Remedy:  "restore it from a backup made after the last rotation, before the last manager that runs ends; until then nothing new is sealed",
	}
}
