package seal

import (
	"context"
	"fmt"

	"github.com/datakeys/datakeys/internal/envelope"
)

// HeldKey is most of a root key that the process itself holds, as it lies in a Secret or in a file, and wraps by with the crypto
// core. It has one version: another key is another root key.
type HeldKey struct {
	id       envelope.KeyID
	material envelope.Material
}

// NewHeldKey returns the key of that ID, which stands in what it wraps. The material is the HeldKey's from then on.
func NewHeldKey(id envelope.KeyID, m envelope.Material) HeldKey { return HeldKey{id: id, material: m} }

// Close implements RootKey.
func (k *HeldKey) Close() error {
	k.material.Destroy()
	return nil
}

// Wrap implements RootKey.
func (k *HeldKey) Wrap(_ context.Context, p envelope.Plaintext, ad []byte) ([]byte, error) {
	return k.material.Seal(envelope.Header{
		Kind:       envelope.KindSealingKey,
		KeyID:      k.id,
		KeyVersion: 1,
		MaterialID: envelope.MaterialID(k.id),
	}, envelope.AssociatedData{Raw: ad}, p)
}

// Unwrap implements RootKey.
func (k *HeldKey) Unwrap(_ context.Context, wrapped, ad []byte) (envelope.Plaintext, error) {
	b, err := envelope.Parse(wrapped)
	if err != nil {
		return envelope.Plaintext{}, err
	}
	if b.Header.Kind != envelope.KindSealingKey {
		return envelope.Plaintext{}, envelope.ErrBroken
	}
	if b.CheckKey(k.id, 1, envelope.MaterialID(k.id)) != nil {
		return envelope.Plaintext{}, fmt.Errorf("%w, %s", ErrOtherRootKey, b.Header.KeyID)
	}
	return k.material.Open(b, envelope.AssociatedData{Raw: ad})
}
