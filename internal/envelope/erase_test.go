package envelope

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"testing"
)

// Go may change what stands behind its interfaces. Then memoryOf no longer clears it, and has to be looked at.
func TestMemoryOfWhatGoHides(t *testing.T) {
	key := counted(1, aesKeySize)
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.New()
	hash.Write(key)
	const schedule = 15 * aes.BlockSize // FIPS 197, section 5.2: 15 round keys
	for name, test := range map[string]struct {
		object any
		size   int // at least
	}{
		"hash": {hash, sha256.BlockSize + sha256.Size}, "block": {block, schedule}, "AEAD": {aead, schedule},
	} {
		memory := memoryOf(test.object)
		if len(memory) < test.size || bytes.Equal(memory, make([]byte, len(memory))) {
			t.Errorf("%s: got %d bytes of memory, want %d at least and not all zero", name, len(memory), test.size)
		}
		clear(memory)
		if again := memoryOf(test.object); !bytes.Equal(again, make([]byte, len(memory))) {
			t.Errorf("%s: was not cleared", name)
		}
	}
	hash.Reset()
	hash.Write(key)
	if want := sha256.Sum256(key); !bytes.Equal(hash.Sum(nil), want[:]) {
		t.Error("a hash that was cleared and reset cannot be used again")
	}
	for name, object := range map[string]any{"pointers": &bytes.Buffer{}, "no pointer": 1} {
		if memory := memoryOf(object); memory != nil {
			t.Errorf("%s: got %d bytes that may not be cleared", name, len(memory))
		}
	}
}
