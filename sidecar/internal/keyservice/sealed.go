package keyservice

import (
	"bytes"
	"maps"

	"github.com/datakeys/datakeys/internal/envelope"
)

// Sealed is one sealed data key. Nothing in it is secret.
type Sealed struct {
	CiphertextBlob []byte
	// At most one of EncryptionContext and AAD is set. All generations of a Secret share them.
	EncryptionContext map[string]string
	AAD               []byte
	// Generation is the generation that the blob's header claims; opening the blob proves it.
	Generation uint32
	// Renewal is what its renewal says, by the same header.
	Renewal Renewal
}

// Equal reports whether two blobs are the same, and bound to the same.
func (s Sealed) Equal(other Sealed) bool {
	return bytes.Equal(s.CiphertextBlob, other.CiphertextBlob) && maps.Equal(s.EncryptionContext, other.EncryptionContext) &&
		bytes.Equal(s.AAD, other.AAD)
}

// Renewal is a data key as the key service is asked to renew it: by what its blob's header says in clear. Generations that are wrapped
// by the same version are one.
type Renewal struct {
	KeyID      envelope.KeyID
	KeyVersion uint32
	MaterialID envelope.MaterialID
	// Name is that of the DataKeyRequest.
	Name string
}

// Opened is the answer to one Sealed: Plaintext with its key, or the refusal Err, a gRPC status error.
type Opened struct {
	// KeyARN and KeyVersion name the master key, as the key service does.
	KeyARN     string
	KeyVersion int32
	Plaintext  envelope.Plaintext
	Err        error
}
