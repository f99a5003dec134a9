package controllers_test

import (
	"bytes"
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/controllers/controllerstest"
)

// A history is every blob and every material that was ever durable in a cluster's namespaces, however briefly.
type history struct {
	*controllerstest.History
	blobs, materials map[string]bool
}

// record begins a history before anything happens.
func (c *cluster) record(t *testing.T) *history {
	t.Helper()
	return &history{
		History: controllerstest.Record(t, c.client, c.namespace, c.manager),
		blobs:   map[string]bool{}, materials: map[string]bool{},
	}
}

// end reads the history.
func (h *history) end(t *testing.T) {
	t.Helper()
	h.End(t, func(object client.Object) {
		switch o := object.(type) {
		case *corev1.Secret:
			if o.Type == v1alpha1.SecretTypeMasterKey {
				h.materials[o.Name+" "+string(o.Data["materialID"])] = true
			} else {
				h.blobs[blobIn(o)] = true
			}
		case *v1alpha1.DataKeyRequest:
			for _, generation := range o.Status.Generations {
				h.blobs[string(generation.CiphertextBlob)] = true
			}
		}
	})
}

// checkOne says that there was one material and one data key, ever, and that what is Ready opens.
func (c *cluster) checkOne(t *testing.T, h *history) {
	t.Helper()
	key, request := c.waitForMasterKey(t, "key", "Ready"), c.waitForRequest(t, "orders", "Ready")
	secret := c.waitForSecret(t, "orders", "is there", func(s *corev1.Secret) bool { return s != nil })
	h.end(t)
	if len(h.materials) != 1 || len(h.blobs) != 1 {
		t.Errorf("got materials %v and blobs %v, want one of each, ever", h.materials, h.blobs)
	}
	if len(request.Status.Generations) != 1 || blobIn(secret) != string(request.Status.Generations[0].CiphertextBlob) {
		t.Errorf("got blob %q in the Secret and %v in the status, want the same", blobIn(secret), request.Status.Generations)
	}
	keys := &controllerstest.KeyService{Client: c.client, Namespace: c.manager, Serial: c.serial}
	sealed, err := keys.OpenDataKey(t.Context(), controllers.DataKey{
		MasterKey: controllers.MasterKeyRef{KeyID: key.KeyID(), Namespace: key.Namespace, Name: key.Name},
		Namespace: request.Namespace, Name: request.Name, Generation: 1,
		Length: request.Spec.Length(), KeyPairSpec: string(request.Spec.KeyPairSpec), AAD: request.Spec.AAD,
	}, []byte(blobIn(secret)))
	if err != nil {
		t.Errorf("what is Ready does not open: %v", err)
	}
	if got := secret.Data["publicKey"]; !bytes.Equal(got, sealed.PublicKey) {
		t.Errorf("got public key %q, want %q", got, sealed.PublicKey)
	}
	if got := secret.Data["aad"]; !bytes.Equal(got, request.Spec.AAD) {
		t.Errorf("got aad %q, want %q", got, request.Spec.AAD)
	}
}

// A story is what users do.
type story func(t *testing.T, c *cluster)

// Whatever becomes of any single write of the creation of a MasterKey and a DataKeyRequest, the end is one material and one
// data key. The story is run once for every write and every fault, until one ends without having made that many writes.
func TestEveryWriteMayFail(t *testing.T) {
	stories := map[string]story{
		"a key and a request": func(t *testing.T, c *cluster) {
			t.Helper()
			c.create(t, c.masterKey("key"), c.request("orders", "key"))
		},
		"a key and a request to be deleted with its Secret": func(t *testing.T, c *cluster) {
			t.Helper()
			c.create(t, c.masterKey("key"), c.request("orders", "key", withPolicy("Delete")))
		},
		"a key and a request for a key pair bound to an aad": func(t *testing.T, c *cluster) {
			t.Helper()
			c.create(t, c.masterKey("key"), c.request("orders", "key", keyPairWithAAD))
		},
		"a request before its key": func(t *testing.T, c *cluster) {
			t.Helper()
			c.create(t, c.request("orders", "key"))
			c.waitForRequest(t, "orders", "MasterKeyNotFound")
			c.create(t, c.masterKey("key"))
		},
	}
	t.Parallel()
	for name, begin := range stories {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			controllerstest.AtEveryWrite(t, controllerstest.AllFaults, 0, 50, func(t *testing.T, at int, fault controllerstest.Fault) bool {
				t.Helper()
				return crash(t, at, fault, begin)
			})
		})
	}
}

// crash runs a story whose write with the number at meets a fault, and says whether it came to that write.
func crash(t *testing.T, at int, fault controllerstest.Fault, begin story) bool {
	t.Helper()
	c := newCluster(t)
	history := c.record(t)
	faults := controllerstest.NewFaults(at, fault)
	stop := c.startManager(t, faults)
	faults.Restart(t, func(rest *controllerstest.Faults) *controllerstest.Faults {
		stop()
		c.startManager(t, rest)
		return rest
	})

	begin(t, c)
	c.checkOne(t, history)
	return faults.Reached()
}

// Two managers that both believe to lead meet in every write, and still make one material and one data key of each.
func TestTwoManagers(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	history := c.record(t)
	for range 2 {
		c.startManager(t, controllerstest.NewFaults(0, 0))
	}
	c.create(t, c.masterKey("key"))
	const requests = 20
	for i := range requests {
		c.create(t, c.request(fmt.Sprintf("orders-%d", i), "key", withPolicy([]v1alpha1.DeletionPolicy{"Retain", "Delete"}[i%2])))
	}
	for i := range requests {
		name := fmt.Sprintf("orders-%d", i)
		request := c.waitForRequest(t, name, "Ready")
		c.waitForSecret(t, name, "holds what the status says", func(s *corev1.Secret) bool {
			return blobIn(s) == string(request.Status.Generations[0].CiphertextBlob)
		})
	}
	history.end(t)
	if len(history.materials) != 1 || len(history.blobs) != requests {
		t.Errorf("got %d materials and %d blobs, want 1 and %d, ever", len(history.materials), len(history.blobs), requests)
	}
}
