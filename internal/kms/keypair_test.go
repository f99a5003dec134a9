package kms

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/fips140"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// privateDER is a copy of the bytes of a private key, for tests.
func privateDER(t testing.TB, p envelope.Plaintext) []byte {
	t.Helper()
	der := p.AppendTo(insecuresecret.Token{}, nil)
	if len(der) == 0 {
		t.Fatal("the private key is empty")
	}
	return der
}

func offered(spec v1alpha1.KeyPairSpec) bool {
	return spec != v1alpha1.KeyPairSpecSECGP256K1 || !fips140.Enabled()
}

func TestAKeyPairIsWhatItsSpecSaysByOpenSSL(t *testing.T) {
	for spec, says := range map[v1alpha1.KeyPairSpec]string{
		v1alpha1.KeyPairSpecRSA2048:          "Private-Key: (2048 bit, 2 primes)",
		v1alpha1.KeyPairSpecRSA3072:          "Private-Key: (3072 bit, 2 primes)",
		v1alpha1.KeyPairSpecRSA4096:          "Private-Key: (4096 bit, 2 primes)",
		v1alpha1.KeyPairSpecNISTP256:         "ASN1 OID: prime256v1",
		v1alpha1.KeyPairSpecNISTP384:         "ASN1 OID: secp384r1",
		v1alpha1.KeyPairSpecNISTP521:         "ASN1 OID: secp521r1",
		v1alpha1.KeyPairSpecSECGP256K1:       "ASN1 OID: secp256k1",
		v1alpha1.KeyPairSpecNISTEdwards25519: "ED25519 Private-Key:",
	} {
		if !offered(spec) {
			continue
		}
		t.Run(string(spec), func(t *testing.T) {
			t.Parallel()
			private, public, err := newKeyPair(t.Context(), string(spec))
			if err != nil {
				t.Fatal(err)
			}
			defer private.Destroy()
			der := privateDER(t, private)
			if text := openssl(t, der, "pkey", "-inform", "DER", "-noout", "-text"); !strings.Contains(text, says) {
				t.Errorf("openssl does not say %q of the private key", says)
			}
			if !strings.HasPrefix(string(spec), "RSA") && spec != v1alpha1.KeyPairSpecNISTEdwards25519 {
				openssl(t, der, "pkey", "-inform", "DER", "-noout", "-check") // for RSA: Go has checked it, and it takes long
			}
			if derived := openssl(t, der, "pkey", "-inform", "DER", "-pubout", "-outform", "DER"); derived != string(public) {
				t.Errorf("openssl derives another public key: %x, want %x", derived, public)
			}
			if again := openssl(t, der, "pkcs8", "-topk8", "-nocrypt", "-inform", "DER", "-outform", "DER"); again != string(der) {
				t.Error("openssl writes the private key in another form")
			}
			signAndVerify(t, spec, der, public)

			gotSpec, gotPublic, err := readKeyPair(private)
			if err != nil {
				t.Fatal(err)
			}
			if gotSpec != spec || !bytes.Equal(gotPublic, public) {
				t.Errorf("read back as %s, %x; want %s, %x", gotSpec, gotPublic, spec, public)
			}
		})
	}
}

func TestAKeyPairInPEMIsTheOneInDER(t *testing.T) {
	for _, spec := range []v1alpha1.KeyPairSpec{v1alpha1.KeyPairSpecRSA4096, v1alpha1.KeyPairSpecNISTEdwards25519} { // the longest, the shortest
		t.Run(string(spec), func(t *testing.T) {
			t.Parallel()
			inDER, publicDER, err := newKeyPair(t.Context(), string(spec))
			if err != nil {
				t.Fatal(err)
			}
			der := privateDER(t, inDER)
			inPEM, publicPEM, err := toPEM(inDER, publicDER)
			if err != nil {
				t.Fatal(err)
			}
			defer inPEM.Destroy()
			text := privateDER(t, inPEM)
			if got := openssl(t, text, "pkcs8", "-topk8", "-nocrypt", "-inform", "PEM", "-outform", "DER"); got != string(der) {
				t.Error("OpenSSL reads another private key in PEM")
			}
			if got := openssl(t, publicPEM, "pkey", "-pubin", "-inform", "PEM", "-outform", "DER"); got != string(publicDER) {
				t.Error("OpenSSL reads another public key in PEM")
			}
			if inDER.Use(insecuresecret.Token{}, func([]byte) error { return nil }) == nil {
				t.Error("the private key in DER is not destroyed")
			}
		})
	}
}

