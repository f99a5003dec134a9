package kms

import (
	"bytes"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"

	"github.com/datakeys/datakeys/internal/envelope"
)

// The standard library knows nothing of secp256k1. Its keys have one size, so their DER has fixed bytes around them:
//
//	private key, PKCS #8 (RFC 5958) around ECPrivateKey (RFC 5915; SEC 1, C.4): secp256k1Private | scalar | secp256k1Beside | point
//	public key, SubjectPublicKeyInfo (RFC 5480): secp256k1Public | point
//
// The point is uncompressed: 04 | X | Y (SEC 1, 2.3.3). The curve's OID is 1.3.132.0.10 (SEC 2, A.2.1).
const (
	secp256k1Private = "\x30\x81\x84\x02\x01\x00" + secp256k1Algorithm + "\x04\x6d\x30\x6b\x02\x01\x01\x04\x20"
	secp256k1Beside  = "\xa1\x44\x03\x42\x00"
	secp256k1Public  = "\x30\x56" + secp256k1Algorithm + "\x03\x42\x00"

	// id-ecPublicKey (1.2.840.10045.2.1), then the curve.
	secp256k1Algorithm = "\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x0a"

	secp256k1PointSize = 1 + 32 + 32
	secp256k1Size      = len(secp256k1Private) + secp256k1.PrivKeyBytesLen + len(secp256k1Beside) + secp256k1PointSize
)

// newSecp256k1KeyPair makes a key pair of ECC_SECG_P256K1, in the forms of newKeyPair.
//
// The library multiplies in a time that depends on the scalar. A private key goes through it here, once, and where a stored one is
// proved; neither is something that an outsider can ask for again and again with the same key and time.
func newSecp256k1KeyPair() (private envelope.Plaintext, public []byte, err error) {
	key, err := secp256k1.GeneratePrivateKey()
	if err != nil {
		return envelope.Plaintext{}, nil, err
	}
	defer key.Zero()
	scalar := key.Serialize()
	defer clear(scalar)
	point := key.PubKey().SerializeUncompressed()

	der := make([]byte, 0, secp256k1Size) // never grows: a grown slice would leave a copy behind
	defer func() { clear(der) }()
	der = append(der, secp256k1Private...)
	der = append(der, scalar...)
	der = append(der, secp256k1Beside...)
	der = append(der, point...)
	private, err = envelope.PlaintextFromBytes(der)
	return private, append([]byte(secp256k1Public), point...), err
}

// isSecp256k1 reports whether a private key says that it is of the curve.
func isSecp256k1(der []byte) bool {
	return len(der) == secp256k1Size && bytes.HasPrefix(der, []byte(secp256k1Private))
}

// secp256k1PublicKey derives the public key of what isSecp256k1 accepts, and compares it with the one that stands beside.
func secp256k1PublicKey(der []byte) ([]byte, error) {
	rest := der[len(secp256k1Private):]
	var key secp256k1.PrivateKey
	defer key.Zero()
	if overflows := key.Key.SetByteSlice(rest[:secp256k1.PrivKeyBytesLen]); overflows || key.Key.IsZero() {
		return nil, errNoKeyPair
	}
	point := key.PubKey().SerializeUncompressed()
	if !bytes.Equal(rest[secp256k1.PrivKeyBytesLen:], append([]byte(secp256k1Beside), point...)) {
		return nil, errNoKeyPair
	}
	return append([]byte(secp256k1Public), point...), nil
}
