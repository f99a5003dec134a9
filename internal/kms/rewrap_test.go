package kms_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

func TestRewrapDataKeyWrapsTheSameDataKeyByThePrimaryVersion(t *testing.T) {
	for name, d := range map[string]kms.DataKey{"a symmetric data key": orders(), "a key pair": pair(v1alpha1.KeyPairSpecNISTP256)} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			d.Generation = 7
			old, err := w.GenerateDataKeyWithoutPlaintext(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			w.rotate(t, 1)
			records := len(w.Audit.Records())
			got, err := w.RewrapDataKey(t.Context(), d, old.CiphertextBlob)
			if err != nil {
				t.Fatal(err)
			}
			b, err := envelope.Parse(got.CiphertextBlob)
			if err != nil {
				t.Fatal(err)
			}
			want := kms.SealedDataKey{CiphertextBlob: got.CiphertextBlob, IV: b.IV(), KeyVersion: 2, Generation: 7, PublicKey: old.PublicKey}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			scope := envelope.Scope{Namespace: "team-a", Name: "orders", Generation: 7}
			if b.Header.Scope != scope || b.Header.KeyVersion != 2 || b.Header.Kind != envelope.KindDataKey {
				t.Errorf("its header is %+v", b.Header)
			}
			made := w.Audit.Records()[records:]
			wantAudit := []kms.AuditRecord{{
				Time: begin, Operation: kms.OperationRewrapDataKey, Decision: kms.DecisionAllowed,
				Key:       &kms.AuditKey{ID: ordersKey.KeyID, Namespace: "team-a", Name: "orders", Version: 2},
				SourceKey: &kms.AuditKey{ID: ordersKey.KeyID, Namespace: "team-a", Name: "orders", Version: 1},
				DataKey:   &kms.AuditDataKey{Namespace: "team-a", Name: "orders", Generation: 7},
				Bytes:     made[0].Bytes,
			}}
			if diff := cmp.Diff(wantAudit, made); diff != "" {
				t.Errorf("audit: %s", diff)
			}
			opened, err := replica(t, w).OpenDataKey(t.Context(), d, got.CiphertextBlob)
			if diff := cmp.Diff(got, opened); err != nil || diff != "" {
				t.Errorf("%v: it opens as %s", err, diff)
			}
			var plain [][]byte
			for _, blob := range [][]byte{old.CiphertextBlob, got.CiphertextBlob} {
				r, err := w.Decrypt(t.Context(), app, kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: d.EncryptionContext, AAD: d.AAD})
				if err != nil {
					t.Fatal(err)
				}
				plain = append(plain, bytes.Clone(raw(r.Plaintext)))
			}
			if !bytes.Equal(plain[0], plain[1]) || made[0].Bytes != len(plain[0]) {
				t.Error("it is another data key")
			}

			d.Generation = 0 // any
			again, err := w.RewrapDataKey(t.Context(), d, got.CiphertextBlob)
			if diff := cmp.Diff(got, again); err != nil || diff != "" {
				t.Errorf("%v: a blob of the primary version is changed: %s", err, diff)
			}
			if got := len(w.Audit.Records()); got != records+1+2 { // the two of Decrypt
				t.Errorf("%d records were written", got-records)
			}
		})
	}
}

func TestAnyGenerationOpensWhereNoneIsNamed(t *testing.T) {
	w := settled(t)
	d := orders()
	d.Generation = 3
	blob := w.Sealed(t, d)
	for generation, want := range map[int32]error{0: nil, 3: nil, 1: kms.ErrBlobRefused} {
		d.Generation = generation
		got, err := w.OpenDataKey(t.Context(), d, blob)
		if !errors.Is(err, want) || err == nil && got.Generation != 3 {
			t.Errorf("generation %d: got %d, %v, want %v", generation, got.Generation, err, want)
		}
	}
	id, material := w.Material(t, ordersKey)
	beyond := forged(t, envelope.Header{
		Kind: envelope.KindDataKey, KeyID: keyID(t, ordersKey.KeyID), KeyVersion: 1, MaterialID: id,
		Scope: envelope.Scope{Namespace: "team-a", Name: "orders", Generation: 1 << 31},
	}, material)
	d.Generation = 0
	if _, err := w.OpenDataKey(t.Context(), d, beyond); !errors.Is(err, kms.ErrBlobRefused) {
		t.Errorf("a generation that no DataKeyRequest has: got %v", err)
	}
	d.Generation = -1
	if _, err := w.OpenDataKey(t.Context(), d, blob); kms.CodeOf(err) != kms.CodeInvalidArgument {
		t.Errorf("a negative generation: got %v", err)
	}
}