// signAndVerify proves by OpenSSL that the two keys are one pair.
func signAndVerify(t *testing.T, spec v1alpha1.KeyPairSpec, private, public []byte) {
	t.Helper()
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	message, key, pub := write("message", []byte("orders")), write("private.der", private), write("public.der", public)
	sign := []string{"pkeyutl", "-sign", "-keyform", "DER", "-inkey", key, "-rawin", "-in", message, "-out", dir + "/signature"}
	verify := []string{"pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", pub, "-rawin", "-in", message, "-sigfile", dir + "/signature"}
	if spec != v1alpha1.KeyPairSpecNISTEdwards25519 { // Ed25519 has its hash inside
		sign, verify = append(sign, "-digest", "sha256"), append(verify, "-digest", "sha256")
	}
	openssl(t, nil, sign...)
	openssl(t, nil, verify...)
}

// openssl runs OpenSSL. What it says on stderr is shown only where it reads no private key.
func openssl(t *testing.T, stdin []byte, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

func TestAKeyPairIsReadByTheStandardLibrary(t *testing.T) {
	for _, spec := range v1alpha1.KeyPairSpecs() {
		if spec == v1alpha1.KeyPairSpecSECGP256K1 {
			continue // it does not know the curve
		}
		t.Run(string(spec), func(t *testing.T) {
			t.Parallel()
			private, public, err := newKeyPair(t.Context(), string(spec))
			if err != nil {
				t.Fatal(err)
			}
			defer private.Destroy()
			der := privateDER(t, private)
			key, err := x509.ParsePKCS8PrivateKey(der)
			if err != nil {
				t.Fatal(err)
			}
			want, err := x509.ParsePKIXPublicKey(public)
			if err != nil {
				t.Fatal(err)
			}
			if got := key.(crypto.Signer).Public().(interface{ Equal(crypto.PublicKey) bool }); !got.Equal(want) {
				t.Error("the public key is of another private key")
			}
			if private.Len() > 2400 {
				t.Errorf("the private key has %d bytes", private.Len())
			}
		})
	}
}

// ecPrivateKey, pkcs8 and subjectPublicKeyInfo are written from RFC 5915, RFC 5958 and RFC 5280.
type ecPrivateKey struct {
	Version    int
	PrivateKey []byte
	PublicKey  asn1.BitString `asn1:"optional,explicit,tag:1"`
}

type algorithm struct{ ID, Curve asn1.ObjectIdentifier }

type pkcs8 struct {
	Version    int
	Algorithm  algorithm
	PrivateKey []byte
}

type subjectPublicKeyInfo struct {
	Algorithm algorithm
	PublicKey asn1.BitString
}

func TestTheDERofSecp256k1IsTheOneOfItsASN1(t *testing.T) {
	private, public, err := newSecp256k1KeyPair()
	if err != nil {
		t.Fatal(err)
	}
	defer private.Destroy()
	der := privateDER(t, private)
	var outer pkcs8
	var inner ecPrivateKey
	var info subjectPublicKeyInfo
	for _, c := range []struct {
		der  []byte
		into any
	}{{der, &outer}, {public, &info}} {
		if rest, err := asn1.Unmarshal(c.der, c.into); err != nil || len(rest) > 0 {
			t.Fatalf("%T: %v, %d bytes left", c.into, err, len(rest))
		}
	}
	if rest, err := asn1.Unmarshal(outer.PrivateKey, &inner); err != nil || len(rest) > 0 {
		t.Fatalf("ECPrivateKey: %v, %d bytes left", err, len(rest))
	}
	curve := algorithm{asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}, asn1.ObjectIdentifier{1, 3, 132, 0, 10}}
	if diff := cmp.Diff(curve, outer.Algorithm); diff != "" {
		t.Errorf("private key: %s", diff)
	}
	if diff := cmp.Diff(curve, info.Algorithm); diff != "" {
		t.Errorf("public key: %s", diff)
	}
	if outer.Version != 0 || inner.Version != 1 || len(inner.PrivateKey) != 32 {
		t.Errorf("versions %d and %d, a scalar of %d bytes; want 0, 1 and 32", outer.Version, inner.Version, len(inner.PrivateKey))
	}
	if diff := cmp.Diff(info.PublicKey, inner.PublicKey); diff != "" {
		t.Errorf("the point beside the scalar: %s", diff)
	}
	for name, c := range map[string]struct {
		have []byte
		from any
	}{"private key": {der, outer}, "public key": {public, info}} {
		again, err := asn1.Marshal(c.from)
		if err != nil || !bytes.Equal(again, c.have) {
			t.Errorf("%s: ASN.1 writes it in another way (%v)", name, err)
		}
	}
}

