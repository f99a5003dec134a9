package kms_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

func TestNoMasterKeyIsMadeThatNoManagerThatStartsCouldOpen(t *testing.T) {
	const rootKey = "datakeys-root-key"
	for name, lose := range map[string]func(t *testing.T, store *sealtest.Store){
		"the sealing keys are deleted": func(_ *testing.T, store *sealtest.Store) { store.Delete(seal.SealingKeysSecret) },
		"the root key is deleted":      func(_ *testing.T, store *sealtest.Store) { store.Delete(rootKey) },
		"all is deleted, and another manager has started since": func(t *testing.T, store *sealtest.Store) {
			store.Delete(seal.SealingKeysSecret)
			store.Delete(rootKey)
			if _, err := sealtest.OpenEmbedded(t.Context(), store); err != nil {
				t.Fatal(err)
			}
		},
		"the sealing keys are another installation's": func(t *testing.T, store *sealtest.Store) {
			other := &sealtest.Store{}
			if _, err := sealtest.OpenEmbedded(t.Context(), other); err != nil {
				t.Fatal(err)
			}
			store.Put(other.Secrets()[seal.SealingKeysSecret])
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			before := w.Store.Secrets()
			lose(t, w.Store)
			_, err := w.EnsureMasterKey(t.Context(), ordersKey, terms, "")
			if _, ok := errors.AsType[*seal.SecretError](err); !ok {
				t.Errorf("got %v, want an error that names the Secret to restore", err)
			}
			if _, made := w.Store.Secrets()[ordersKey.KeyID]; made {
				t.Error("material was made")
			}
			for _, secret := range []string{rootKey, seal.SealingKeysSecret} {
				w.Store.Put(before[secret])
			}
			if _, err := w.EnsureMasterKey(t.Context(), ordersKey, terms, ""); err != nil {
				t.Errorf("after a restore: %v", err)
			}
			if _, err := replica(t, w).MasterKey(t.Context(), ordersKey); err != nil {
				t.Errorf("a manager that starts: %v", err)
			}
		})
	}
}

func TestEnsureMasterKeyMakesVersionOneAndFindsItAgain(t *testing.T) {
	w := newWorld(t)
	got, err := w.EnsureMasterKey(t.Context(), ordersKey, terms, "before it was made")
	if err != nil {
		t.Fatal(err)
	}
	ring, err := sealtest.OpenEmbedded(t.Context(), w.Store)
	if err != nil {
		t.Fatal(err)
	}
	want := kms.MasterKeyInfo{
		ARN:            "arn:datakeys:kms:" + ring.InstallID() + ":team-a:key/" + ordersKey.KeyID,
		PrimaryVersion: 1,
		PrimarySince:   begin,
		Terms:          terms,
		Versions:       []kms.MasterKeyVersion{{Version: 1, CreatedAt: begin}},
		Created:        true,

		RotateRequestedAt: "before it was made",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("first time: %s", diff)
	}
	secret := w.Store.Secrets()[ordersKey.KeyID]
	if secret.Type != "datakeys.io/master-key" {
		t.Errorf("type of the Secret: got %s", secret.Type)
	}
	wantLabels := map[string]string{"app.kubernetes.io/managed-by": "datakeys", "datakeys.io/master-key": "orders"}
	if diff := cmp.Diff(wantLabels, secret.Labels); diff != "" {
		t.Errorf("labels of the Secret: %s", diff)
	}
	wantAudit := []kms.AuditRecord{{
		Time: begin, Operation: kms.OperationCreateMasterKeyVersion, Decision: kms.DecisionAllowed,
		Key: &kms.AuditKey{ID: ordersKey.KeyID, Namespace: "team-a", Name: "orders", Version: 1},
	}}
	if diff := cmp.Diff(wantAudit, w.Audit.Records()); diff != "" {
		t.Errorf("audit: %s", diff)
	}

	want.Created = false
	w.Clock.SetTime(begin.Add(time.Hour))
	again, err := replica(t, w).EnsureMasterKey(t.Context(), ordersKey, terms, "")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, again); diff != "" {
		t.Errorf("second time: %s", diff)
	}
	if diff := cmp.Diff(secret.Data, w.Store.Secrets()[ordersKey.KeyID].Data); diff != "" {
		t.Errorf("the second time changed the Secret: %s", diff)
	}
}

