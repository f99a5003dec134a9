package envelope

import (
	"cmp"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
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
	out := make([]byte, 0, overhead(h)+p.Len())
	out = h.append(out)
	header := out
	out = out[:len(header)+saltSize]
	salt := out[len(header):]
	rand.Read(salt)

	err := m.s.withKey(label, header, salt, ad, func(aead cipher.AEAD, commitment []byte) error {
		out = append(out, commitment...)
		return p.s.use(func(b []byte) error {
			out = aead.Seal(out, nil, b, nil)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Open decrypts a blob. The error is ErrBroken unless m, the blob's header and the associated data are those that it
// was sealed with; whether the header names m is for the caller to ask before, with Blob.CheckKey.
func (m Material) Open(b *Blob, ad AssociatedData) (Plaintext, error) {
	if !b.complete() {
		return Plaintext{}, cmp.Or(ad.Validate(), ErrBroken)
	}
	var buf [headerSize + maxNamespace + maxName]byte
	opened := newSecret(len(b.sealed) - IVSize - tagSize)
	err := m.s.withKey(label, b.Header.append(buf[:0]), b.salt[:], ad, func(aead cipher.AEAD, commitment []byte) error {
		// AES-GCM does not commit to its key: one ciphertext can be made to open under two. The commitment does, so it
		// is checked first, and nothing is decrypted with a key that is not the blob's.
		if subtle.ConstantTimeCompare(commitment, b.commitment[:]) != 1 {
			return ErrBroken
		}
		if _, err := aead.Open(opened.slot.bytes()[:0], nil, b.sealed, nil); err != nil {
			return ErrBroken
		}
		return nil
	})
	if err != nil {
		opened.destroy()
		return Plaintext{}, err
	}
	return Plaintext{s: opened}, nil
}

// withKey makes the key of one blob or message and the commitment to it, lends both to f, and erases what this left in memory.
//
// The key depends on the header, the salt and the associated data, and there is no other way to it, so GCM gets no
// additional data: it would authenticate the same bytes a second time. The salt is not repeated in the info: it is
// the key of HKDF's first step, at a fixed length, so two salts never lead to one key.
func (s *secret) withKey(
	label string, header, salt []byte, ad AssociatedData, f func(aead cipher.AEAD, commitment []byte) error,
) error {
	info, err := keyInfo(label, header, ad)
	if err != nil {
		return err
	}
	return erasing(func(traces *traces) error {
		var prk []byte
		err := s.use(func(key []byte) (err error) {
			prk, err = hkdf.Extract(traces.newHash, key, salt)
			return err
		})
		if err != nil {
			return fmt.Errorf("deriving the key: %w", err)
		}
		traces.add(prk)
		okm, err := hkdf.Expand(traces.newHash, prk, info, aesKeySize+commitmentSize)
		if err != nil {
			return fmt.Errorf("deriving the key: %w", err)
		}
		traces.add(okm)
		block, err := aes.NewCipher(okm[:aesKeySize])
		if err != nil {
			return fmt.Errorf("making the cipher: %w", err)
		}
		traces.add(memoryOf(block))
		// The random IV is the only one that Go's FIPS 140-3 module permits. It need not be random: the key is used once.
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return fmt.Errorf("making the cipher: %w", err)
		}
		traces.add(memoryOf(aead))
		return f(aead, okm[aesKeySize:])
	})
}

// keyInfo is the info of HKDF, which binds the key of a blob or message to its header and associated data.
func keyInfo(label string, header []byte, ad AssociatedData) (string, error) {
	var few [8]pair // on the stack: most contexts are small
	pairs, size, err := ad.check(few[:0])
	if err != nil {
		return "", err
	}
	var info strings.Builder
	info.Grow(len(label) + len(header) + size)
	info.WriteString(label)
	info.Write(header)
	ad.write(&info, pairs)
	return info.String(), nil
}

// Fingerprint returns n bytes, 1 to 8160, that m alone leads to and that tell nothing of it: HKDF-SHA-256 without salt, with
// the label as info (RFC 5869). They name a key that has no other name. No blob's key is among them, since those have a salt.
func (m Material) Fingerprint(label string, n int) (fingerprint []byte, err error) {
	err = erasing(func(traces *traces) error {
		return m.s.use(func(material []byte) (err error) {
			fingerprint, err = hkdf.Key(traces.newHash, material, nil, label, n)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("deriving a fingerprint: %w", err)
	}
	return fingerprint, nil
}
