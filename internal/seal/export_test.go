package seal

import (
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// SealingKeyBytes returns the primary sealing key, for tests that search for it where it must not be.
func (k *Keyring) SealingKeyBytes() []byte {
	keys := k.keys.Load()
	return keys.versions[keys.primary].material.AppendTo(insecuresecret.Token{}, nil)
}

// TagOf names a root key in the names of entries.
func TagOf(id string) string { return tagOf(id) }

// Binding is what a version of the sealing key is bound to.
func Binding(id envelope.KeyID, version uint32, installID string) []byte {
	return binding(id, version, installID)
}
