package rootkey

import (
	"fmt"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"github.com/datakeys/datakeys/internal/envelope"
)

// What a wrapping root stores: one byte of the version, then five fields, each a length of two bytes, big-endian, and as
// many bytes. Nothing follows them. There is one way to write each value, so that what was read and is written again is
// the same.
const (
	wrappedVersion = 1

	// maxWrappedSize is a bound checked before anything is read. The limits of the fields allow for the longest
	// answers of the services: AWS KMS ends at 6144 bytes for a wrapped data key.
	maxWrappedSize = 32 << 10
)

// wrappedField is a field of what is stored, with its limits in bytes.
type wrappedField struct {
	name     string
	min, max int
}

// wrappedFields are the fields in their order: the ID of the root key, the name that the service gave its key or key
// version, the data key that the service encrypted, the nonce and the ciphertext under that data key. Where the service
// encrypts by itself the last holds its answer, and the data key and the nonce are empty.
var wrappedFields = [...]wrappedField{
	{name: "root key", min: 1, max: maxRootIDSize},
	{name: "service key", min: 1, max: 2048},
	{name: "data key", max: 8 << 10},
	{name: "nonce", max: 12},
	{name: "ciphertext", min: 1, max: 16 << 10},
}

// marshalWrapped returns what is stored of a wrapped key.
func marshalWrapped(id string, b *wrapping.BlobInfo) ([]byte, error) {
	out := []byte{wrappedVersion}
	for i, v := range [...][]byte{[]byte(id), []byte(b.GetKeyInfo().GetKeyId()), b.GetKeyInfo().GetWrappedKey(), b.GetIv(), b.GetCiphertext()} {
		f := wrappedFields[i]
		if len(v) < f.min || len(v) > f.max {
			return nil, fmt.Errorf("%s: %d bytes, must be %d to %d", f.name, len(v), f.min, f.max)
		}
		out = appendSized(out, v)
	}
	return out, nil
}

// parseWrapped reads what marshalWrapped wrote. The error is envelope.ErrBroken.
func parseWrapped(wrapped []byte) (id string, b *wrapping.BlobInfo, err error) {
	if len(wrapped) == 0 || len(wrapped) > maxWrappedSize || wrapped[0] != wrappedVersion {
		return "", nil, envelope.ErrBroken
	}
	r := sizedReader{rest: wrapped[1:]}
	var values [len(wrappedFields)][]byte
	for i, f := range wrappedFields {
		values[i] = r.sized()
		if n := len(values[i]); n < f.min || n > f.max {
			return "", nil, envelope.ErrBroken
		}
	}
	if r.short || len(r.rest) > 0 {
		return "", nil, envelope.ErrBroken
	}
	return string(values[0]), &wrapping.BlobInfo{
		KeyInfo:    &wrapping.KeyInfo{KeyId: string(values[1]), WrappedKey: values[2]},
		Iv:         values[3],
		Ciphertext: values[4],
	}, nil
}