func TestTwoManagersThatMakeTheSameKeyAtOnceHaveOneMaterial(t *testing.T) {
	w := newWorld(t)
	managers := []*world{replica(t, w), replica(t, w)}
	var both sync.WaitGroup
	both.Add(len(managers))
	w.Store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
		if c.Method == sealtest.Create {
			both.Done()
			both.Wait()
		}
		return sealtest.None
	}
	infos, errs := make([]kms.MasterKeyInfo, len(managers)), make([]error, len(managers))
	var done sync.WaitGroup
	for i, m := range managers {
		done.Go(func() { infos[i], errs[i] = m.EnsureMasterKey(t.Context(), ordersKey, terms, "") })
	}
	done.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if infos[0].Created == infos[1].Created {
		t.Errorf("both say Created: %v", infos[0].Created)
	}
	w.MasterKeys.Put(object(ordersKey))
	for i, m := range managers {
		blob := m.Sealed(t, orders())
		if _, err := managers[1-i].OpenDataKey(t.Context(), orders(), blob); err != nil {
			t.Errorf("what manager %d made, the other does not open: %v", i, err)
		}
	}
}

func TestAMasterKeyConvergesAfterACrashAtAnyStoreCall(t *testing.T) {
	for name, fault := range map[string]sealtest.Fault{
		"the call fails": sealtest.Fail,
		"the call is done and the answer is lost": sealtest.DoAndFail,
	} {
		t.Run(name, func(t *testing.T) {
			for n := 1; ; n++ {
				w := newWorld(t)
				w.MasterKeys.Put(object(ordersKey))
				before := len(w.Store.Calls())
				w.Store.Hook = func(call int, _ sealtest.Call) sealtest.Fault {
					if call == before+n {
						return fault
					}
					return sealtest.None
				}
				_, err := w.EnsureMasterKey(t.Context(), ordersKey, terms, "")
				w.Store.Hook = nil
				if err == nil {
					if n != 6 {
						t.Errorf("EnsureMasterKey made %d calls, want 5: look, check the sealing keys, check the root key, make, read back", n-1)
					}
					return
				}
				if !errors.Is(err, sealtest.ErrInjected) {
					t.Fatalf("call %d: got %v, want the injected error", n, err)
				}
				durable := w.Store.Secrets()[ordersKey.KeyID]

				after := replica(t, w) // the manager died
				info, err := after.EnsureMasterKey(t.Context(), ordersKey, terms, "")
				if err != nil {
					t.Fatalf("call %d: it does not converge: %v", n, err)
				}
				if len(info.Versions) != 1 {
					t.Errorf("call %d: got %d versions, want 1", n, len(info.Versions))
				}
				if len(durable.Data) > 0 {
					if diff := cmp.Diff(durable.Data, w.Store.Secrets()[ordersKey.KeyID].Data); diff != "" {
						t.Errorf("call %d: material that was there was changed: %s", n, diff)
					}
				}
				if _, err := replica(t, w).OpenDataKey(t.Context(), orders(), after.Sealed(t, orders())); err != nil {
					t.Errorf("call %d: a data key does not open: %v", n, err)
				}
			}
		})
	}
}

