package kms_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
	"github.com/datakeys/datakeys/internal/seal"
)

// What each operation answers on a key in each of its states, by whatever name a caller means it (AWS KMS, "Key states of AWS KMS
// keys"). The permission is there for all of them: without it no state is told, which TestTheOrderOfChecks sees.
func TestWhatEachOperationAnswersInEachState(t *testing.T) {
	const everything = "everything" // team-a: every verb on all masterkeys
	destroy := func(t *testing.T, w *world) {
		t.Helper()
		if _, err := w.RecordDeletion(t.Context(), ordersKey, terms, w.Clock.Now()); err != nil {
			t.Fatal(err)
		}
		if err := w.DestroyMasterKey(t.Context(), ordersKey, w.Clock.Now().Add(terms.WaitingPeriod)); err != nil {
			t.Fatal(err)
		}
	}
	in := func(state kms.KeyState) func(*testing.T, *world) {
		return func(_ *testing.T, w *world) {
			w.MasterKeys.Edit("team-a", "orders", func(k *kms.MasterKey) {
				if k.State = state; state == kms.KeyStateDestroyed {
					k.Aliases = nil // as cmd/manager tells it
				}
			})
		}
	}
	for name, c := range map[string]struct {
		change func(*testing.T, *world)
		fresh  bool // the replica that is asked has loaded no key yet
		// uses is the reason why the key cannot be used, and describes why it is not described. Empty: nothing is refused.
		uses, describes string
		// state is what DescribeKey tells.
		state string
		// listed says that the lists have the key.
		listed bool
		// controllers is why the controllers' operations that wrap and that open fail; nil: see wraps.
		controllers error
		// wraps is the reason why those that wrap fail.
		wraps string
	}{
		"Enabled": {change: in(kms.KeyStateEnabled), state: "Enabled", listed: true},
		"Disabled": {
			change: in(kms.KeyStateDisabled), uses: kmsv1.ReasonKeyDisabled, wraps: kmsv1.ReasonKeyDisabled, state: "Disabled", listed: true,
		},
		"PendingDeletion": {
			change: in(kms.KeyStatePendingDeletion), uses: kmsv1.ReasonKeyPendingDeletion, wraps: kmsv1.ReasonKeyPendingDeletion,
			state: "PendingDeletion", listed: true,
		},
		"Destroyed, and a replica has the material yet": {
			change: in(kms.KeyStateDestroyed), uses: kmsv1.ReasonKeyNotFound, wraps: kmsv1.ReasonKeyNotFound, describes: kmsv1.ReasonKeyNotFound,
		},
		"Destroyed": {
			change: func(t *testing.T, w *world) { destroy(t, w); in(kms.KeyStateDestroyed)(t, w) },
			uses:   kmsv1.ReasonKeyNotFound, describes: kmsv1.ReasonKeyNotFound, controllers: kms.ErrMaterialDestroyed,
		},
		"Destroyed, to a replica that never had the material": {
			change: func(t *testing.T, w *world) { destroy(t, w); in(kms.KeyStateDestroyed)(t, w) }, fresh: true,
			uses: kmsv1.ReasonKeyNotFound, describes: kmsv1.ReasonKeyNotFound, controllers: kms.ErrMaterialDestroyed,
		},
		"Destroyed, and its status does not say so yet": {
			change: func(t *testing.T, w *world) { in(kms.KeyStatePendingDeletion)(t, w); destroy(t, w) }, fresh: true,
			uses: kmsv1.ReasonKeyNotFound, describes: kmsv1.ReasonKeyNotFound, controllers: kms.ErrMaterialDestroyed, listed: true,
		},
		"Destroyed, and to be Enabled all the same": {
			change: destroy, uses: kmsv1.ReasonKeyNotFound, describes: kmsv1.ReasonKeyNotFound, controllers: kms.ErrMaterialDestroyed, listed: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := listed(t)
			w.Tokens.Add(everything, kmstest.Caller("team-a", everything, everything+"-pod"))
			for _, verb := range verbs {
				w.RBAC.Grant("system:serviceaccount:team-a:"+everything, kms.Access{Verb: verb, Resource: v1alpha1.ResourceMasterKeys, Namespace: "team-a"})
			}
			arn := w.ARN(t)
			scoped := w.Sealed(t, orders())
			w.AddVersion(t, ordersKey, 2)
			w.Clock.SetTime(w.Clock.Now().Add(11 * time.Second)) // so that it is the primary one here
			made := map[string][]byte{}                          // by the name of the key
			for _, key := range []string{"orders", "other"} {
				m, err := w.GenerateDataKey(t.Context(), everything, kms.GenerateDataKeyRequest{KeyID: key, NumberOfBytes: 32, Door: kms.DoorAWS})
				if err != nil {
					t.Fatal(err)
				}
				made[key] = m.CiphertextBlob
			}
			if c.change(t, w); c.fresh {
				w = replica(t, w)
			}

			check := func(operation string, err error, want string) {
				t.Helper()
				if kms.ReasonOf(err) != want {
					t.Errorf("%s: got %v (%s), want %q", operation, err, kms.ReasonOf(err), want)
				}
			}
			secret, err := envelope.NewPlaintext(16)
			if err != nil {
				t.Fatal(err)
			}
			for _, key := range []string{"orders", ordersKey.KeyID, arn + "team-a:key/" + ordersKey.KeyID, "alias/orders-prod", arn + "team-a:alias/orders-prod"} {
				for _, without := range []bool{false, true} {
					_, err = w.GenerateDataKey(t.Context(), everything, kms.GenerateDataKeyRequest{KeyID: key, NumberOfBytes: 32, Door: kms.DoorAWS, WithoutPlaintext: without})
					check("GenerateDataKey of "+key, err, c.uses)
					_, err = w.GenerateDataKeyPair(t.Context(), everything, kms.GenerateDataKeyPairRequest{
						KeyID: key, KeyPairSpec: "ECC_NIST_EDWARDS25519", Door: kms.DoorAWS, WithoutPlaintext: without,
					})
					check("GenerateDataKeyPair of "+key, err, c.uses)
				}
				_, err = w.Encrypt(t.Context(), everything, kms.EncryptRequest{KeyID: key, Plaintext: secret, Door: kms.DoorAWS})
				check("Encrypt under "+key, err, c.uses)
				_, err = w.ReEncrypt(t.Context(), everything, kms.ReEncryptRequest{CiphertextBlob: made["other"], DestinationKeyID: key, Door: kms.DoorAWS})
				check("ReEncrypt to "+key, err, c.uses)

				described, err := w.DescribeKey(t.Context(), everything, key)
				check("DescribeKey of "+key, err, c.describes)
				if described.State != c.state {
					t.Errorf("DescribeKey of %s: got the state %q, want %q", key, described.State, c.state)
				}
			}
			_, err = w.Decrypt(t.Context(), everything, kms.DecryptRequest{CiphertextBlob: made["orders"], Door: kms.DoorAWS})
			check("Decrypt", err, c.uses)
			results, err := w.BatchDecrypt(t.Context(), everything, []kms.DecryptRequest{
				{CiphertextBlob: made["orders"], Door: kms.DoorAWS}, {CiphertextBlob: made["other"], Door: kms.DoorAWS},
				{CiphertextBlob: scoped, EncryptionContext: orders().EncryptionContext},
			})
			if err != nil {
				t.Fatal(err)
			}
			check("BatchDecrypt", results[0].Err, c.uses)
			check("BatchDecrypt of another key beside it", results[1].Err, "")
			check("BatchDecrypt of a declared data key", results[2].Err, c.uses)
			check("Renew of a declared data key", w.renew(t, everything, renewOf(t, scoped)), c.uses)
			_, err = w.ReEncrypt(t.Context(), everything, kms.ReEncryptRequest{CiphertextBlob: made["orders"], DestinationKeyID: "other", Door: kms.DoorAWS})
			check("ReEncrypt from it", err, c.uses)
			_, err = w.GenerateRandom(t.Context(), everything, 32)
			check("GenerateRandom", err, "")

			keys, _, err := w.ListKeys(t.Context(), everything, 0, "")
			check("ListKeys", err, "")
			if got := slices.ContainsFunc(keys, func(k kms.KeyEntry) bool { return k.Name == "orders" }); got != c.listed {
				t.Errorf("ListKeys: got %+v, want the key in it: %v", keys, c.listed)
			}
			aliases, _, err := w.ListAliases(t.Context(), everything, "", 0, "")
			check("ListAliases", err, "")
			if got := slices.ContainsFunc(aliases, func(a kms.AliasEntry) bool { return a.TargetKeyID == ordersKey.KeyID }); got != c.listed {
				t.Errorf("ListAliases: got %+v, want its aliases in it: %v", aliases, c.listed)
			}
			for _, key := range []string{"orders", ordersKey.KeyID} {
				aliases, _, err = w.ListAliases(t.Context(), everything, key, 0, "")
				if c.listed {
					check("ListAliases of "+key, err, "")
				} else {
					check("ListAliases of "+key, err, kmsv1.ReasonKeyNotFound)
				}
				if (len(aliases) == 2) != c.listed {
					t.Errorf("ListAliases of %s: got %+v, want two: %v", key, aliases, c.listed)
				}
			}

			_, wrapping := w.GenerateDataKeyWithoutPlaintext(t.Context(), orders())
			_, rewrapping := w.RewrapDataKey(t.Context(), orders(), scoped)
			_, opening := w.OpenDataKey(t.Context(), orders(), scoped)
			for operation, err := range map[string]error{"GenerateDataKeyWithoutPlaintext": wrapping, "RewrapDataKey": rewrapping, "OpenDataKey": opening} {
				switch {
				case c.controllers != nil && !errors.Is(err, c.controllers):
					t.Errorf("%s for a controller: got %v, want %v", operation, err, c.controllers)
				case c.controllers == nil && operation == "OpenDataKey":
					check(operation+" for a controller", err, "") // it proves that the blob opens, and gives nothing away
				case c.controllers == nil:
					check(operation+" for a controller", err, c.wraps)
				}
			}
		})
	}
}

