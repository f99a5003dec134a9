package envelope

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"strings"
)

// label keeps keys that are derived here apart from any that other formats derive from the same bytes. It ends with
// a zero byte, so no label is the beginning of another.
const label = "datakeys.io/blob/v1\x00"

const aesKeySize = 32

// Seal encrypts p under m and returns the blob. The header says which key version m is the material of; it and the
// associated data are bound to the blob.
func (m Material) Seal(h Header, ad AssociatedData, p Plaintext) ([]byte, error) {
	if err := h.Validate(); err != nil {
		return nil, err
	}
	if err := ad.Validate(); err != nil {
		return nil, err
	}
	out := make([]byte, 0, overhead(h)+p.Len())
	out = h.append(out)
	header := out
	out = out[:len(header)+saltSize]
	salt := out[len(header):]
	rand.Read(salt)

	aead, commitment, err := m.derive(header, salt, ad)
	if err != nil {
		return nil, err
	}
	out = append(out, commitment[:]...)
	err = p.s.use(func(b []byte) error {
		out = aead.Seal(out, nil, b, nil)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Open decrypts a blob. The error is ErrBroken unless m, the blob's header and the associated data are those that it
// was sealed with; whether the header names m is for the caller to ask before, with Blob.CheckKey.
func (m Material) Open(b *Blob, ad AssociatedData) (Plaintext, error) {
	if err := ad.Validate(); err != nil {
		return Plaintext{}, err
	}
	if !b.complete() {
		return Plaintext{}, ErrBroken
	}
	var buf [headerSize + maxNamespace + maxName]byte
	aead, commitment, err := m.derive(b.Header.append(buf[:0]), b.salt[:], ad)
	if err != nil {
		return Plaintext{}, err
	}
	// AES-GCM does not commit to its key: one ciphertext can be made to open under two. The commitment does, so it is
	// checked first, and nothing is decrypted with a key that is not the blob's.
	if subtle.ConstantTimeCompare(commitment[:], b.commitment[:]) != 1 {
		return Plaintext{}, ErrBroken
	}
	p, err := aead.Open(make([]byte, 0, len(b.sealed)-IVSize-tagSize), nil, b.sealed, nil)
	if err != nil {
		return Plaintext{}, ErrBroken
	}
	return Plaintext{s: newSecret(p)}, nil
}

// derive makes the key of one blob and the commitment to it.
//
// The key depends on the header, the salt and the associated data, and there is no other way to it, so GCM gets no
// additional data: it would authenticate the same bytes a second time. The salt is not repeated in the info: it is
// the key of HKDF's first step, at a fixed length, so two salts never lead to one key.
func (m Material) derive(header, salt []byte, ad AssociatedData) (cipher.AEAD, [commitmentSize]byte, error) {
	var info strings.Builder
	info.Grow(len(label) + len(header) + ad.size())
	info.WriteString(label)
	info.Write(header)
	ad.write(&info)

	var okm []byte
	err := m.s.use(func(material []byte) (err error) {
		okm, err = hkdf.Key(sha256.New, material, salt, info.String(), aesKeySize+commitmentSize)
		return err
	})
	if err != nil {
		return nil, [commitmentSize]byte{}, fmt.Errorf("deriving the key of a blob: %w", err)
	}
	defer clear(okm)
	block, err := aes.NewCipher(okm[:aesKeySize])
	if err != nil {
		return nil, [commitmentSize]byte{}, fmt.Errorf("making the cipher of a blob: %w", err)
	}
	// The random IV is the only one that Go's FIPS 140-3 module permits. It need not be random: the key is used once.
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, [commitmentSize]byte{}, fmt.Errorf("making the cipher of a blob: %w", err)
	}
	return aead, [commitmentSize]byte(okm[aesKeySize:]), nil
}