func TestMasterKeyMaterialThatIsNotAsItShouldBe(t *testing.T) {
	flip := func(w *world) {
		w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) { s.Data["v1"][70] ^= 1 })
	}
	for name, c := range map[string]struct {
		damage func(*testing.T, *world)
		ref    kms.MasterKeyRef
		want   error
		says   string
	}{
		"it is gone": {
			damage: func(_ *testing.T, w *world) { w.Store.Delete(ordersKey.KeyID) },
			ref:    ordersKey, want: kms.ErrMaterialMissing,
		},
		"it belongs to another namespace": {
			ref:  kms.MasterKeyRef{KeyID: ordersKey.KeyID, Namespace: "team-b", Name: "orders"},
			want: kms.ErrMaterialConflict, says: "belongs to team-a/orders and not to team-b/orders",
		},
		"it belongs to another name": {
			ref:  kms.MasterKeyRef{KeyID: ordersKey.KeyID, Namespace: "team-a", Name: "payments"},
			want: kms.ErrMaterialConflict, says: "belongs to team-a/orders and not to team-a/payments",
		},
		"one bit of it is changed": {
			damage: func(_ *testing.T, w *world) { flip(w) },
			ref:    ordersKey, want: kms.ErrMaterialBroken, says: "has an entry v1 that does not open",
		},
		"it was copied from another key's Secret": {
			damage: func(_ *testing.T, w *world) {
				theirs := w.Store.Secrets()[otherKey.KeyID].Data
				w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) { s.Data = theirs })
			},
			ref: ordersKey, want: kms.ErrMaterialBroken, says: "has an entry v1 that does not open",
		},
		"version 1 stands again as version 2": {
			damage: func(_ *testing.T, w *world) {
				w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) { s.Data["v2"] = s.Data["v1"] })
			},
			ref: ordersKey, want: kms.ErrMaterialBroken, says: "has an entry v2 that does not open",
		},
		"version 1 is lost and there is a version 2": {
			damage: func(t *testing.T, w *world) {
				t.Helper()
				w.AddVersion(t, ordersKey, 2)
				w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) { delete(s.Data, "v1") })
			},
			ref: ordersKey, want: kms.ErrMaterialBroken, says: "lacks an entry: it has 1 versions and the newest is 2",
		},
		"version 2 belongs to another MasterKey": {
			damage: func(t *testing.T, w *world) {
				t.Helper()
				w.AddVersion(t, kms.MasterKeyRef{KeyID: ordersKey.KeyID, Namespace: "team-b", Name: "orders"}, 2)
			},
			ref: ordersKey, want: kms.ErrMaterialBroken, says: "has versions of two MasterKeys",
		},
		"there is no version in its Secret": {
			damage: func(_ *testing.T, w *world) {
				w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) { s.Data = nil })
			},
			ref: ordersKey, want: kms.ErrMaterialBroken, says: "has no entry with a version",
		},
		"its age is not known": {
			damage: func(_ *testing.T, w *world) {
				w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) { s.Data["v1.createdAt"] = []byte("yesterday") })
			},
			ref: ordersKey, want: kms.ErrMaterialBroken, says: "has no time as in RFC 3339 in its entry v1.createdAt",
		},
		"its Secret is of another type": {
			damage: func(_ *testing.T, w *world) {
				w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) { s.Type = "Opaque" })
			},
			ref: ordersKey, want: kms.ErrMaterialBroken, says: `is of type "Opaque"`,
		},
		"the key ID is a word": {
			ref:  kms.MasterKeyRef{KeyID: "orders", Namespace: "team-a", Name: "orders"},
			want: kms.ErrInvalidKeyID, says: "must be a UUID",
		},
		"the key ID is in upper case": {
			ref:  kms.MasterKeyRef{KeyID: "AAAAAAAA-1111-4111-8111-111111111111", Namespace: "team-a", Name: "orders"},
			want: kms.ErrInvalidKeyID,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			if c.damage != nil {
				c.damage(t, w)
			}
			w.Later(time.Second)
			before := w.Store.Secrets()
			data := orders()
			data.MasterKey, data.Namespace = c.ref, c.ref.Namespace

			calls := map[string]func(*world) error{
				"MasterKey": func(w *world) error { _, err := w.MasterKey(t.Context(), c.ref); return err },
				"GenerateDataKeyWithoutPlaintext": func(w *world) error {
					made, err := w.GenerateDataKeyWithoutPlaintext(t.Context(), data)
					if len(made.CiphertextBlob) > 0 {
						t.Error("a blob came beside the error")
					}
					return err
				},
			}
			if c.want != kms.ErrMaterialMissing { // then it would rightly make a key
				calls["EnsureMasterKey"] = func(w *world) error { _, err := w.EnsureMasterKey(t.Context(), c.ref, terms, ""); return err }
			}
			for operation, call := range calls {
				for who, w := range map[string]*world{"a manager that knew it": w, "a manager that starts": replica(t, w)} {
					err := call(w)
					if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
						t.Errorf("%s by %s: got %v, want %v that says %q", operation, who, err, c.want, c.says)
					}
				}
			}
			if diff := cmp.Diff(before, w.Store.Secrets()); diff != "" {
				t.Errorf("Secrets were changed: %s", diff)
			}
		})
	}
}

func TestOneDamagedVersionTakesNoDataKeyOfAnotherAway(t *testing.T) {
	w := settled(t)
	blob := w.Sealed(t, orders())
	w.AddVersion(t, ordersKey, 2)
	w.Later(time.Second)
	second := w.Sealed(t, orders())
	w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) { s.Data["v2"][80] ^= 1 })
	w = replica(t, w)

	if _, err := w.OpenDataKey(t.Context(), orders(), second); !errors.Is(err, kms.ErrMaterialBroken) || errors.Is(err, kms.ErrKeyVersionMissing) {
		t.Errorf("a data key of the damaged version: got %v, want ErrMaterialBroken", err)
	}

	if _, err := w.OpenDataKey(t.Context(), orders(), blob); err != nil {
		t.Errorf("a data key of version 1 does not open: %v", err)
	}
	if _, err := w.Decrypt(t.Context(), app, kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext}); err != nil {
		t.Errorf("a data key of version 1 is not released: %v", err)
	}
	_, err := w.GenerateDataKey(t.Context(), keyUser, kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32, Door: kms.DoorAWS})
	if got := kms.CodeOf(err); got != kms.CodeFailedPrecondition {
		t.Errorf("a data key under the damaged primary version: got %v, want FailedPrecondition", err)
	}
}

