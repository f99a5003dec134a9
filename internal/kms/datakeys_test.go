package kms_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
)

func TestADataKeyWithoutPlaintextOpensAsItselfOnly(t *testing.T) {
	w := settled(t)
	made, err := w.GenerateDataKeyWithoutPlaintext(t.Context(), orders())
	if err != nil {
		t.Fatal(err)
	}
	good := made.CiphertextBlob
	with := func(change func(*kms.DataKey)) kms.DataKey {
		d := orders()
		change(&d)
		return d
	}
	materialID, material := w.material(t, ordersKey)
	header := envelope.Header{
		Kind: envelope.KindDataKey, KeyID: keyID(t, ordersKey.KeyID), KeyVersion: 1, MaterialID: materialID,
		Scope: envelope.Scope{Namespace: "team-a", Name: "orders", Generation: 1},
	}
	unscoped := header
	unscoped.Kind, unscoped.Scope = envelope.KindAWS, envelope.Scope{}
	version2 := header
	version2.KeyVersion = 2

	for name, c := range map[string]struct {
		data kms.DataKey
		blob []byte
		want error
		says string
	}{
		"the data key that it is":        {data: orders(), blob: good},
		"another namespace":              {with(func(d *kms.DataKey) { d.Namespace, d.MasterKey.Namespace = "team-b", "team-b" }), good, kms.ErrBlobRefused, "belongs to team-a/orders, generation 1"},
		"another name":                   {with(func(d *kms.DataKey) { d.Name = "payments" }), good, kms.ErrBlobRefused, "belongs to team-a/orders, generation 1"},
		"another generation":             {with(func(d *kms.DataKey) { d.Generation = 2 }), good, kms.ErrBlobRefused, "belongs to team-a/orders, generation 1"},
		"another length":                 {with(func(d *kms.DataKey) { d.Length = 16 }), good, kms.ErrBlobRefused, "it holds 32 bytes and not 16"},
		"another context":                {with(func(d *kms.DataKey) { d.EncryptionContext = map[string]string{"tenant": "b"} }), good, kms.ErrBlobRefused, ""},
		"no context":                     {with(func(d *kms.DataKey) { d.EncryptionContext = nil }), good, kms.ErrBlobRefused, ""},
		"another master key":             {with(func(d *kms.DataKey) { d.MasterKey = otherKey }), good, kms.ErrBlobRefused, "is of key " + ordersKey.KeyID},
		"another name of its master key": {with(func(d *kms.DataKey) { d.MasterKey.Name = "other" }), good, kms.ErrMaterialConflict, ""},
		"a blob without scope":           {orders(), forged(t, unscoped, material), kms.ErrBlobRefused, "is of kind AWS"},
		"a version that does not exist":  {orders(), forged(t, version2, material), kms.ErrBlobRefused, "has no version 2"},
		"a blob under made-up material":  {orders(), forged(t, header, envelope.NewMaterial()), kms.ErrBlobRefused, ""},
		"a changed last byte":            {orders(), append(good[:len(good)-1:len(good)-1], good[len(good)-1]^1), kms.ErrBlobRefused, ""},
		"no bytes":                       {orders(), nil, kms.ErrBlobRefused, ""},
		"a key ID that is none":          {with(func(d *kms.DataKey) { d.MasterKey.KeyID = "orders" }), good, kms.ErrInvalidKeyID, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := w.OpenDataKey(t.Context(), c.data, c.blob)
			if c.want != nil {
				if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v, want %v that says %q", err, c.want, c.says)
				}
				if diff := cmp.Diff(kms.SealedDataKey{}, got); diff != "" {
					t.Errorf("something came beside the error: %s", diff)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(made, got); diff != "" {
				t.Errorf("what opened is not what was made: %s", diff)
			}
		})
	}
}

