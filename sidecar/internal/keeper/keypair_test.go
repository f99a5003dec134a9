package keeper

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/envelope"
)

// testKeyPair returns a private key as the key service makes it, and its public key.
func testKeyPair(t testing.TB, spec string) (private, public []byte) {
	t.Helper()
	if spec == "ECC_SECG_P256K1" { // of which the standard library knows nothing
		key := openssl(t, nil, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1", "-outform", "DER")
		key = openssl(t, key, "pkcs8", "-topk8", "-nocrypt", "-inform", "DER", "-outform", "DER")
		return key, openssl(t, key, "pkey", "-inform", "DER", "-pubout", "-outform", "DER")
	}
	key, err := map[string]func() (crypto.Signer, error){
		"RSA_2048":      func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) },
		"ECC_NIST_P256": func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
		"ECC_NIST_P384": func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P384(), rand.Reader) },
		"ECC_NIST_P521": func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P521(), rand.Reader) },
		"ECC_NIST_EDWARDS25519": func() (crypto.Signer, error) {
			_, key, err := ed25519.GenerateKey(rand.Reader)
			return key, err
		},
	}[spec]()
	if err != nil {
		t.Fatal(err)
	}
	if private, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		t.Fatal(err)
	}
	if public, err = x509.MarshalPKIXPublicKey(key.Public()); err != nil {
		t.Fatal(err)
	}
	return private, public
}

func openssl(t testing.TB, stdin []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func TestAKeyPairSaysItsPublicKey(t *testing.T) {
	for _, spec := range []string{
		"RSA_2048", "ECC_NIST_P256", "ECC_NIST_P384", "ECC_NIST_P521", "ECC_SECG_P256K1", "ECC_NIST_EDWARDS25519",
	} {
		t.Run(spec, func(t *testing.T) {
			private, public := testKeyPair(t, spec)
			before := bytes.Clone(private)
			p, err := envelope.PlaintextFromBytes(private)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(keyPair{spec, public}, readKeyPair(p)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !bytes.Equal(private, before) {
				t.Error("reading changed the private key")
			}
		})
	}
}

func TestWhatIsNoPrivateKeyIsASymmetricDataKey(t *testing.T) {
	edwards, _ := testKeyPair(t, "ECC_NIST_EDWARDS25519")
	curve, _ := testKeyPair(t, "ECC_NIST_P256")
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, err := x509.MarshalPKCS8PrivateKey(p224)
	if err != nil {
		t.Fatal(err)
	}
	for name, der := range map[string][]byte{
		"nothing":                        nil,
		"text":                           []byte("0123456789abcdef0123456789ABCDEF"),
		"an Ed25519 key that is cut":     edwards[:len(edwards)-1],
		"an Ed25519 key with more":       append(bytes.Clone(edwards), 0),
		"a P-256 key that is cut":        curve[:len(curve)-1],
		"a curve that is not among them": other,
		"an empty sequence":              {0x30, 0},
	} {
		if diff := cmp.Diff(keyPair{}, parseKeyPair(der)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// FuzzParseKeyPair: whatever is read, what comes out is nothing or a public key with a spec.
func FuzzParseKeyPair(f *testing.F) {
	for _, spec := range []string{"RSA_2048", "ECC_NIST_P256", "ECC_SECG_P256K1", "ECC_NIST_EDWARDS25519"} {
		private, _ := testKeyPair(f, spec)
		f.Add(private)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		if pair := parseKeyPair(der); (pair.Spec == "") != (pair.PublicKey == nil) {
			t.Errorf("got %+v", pair)
		}
	})
}

// TestSpecsAreTheAPIs: the sidecar repeats these, so as not to link what api/v1alpha1 imports.
func TestSpecsAreTheAPIs(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "api", "v1alpha1", "datakeyrequest_types.go"))
	if err != nil {
		t.Fatal(err)
	}
	declared := map[string]bool{}
	for _, match := range regexp.MustCompile(`\sKeyPairSpec = "(\w+)"`).FindAllSubmatch(text, -1) {
		declared[string(match[1])] = true
	}
	known := map[string]bool{"ECC_NIST_EDWARDS25519": true}
	for _, spec := range rsaSpecs {
		known[spec] = true
	}
	for _, spec := range curveSpecs {
		known[spec] = true
	}
	if diff := cmp.Diff(declared, known); diff != "" {
		t.Errorf("declared and known (-declared +known):\n%s", diff)
	}
}
