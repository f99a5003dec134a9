package sealtest

import (
	"context"
	"testing"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
)

// OpenEmbedded opens the sealing keys in a store by an embedded root key. It makes both in an empty one.
func OpenEmbedded(ctx context.Context, store seal.Store) (*seal.Keyring, error) {
	return seal.Config{RootKey: seal.DefaultRootKey, Store: store}.Open(ctx)
}

// SameKeys fails the test unless what one keyring seals the other opens, both ways.
func SameKeys(t testing.TB, a, b *seal.Keyring) {
	t.Helper()
	if a.InstallID() != b.InstallID() {
		t.Errorf("install IDs differ: %s and %s", a.InstallID(), b.InstallID())
	}
	for _, pair := range [][2]*seal.Keyring{{a, b}, {b, a}} {
		of := seal.MasterKeyVersion{KeyID: envelope.NewKeyID(), Namespace: "team-a", Name: "orders", Version: 1}
		id, m := envelope.NewMaterialID(), envelope.NewMaterial()
		sealed, err := pair[0].Seal(of, id, m)
		if err != nil {
			t.Fatal(err)
		}
		gotOf, gotID, gotM, err := pair[1].Unseal(t.Context(), of.KeyID, 1, sealed)
		if err != nil {
			t.Fatalf("what one keyring sealed the other does not open: %v", err)
		}
		if gotOf != of || gotID != id || !gotM.Equal(m) {
			t.Error("what came back is not what was sealed")
		}
	}
}
