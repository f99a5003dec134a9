package rootkeytest

import (
	"bytes"
	"compress/gzip"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"slices"
)

var errNotOpened = errors.New("rootkeytest: does not open")

// serviceKey is a key of a fake service: AES-256-GCM, in versions, the last of which encrypts.
type serviceKey struct {
	versions []cipher.AEAD
	disabled bool
}

func newServiceKey() *serviceKey {
	k := &serviceKey{}
	k.rotate()
	return k
}

func (k *serviceKey) rotate() {
	material := make([]byte, 32)
	_, _ = rand.Read(material) // never returns an error
	block, err := aes.NewCipher(material)
	if err != nil {
		return
	}
	gcm, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return
	}
	k.versions = append(k.versions, gcm)
}

// seal returns plaintext under the last version, which counts from 1.
func (k *serviceKey) seal(plaintext, ad []byte) (version int, sealed []byte) {
	version = len(k.versions)
	return version, k.versions[version-1].Seal(nil, nil, plaintext, ad)
}

func (k *serviceKey) open(version int, sealed, ad []byte) ([]byte, error) {
	if version < 1 || version > len(k.versions) {
		return nil, errNotOpened
	}
	return k.versions[version-1].Open(nil, nil, sealed, ad)
}

// readBlob reads into blob what json.Marshal wrote, and nothing else that means the same.
func readBlob(b []byte, blob any) bool {
	if json.Unmarshal(b, blob) != nil {
		return false
	}
	again, err := json.Marshal(blob)
	return err == nil && bytes.Equal(b, again)
}

// twisted returns other bytes than b, as many.
func twisted(b []byte) []byte {
	b = slices.Clone(b)
	for i := range b {
		b[i] ^= 0x5a
	}
	return b
}

// packedZeros returns a gzip member of 16 MiB of zeros.
func packedZeros() []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	zeros := make([]byte, 1<<20)
	for range 16 {
		_, _ = z.Write(zeros) // a buffer takes it
	}
	_ = z.Close()
	return b.Bytes()
}