// TestAKeyThatCannotBeUsedIsTold by its ARN, of the two of ReEncrypt the right one: its state does not say that it is damaged.
func TestAKeyThatCannotBeUsedIsTold(t *testing.T) {
	damage := func(ref kms.MasterKeyRef) func(*world) {
		return func(w *world) { w.Store.Edit(ref.KeyID, func(s *seal.Secret) { s.Data["v1"][80] ^= 1 }) }
	}
	secret, err := envelope.NewPlaintext(16)
	if err != nil {
		t.Fatal(err)
	}
	encrypt := func(key string) func(*world, []byte) error {
		return func(w *world, _ []byte) error {
			_, err := w.Encrypt(t.Context(), allKeys, kms.EncryptRequest{KeyID: key, Plaintext: secret, Door: kms.DoorAlibaba})
			return err
		}
	}
	reEncrypt := func(w *world, blob []byte) error {
		_, err := w.ReEncrypt(t.Context(), allKeys, kms.ReEncryptRequest{CiphertextBlob: blob, DestinationKeyID: "other", Door: kms.DoorAWS})
		return err
	}
	for name, c := range map[string]struct {
		change func(*world)
		call   func(w *world, blob []byte) error
		want   kms.MasterKeyRef
	}{
		"its version is damaged": {damage(ordersKey), func(w *world, blob []byte) error {
			_, err := w.Decrypt(t.Context(), allKeys, kms.DecryptRequest{CiphertextBlob: blob, Door: kms.DoorAWS})
			return err
		}, ordersKey},
		"the version of the old blob is damaged":            {damage(ordersKey), reEncrypt, ordersKey},
		"the material for the new blob is missing":          {func(w *world) { w.Store.Delete(otherKey.KeyID) }, reEncrypt, otherKey},
		"the version of the door is damaged":                {damage(ordersKey), encrypt("orders"), ordersKey},
		"the material is missing, and the key named":        {func(w *world) { w.Store.Delete(ordersKey.KeyID) }, encrypt("orders"), ordersKey},
		"the version is damaged, of a key that its ID says": {damage(ordersKey), encrypt(ordersKey.KeyID), ordersKey},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			made, err := w.GenerateDataKey(t.Context(), allKeys, kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32, Door: kms.DoorAWS})
			if err != nil {
				t.Fatal(err)
			}
			w.AddVersion(t, ordersKey, 2)
			c.change(w)
			got, ok := errors.AsType[*kms.Error](c.call(replica(t, w), made.CiphertextBlob))
			if !ok || kms.ReasonOf(got) != kmsv1.ReasonKeyUnavailable || got.Namespace != c.want.Namespace || got.KeyID != c.want.KeyID {
				t.Errorf("got %+v, want that key %s cannot be used", got, c.want.KeyID)
			}
		})
	}
}
