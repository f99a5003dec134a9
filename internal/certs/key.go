package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// pemKey is the PEM type of a private key in PKCS #8, RFC 7468 section 10.
const pemKey = "PRIVATE KEY"

// redacted is what every printed form of a private key says.
const redacted = "[private key]"

// privateKey is an ECDSA key on P-256 that signs and that no formatter prints. The key stands behind a pointer because fmt
// calls no methods on the unexported fields of the structs that hold a privateKey: there it prints the address only.
type privateKey struct {
	key *ecdsa.PrivateKey
}

var _ crypto.Signer = (*privateKey)(nil)

func newPrivateKey() (*privateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return &privateKey{key: key}, nil
}

// Public is the public key.
func (k *privateKey) Public() crypto.PublicKey { return k.key.Public() }

// Sign signs a digest.
func (k *privateKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.key.Sign(random, digest, opts)
}

// Format implements fmt.Formatter for every verb.
func (*privateKey) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// LogValue implements slog.LogValuer.
func (*privateKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler, which encoding/json uses too.
func (*privateKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// encode is the key for its Secret, the only place outside memory where it stands.
func (k *privateKey) encode() ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

// decodePrivateKey reads what encode wrote. Its errors say nothing of the content.
func decodePrivateKey(text []byte) (*privateKey, error) {
	block, rest := pem.Decode(text)
	if block == nil || block.Type != pemKey || len(rest) != 0 {
		return nil, errors.New("must be exactly one PEM block of type " + pemKey)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("must be a private key in PKCS #8")
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("must be an ECDSA key on the curve P-256")
	}
	return &privateKey{key: key}, nil
}
