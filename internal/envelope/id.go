package envelope

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// KeyID names a key for its whole life: a UUID (RFC 9562) in binary. For a master key it is the object's first
// metadata.uid. The zero KeyID (the nil UUID) names nothing.
type KeyID [16]byte

// NewKeyID returns a random KeyID, a UUID of version 4 (RFC 9562, section 5.4).
func NewKeyID() KeyID {
	var id KeyID
	rand.Read(id[:])
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

// ParseKeyID reads the canonical text form, 36 bytes in lower case, and nothing else: one key, one spelling.
func ParseKeyID(s string) (KeyID, error) {
	var id KeyID
	if len(s) != 36 {
		return KeyID{}, fmt.Errorf("%w: key ID: must be a UUID of 36 bytes, is %d bytes long", ErrInvalid, len(s))
	}
	var digits [32]byte
	n := 0
	for i, c := range []byte(s) {
		if i == 8 || i == 13 || i == 18 || i == 23 {
			if c != '-' {
				return KeyID{}, fmt.Errorf("%w: key ID: must have a hyphen at byte %d", ErrInvalid, i)
			}
			continue
		}
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return KeyID{}, fmt.Errorf("%w: key ID: must have a lower-case hexadecimal digit at byte %d", ErrInvalid, i)
		}
		digits[n] = c
		n++
	}
	if _, err := hex.Decode(id[:], digits[:]); err != nil {
		return KeyID{}, fmt.Errorf("%w: key ID: %w", ErrInvalid, err)
	}
	if id.IsZero() {
		return KeyID{}, fmt.Errorf("%w: key ID: must not be the nil UUID", ErrInvalid)
	}
	return id, nil
}

// String returns the canonical text form, 36 bytes in lower case.
func (id KeyID) String() string {
	var b [36]byte
	hex.Encode(b[:], id[:4])
	b[8] = '-'
	hex.Encode(b[9:], id[4:6])
	b[13] = '-'
	hex.Encode(b[14:], id[6:8])
	b[18] = '-'
	hex.Encode(b[19:], id[8:10])
	b[23] = '-'
	hex.Encode(b[24:], id[10:])
	return string(b[:])
}

// IsZero reports whether the ID names nothing.
func (id KeyID) IsZero() bool { return id == KeyID{} }

// MaterialID names the material of one key version: 16 random bytes, never used twice. The zero MaterialID names
// nothing.
type MaterialID [16]byte

// NewMaterialID returns a random MaterialID.
func NewMaterialID() MaterialID {
	var id MaterialID
	rand.Read(id[:])
	return id
}

// String returns the ID as 32 lower-case hexadecimal digits.
func (id MaterialID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether the ID names nothing.
func (id MaterialID) IsZero() bool { return id == MaterialID{} }
