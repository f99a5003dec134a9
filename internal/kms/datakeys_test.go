package kms_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/fips140"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
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
	materialID, material := w.Material(t, ordersKey)
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
		"an aad instead of the context":  {with(func(d *kms.DataKey) { d.EncryptionContext, d.AAD = nil, []byte("tenant=a") }), good, kms.ErrBlobRefused, ""},
		"a key pair":                     {with(func(d *kms.DataKey) { d.Length, d.KeyPairSpec = 0, "ECC_NIST_P256" }), good, kms.ErrBlobRefused, "no private key"},
		"another master key":             {with(func(d *kms.DataKey) { d.MasterKey = otherKey }), good, kms.ErrBlobRefused, "is of key " + ordersKey.KeyID},
		"another name of its master key": {with(func(d *kms.DataKey) { d.MasterKey.Name = "other" }), good, kms.ErrMaterialConflict, ""},
		"a blob without scope":           {orders(), forged(t, unscoped, material), kms.ErrBlobRefused, "is of kind AWS"},
		"a version that does not exist":  {orders(), forged(t, version2, material), kms.ErrKeyVersionMissing, "has no version 2"},
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
		if diff := cmp.Diff(kms.SealedDataKey{CiphertextBlob: made.CiphertextBlob, IV: b.IV(), KeyVersion: 1, Generation: 1}, made); diff != "" {
			t.Errorf("%d bytes: %s", length, diff)
		}
		want := kms.AuditRecord{
			Time: begin, Operation: kms.OperationGenerateDataKeyWithoutPlaintext, Decision: kms.DecisionAllowed,
			Key:     &kms.AuditKey{ID: ordersKey.KeyID, Namespace: "team-a", Name: "orders", Version: 1},
			DataKey: &kms.AuditDataKey{Namespace: "team-a", Name: "orders", Generation: 1},
			Bytes:   length,
		}
		records := w.Audit.Records()
		if diff := cmp.Diff(want, records[len(records)-1]); diff != "" {
			t.Errorf("%d bytes: audit: %s", length, diff)
		}
	}
}

// pair is a key pair of the spec as a DataKeyRequest asks for it, bound to an aad.
func pair(spec v1alpha1.KeyPairSpec) kms.DataKey {
	d := orders()
	d.Length, d.KeyPairSpec, d.EncryptionContext, d.AAD = 0, string(spec), nil, []byte{0, 1, 2}
	return d
}

func TestAKeyPairWithoutPlaintextOpensAsItselfOnly(t *testing.T) {
	w := settled(t)
	d := pair(v1alpha1.KeyPairSpecNISTP256)
	made, err := w.GenerateDataKeyWithoutPlaintext(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	if key, err := x509.ParsePKIXPublicKey(made.PublicKey); err != nil || key.(*ecdsa.PublicKey).Curve != elliptic.P256() {
		t.Errorf("the public key is %T (%v), want one of P-256", key, err)
	}
	records := w.Audit.Records()
	want := kms.AuditRecord{
		Time: begin, Operation: kms.OperationGenerateDataKeyPairWithoutPlaintext, Decision: kms.DecisionAllowed,
		Key:     &kms.AuditKey{ID: ordersKey.KeyID, Namespace: "team-a", Name: "orders", Version: 1},
		DataKey: &kms.AuditDataKey{Namespace: "team-a", Name: "orders", Generation: 1},
		Bytes:   138,
	}
	if diff := cmp.Diff(want, records[len(records)-1]); diff != "" {
		t.Errorf("audit: %s", diff)
	}
	with := func(change func(*kms.DataKey)) kms.DataKey {
		d := d
		change(&d)
		return d
	}
	for name, c := range map[string]struct {
		data kms.DataKey
		says string
	}{
		"the key pair that it is":                {d, ""},
		"another curve":                          {with(func(d *kms.DataKey) { d.KeyPairSpec = "ECC_NIST_P384" }), "it holds a private key of ECC_NIST_P256 and not of ECC_NIST_P384"},
		"another algorithm":                      {with(func(d *kms.DataKey) { d.KeyPairSpec = "RSA_2048" }), "it holds a private key of ECC_NIST_P256 and not of RSA_2048"},
		"a data key of the private key's length": {with(func(d *kms.DataKey) { d.Length, d.KeyPairSpec = 138, "" }), "it holds a private key of ECC_NIST_P256 and not 138 random bytes"},
		"another aad":                            {with(func(d *kms.DataKey) { d.AAD = []byte{0, 1, 3} }), "other associated data"},
		"no aad":                                 {with(func(d *kms.DataKey) { d.AAD = nil }), "other associated data"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := w.OpenDataKey(t.Context(), c.data, made.CiphertextBlob)
			if c.says != "" {
				if !errors.Is(err, kms.ErrBlobRefused) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v, want ErrBlobRefused that says %q", err, c.says)
				}
				if diff := cmp.Diff(kms.SealedDataKey{}, got); diff != "" {
					t.Errorf("something came beside the error: %s", diff)
				}
				return
			}
			if diff := cmp.Diff(made, got); err != nil || diff != "" {
				t.Errorf("%v: what opened is not what was made: %s", err, diff)
			}
		})
	}
}