func TestReadKeyPairRefusesWhatIsNone(t *testing.T) {
	made := func(spec v1alpha1.KeyPairSpec) []byte {
		private, _, err := newKeyPair(t.Context(), string(spec))
		if err != nil {
			t.Fatal(err)
		}
		defer private.Destroy()
		return privateDER(t, private)
	}
	pkcs8Of := func(key any, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	secp, _, err := newSecp256k1KeyPair()
	if err != nil {
		t.Fatal(err)
	}
	changed := func(at int, to byte) []byte {
		der := privateDER(t, secp)
		der[at] = to
		return der
	}
	scalar := func(b byte) []byte {
		return append(append(append([]byte(secp256k1Private), bytes.Repeat([]byte{b}, 32)...), secp256k1Beside...), make([]byte, 65)...)
	}
	last := privateDER(t, secp)[secp256k1Size-1]
	edwards := made(v1alpha1.KeyPairSpecNISTEdwards25519)
	for name, der := range map[string][]byte{
		"random bytes":                      bytes.Repeat([]byte{0x5a}, 32),
		"half of a key":                     edwards[:len(edwards)/2],
		"a key with a byte behind it":       append(bytes.Clone(edwards), 0),
		"an RSA key of a size without spec": pkcs8Of(rsa.GenerateKey(nil, 2056)),
		"a scalar beside another's point":   changed(secp256k1Size-1, last^1),
		"a scalar of zero":                  scalar(0),
		"a scalar beyond the order":         scalar(0xff),
		"a curve that is not ours":          changed(len(secp256k1Private)-10, 0x0b),
	} {
		t.Run(name, func(t *testing.T) {
			p, err := envelope.PlaintextFromBytes(der)
			if err != nil {
				t.Fatal(err)
			}
			spec, public, err := readKeyPair(p)
			if !errors.Is(err, errNoKeyPair) || spec != "" || public != nil {
				t.Errorf("got %q, a public key of %d bytes and the error %v; want nothing and %v", spec, len(public), err, errNoKeyPair)
			}
		})
	}
}

func TestWipeLeavesNothingOfAPrivateKey(t *testing.T) {
	for _, spec := range []v1alpha1.KeyPairSpec{
		v1alpha1.KeyPairSpecRSA2048, v1alpha1.KeyPairSpecNISTP256, v1alpha1.KeyPairSpecNISTEdwards25519,
	} {
		key, err := newPrivateKey(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		var numbers []*big.Int
		var seed []byte
		switch k := key.(type) {
		case *rsa.PrivateKey:
			numbers = append(numbers, k.D, k.Primes[0], k.Primes[1], k.Precomputed.Dp, k.Precomputed.Dq, k.Precomputed.Qinv)
		case *ecdsa.PrivateKey:
			numbers = append(numbers, k.D) //nolint:staticcheck // it is what has to be cleared
		case ed25519.PrivateKey:
			seed = k[:ed25519.SeedSize]
		}
		wipe(key)
		for i, n := range numbers {
			for _, word := range n.Bits() {
				if word != 0 {
					t.Errorf("%s: number %d is not cleared", spec, i)
					break
				}
			}
		}
		if len(numbers) == 0 && !bytes.Equal(seed, make([]byte, ed25519.SeedSize)) {
			t.Errorf("%s: the seed is not cleared", spec)
		}
	}
}

func TestCheckKeyPairSpec(t *testing.T) {
	for spec, says := range map[string]string{
		"":              "key_pair_spec: must be one of RSA_2048, ",
		"RSA_1024":      "key_pair_spec: must be one of RSA_2048, ",
		"ecc_nist_p256": "key_pair_spec: must be one of RSA_2048, ",
		"SM2":           "key_pair_spec: must be one of RSA_2048, ",
	} {
		_, _, err := newKeyPair(t.Context(), spec)
		if CodeOf(err) != CodeInvalidArgument || ReasonOf(err) != kmsv1.ReasonInvalid || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: got %v, want InvalidArgument that says %q", spec, err, says)
		}
	}
	err := checkKeyPairSpec("keyPairSpec", string(v1alpha1.KeyPairSpecSECGP256K1))
	switch {
	case !fips140.Enabled() && err != nil:
		t.Error(err)
	case fips140.Enabled() && (ReasonOf(err) != kmsv1.ReasonUnsupported || !strings.Contains(err.Error(), "FIPS 140-3")):
		t.Errorf("in FIPS mode: got %v, want %s", err, kmsv1.ReasonUnsupported)
	}
}

func TestRSAKeysWaitForASlotAndLeaveWithTheirCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slots := make(chan struct{}, 1)
		found := make(chan *rsa.PrivateKey)
		search := func() (*rsa.PrivateKey, error) { return <-found, nil }

		// One searches. Its caller leaves, and the search goes on.
		ctx, leave := context.WithCancel(t.Context())
		first := make(chan error)
		go func() {
			_, err := inSlot(ctx, slots, search)
			first <- err
		}()
		synctest.Wait()
		leave()
		if err := <-first; CodeOf(err) != CodeUnavailable || !errors.Is(err, context.Canceled) {
			t.Errorf("a caller that left was told %v", err)
		}

		// Two wait for the slot. One gives up, and the other gets the slot once the search has ended.
		ctx, leave = context.WithCancel(t.Context())
		second, third := make(chan error), make(chan error)
		go func() {
			_, err := inSlot(ctx, slots, search)
			second <- err
		}()
		begun := false
		go func() {
			_, err := inSlot(t.Context(), slots, func() (*rsa.PrivateKey, error) { begun = true; return nil, nil })
			third <- err
		}()
		synctest.Wait()
		leave()
		if err := <-second; CodeOf(err) != CodeUnavailable {
			t.Errorf("a caller that gave up waiting was told %v", err)
		}
		synctest.Wait()
		if begun {
			t.Fatal("two keys were searched for in one slot")
		}
		late := &rsa.PrivateKey{D: big.NewInt(1 << 40)}
		found <- late
		if err := <-third; err != nil || !begun {
			t.Errorf("the slot was not given back: %v", err)
		}
		synctest.Wait()
		if late.D.Sign() != 0 && late.D.Bits()[0] != 0 {
			t.Error("the key that nobody waited for was not wiped")
		}
		if len(slots) != 0 {
			t.Errorf("%d slots are still taken", len(slots))
		}
	})
}

func TestASearchThatPanicsIsAnError(t *testing.T) {
	_, err := inSlot(t.Context(), make(chan struct{}, 1), func() (*rsa.PrivateKey, error) { panic("a number") })
	if CodeOf(err) != CodeInternal || strings.Contains(err.Error(), "a number") {
		t.Errorf("got %v, want Internal that does not repeat the value", err)
	}
}
