package kms_test

import (
	"testing"

	"github.com/datakeys/datakeys/internal/kms"
)

// A replica has a key in memory whose MasterKey goes away. Another destroys the material. When the MasterKey is back, its blobs open at
// neither.
func TestAReplicaForgetsAKeyThatIsGone(t *testing.T) {
	opens := func(t *testing.T, w *world, blob []byte) error {
		t.Helper()
		_, err := w.Decrypt(t.Context(), keyUser, kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext})
		return err
	}
	type step struct {
		change   func(t *testing.T, w *world) // by the other replica
		wantOpen bool                         // after the MasterKey is there and Enabled again
	}
	for name, tc := range map[string]step{
		"nothing happens":                  {func(*testing.T, *world) {}, true},
		"its MasterKey is gone for a time": {func(_ *testing.T, w *world) { w.MasterKeys.Delete(ordersKey.Namespace, ordersKey.Name) }, true},
		"its MasterKey is another key for a time": {func(_ *testing.T, w *world) {
			o := object(ordersKey)
			o.KeyID = otherKey.KeyID
			w.MasterKeys.Put(o)
		}, true},
		"it is destroyed and forgotten": {func(t *testing.T, w *world) {
			t.Helper()
			w.MasterKeys.Delete(ordersKey.Namespace, ordersKey.Name)
			if err := w.DestroyMasterKey(t.Context(), ordersKey, w.schedule(t, ordersKey)); err != nil {
				t.Fatal(err)
			}
			if err := w.ForgetMasterKey(t.Context(), ordersKey.KeyID); err != nil {
				t.Fatal(err)
			}
		}, false},
		"its Secret alone is gone, and pods go on": {func(t *testing.T, w *world) {
			t.Helper()
			w.Store.Delete(ordersKey.KeyID)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			blob := w.Sealed(t, orders())
			other := replica(t, w)
			if err := opens(t, other, blob); err != nil {
				t.Fatal(err)
			}
			tc.change(t, w)
			other.ForgetGone(t.Context())
			w.MasterKeys.Put(object(ordersKey))
			if err := opens(t, other, blob); (err == nil) != tc.wantOpen {
				t.Errorf("got error %v, want that it opens: %t", err, tc.wantOpen)
			}
		})
	}
}