func TestGenerateDataKeyWithoutPlaintextTellsWhatItMade(t *testing.T) {
	w := settled(t)
	for _, length := range []int{1, 16, 32, 1024} {
		d := orders()
		d.Length = length
		made, err := w.GenerateDataKeyWithoutPlaintext(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		b, err := envelope.Parse(made.CiphertextBlob)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(kms.SealedDataKey{CiphertextBlob: made.CiphertextBlob, IV: b.IV(), KeyVersion: 1}, made); diff != "" {
			t.Errorf("%d bytes: %s", length, diff)
		}
		want := kms.AuditRecord{
			Time: begin, Operation: kms.OperationGenerateDataKeyWithoutPlaintext, Decision: kms.DecisionAllowed,
			Key:     &kms.AuditKey{ID: ordersKey.KeyID, Namespace: "team-a", Name: "orders", Version: 1},
			DataKey: &kms.AuditDataKey{Namespace: "team-a", Name: "orders", Generation: 1},
			Bytes:   length,
		}
		records := w.audit.Records()
		if diff := cmp.Diff(want, records[len(records)-1]); diff != "" {
			t.Errorf("%d bytes: audit: %s", length, diff)
		}
	}
}

func TestGenerateDataKeyWithoutPlaintextRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*world, *kms.DataKey)
		code   kms.Code
		says   string
	}{
		"no bytes":       {func(_ *world, d *kms.DataKey) { d.Length = 0 }, kms.CodeInvalidArgument, "length: must be 1 to 1024 bytes"},
		"too many bytes": {func(_ *world, d *kms.DataKey) { d.Length = 1025 }, kms.CodeInvalidArgument, "length: must be 1 to 1024 bytes"},
		"no generation":  {func(_ *world, d *kms.DataKey) { d.Generation = 0 }, kms.CodeInvalidArgument, "generation: must be 1 or more"},
		"a master key of another namespace": {
			func(_ *world, d *kms.DataKey) { d.MasterKey = theirsKey },
			kms.CodeInvalidArgument, "masterKey: must be of the data key's namespace",
		},
		"a context that is too large": {
			func(_ *world, d *kms.DataKey) {
				d.EncryptionContext = map[string]string{"k": strings.Repeat("v", 9000)}
			},
			kms.CodeInvalidArgument, "encryptionContext: ",
		},
		"a name that no object has": {func(_ *world, d *kms.DataKey) { d.Name = "Orders" }, kms.CodeInvalidArgument, "name"},
		"the MasterKey is deleted": {
			func(w *world, _ *kms.DataKey) { w.objects.Delete("team-a", "orders") },
			kms.CodeNotFound, "MasterKey team-a/orders does not exist any more",
		},
		"the MasterKey is another key now": {
			func(w *world, _ *kms.DataKey) {
				w.objects.Put(kms.MasterKey{KeyID: goneID, Namespace: "team-a", Name: "orders"})
			},
			kms.CodeNotFound, "MasterKey team-a/orders is another key now",
		},
		"the MasterKeys cannot be read": {
			func(w *world, _ *kms.DataKey) { w.objects.Err = errors.New("no connection") },
			kms.CodeUnavailable, "could not be read",
		},
		"the audit log is full": {
			func(w *world, _ *kms.DataKey) { w.audit.Err = errors.New("disk full") },
			kms.CodeUnavailable, "the audit record could not be written",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, d := settled(t), orders()
			c.change(w, &d)
			got, err := w.GenerateDataKeyWithoutPlaintext(t.Context(), d)
			if kms.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v that says %q", err, c.code, c.says)
			}
			if diff := cmp.Diff(kms.SealedDataKey{}, got); diff != "" {
				t.Errorf("something came beside the error: %s", diff)
			}
		})
	}
}

func TestNoDataKeyIsMadeUnderMaterialThatIsGone(t *testing.T) {
	w := settled(t)
	blob := w.sealed(t, orders())
	w.store.Delete(ordersKey.KeyID)
	if _, err := w.GenerateDataKeyWithoutPlaintext(t.Context(), orders()); !errors.Is(err, kms.ErrMaterialMissing) {
		t.Errorf("got %v, want ErrMaterialMissing", err)
	}
	// The running key service still opens what there is, while the Secret is being restored.
	if _, err := w.OpenDataKey(t.Context(), orders(), blob); err != nil {
		t.Error(err)
	}
	if _, err := replica(t, w).OpenDataKey(t.Context(), orders(), blob); !errors.Is(err, kms.ErrMaterialMissing) {
		t.Errorf("one that starts now: got %v, want ErrMaterialMissing", err)
	}
}

func TestARestoredVersionNumberIsNotTakenForItsPredecessor(t *testing.T) {
	w := settled(t)
	old := w.store.Secrets()[ordersKey.KeyID]
	w.addVersion(t, ordersKey, 2)
	lost := w.sealed(t, orders()) // under the version 2 that the backup lacks
	w.store.Put(old)
	w.addVersion(t, ordersKey, 2) // another version 2
	w = replica(t, w)

	_, err := w.OpenDataKey(t.Context(), orders(), lost)
	if !errors.Is(err, kms.ErrBlobRefused) || !strings.Contains(err.Error(), "has no version 2 with that material") {
		t.Errorf("got %v, want ErrBlobRefused that tells of the material", err)
	}
	if _, err := w.OpenDataKey(t.Context(), orders(), w.sealed(t, orders())); err != nil {
		t.Errorf("a data key of the new version 2: %v", err)
	}
}
