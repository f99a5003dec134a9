package kms

import (
	"errors"
	"testing"
	"time"

	"k8s.io/utils/clock"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// Whoever still holds a key as it was read before, in the middle of a call, opens nothing by it once it is destroyed.
func TestTheMaterialOfADestroyedKeyIsWiped(t *testing.T) {
	store := &sealtest.Store{}
	sealer, err := sealtest.OpenEmbedded(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	id, ref := envelope.NewKeyID(), MasterKeyRef{Namespace: "team-a", Name: "orders"}
	secret, _, err := sealFirstVersion(sealer, id, ref, time.Unix(0, 0), defaultTerms, "")
	if err != nil {
		t.Fatal(err)
	}
	newer := secret
	newer.Data = map[string][]byte{recordEntry: []byte(`{"primary":2,"primarySince":"2026-11-21T12:00:00Z","waitingPeriod":"720h0m0s"}`)}
	for _, number := range []uint32{1, 2} {
		if _, err := sealVersion(sealer, id, ref, number, time.Unix(0, 0), newer.Data); err != nil {
			t.Fatal(err)
		}
	}
	ring := newKeyring(sealer, store, clock.RealClock{})
	store.Put(newer)
	held, err := ring.read(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	store.Put(secret) // another version 1 alone: what was there is lost now
	lately, err := ring.read(t.Context(), id)
	if err != nil || len(lately.lost) != 2 {
		t.Fatalf("%d versions are lost (%v), want 2", len(lately.lost), err)
	}
	secret.Data = map[string][]byte{recordEntry: []byte(fullRecord)}
	store.Put(secret)
	if _, err := ring.read(t.Context(), id); !errors.Is(err, ErrMaterialDestroyed) {
		t.Fatalf("got %v, want ErrMaterialDestroyed", err)
	}
	for name, v := range map[string]*version{
		"version 1": lately.versions[1], "the lost version 1": held.versions[1], "the lost version 2": held.versions[2],
	} {
		if !v.material.IsZero() {
			t.Errorf("%s is still in memory", name)
		}
	}
	if k := ring.known(id); k != nil {
		t.Errorf("the key is known, with %d versions", len(k.versions))
	}
}

// A key is forgotten while it is read: what was wiped is not taken for what was opened of the same bytes.
func TestWhatWasWipedIsOpenedAgain(t *testing.T) {
	store := &sealtest.Store{}
	sealer, err := sealtest.OpenEmbedded(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	id, ref := envelope.NewKeyID(), MasterKeyRef{Namespace: "team-a", Name: "orders"}
	secret, _, err := sealFirstVersion(sealer, id, ref, time.Unix(0, 0), defaultTerms, "")
	if err != nil {
		t.Fatal(err)
	}
	store.Put(secret)
	ring := newKeyring(sealer, store, clock.RealClock{})
	known, err := ring.read(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	ring.forget(id)
	again, err := unsealKey(t.Context(), sealer, id, secret, known)
	if err != nil || again.versions[1].material.IsZero() {
		t.Errorf("version 1 is wiped (%v)", err)
	}
}
