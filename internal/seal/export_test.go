package seal

import "github.com/datakeys/datakeys/internal/envelope/insecuresecret"

// SealingKeyBytes returns the newest sealing key, for tests that search for it where it must not be.
func (k *Keyring) SealingKeyBytes() []byte {
	return k.versions[k.primary].material.Bytes(insecuresecret.Token{})
}
