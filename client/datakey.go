package client

import (
	"context"
	"encoding/json"
	"math"
	"net/http"
	"strconv"

	"github.com/datakeys/datakeys/internal/envelope"
)

// DataKey is one generation of a data key. It prints as what it is, but for the plaintext.
type DataKey struct {
	// Name is that of the DataKeyRequest.
	Name string
	// Generation counts from 1. Keep it beside what is encrypted with the plaintext.
	Generation uint32
	// KeyID is the ARN of the master key, and KeyVersion the version of it that wraps this data key, by Algorithm.
	KeyID      string
	KeyVersion int32
	Algorithm  string
	// KeyPairSpec is set for a key pair, and PublicKey is its public key, SubjectPublicKeyInfo in DER (RFC 5280).
	KeyPairSpec string
	PublicKey   []byte
	// CiphertextBlob is the data key as it is stored, and EncryptionContext or AAD what it is bound to, where it is bound to any.
	CiphertextBlob    []byte
	EncryptionContext map[string]string
	AAD               []byte
	// Plaintext is the bytes of the data key; of a key pair the private key, PKCS #8 in DER (RFC 5958).
	Plaintext Secret
}

// Destroy clears the plaintext.
func (k *DataKey) Destroy() { k.Plaintext.Destroy() }

// DataKey returns the newest generation of a data key. Destroy it when it is used no more.
//
// It stands for what was allowed when the call was made: an application that keeps it keeps using it after a revocation. AEAD does not.
func (c *Client) DataKey(ctx context.Context, name string) (*DataKey, error) {
	return c.dataKey(ctx, name, 0)
}

// Generation returns that generation of a data key, 1 or more.
func (c *Client) Generation(ctx context.Context, name string, generation uint32) (*DataKey, error) {
	if generation == 0 || generation > math.MaxInt32 {
		return nil, refusal(ReasonInvalidParameter, "generation %d: must be 1 to %d", generation, math.MaxInt32)
	}
	return c.dataKey(ctx, name, generation)
}

// dataKey gets a generation, the newest for 0.
func (c *Client) dataKey(ctx context.Context, name string, generation uint32) (*DataKey, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	path := "/v1/data-keys/" + name
	if generation != 0 {
		path += "?generation=" + strconv.FormatUint(uint64(generation), 10)
	}
	body, err := c.do(ctx, call{method: http.MethodGet, path: path, accept: mediaJSON, most: maxAnswer})
	if err != nil {
		return nil, err
	}
	defer clear(body)
	k, err := parseDataKey(body)
	if err == nil && (k.Generation == 0 || generation != 0 && k.Generation != generation) {
		k.Destroy()
		return nil, invalidAnswer("it answers with generation %d where %d, 0 for the newest, was asked for", k.Generation, generation)
	}
	return k, err
}

// parseDataKey reads the sidecar's answer. It leaves no copy of the plaintext but the one in the DataKey: encoding/json decodes base64 that
// has no escapes, as the sidecar's has not, from where it stands.
func parseDataKey(body []byte) (*DataKey, error) {
	var answer struct {
		Name              string            `json:"name"`
		Generation        uint32            `json:"generation"`
		KeyID             string            `json:"keyId"`
		KeyVersion        int32             `json:"keyVersion"`
		Algorithm         string            `json:"algorithm"`
		KeyPairSpec       string            `json:"keyPairSpec"`
		PublicKey         []byte            `json:"publicKey"`
		CiphertextBlob    []byte            `json:"ciphertextBlob"`
		EncryptionContext map[string]string `json:"encryptionContext"`
		AAD               []byte            `json:"aad"`
		Plaintext         []byte            `json:"plaintext"`
	}
	err := json.Unmarshal(body, &answer)
	defer clear(answer.Plaintext)
	if err != nil { // which may quote the answer
		return nil, invalidAnswer("a data key is answered with what is no JSON of one")
	}
	plaintext, err := envelope.PlaintextFromBytes(answer.Plaintext)
	if err != nil {
		return nil, invalidAnswer("a data key of %d bytes", len(answer.Plaintext))
	}
	return &DataKey{
		Name: answer.Name, Generation: answer.Generation, KeyID: answer.KeyID, KeyVersion: answer.KeyVersion, Algorithm: answer.Algorithm,
		KeyPairSpec: answer.KeyPairSpec, PublicKey: answer.PublicKey, CiphertextBlob: answer.CiphertextBlob,
		EncryptionContext: answer.EncryptionContext, AAD: answer.AAD, Plaintext: Secret{plaintext: plaintext},
	}, nil
}
