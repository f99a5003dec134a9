package sidecar

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"

	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// algorithmAESGCM is how the data key is wrapped, in the words of Alibaba Cloud KMS; api/v1alpha1 declares it.
const algorithmAESGCM = "AES_GCM"

// answer is the JSON answer of GET /v1/data-keys/{name} around its plaintext, rendered once when the key is published.
type answer struct {
	head, tail            []byte
	jsonSize, rawSize     int
	jsonLength, rawLength []string // the sizes as header values
}

// newAnswer renders the answer for a plaintext of that many bytes.
func newAnswer(s dataKeyStatus, sealed Sealed, publicKey []byte, plaintextSize int) answer {
	head := object(struct {
		Name        string `json:"name"`
		Generation  uint32 `json:"generation"`
		KeyID       string `json:"keyId"`
		KeyVersion  int32  `json:"keyVersion"`
		Algorithm   string `json:"algorithm"`
		KeyPairSpec string `json:"keyPairSpec,omitempty"`
	}{s.Name, s.Generation, s.KeyID, s.KeyVersion, s.Algorithm, s.KeyPairSpec})
	tail := object(struct {
		PublicKey         []byte            `json:"publicKey,omitempty"`
		CiphertextBlob    []byte            `json:"ciphertextBlob"`
		EncryptionContext map[string]string `json:"encryptionContext,omitempty"`
		AAD               []byte            `json:"aad,omitempty"`
	}{publicKey, sealed.CiphertextBlob, sealed.EncryptionContext, sealed.AAD})
	a := answer{
		head: append(head[:len(head)-1], `,"plaintext":"`...),
		tail: append(append([]byte(`",`), tail[1:]...), '\n'),
	}
	a.jsonSize, a.rawSize = len(a.head)+base64.StdEncoding.EncodedLen(plaintextSize)+len(a.tail), plaintextSize
	a.jsonLength, a.rawLength = []string{strconv.Itoa(a.jsonSize)}, []string{strconv.Itoa(a.rawSize)}
	return a
}

// secretBody is the body of an answer with a plaintext, which its user holds.
type secretBody struct {
	issued *issued
	raw    bool
}

func (b secretBody) size() int {
	if b.raw {
		return b.issued.answer.rawSize
	}
	return b.issued.answer.jsonSize
}

// appendTo appends size bytes to out and never moves them: out grows before. Clearing them is up to the caller.
func (b secretBody) appendTo(out []byte) []byte {
	out = slices.Grow(out, b.size())
	// The user of the answer holds the plaintext, so it is not destroyed.
	_ = b.issued.plaintext.Use(insecuresecret.Token{}, func(plaintext []byte) error {
		if b.raw {
			out = append(out, plaintext...)
			return nil
		}
		out = append(out, b.issued.answer.head...)
		out = base64.StdEncoding.AppendEncode(out, plaintext)
		out = append(out, b.issued.answer.tail...)
		return nil
	})
	return out
}

// renderList is the answer of GET /v1/data-keys.
func renderList(keys []*dataKey) []byte {
	return append(object(struct {
		DataKeys []dataKeyStatus `json:"dataKeys"`
	}{statuses(keys, func(*dataKey) bool { return true })}), '\n')
}

// renderUnready is the answer of GET /readyz with every data key that is not issued, nil where there is none.
func renderUnready(keys []*dataKey) []byte {
	waiting := statuses(keys, func(k *dataKey) bool { return k.State != StateIssued })
	if len(waiting) == 0 {
		return nil
	}
	p := newProblem(http.StatusServiceUnavailable, reasonNotReady, "not every data key can be issued")
	p.DataKeys = waiting
	return p.render()
}

func statuses(keys []*dataKey, which func(*dataKey) bool) []dataKeyStatus {
	out := make([]dataKeyStatus, 0, len(keys))
	for _, k := range keys {
		if which(k) {
			out = append(out, k.dataKeyStatus)
		}
	}
	return out
}

// object encodes structs of strings, numbers and bytes, for which JSON has no error.
func object(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return []byte("{}")
	}
	return b
}
