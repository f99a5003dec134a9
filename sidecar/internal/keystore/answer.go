package keystore

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"

	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// AlgorithmAESGCM is how the data key is wrapped, in the words of Alibaba Cloud KMS; api/v1alpha1 declares it.
const AlgorithmAESGCM = "AES_GCM"

// answer is the JSON answer of GET /v1/data-keys/{name} around its plaintext, rendered once when the key is published.
type answer struct {
	head, tail            []byte
	bound                 []byte // the end, from RenderBound
	jsonSize, rawSize     int
	jsonLength, rawLength []string // the sizes as header values
}

// newAnswer renders the answer for a plaintext of that many bytes, and ends it with what RenderBound gave.
func newAnswer(s Status, blob, publicKey []byte, plaintextSize int, bound []byte) answer {
	head := render(struct {
		Name        string `json:"name"`
		Generation  uint32 `json:"generation"`
		KeyID       string `json:"keyId"`
		KeyVersion  int32  `json:"keyVersion"`
		Algorithm   string `json:"algorithm"`
		KeyPairSpec string `json:"keyPairSpec,omitempty"`
	}{s.Name, s.Generation, s.KeyID, s.KeyVersion, s.Algorithm, s.KeyPairSpec})
	tail := render(struct {
		PublicKey      []byte `json:"publicKey,omitempty"`
		CiphertextBlob []byte `json:"ciphertextBlob"`
	}{publicKey, blob})
	a := answer{
		head:  append(head[:len(head)-1], `,"plaintext":"`...),
		tail:  append([]byte(`",`), tail[1:len(tail)-1]...),
		bound: bound,
	}
	a.jsonSize = len(a.head) + base64.StdEncoding.EncodedLen(plaintextSize) + len(a.tail) + len(a.bound)
	a.rawSize = plaintextSize
	a.jsonLength, a.rawLength = []string{strconv.Itoa(a.jsonSize)}, []string{strconv.Itoa(a.rawSize)}
	return a
}

// RenderBound renders the end of an answer: what the blob is bound to. It is apart because it may be larger than all the rest
// and is the same for a hundred generations.
func RenderBound(encryptionContext map[string]string, aad []byte) []byte {
	bound := render(struct {
		EncryptionContext map[string]string `json:"encryptionContext,omitempty"`
		AAD               []byte            `json:"aad,omitempty"`
	}{encryptionContext, aad})
	if len(bound) > len("{}") {
		bound[0] = ','
	} else {
		bound = bound[1:]
	}
	return append(bound, '\n')
}

// JSON is the whole answer with a data key. Its user holds the plaintext: so it is not destroyed meanwhile.
type JSON struct{ *Issued }

// Size is how many bytes AppendTo appends.
func (b JSON) Size() int { return b.answer.jsonSize }

// Length is the size as the value of a header.
func (b JSON) Length() []string { return b.answer.jsonLength }

// AppendTo appends the answer to out, which grows before, so that no copy of the plaintext stays behind.
func (b JSON) AppendTo(out []byte) []byte {
	out = slices.Grow(out, b.Size())
	_ = b.Plaintext.Use(insecuresecret.Token{}, func(plaintext []byte) error {
		out = append(out, b.answer.head...)
		out = base64.StdEncoding.AppendEncode(out, plaintext)
		out = append(out, b.answer.tail...)
		out = append(out, b.answer.bound...)
		return nil
	})
	return out
}

// Bytes is the answer with a plaintext alone. Its user holds that, too.
type Bytes struct{ *Issued }

// Size is how many bytes AppendTo appends.
func (b Bytes) Size() int { return b.answer.rawSize }

// Length is the size as the value of a header.
func (b Bytes) Length() []string { return b.answer.rawLength }

// AppendTo appends the plaintext to out, which grows before.
func (b Bytes) AppendTo(out []byte) []byte {
	return b.Plaintext.AppendTo(insecuresecret.Token{}, slices.Grow(out, b.Size()))
}

// dataKeyItem is an item of GET /v1/data-keys.
type dataKeyItem struct {
	Status
	Generations []generationItem `json:"generations,omitempty"`
}

// generationItem is what the list says of one generation. Messages are left out: there may be 10,000 of them.
type generationItem struct {
	Generation uint32 `json:"generation"`
	State      State  `json:"state"`
	Reason     string `json:"reason,omitempty"`
	KeyVersion int32  `json:"keyVersion,omitempty"`
}

// renderList is the answer of GET /v1/data-keys.
func renderList(keys []*DataKey) []byte {
	items := make([]dataKeyItem, len(keys))
	for i, k := range keys {
		items[i].Status = k.Status
		for _, g := range k.Generations {
			items[i].Generations = append(items[i].Generations, generationItem{g.Number, g.State, g.Reason, g.KeyVersion})
		}
	}
	return append(render(struct {
		DataKeys []dataKeyItem `json:"dataKeys"`
	}{items}), '\n')
}

// render encodes structs of strings, numbers and bytes, for which JSON has no error.
func render(v any) []byte {
	b, _ := json.Marshal(v) //nolint:errchkjson // see above
	return b
}
