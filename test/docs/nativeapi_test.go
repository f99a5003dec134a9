package docs_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/datakeys/datakeys/sidecar/podtest"
)

// privateKey asks the sidecar for a key pair.
func privateKey(ctx context.Context, name string) (crypto.Signer, error) {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", os.Getenv("DATAKEYS_SOCKET"))
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/v1/data-keys/"+name, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("data key %s: %s", name, response.Status)
	}
	var answer struct{ Plaintext []byte }
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return nil, err
	}
	defer clear(answer.Plaintext)
	key, err := x509.ParsePKCS8PrivateKey(answer.Plaintext)
	if err != nil {
		return nil, err
	}
	return key.(crypto.Signer), nil // *rsa.PrivateKey, *ecdsa.PrivateKey or ed25519.PrivateKey
}

// TestTheGoOfTheNativeAPIPageRuns holds the program of the page against the one above, and runs that.
func TestTheGoOfTheNativeAPIPageRuns(t *testing.T) {
	for _, code := range blocks(t, "docs/native-api.md", "go") {
		if !strings.Contains(read(t, "test/docs/nativeapi_test.go"), "\n"+code) {
			t.Errorf("test/docs/nativeapi_test.go does not hold\n%s", code)
		}
	}
	made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(made)
	if err != nil {
		t.Fatal(err)
	}
	pod := podtest.New(t, "signing", "no-pair")
	pod.Put(t, "signing", der)
	pod.Put(t, "no-pair", []byte("0123456789abcdef0123456789abcdef"))
	pod.Start(t)
	t.Setenv("DATAKEYS_SOCKET", pod.Socket)
	key, err := privateKey(t.Context(), "signing")
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("message"))
	signature, err := key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil || !ecdsa.VerifyASN1(&made.PublicKey, digest[:], signature) {
		t.Errorf("the signature does not verify: %v", err)
	}
	if _, err := privateKey(t.Context(), "other"); err == nil || err.Error() != "data key other: 404 Not Found" {
		t.Errorf("of a data key that is not there: got %v", err)
	}
	if _, err := privateKey(t.Context(), "no-pair"); err == nil {
		t.Error("of a data key that is no key pair: got no error")
	}
}
