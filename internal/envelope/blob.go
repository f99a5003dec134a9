package envelope

import (
	"bytes"
)

const (
	// MaxPlaintextSize is the most bytes that one blob protects (AWS KMS, Encrypt: Plaintext).
	MaxPlaintextSize = 4096
	// MaxBlobSize is the most bytes that are looked at as a blob (AWS KMS, Decrypt: CiphertextBlob). The largest blob
	// of this format is smaller.
	MaxBlobSize = 6144
	// IVSize is the size of the IV that stands before the ciphertext (NIST SP 800-38D, section 8.2.2).
	IVSize = 12

	saltSize       = 32
	commitmentSize = 32
	tagSize        = 16
)

// The largest blob fits into what the AWS front door may carry.
const _ uint = MaxBlobSize - (headerSize + maxNamespace + maxName + saltSize + commitmentSize + IVSize +
	MaxPlaintextSize + tagSize)

// Blob is one encrypted data key, read but not opened: until Material.Open succeeds, its header is only a claim.
type Blob struct {
	// Header is what Parse read. Open authenticates it as it stands in this field, so what the caller decided by is
	// what was sealed.
	Header Header

	salt       [saltSize]byte
	commitment [commitmentSize]byte
	sealed     []byte // IV | ciphertext | tag
}

// Parse reads a blob and copies what it keeps. It accepts exactly what Marshal writes: the error is ErrNotMine for
// another format version or algorithm and ErrBroken for everything else that is not such a blob.
func Parse(b []byte) (*Blob, error) {
	if len(b) > MaxBlobSize {
		return nil, ErrBroken
	}
	h, rest, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	const fixed = saltSize + commitmentSize + IVSize + tagSize
	if len(rest) < fixed+1 || len(rest) > fixed+MaxPlaintextSize {
		return nil, ErrBroken
	}
	return &Blob{
		Header:     h,
		salt:       [saltSize]byte(rest),
		commitment: [commitmentSize]byte(rest[saltSize:]),
		sealed:     bytes.Clone(rest[saltSize+commitmentSize:]),
	}, nil
}

// Marshal returns the bytes that Parse read. It returns nil for a Blob that Parse did not return, or whose Header
// was made invalid since.
func (b *Blob) Marshal() []byte {
	if !b.complete() {
		return nil
	}
	out := make([]byte, 0, b.Header.size()+saltSize+commitmentSize+len(b.sealed))
	out = b.Header.append(out)
	out = append(out, b.salt[:]...)
	out = append(out, b.commitment[:]...)
	return append(out, b.sealed...)
}

// IV returns a copy of the 12 bytes of the initialization vector, which is not secret.
func (b *Blob) IV() []byte {
	if !b.complete() {
		return nil
	}
	return bytes.Clone(b.sealed[:IVSize])
}

// CheckKey returns ErrNotMine unless the header names exactly this version of this key, and this material. It says
// nothing about the rest of the blob.
func (b *Blob) CheckKey(id KeyID, version uint32, material MaterialID) error {
	if h := b.Header; h.KeyID != id || h.KeyVersion != version || h.MaterialID != material {
		return ErrNotMine
	}
	return nil
}

// overhead is by how many bytes a blob with this header is larger than its plaintext.
func overhead(h Header) int {
	return h.size() + saltSize + commitmentSize + IVSize + tagSize
}

// complete tells a Blob of Parse from a literal, whose unexported fields are empty.
func (b *Blob) complete() bool {
	return b != nil && len(b.sealed) > IVSize+tagSize && b.Header.Validate() == nil
}
