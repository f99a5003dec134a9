package kms

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/fips140"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// errNoKeyPair says that a private key is not one that newKeyPair makes. It has no cause: a parser's error may quote what it read.
var errNoKeyPair = errors.New("it holds no private key of a known spec")

// checkKeyPairSpec returns nil for a spec that newKeyPair makes here. The error names the field.
func checkKeyPairSpec(field, spec string) error {
	specs := v1alpha1.KeyPairSpecs()
	known := make([]string, len(specs))
	for i, s := range specs {
		if known[i] = string(s); known[i] != spec {
			continue
		}
		if s == v1alpha1.KeyPairSpecSECGP256K1 && fips140.Enabled() {
			return unsupported(field, fmt.Errorf("%s is not offered in FIPS 140-3 mode, whose cryptographic module does not have the curve: use %s",
				s, v1alpha1.KeyPairSpecNISTP256))
		}
		return nil
	}
	return invalid(field, fmt.Errorf("must be one of %s", strings.Join(known, ", ")))
}

// newKeyPair makes a key pair of a spec that checkKeyPairSpec accepts: the private key is PKCS #8 (RFC 5958), at most 2400 bytes,
// the public key SubjectPublicKeyInfo (RFC 5280), both in DER. An RSA key takes seconds: see newRSAKey for what the context does.
//
// The private key leaves copies that Go gives no hold of: the encoder's, and the key in the standard library's own form.
func newKeyPair(ctx context.Context, spec string) (private envelope.Plaintext, public []byte, err error) {
	if err := checkKeyPairSpec("key_pair_spec", spec); err != nil {
		return envelope.Plaintext{}, nil, err
	}
	if v1alpha1.KeyPairSpec(spec) == v1alpha1.KeyPairSpecSECGP256K1 {
		return newSecp256k1KeyPair()
	}
	key, err := newPrivateKey(ctx, v1alpha1.KeyPairSpec(spec))
	if err != nil {
		return envelope.Plaintext{}, nil, err
	}
	defer wipe(key)
	if public, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		return envelope.Plaintext{}, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return envelope.Plaintext{}, nil, err
	}
	defer clear(der)
	private, err = envelope.PlaintextFromBytes(der)
	return private, public, err
}

func newPrivateKey(ctx context.Context, spec v1alpha1.KeyPairSpec) (crypto.Signer, error) {
	switch spec {
	case v1alpha1.KeyPairSpecRSA2048:
		return newRSAKey(ctx, 2048)
	case v1alpha1.KeyPairSpecRSA3072:
		return newRSAKey(ctx, 3072)
	case v1alpha1.KeyPairSpecRSA4096:
		return newRSAKey(ctx, 4096)
	case v1alpha1.KeyPairSpecNISTP256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case v1alpha1.KeyPairSpecNISTP384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case v1alpha1.KeyPairSpecNISTP521:
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case v1alpha1.KeyPairSpecNISTEdwards25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	default:
		return nil, errors.New("internal error: no way to make " + string(spec))
	}
}

// readKeyPair reads a private key that newKeyPair made: its spec, and its public key, which is derived from the private key and not
// read beside it.
func readKeyPair(private envelope.Plaintext) (spec v1alpha1.KeyPairSpec, public []byte, err error) {
	err = private.Use(insecuresecret.Token{}, func(der []byte) error {
		if isSecp256k1(der) {
			spec = v1alpha1.KeyPairSpecSECGP256K1
			public, err = secp256k1PublicKey(der)
			return err
		}
		// The parser leaves alone what follows the key.
		if rest, err := asn1.Unmarshal(der, &asn1.RawValue{}); err != nil || len(rest) > 0 {
			return errNoKeyPair
		}
		parsed, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			return errNoKeyPair
		}
		defer wipe(parsed)
		if spec = keyPairSpecOf(parsed); spec == "" {
			return errNoKeyPair
		}
		public, err = x509.MarshalPKIXPublicKey(parsed.(crypto.Signer).Public())
		return err
	})
	if err != nil {
		return "", nil, err
	}
	return spec, public, nil
}

// keyPairSpecOf is the spec of a private key of the standard library, "" if it has none.
func keyPairSpecOf(key any) v1alpha1.KeyPairSpec {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		return map[int]v1alpha1.KeyPairSpec{
			2048: v1alpha1.KeyPairSpecRSA2048,
			3072: v1alpha1.KeyPairSpecRSA3072,
			4096: v1alpha1.KeyPairSpecRSA4096,
		}[k.N.BitLen()]
	case *ecdsa.PrivateKey:
		return map[elliptic.Curve]v1alpha1.KeyPairSpec{
			elliptic.P256(): v1alpha1.KeyPairSpecNISTP256,
			elliptic.P384(): v1alpha1.KeyPairSpecNISTP384,
			elliptic.P521(): v1alpha1.KeyPairSpecNISTP521,
		}[k.Curve]
	case ed25519.PrivateKey:
		return v1alpha1.KeyPairSpecNISTEdwards25519
	default:
		return ""
	}
}

// wipe clears what of a private key can be reached.
func wipe(key any) {
	var numbers []*big.Int
	switch k := key.(type) {
	case *rsa.PrivateKey:
		numbers = append(numbers, k.D, k.Precomputed.Dp, k.Precomputed.Dq, k.Precomputed.Qinv)
		numbers = append(numbers, k.Primes...)
	case *ecdsa.PrivateKey:
		numbers = append(numbers, k.D) //nolint:staticcheck // deprecated for those who compute with it; nothing else clears it
	case ed25519.PrivateKey:
		clear(k)
	}
	for _, n := range numbers {
		if n != nil {
			clear(n.Bits())
		}
	}
}
