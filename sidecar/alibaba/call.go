package alibaba

import (
	"encoding/hex"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// Limits of parameters, in bytes. They are the key service's.
const (
	maxKeyID      = 2048
	maxAAD        = 8192
	maxPlaintext  = 4096
	maxCiphertext = 6144
	maxRandom     = 1024 // NumberOfBytes and Length
)

const (
	// callTimeout is the most that a call of the key service may take, connecting included.
	callTimeout = 5 * time.Second
	// pairTimeout is the same for a key pair, of which one of RSA takes seconds: what the key service takes at most.
	pairTimeout = 15 * time.Second
)

// algorithm is how everything is encrypted.
const algorithm = "AES_GCM"

// call is one request on its way.
type call struct {
	kms       kmsv1.KeyServiceClient
	requestID string
	name      string // of the operation
	door      kmsv1.Door
	body      []byte
	unread    bool     // there may be more of the body
	keyID     string   // as the caller names the key
	secrets   [][]byte // see secret
}

// secret has bytes cleared when the answer is encoded.
func (c *call) secret(b []byte) []byte {
	c.secrets = append(c.secrets, b)
	return b
}

func (c *call) wipe() {
	for _, b := range c.secrets {
		clear(b)
	}
}

// decode reads the body. What it has beyond the message is left out.
func (c *call) decode(m proto.Message) error {
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(c.body, m); err != nil {
		return invalid("The body must be a protobuf message %s.", m.ProtoReflect().Descriptor().Name())
	}
	return nil
}

// names checks the key that a request names, and the associated data.
func (c *call) names(keyID string, aad []byte) error {
	c.keyID = keyID
	if len(keyID) > maxKeyID {
		return invalid("KeyId must have at most %d bytes.", maxKeyID)
	}
	if len(aad) > maxAAD {
		return invalid("Aad must have at most %d bytes.", maxAAD)
	}
	return nil
}

// needsKey is names for a request that has to name one.
func (c *call) needsKey(keyID string, aad []byte) error {
	if keyID == "" {
		return missing("KeyId")
	}
	return c.names(keyID, aad)
}

// checkMode checks how a caller wants it encrypted.
func checkMode(asked, padding string) error {
	if asked != "" && asked != algorithm {
		return invalid("Algorithm must be %s or empty, not %s: there is no other.", algorithm, quote(asked))
	}
	if padding != "" {
		return invalid("PaddingMode must be empty, not %s: %s has none.", quote(padding), algorithm)
	}
	return nil
}

// whole refuses an answer of the key service that would look like success and is none: clients take what is not there for empty. Its parts
// are given by their lengths.
func whole(parts ...int) error {
	if slices.Contains(parts, 0) {
		return internal("The answer of the key service is not whole.")
	}
	return nil
}

// used is the version of a key that an answer of the key service names.
type used interface {
	GetKeyId() string
	GetKeyVersion() int32
	GetMaterialId() []byte
}

// keyID is the key ID alone, the end of the ARN.
func keyID(u used) string {
	arn := u.GetKeyId()
	return arn[strings.LastIndexByte(arn, '/')+1:]
}

// versionID names the version of a key, to the Advance operations alone: KEYID-vVERSION-MATERIALID. After an old backup is restored a
// number may come again, but not its material.
func (c *call) versionID(u used) string {
	if c.door != kmsv1.Door_DOOR_ALIBABA_ADVANCE {
		return ""
	}
	return keyID(u) + "-v" + strconv.Itoa(int(u.GetKeyVersion())) + "-" + hex.EncodeToString(u.GetMaterialId())
}
