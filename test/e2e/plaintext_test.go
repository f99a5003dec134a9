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

// masterKeyMaterials unseals all versions of a master key, as only the key service does otherwise.
func masterKeyMaterials(t *testing.T, c *cluster, keyID string) map[uint32]envelope.Material {
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
	materials := map[uint32]envelope.Material{}
	for version := uint32(1); len(sealed.Data[seal.VersionEntry(version)]) > 0; version++ {
		_, _, material, err := keyring.Unseal(t.Context(), id, version, sealed.Data[seal.VersionEntry(version)])
		if err != nil {
			t.Fatalf("unseal version %d of master key %s: %v", version, keyID, err)
		}
		materials[version] = material
	}
	if len(materials) == 0 {
		t.Fatalf("there is no material of master key %s", keyID)
	}
	return materials
}

// plaintext opens a blob as only the key service does otherwise.
func plaintext(t *testing.T, c *cluster, blob []byte, ad envelope.AssociatedData) []byte {
	t.Helper()
	parsed, err := envelope.Parse(blob)
	if err != nil {
		t.Fatal(err)
	}
	material, found := masterKeyMaterials(t, c, parsed.Header.KeyID.String())[parsed.Header.KeyVersion]
	if !found {
		t.Fatalf("there is no version %d of master key %s", parsed.Header.KeyVersion, parsed.Header.KeyID)
	}
	p, err := material.Open(parsed, ad)
	if err != nil {
		t.Fatalf("open the blob: %v", err)
	}
	return p.AppendTo(insecuresecret.Token{}, nil)
}

// plaintextOf opens the newest generation of a data key.
func plaintextOf(t *testing.T, namespace, name string) []byte {
	t.Helper()
	all := plaintextsOf(t, namespace, name)
	return all[int32(len(all))]
}

// plaintextsOf opens the blobs in the Secret of a DataKeyRequest of which no generation was dropped, by generation, and makes sure that
// the status has the same blobs.
func plaintextsOf(t *testing.T, namespace, name string) map[int32][]byte {
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
	generations := request.Status.Generations
	if len(generations) == 0 || secret.Data[v1alpha1.SecretKeyOf(v1alpha1.SecretKeyCiphertextBlob, int32(len(generations)))] != nil {
		t.Fatalf("DataKeyRequest %s has %d generations, and its Secret more", key, len(generations))
	}
	opened := map[int32][]byte{}
	for i, g := range generations {
		entry := v1alpha1.SecretKeyCiphertextBlob
		if i > 0 {
			entry = v1alpha1.SecretKeyOf(entry, g.Generation)
		}
		blob := secret.Data[entry]
		if int(g.Generation) != len(generations)-i || string(g.CiphertextBlob) != string(blob) {
			t.Fatalf("DataKeyRequest %s and its Secret do not hold the same blob of generation %d of %d", key, g.Generation, len(generations))
		}
		opened[g.Generation] = plaintext(t, kube, blob, envelope.AssociatedData{Context: request.Spec.Context(), Raw: request.Spec.AAD})
		seenPlaintexts.Store(fmt.Sprintf("data key %s, generation %d", key, g.Generation), opened[g.Generation])
	}
	return opened
}

// seenPlaintexts are the data keys that the tests have opened, by name: the search for leaks looks for them.
var seenPlaintexts sync.Map

func plaintextSHA256(t *testing.T, namespace, name string) string {
	t.Helper()
	sum := sha256.Sum256(plaintextOf(t, namespace, name))
	return hex.EncodeToString(sum[:])
}
