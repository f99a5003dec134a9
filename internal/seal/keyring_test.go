package seal_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
	"github.com/datakeys/datakeys/internal/secrettest"
)

func TestUnsealOpensNothingButThatVersionOfThatKey(t *testing.T) {
	ring := open(t, &sealtest.Store{})
	of := seal.MasterKeyVersion{KeyID: envelope.NewKeyID(), Namespace: "team-a", Name: "orders", Version: 3}
	seals := func(k *seal.Keyring) []byte {
		sealed, err := k.Seal(of, envelope.NewMaterialID(), envelope.NewMaterial())
		if err != nil {
			t.Fatal(err)
		}
		return sealed
	}
	good := seals(ring)
	dataKey := func() []byte {
		p, err := envelope.NewPlaintext(48)
		if err != nil {
			t.Fatal(err)
		}
		b, err := envelope.NewMaterial().Seal(envelope.Header{
			Kind: envelope.KindAWS, KeyID: envelope.NewKeyID(), KeyVersion: 1, MaterialID: envelope.NewMaterialID(),
		}, envelope.AssociatedData{}, p)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, c := range map[string]struct {
		keyID   envelope.KeyID
		version uint32
		sealed  []byte
		want    error
	}{
		"the key and version it was sealed for":   {of.KeyID, 3, good, nil},
		"another key":                             {envelope.NewKeyID(), 3, good, envelope.ErrBroken},
		"another version":                         {of.KeyID, 2, good, envelope.ErrBroken},
		"another installation's sealing key":      {of.KeyID, 3, seals(open(t, &sealtest.Store{})), envelope.ErrNotMine},
		"a data key":                              {of.KeyID, 3, dataKey(), envelope.ErrBroken},
		"a changed last byte":                     {of.KeyID, 3, append(good[:len(good)-1:len(good)-1], good[len(good)-1]^1), envelope.ErrBroken},
		"a missing last byte":                     {of.KeyID, 3, good[:len(good)-1], envelope.ErrBroken},
		"nothing":                                 {of.KeyID, 3, nil, envelope.ErrBroken},
		"a namespace changed in the clear header": {of.KeyID, 3, []byte(strings.Replace(string(good), "team-a", "team-b", 1)), envelope.ErrBroken},
	} {
		t.Run(name, func(t *testing.T) {
			got, id, m, err := ring.Unseal(t.Context(), c.keyID, c.version, c.sealed)
			if !errors.Is(err, c.want) || (err != nil) != (c.want != nil) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if err == nil {
				if got != of {
					t.Errorf("got %+v, want %+v", got, of)
				}
			} else if !id.IsZero() || !m.IsZero() || got != (seal.MasterKeyVersion{}) {
				t.Error("something came back beside an error")
			}
		})
	}
}

func TestVersionEntriesHaveOneSpelling(t *testing.T) {
	for entry, want := range map[string]uint32{
		"v1": 1, "v1000": 1000, "v4294967295": 4294967295,
		"v0": 0, "v01": 0, "v+1": 0, "v-1": 0, "v": 0, "1": 0, "V1": 0, "v1.createdAt": 0, "v4294967296": 0, "": 0, "keyID": 0,
	} {
		got, ok := seal.ParseVersionEntry(entry)
		if got != want || ok != (want != 0) {
			t.Errorf("%q: got %d %v, want %d", entry, got, ok, want)
		}
	}
}

func TestNothingThatHoldsAKeyPrintsIt(t *testing.T) {
	store := &sealtest.Store{}
	ring := open(t, store)
	root := store.Secrets()[rootSecret]
	type holder struct{ inner any }

	for name, v := range map[string]any{
		"the Secret of the root key":            root,
		"a pointer to it":                       &root,
		"a keyring":                             ring,
		"a keyring in somebody's private field": holder{ring},
	} {
		for how, text := range secrettest.Prints(v) {
			if how == "fmt %w" || how == "gob" { // they ask no method, and a Secret is a plain struct
				continue
			}
			secrettest.CheckText(t, name+" by "+how, text, map[string][]byte{"root key": root.Data["key"], "sealing key": ring.SealingKeyBytes()})
		}
	}
}

func BenchmarkUnseal(b *testing.B) {
	ring, err := sealtest.OpenEmbedded(b.Context(), &sealtest.Store{})
	if err != nil {
		b.Fatal(err)
	}
	of := seal.MasterKeyVersion{KeyID: envelope.NewKeyID(), Namespace: "team-a", Name: "orders", Version: 1}
	sealed, err := ring.Seal(of, envelope.NewMaterialID(), envelope.NewMaterial())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, _, err := ring.Unseal(b.Context(), of.KeyID, 1, sealed); err != nil {
			b.Fatal(err)
		}
	}
}
