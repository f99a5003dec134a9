package seal

import "github.com/datakeys/datakeys/internal/envelope/insecuresecret"

// SealingKeyBytes returns the primary sealing key, for tests that search for it where it must not be.
func (k *Keyring) SealingKeyBytes() []byte {
	keys := k.keys.Load()
	return keys.versions[keys.primary].material.AppendTo(insecuresecret.Token{}, nil)
}

// TagOf names a root key in the names of entries.
func TagOf(id string) string { return tagOf(id) }
