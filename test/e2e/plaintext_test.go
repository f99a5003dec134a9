//go:build e2e

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// secrets reads the Secrets of the manager's namespace for the seal, and writes nothing.
type secrets struct{ cluster *cluster }

func (s secrets) Get(ctx context.Context, name string) (seal.Secret, error) {
	var o corev1.Secret
	err := s.cluster.client.Get(ctx, client.ObjectKey{Namespace: systemNamespace, Name: name}, &o)
	return seal.Secret{Name: o.Name, Type: string(o.Type), Data: o.Data}, err
}

func (secrets) Create(context.Context, seal.Secret) error {
	return fmt.Errorf("the tests make no key")
}

func (secrets) Update(context.Context, seal.Secret) error {
	return fmt.Errorf("the tests change no key")
}

func (secrets) List(context.Context, string) ([]string, error) { return nil, nil }

func (secrets) Any(context.Context, string) (bool, error) { return true, nil }

// masterKeyMaterial unseals version 1 of a master key, as only the key service does otherwise.
func masterKeyMaterial(t *testing.T, c *cluster, keyID string) (envelope.MaterialID, envelope.Material) {
	t.Helper()
	keyring, err := sealtest.OpenEmbedded(t.Context(), secrets{c})
	if err != nil {
		t.Fatalf("open the seal: %v", err)
	}
	id, err := envelope.ParseKeyID(keyID)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := secrets{c}.Get(t.Context(), keyID)
	if err != nil {
		t.Fatal(err)
	}
	_, materialID, material, err := keyring.Unseal(t.Context(), id, 1, sealed.Data[seal.VersionEntry(1)])
	if err != nil {
		t.Fatalf("unseal master key %s: %v", keyID, err)
	}
	return materialID, material
}

// plaintext opens a blob as only the key service does otherwise.
func plaintext(t *testing.T, c *cluster, blob []byte, ad envelope.AssociatedData) []byte {
	t.Helper()
	parsed, err := envelope.Parse(blob)
	if err != nil {
		t.Fatal(err)
	}
	_, material := masterKeyMaterial(t, c, parsed.Header.KeyID.String())
	p, err := material.Open(parsed, ad)
	if err != nil {
		t.Fatalf("open the blob: %v", err)
	}
	return p.AppendTo(insecuresecret.Token{}, nil)
}

// plaintextOf opens the blob in the Secret of a DataKeyRequest, and makes sure that the status has the same blob.
func plaintextOf(t *testing.T, namespace, name string) []byte {
	t.Helper()
	key := client.ObjectKey{Namespace: namespace, Name: name}
	var secret corev1.Secret
	var request v1alpha1.DataKeyRequest
	if err := kube.client.Get(t.Context(), key, &secret); err != nil {
		t.Fatal(err)
	}
	if err := kube.client.Get(t.Context(), key, &request); err != nil {
		t.Fatal(err)
	}
	blob := secret.Data[v1alpha1.SecretKeyCiphertextBlob]
	if len(request.Status.Generations) != 1 || string(request.Status.Generations[0].CiphertextBlob) != string(blob) {
		t.Fatalf("DataKeyRequest %s and its Secret do not hold the same blob", key)
	}
	b := plaintext(t, kube, blob, envelope.AssociatedData{Context: request.Spec.Context(), Raw: request.Spec.AAD})
	seenPlaintexts.Store("data key "+key.String(), b)
	return b
}

// seenPlaintexts are the data keys that the tests have opened, by name: the search for leaks looks for them.
var seenPlaintexts sync.Map

func plaintextSHA256(t *testing.T, namespace, name string) string {
	t.Helper()
	sum := sha256.Sum256(plaintextOf(t, namespace, name))
	return hex.EncodeToString(sum[:])
}
