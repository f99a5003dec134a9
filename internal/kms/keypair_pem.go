package kms

import (
	"bytes"
	"encoding/pem"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// The formats of a key pair (Alibaba Cloud KMS, GenerateDataKeyPair: KeyFormat). There, what is encrypted has the format too, so that
// Decrypt gives the private key as it was asked for.
const (
	formatDER = "DER"
	formatPEM = "PEM"
)

// toPEM writes a key pair of newKeyPair in PEM, of which the private key has at most 3300 bytes, and destroys the one in DER.
func toPEM(der envelope.Plaintext, publicDER []byte) (private envelope.Plaintext, public []byte, err error) {
	defer der.Destroy()
	err = der.Use(insecuresecret.Token{}, func(b []byte) error {
		text := bytes.NewBuffer(make([]byte, 0, envelope.MaxPlaintextSize)) // which is never moved
		defer func() { clear(text.Bytes()) }()
		if err := pem.Encode(text, &pem.Block{Type: "PRIVATE KEY", Bytes: b}); err != nil {
			return err
		}
		private, err = envelope.PlaintextFromBytes(text.Bytes())
		return err
	})
	return private, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER}), err
}