func TestRewrapDataKeyRefuses(t *testing.T) {
	with := func(change func(*kms.DataKey)) kms.DataKey {
		d := orders()
		change(&d)
		return d
	}
	for name, c := range map[string]struct {
		data   kms.DataKey
		change func(*world)
		want   error
		code   kms.Code
		says   string
	}{
		"another name":         {data: with(func(d *kms.DataKey) { d.Name = "payments" }), want: kms.ErrBlobRefused},
		"another generation":   {data: with(func(d *kms.DataKey) { d.Generation = 2 }), want: kms.ErrBlobRefused},
		"another context":      {data: with(func(d *kms.DataKey) { d.EncryptionContext = nil }), want: kms.ErrBlobRefused},
		"another length":       {data: with(func(d *kms.DataKey) { d.Length = 16 }), want: kms.ErrBlobRefused},
		"another master key":   {data: with(func(d *kms.DataKey) { d.MasterKey = otherKey }), want: kms.ErrBlobRefused},
		"another's master key": {data: with(func(d *kms.DataKey) { d.MasterKey.Name = "other" }), want: kms.ErrMaterialConflict},
		"a master key that is gone": {
			data: orders(), change: func(w *world) { w.Store.Delete(ordersKey.KeyID) }, want: kms.ErrMaterialMissing,
		},
		"a primary version that does not open": {
			data: orders(), change: func(w *world) { w.editEntry("v2", func(b []byte) []byte { b[80] ^= 1; return b }) }, want: kms.ErrMaterialBroken,
		},
		"a Disabled key": {
			data: orders(), change: func(w *world) {
				w.MasterKeys.Edit("team-a", "orders", func(k *kms.MasterKey) { k.State = kms.KeyStateDisabled })
			},
			code: kms.CodeFailedPrecondition, says: "is Disabled",
		},
		"a full audit log": {
			data: orders(), change: func(w *world) { w.Audit.Err = errors.New("disk full") },
			code: kms.CodeUnavailable, says: "the audit record could not be written",
		},
		"a store that fails": {
			data:   orders(),
			change: func(w *world) { w.Store.Hook = func(int, sealtest.Call) sealtest.Fault { return sealtest.Fail } },
			want:   sealtest.ErrInjected,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			blob := w.Sealed(t, orders())
			w.rotate(t, 1)
			if c.change != nil {
				c.change(w)
			}
			w.Later(wrapAge)
			got, err := w.RewrapDataKey(t.Context(), c.data, blob)
			if err == nil || c.want != nil && !errors.Is(err, c.want) || c.code != 0 && kms.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v %v that says %q", err, c.want, c.code, c.says)
			}
			if diff := cmp.Diff(kms.SealedDataKey{}, got); diff != "" {
				t.Errorf("something came beside the error: %s", diff)
			}
		})
	}
}

// An older backup was restored over a version that wraps data keys. A manager that still runs has it, and nobody else.
func TestARunningManagerSavesWhatALostVersionWraps(t *testing.T) {
	w := settled(t)
	backup := w.Store.Secrets()[ordersKey.KeyID]
	w.rotate(t, 1)
	lost := w.Sealed(t, orders())
	w.Store.Put(backup)
	w.Later(wrapAge)

	_, err := replica(t, w).RewrapDataKey(t.Context(), orders(), lost)
	if !errors.Is(err, kms.ErrKeyVersionMissing) || !strings.Contains(err.Error(), "has no version 2") || !strings.Contains(err.Error(), "a newer backup") {
		t.Errorf("one that starts: got %v, want ErrKeyVersionMissing that tells the version and the way out", err)
	}
	saved, err := w.RewrapDataKey(t.Context(), orders(), lost)
	if err != nil || saved.KeyVersion != 1 {
		t.Fatalf("got version %d, %v", saved.KeyVersion, err)
	}
	if _, err := replica(t, w).OpenDataKey(t.Context(), orders(), saved.CiphertextBlob); err != nil {
		t.Errorf("what was saved does not open: %v", err)
	}
}

// A version that is made again after a restore has the number of the lost one, and is another one.
func TestABlobOfALostVersionIsNotTakenForOneOfThePrimaryVersion(t *testing.T) {
	w := settled(t)
	backup := w.Store.Secrets()[ordersKey.KeyID]
	w.rotate(t, 1)
	lost := w.Sealed(t, orders())
	w.Store.Put(backup)
	started := replica(t, w)
	started.rotate(t, 1) // another version 2
	w.Later(wrapAge)
	saved, err := w.RewrapDataKey(t.Context(), orders(), lost)
	if err != nil || saved.KeyVersion != 2 || bytes.Equal(saved.CiphertextBlob, lost) {
		t.Fatalf("got version %d, %v", saved.KeyVersion, err)
	}
	if _, err := started.OpenDataKey(t.Context(), orders(), saved.CiphertextBlob); err != nil {
		t.Error(err)
	}
}
