package seal

import (
	"context"
	"errors"
	"fmt"

	"github.com/datakeys/datakeys/internal/envelope"
)

// wrap wraps a sealing key, and opens what came of it before anybody writes it down: a root key that answers with garbage
// must not become the only way to a key.
func wrap(ctx context.Context, root RootKey, sk sealingKey, ad []byte) ([]byte, error) {
	p, err := sk.plaintext()
	if err != nil {
		return nil, err
	}
	defer p.Destroy()
	wrapped, err := root.Wrap(ctx, p, ad)
	if err != nil {
		return nil, fmt.Errorf("wrapping a sealing key by root key %s: %w", root.ID(), err)
	}
	got, err := unwrap(ctx, root, wrapped, ad)
	if err != nil {
		return nil, fmt.Errorf("root key %s does not open what it has just wrapped, so nothing was written: %w", root.ID(), err)
	}
	defer got.material.Destroy()
	if !got.equal(sk) {
		return nil, fmt.Errorf("root key %s opens what it has just wrapped as something else, so nothing was written", root.ID())
	}
	return wrapped, nil
}

func unwrap(ctx context.Context, root RootKey, wrapped, ad []byte) (sealingKey, error) {
	p, err := root.Unwrap(ctx, wrapped, ad)
	if err != nil {
		return sealingKey{}, err
	}
	defer p.Destroy()
	id, m, err := p.Material()
	if err != nil {
		return sealingKey{}, err
	}
	return sealingKey{id, m}, nil
}

// final reports whether an error of a root key is about the wrapped bytes: another try will not help.
func final(err error) bool {
	return errors.Is(err, ErrOtherRootKey) || errors.Is(err, envelope.ErrBroken) || errors.Is(err, envelope.ErrNotMine) ||
		errors.Is(err, envelope.ErrInvalid)
}

// unwrapEntry opens an entry of the Secret. What is wrong with the entry is a *SecretError.
func (l *layout) unwrapEntry(ctx context.Context, root RootKey, entry string, version uint32) (sealingKey, error) {
	sk, err := unwrap(ctx, root, l.secret.Data[entry], l.binding(version))
	switch {
	case err != nil && final(err):
		remedy := "one of the two was altered: restore this Secret and the root key from one backup"
		if errors.Is(err, ErrOtherRootKey) {
			remedy = "restore that root key, or this Secret and the root key from one backup"
		}
		return sealingKey{}, &SecretError{
			Secret:  SealingKeysSecret,
			Problem: fmt.Sprintf("has an entry %s that does not open under root key %s: %v", entry, root.ID(), err),
			Remedy:  remedy,
		}
	case err != nil:
		return sealingKey{}, fmt.Errorf("unwrapping entry %s of Secret %s by root key %s: %w", entry, SealingKeysSecret, root.ID(), err)
	}
	return sk, nil
}
