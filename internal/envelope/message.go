package envelope

import (
	"crypto/cipher"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
)

const (
	// MaxMessageSize is the most bytes that one message protects. There may be none.
	MaxMessageSize = 1 << 20
	// MinMessageKeySize is the smallest size of data keys that messages are encrypted with: 128 secret bits.
	MinMessageKeySize = 16
	// MaxMessageKeySize is the largest: as many bytes as a DataKeyRequest may ask for.
	MaxMessageKeySize = 1024

	// messageFormat is the first byte of a message. Blobs count their format versions from 1, messages from 129: so neither is
	// ever read as the other.
	messageFormat = 129
	// messageLabel is the label of messages: see label.
	messageLabel = "datakeys.io/message/v1\x00"

	// messageHeaderSize is the size of format version, algorithm and generation.
	messageHeaderSize = 1 + 1 + 4
	// MessageOverhead is by how many bytes a message is larger than what it protects.
	MessageOverhead = messageHeaderSize + saltSize + commitmentSize + IVSize + tagSize
)

// Message is what was encrypted with a data key, read but not opened: until Plaintext.OpenMessage succeeds, its generation is only a
// claim, good for finding the data key.
type Message struct {
	// Generation is the generation of the data key, 1 or more. OpenMessage authenticates it as it stands in this field.
	Generation uint32

	salt       [saltSize]byte
	commitment [commitmentSize]byte
	sealed     []byte // IV | ciphertext | tag
}

// ParseMessage reads a message. It accepts exactly what Marshal writes, and its errors are those of Parse. The Message refers to b,
// which must not change as long as the Message is used: it may be large.
func ParseMessage(b []byte) (*Message, error) {
	switch {
	case len(b) == 0 || len(b) > MessageOverhead+MaxMessageSize:
		return nil, ErrBroken
	case b[0] != messageFormat:
		return nil, ErrNotMine
	case len(b) == 1:
		return nil, ErrBroken
	case b[1] != algorithm:
		return nil, ErrNotMine
	case len(b) < MessageOverhead:
		return nil, ErrBroken
	}
	generation := binary.BigEndian.Uint32(b[2:])
	if generation == 0 {
		return nil, ErrBroken
	}
	rest := b[messageHeaderSize:]
	return &Message{
		Generation: generation,
		salt:       [saltSize]byte(rest),
		commitment: [commitmentSize]byte(rest[saltSize:]),
		sealed:     rest[saltSize+commitmentSize:],
	}, nil
}

// Marshal returns the bytes that ParseMessage read. It returns nil for a Message that ParseMessage did not return, or whose
// Generation was made invalid since.
func (m *Message) Marshal() []byte {
	if !m.complete() {
		return nil
	}
	out := appendMessageHeader(make([]byte, 0, MessageOverhead+m.Size()), m.Generation)
	out = append(out, m.salt[:]...)
	out = append(out, m.commitment[:]...)
	return append(out, m.sealed...)
}

// Size is how many bytes the message protects.
func (m *Message) Size() int { return len(m.sealed) - IVSize - tagSize }

// complete tells a Message of ParseMessage from a literal, whose unexported fields are empty.
func (m *Message) complete() bool {
	return m != nil && len(m.sealed) >= IVSize+tagSize && m.Generation != 0
}

func appendMessageHeader(b []byte, generation uint32) []byte {
	return binary.BigEndian.AppendUint32(append(b, messageFormat, algorithm), generation)
}

// SealMessage encrypts data with the data key p of that generation and appends the message to dst, which must not overlap data.
// The message is bound to the generation and to ad, which is raw or none.
//
// A private key is no data key, and refusing it is up to the caller: its bytes do not tell it.
func (p Plaintext) SealMessage(dst []byte, generation uint32, ad AssociatedData, data []byte) ([]byte, error) {
	if err := p.checkMessage(ad); err != nil {
		return nil, err
	}
	if generation == 0 {
		return nil, fmt.Errorf("%w: generation 0: must be 1 or more", ErrInvalid)
	}
	if len(data) > MaxMessageSize {
		return nil, fmt.Errorf("%w: message of %d bytes: must be at most %d bytes", ErrInvalid, len(data), MaxMessageSize)
	}
	start := len(dst)
	out := appendMessageHeader(dst, generation)
	header := out[start:]
	var salt [saltSize]byte
	rand.Read(salt[:])
	err := p.s.withKey(messageLabel, header, salt[:], ad, func(aead cipher.AEAD, commitment []byte) error {
		out = append(append(out, salt[:]...), commitment...)
		out = aead.Seal(out, nil, data, nil)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// OpenMessage decrypts a message with the data key p and appends what it protects, m.Size bytes, to dst, which must not overlap the
// message. The error is ErrBroken unless p, the message's generation and ad are those that it was sealed with. Clearing the bytes is
// up to the caller; where dst has no room for them, they come in memory of their own.
func (p Plaintext) OpenMessage(dst []byte, m *Message, ad AssociatedData) ([]byte, error) {
	if err := p.checkMessage(ad); err != nil {
		return nil, err
	}
	if !m.complete() {
		return nil, ErrBroken
	}
	var header [messageHeaderSize]byte
	err := p.s.withKey(messageLabel, appendMessageHeader(header[:0], m.Generation), m.salt[:], ad,
		func(aead cipher.AEAD, commitment []byte) (err error) {
			if subtle.ConstantTimeCompare(commitment, m.commitment[:]) != 1 { // see Material.Open
				return ErrBroken
			}
			if dst, err = aead.Open(dst, nil, m.sealed, nil); err != nil {
				return ErrBroken
			}
			return nil
		})
	if err != nil {
		return nil, err
	}
	return dst, nil
}

// checkMessage tells whether messages can be encrypted with p, and be bound to ad.
func (p Plaintext) checkMessage(ad AssociatedData) error {
	switch n := p.Len(); {
	case n == 0:
		return ErrDestroyed
	case n < MinMessageKeySize || n > MaxMessageKeySize:
		return fmt.Errorf("%w: data key of %d bytes: must be %d to %d bytes", ErrInvalid, n, MinMessageKeySize, MaxMessageKeySize)
	case len(ad.Context) > 0:
		return fmt.Errorf("%w: context: a message takes raw associated data alone", ErrInvalid)
	}
	return ad.Validate()
}
