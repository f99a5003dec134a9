package keeper

import (
	"crypto/ed25519"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// keyPair is what may be known of a key pair. It is zero for a symmetric data key.
//
// It is read from the private key, which nobody but the key service can have put into the blob, and not from the entry publicKey
// of the Secret: whoever may edit that could have the application use a public key of theirs.
type keyPair struct {
	// Spec is a key pair spec in the words of AWS KMS; api/v1alpha1 declares them.
	Spec string
	// PublicKey is SubjectPublicKeyInfo in DER (RFC 5280).
	PublicKey []byte
}

// Algorithms and curves of private keys.
var (
	oidRSA     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1} // RFC 8017
	oidEC      = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}     // RFC 5480
	oidEd25519 = asn1.ObjectIdentifier{1, 3, 101, 112}             // RFC 8410

	curveSpecs = map[string]string{
		"1.2.840.10045.3.1.7": "ECC_NIST_P256",
		"1.3.132.0.34":        "ECC_NIST_P384",
		"1.3.132.0.35":        "ECC_NIST_P521",
		"1.3.132.0.10":        "ECC_SECG_P256K1",
	}
	rsaSpecs = map[int]string{2048: "RSA_2048", 3072: "RSA_3072", 4096: "RSA_4096"}
)

// readKeyPair reads the public part of a private key in PKCS #8 (RFC 5958). What is none is a symmetric data key: that random bytes
// are a whole private key does not happen.
//
// The parsers of the standard library would leave copies of the private key all over the heap. Here only the public part is copied:
// a private key of RSA (RFC 8017) or of a curve (RFC 5915) has it inside. Of Ed25519 it is computed.
func readKeyPair(plaintext envelope.Plaintext) (pair keyPair) {
	// The caller holds the plaintext, so it is not destroyed.
	_ = plaintext.Use(insecuresecret.Token{}, func(der []byte) error {
		pair = parseKeyPair(der)
		return nil
	})
	return pair
}

// parseKeyPair is readKeyPair on the bytes themselves. Where asn1.RawValue stands for something secret, it is no copy.
func parseKeyPair(der []byte) keyPair {
	var info struct {
		Version    int
		Algorithm  pkix.AlgorithmIdentifier
		PrivateKey asn1.RawValue
	}
	if rest, err := asn1.Unmarshal(der, &info); err != nil || len(rest) > 0 || info.PrivateKey.Tag != asn1.TagOctetString {
		return keyPair{}
	}
	var spec string
	var public []byte
	switch {
	case info.Algorithm.Algorithm.Equal(oidRSA):
		spec, public = rsaPublicKey(info.PrivateKey.Bytes)
	case info.Algorithm.Algorithm.Equal(oidEC):
		var curve asn1.ObjectIdentifier
		if _, err := asn1.Unmarshal(info.Algorithm.Parameters.FullBytes, &curve); err == nil {
			spec, public = curveSpecs[curve.String()], curvePublicKey(info.PrivateKey.Bytes)
		}
	case info.Algorithm.Algorithm.Equal(oidEd25519):
		spec, public = "ECC_NIST_EDWARDS25519", ed25519PublicKey(info.PrivateKey.Bytes)
	}
	if spec == "" || public == nil {
		return keyPair{}
	}
	subject, err := asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		PublicKey asn1.BitString
	}{info.Algorithm, asn1.BitString{Bytes: public, BitLength: 8 * len(public)}})
	if err != nil {
		return keyPair{}
	}
	return keyPair{Spec: spec, PublicKey: subject}
}

func rsaPublicKey(private []byte) (spec string, public []byte) {
	var key struct {
		Version int
		N       *big.Int
		E       int
		// What follows is secret.
	}
	if _, err := asn1.Unmarshal(private, &key); err != nil {
		return "", nil
	}
	public, err := asn1.Marshal(struct {
		N *big.Int
		E int
	}{key.N, key.E})
	if err != nil {
		return "", nil
	}
	return rsaSpecs[key.N.BitLen()], public
}

func curvePublicKey(private []byte) []byte {
	var key struct {
		Version   int
		Scalar    asn1.RawValue
		PublicKey asn1.BitString `asn1:"explicit,tag:1"`
	}
	if _, err := asn1.Unmarshal(private, &key); err != nil {
		return nil
	}
	return key.PublicKey.Bytes
}

func ed25519PublicKey(private []byte) []byte {
	var seed asn1.RawValue
	if _, err := asn1.Unmarshal(private, &seed); err != nil || seed.Tag != asn1.TagOctetString || len(seed.Bytes) != ed25519.SeedSize {
		return nil
	}
	key := ed25519.NewKeyFromSeed(seed.Bytes)
	defer clear(key)
	return append([]byte(nil), key[ed25519.SeedSize:]...)
}
