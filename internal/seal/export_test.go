package seal

import (
	"context"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// WrapNewVersion returns a new sealing key, wrapped as that version.
func (k *Keyring) WrapNewVersion(ctx context.Context, version uint32) ([]byte, error) {
	p, err := envelope.PlaintextOfMaterial(envelope.NewMaterialID(), envelope.NewMaterial())
	if err != nil {
		return nil, err
	}
	return k.root.Wrap(ctx, p, k.binding(version))
}

// SealingKeyBytes returns the newest sealing key, for tests that search for it where it must not be.
func (k *Keyring) SealingKeyBytes() []byte {
	return k.versions[k.primary].material.AppendTo(insecuresecret.Token{}, nil)
}