func TestEveryKeyPairSpecIsMadeAndProved(t *testing.T) {
	w := settled(t)
	for _, spec := range v1alpha1.KeyPairSpecs() {
		t.Run(string(spec), func(t *testing.T) {
			made, err := w.GenerateDataKeyWithoutPlaintext(t.Context(), pair(spec))
			if spec == v1alpha1.KeyPairSpecSECGP256K1 && fips140.Enabled() {
				if kms.ReasonOf(err) != kmsv1.ReasonUnsupported {
					t.Errorf("in FIPS mode: got %v, want %s", err, kmsv1.ReasonUnsupported)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := replica(t, w).OpenDataKey(t.Context(), pair(spec), made.CiphertextBlob)
			if diff := cmp.Diff(made, got); err != nil || diff != "" {
				t.Errorf("%v: what opened is not what was made: %s", err, diff)
			}
			if len(made.CiphertextBlob) > envelope.MaxBlobSize {
				t.Errorf("the blob has %d bytes", len(made.CiphertextBlob))
			}
		})
	}
}

// vanishing is a store whose Secrets are gone after the first look.
type vanishing struct {
	*sealtest.Store
	looks int
}

func (s *vanishing) Get(ctx context.Context, name string) (seal.Secret, error) {
	if s.looks++; s.looks > 1 {
		return seal.Secret{}, seal.ErrSecretNotFound
	}
	return s.Store.Get(ctx, name)
}

func TestNoKeyPairIsSealedUnderMaterialThatWentWhileItWasMade(t *testing.T) {
	w := settled(t)
	before := len(w.Audit.Records())
	service := serviceOver(t, w, &vanishing{Store: w.Store})
	_, err := service.GenerateDataKeyWithoutPlaintext(t.Context(), pair(v1alpha1.KeyPairSpecNISTP256))
	if !errors.Is(err, kms.ErrMaterialMissing) || len(w.Audit.Records()) != before {
		t.Errorf("got %v and %d records, want ErrMaterialMissing and none", err, len(w.Audit.Records())-before)
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
			kms.CodeInvalidArgument, "associated data: ",
		},
		"an aad that is too large": {
			func(_ *world, d *kms.DataKey) { d.EncryptionContext, d.AAD = nil, make([]byte, 8193) },
			kms.CodeInvalidArgument, "associated data: ",
		},
		"an aad beside a context": {
			func(_ *world, d *kms.DataKey) { d.AAD = []byte("aad") },
			kms.CodeInvalidArgument, "associated data: ",
		},
		"a length beside a keyPairSpec": {
			func(_ *world, d *kms.DataKey) { d.KeyPairSpec = "ECC_NIST_P256" },
			kms.CodeInvalidArgument, "keyPairSpec: excludes a length",
		},
		"a keyPairSpec that is none": {
			func(_ *world, d *kms.DataKey) { d.Length, d.KeyPairSpec = 0, "RSA_1024" },
			kms.CodeInvalidArgument, "keyPairSpec: must be one of RSA_2048, ",
		},
		"a name that no object has": {func(_ *world, d *kms.DataKey) { d.Name = "Orders" }, kms.CodeInvalidArgument, "name"},
		"the MasterKey is deleted": {
			func(w *world, _ *kms.DataKey) { w.MasterKeys.Delete("team-a", "orders") },
			kms.CodeNotFound, "MasterKey team-a/orders does not exist any more",
		},
		"the MasterKey is another key now": {
			func(w *world, _ *kms.DataKey) {
				w.MasterKeys.Put(kms.MasterKey{KeyID: goneID, Namespace: "team-a", Name: "orders"})
			},
			kms.CodeNotFound, "MasterKey team-a/orders is another key now",
		},
		"the MasterKeys cannot be read": {
			func(w *world, _ *kms.DataKey) { w.MasterKeys.Err = errors.New("no connection") },
			kms.CodeUnavailable, "could not be read",
		},
		"the audit log is full": {
			func(w *world, _ *kms.DataKey) { w.Audit.Err = errors.New("disk full") },
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

// Thousands of data keys of one MasterKey are made at little more than the cost of writing them.
func TestTheDataKeysOfASecondReadTheirMasterKeyOnce(t *testing.T) {
	w := settled(t)
	for second := range 3 {
		w.Later(time.Second)
		before := gets(w, "")
		for range 100 {
			w.Sealed(t, orders())
		}
		if got := gets(w, "") - before; got != 1 {
			t.Errorf("second %d: the store was read %d times, want once", second+1, got)
		}
	}
}

func TestNoDataKeyIsMadeUnderMaterialThatIsGone(t *testing.T) {
	w := settled(t)
	blob := w.Sealed(t, orders())
	w.Store.Delete(ordersKey.KeyID)
	w.Later(time.Second)
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
	old := w.Store.Secrets()[ordersKey.KeyID]
	w.AddVersion(t, ordersKey, 2)
	w.Later(time.Second)
	lost := w.Sealed(t, orders()) // under the version 2 that the backup lacks
	w.Store.Put(old)
	w.AddVersion(t, ordersKey, 2) // another version 2
	w = replica(t, w)

	_, err := w.OpenDataKey(t.Context(), orders(), lost)
	if !errors.Is(err, kms.ErrKeyVersionMissing) || !strings.Contains(err.Error(), "has no version 2 with the material") {
		t.Errorf("got %v, want ErrKeyVersionMissing that tells of the material", err)
	}
	if _, err := w.OpenDataKey(t.Context(), orders(), w.Sealed(t, orders())); err != nil {
		t.Errorf("a data key of the new version 2: %v", err)
	}
}
