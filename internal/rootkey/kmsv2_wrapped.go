package rootkey

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
)

// Limits of the Kubernetes KMS v2 contract (k8s.io/kms, apis/v2/api.proto), as the API server counts them.
const (
	maxPluginKeyID       = 1024      // bytes
	maxPluginCiphertext  = 1024      // bytes
	maxPluginAnnotations = 32 * 1024 // bytes, all keys and values together
)

// pluginWrapped is what a KMS plugin made of one plaintext, and all that it needs to decrypt it again. It is stored as
//
//	label | key_id | ciphertext | number of annotations | (key | value)* | SHA-256 of everything before
//
// where the label is pluginWrappedLabel, a string of bytes is its length and the bytes, and every length and the number are
// two bytes, big-endian. The annotations are sorted by key, each key once. One value has one encoding.
type pluginWrapped struct {
	keyID       string
	ciphertext  []byte
	annotations map[string][]byte
}

// pluginWrappedLabel says what the bytes are, and the version of their form. It ends with a zero byte, so no label is the
// beginning of another.
const pluginWrappedLabel = "datakeys.io/kmsv2/v1\x00"

// maxPluginWrapped is more than the bytes of any pluginWrapped. An annotation has 4 bytes of lengths beside the 3 or more of
// its key, a.b being the shortest.
const maxPluginWrapped = len(pluginWrappedLabel) + 2 + maxPluginKeyID + 2 + maxPluginCiphertext + 2 +
	maxPluginAnnotations + 4*(maxPluginAnnotations/3) + sha256.Size

// check returns which rule of the contract w breaks, in words, or nothing. What it says holds no byte of w: it goes into errors
// and logs, and what a plugin answers may hold anything.
func (w pluginWrapped) check() (problem string) {
	if problem := checkPluginKeyID(w.keyID); problem != "" {
		return problem
	}
	if n := len(w.ciphertext); n < 1 || n > maxPluginCiphertext {
		return fmt.Sprintf("ciphertext of %d bytes: must be 1 to %d bytes", n, maxPluginCiphertext)
	}
	size := 0
	for key, value := range w.annotations {
		if size += len(key) + len(value); size > maxPluginAnnotations {
			return fmt.Sprintf("annotations: keys and values must be at most %d bytes together", maxPluginAnnotations)
		}
		if len(validation.IsFullyQualifiedDomainName(field.NewPath("annotations"), key)) > 0 {
			return fmt.Sprintf("annotations: a key of %d bytes is no fully qualified domain name (RFC 1123)", len(key))
		}
	}
	return ""
}

func checkPluginKeyID(keyID string) (problem string) {
	switch {
	case keyID == "":
		return "key_id: must not be empty"
	case len(keyID) > maxPluginKeyID:
		return fmt.Sprintf("key_id of %d bytes: must be at most %d bytes", len(keyID), maxPluginKeyID)
	case !utf8.ValidString(keyID):
		return "key_id: must be valid UTF-8"
	}
	return ""
}

// marshal encodes a pluginWrapped that check accepts.
func (w pluginWrapped) marshal() []byte {
	b := make([]byte, 0, len(pluginWrappedLabel)+1024)
	b = append(b, pluginWrappedLabel...)
	b = appendSized(b, w.keyID)
	b = appendSized(b, w.ciphertext)
	b = binary.BigEndian.AppendUint16(b, uint16(len(w.annotations)))
	for _, key := range slices.Sorted(maps.Keys(w.annotations)) {
		b = appendSized(b, key)
		b = appendSized(b, w.annotations[key])
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// parsePluginWrapped reads what marshal wrote and nothing else. The error is seal.ErrOtherRootKey for what no KMS plugin made, and
// envelope.ErrBroken for what is damaged. The checksum is against accidents: what is altered with intent, the plugin refuses.
func parsePluginWrapped(b []byte) (pluginWrapped, error) {
	fields, found := bytes.CutPrefix(b, []byte(pluginWrappedLabel))
	if !found {
		return pluginWrapped{}, fmt.Errorf("%w, one that is no KMS plugin", seal.ErrOtherRootKey)
	}
	if len(b) > maxPluginWrapped || len(fields) < sha256.Size {
		return pluginWrapped{}, envelope.ErrBroken
	}
	end := len(b) - sha256.Size
	if sum := sha256.Sum256(b[:end]); !bytes.Equal(sum[:], b[end:]) {
		return pluginWrapped{}, envelope.ErrBroken
	}
	r := sizedReader{rest: fields[:len(fields)-sha256.Size]}
	w := pluginWrapped{keyID: string(r.sized()), ciphertext: bytes.Clone(r.sized())}
	count := r.uint16()
	previous := ""
	for range count {
		key, value := string(r.sized()), bytes.Clone(r.sized())
		if r.short || key <= previous {
			return pluginWrapped{}, envelope.ErrBroken
		}
		if w.annotations == nil {
			w.annotations = map[string][]byte{}
		}
		w.annotations[key], previous = value, key
	}
	if r.short || len(r.rest) > 0 || w.check() != "" {
		return pluginWrapped{}, envelope.ErrBroken
	}
	return w, nil
}