func TestMasterKeyReportsEveryVersionNewestFirst(t *testing.T) {
	w := settled(t)
	for v := range uint32(11) {
		w.AddVersion(t, ordersKey, v+2)
	}
	got, err := w.MasterKey(t.Context(), ordersKey)
	if err != nil {
		t.Fatal(err)
	}
	if got.PrimaryVersion != 12 || len(got.Versions) != 12 || got.Versions[0].Version != 12 || got.Versions[11].Version != 1 {
		t.Errorf("got %+v", got)
	}
	made, err := w.GenerateDataKeyWithoutPlaintext(t.Context(), orders())
	if err != nil || made.KeyVersion != 12 {
		t.Errorf("a new data key is of version %d (%v), want 12", made.KeyVersion, err)
	}
}

func TestOwnerOfTellsWhoseTheMaterialIs(t *testing.T) {
	w := settled(t)
	want, err := w.MasterKey(t.Context(), theirsKey)
	if err != nil {
		t.Fatal(err)
	}
	owner, info, err := replica(t, w).OwnerOf(t.Context(), theirsKey.KeyID)
	if err != nil || owner != theirsKey || !cmp.Equal(want, info) {
		t.Errorf("got %+v, %v: %s", owner, err, cmp.Diff(want, info))
	}
	w.Store.Edit(theirsKey.KeyID, func(s *seal.Secret) { s.Data["record"] = recordOf(0) })
	w.Store.Edit(otherKey.KeyID, func(s *seal.Secret) { s.Data["v1"][80] ^= 1 })
	nobody := func(id string) kms.MasterKeyRef { return kms.MasterKeyRef{KeyID: id} }
	for name, c := range map[string]struct {
		id    string
		owner kms.MasterKeyRef
		want  error
	}{
		"no material":           {goneID, nobody(goneID), kms.ErrMaterialMissing},
		"no key ID":             {"orders", nobody("orders"), kms.ErrInvalidKeyID},
		"nothing opens":         {otherKey.KeyID, nobody(otherKey.KeyID), kms.ErrMaterialBroken},
		"the record is damaged": {theirsKey.KeyID, theirsKey, kms.ErrMaterialBroken},
	} {
		owner, info, err := replica(t, w).OwnerOf(t.Context(), c.id)
		if !errors.Is(err, c.want) || owner != c.owner || !cmp.Equal(kms.MasterKeyInfo{}, info) {
			t.Errorf("%s: got %+v, %+v, %v, want %+v and %v", name, owner, info, err, c.owner, c.want)
		}
	}
}

func TestALongMasterKeyNameFitsIntoALabel(t *testing.T) {
	for name, want := range map[string]string{
		"orders":                        "orders",
		strings.Repeat("a", 63) + "b":   strings.Repeat("a", 63),
		strings.Repeat("a", 61) + "--b": strings.Repeat("a", 61),
		strings.Repeat("a.", 100) + "z": strings.TrimSuffix(strings.Repeat("a.", 32), "."),
	} {
		w := newWorld(t)
		ref := kms.MasterKeyRef{KeyID: envelope.NewKeyID().String(), Namespace: "team-a", Name: name}
		if _, err := w.EnsureMasterKey(t.Context(), ref, terms, ""); err != nil {
			t.Fatal(err)
		}
		if got := w.Store.Secrets()[ref.KeyID].Labels["datakeys.io/master-key"]; got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

func TestNoMasterKeyIsMadeThatCannotBeAudited(t *testing.T) {
	w := newWorld(t)
	w.Audit.Err = errors.New("disk full")
	_, err := w.EnsureMasterKey(t.Context(), ordersKey, terms, "")
	if kms.CodeOf(err) != kms.CodeUnavailable {
		t.Errorf("got %v, want Unavailable", err)
	}
	if _, made := w.Store.Secrets()[ordersKey.KeyID]; made {
		t.Error("the key was made")
	}
}
