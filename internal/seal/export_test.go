package seal

import (
	"context"

	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// SealingKeyBytes returns the primary sealing key, for tests that search for it where it must not be.
func (k *Keyring) SealingKeyBytes() []byte {
	keys := k.keys.Load()
	return keys.versions[keys.primary].material.AppendTo(insecuresecret.Token{}, nil)
}

// TagOf names a root key in the names of entries.
func TagOf(id string) string { return tagOf(id) }

// OpenRootKey opens a root key that is not embedded, by its scheme.
func OpenRootKey(ctx context.Context, uri string) (RootKey, error) {
	return Config{}.openRootKey(ctx, uri, false)
}
