package controllers_test

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers/controllerstest"
)

// The life of a MasterKey and its DataKeyRequests on a real API server. Every step waits for a watch; each begins where the
// last one ended.
func TestLife(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	faults := controllerstest.NewFaults(0, 0)
	c.startManager(t, faults)

	// A request waits for its MasterKey, and a pod for its request.
	c.create(t, c.request("orders", "key"))
	c.waitForRequest(t, "orders", "MasterKeyNotFound")
	c.create(t, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: c.namespace, Name: "app", Labels: map[string]string{"datakeys.io/inject": "true"},
			Annotations: map[string]string{"datakeys.io/data-keys": "orders,payments"},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}},
	})
	const wayOut = ": make it, or make another DataKeyRequest, as spec.masterKeyRef cannot be changed"
	waiting := "DataKeyRequest " + c.namespace + "/orders is not Ready: MasterKeyNotFound: MasterKey " +
		c.namespace + "/key does not exist" + wayOut
	c.waitForEvent(t, "Pod", "app", "WaitingForDataKeys", waiting)
	c.waitForEvent(t, "Pod", "app", "WaitingForDataKeys", "DataKeyRequest "+c.namespace+"/payments does not exist")

	// The MasterKey comes.
	c.create(t, c.masterKey("key"))
	key := c.waitForMasterKey(t, "key", "Ready")
	if got := key.Annotations[v1alpha1.AnnotationKeyID]; got != string(key.UID) || key.Status.KeyID != got {
		t.Fatalf("got key ID %q in the annotation and %q in the status, want %q", got, key.Status.KeyID, key.UID)
	}
	request := c.waitForRequest(t, "orders", "Ready")
	blob := string(request.Status.Generations[0].CiphertextBlob)
	secret := c.waitForSecret(t, "orders", "is there", func(s *corev1.Secret) bool { return blobIn(s) == blob })
	if secret.OwnerReferences != nil || secret.Type != v1alpha1.SecretTypeDataKey {
		t.Errorf("got Secret %+v, want no owner and type %s", secret, v1alpha1.SecretTypeDataKey)
	}
	c.waitForEvent(t, "DataKeyRequest", "orders", "Created", "made generation 1 of the data key, under version 1 of master key "+string(key.UID))
	c.waitForEvent(t, "MasterKey", "key", "Created", "made version 1 of master key "+string(key.UID))

	// A request that comes later does not spare the pod the next reason.
	c.create(t, c.request("payments", "key-of-payments"))
	c.waitForEvent(t, "Pod", "app", "WaitingForDataKeys",
		"DataKeyRequest "+c.namespace+"/payments is not Ready: MasterKeyNotFound: MasterKey "+
			c.namespace+"/key-of-payments does not exist"+wayOut)

	// A Secret that is deleted or edited is repaired.
	c.delete(t, secret)
	secret = c.waitForSecret(t, "orders", "is written again", func(s *corev1.Secret) bool { return s != nil && s.UID != secret.UID && blobIn(s) == blob })
	secret.Data["ciphertextBlob"] = []byte("spoilt")
	secret.Data["note"] = []byte("mine")
	if err := c.client.Update(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	secret = c.waitForSecret(t, "orders", "is repaired", func(s *corev1.Secret) bool { return blobIn(s) == blob })
	if string(secret.Data["note"]) != "mine" {
		t.Errorf("got entry note %q, want it kept", secret.Data["note"])
	}

	// So are the public key and the aad of a key pair.
	c.create(t, c.request("signing", "key", keyPairWithAAD))
	c.waitForRequest(t, "signing", "Ready")
	isWhole := func(s *corev1.Secret) bool {
		return s != nil && strings.HasSuffix(string(s.Data["publicKey"]), " of ECC_NIST_P256") && string(s.Data["aad"]) == "\x00\x01\xff"
	}
	pair := c.waitForSecret(t, "signing", "has the public key and the aad", isWhole)
	edited := pair.DeepCopy()
	delete(edited.Data, "publicKey")
	edited.Data["aad"] = []byte("another")
	if err := c.client.Update(t.Context(), edited); err != nil {
		t.Fatal(err)
	}
	pair = c.waitForSecret(t, "signing", "is repaired", isWhole)
	c.delete(t, pair)
	c.waitForSecret(t, "signing", "is written again", func(s *corev1.Secret) bool { return isWhole(s) && s.UID != pair.UID })

	// Retain: the request goes and comes again, with another UID, and finds its data key.
	c.delete(t, request)
	c.create(t, c.request("orders", "key"))
	again := c.waitForRequest(t, "orders", "Ready")
	if again.UID == request.UID || string(again.Status.Generations[0].CiphertextBlob) != blob {
		t.Errorf("got %+v, want another object with the same blob", again)
	}
	c.waitForEvent(t, "DataKeyRequest", "orders", "Adopted", `took the data key from Secret "orders", which was there before`)

	// Material that is lost is told of, never made again, and found when it is restored.
	material := &corev1.Secret{}
	if err := c.client.Get(t.Context(), client.ObjectKey{Namespace: c.manager, Name: string(key.UID)}, material); err != nil {
		t.Fatal(err)
	}
	c.delete(t, material)
	c.waitForMasterKey(t, "key", "MaterialMissing")
	c.waitForRequest(t, "orders", "MasterKeyNotReady")
	material.ResourceVersion, material.UID = "", ""
	c.create(t, material)
	c.waitForMasterKey(t, "key", "Ready")
	c.waitForRequest(t, "orders", "Ready")

	// A restore of the MasterKey: another UID, no status, the annotation.
	c.delete(t, key)
	c.waitForRequest(t, "orders", "MasterKeyNotFound")
	restored := c.masterKey("key")
	restored.Annotations = map[string]string{v1alpha1.AnnotationKeyID: string(key.UID)}
	c.create(t, restored)
	c.waitForMasterKey(t, "key", "Ready")
	if got := c.waitForRequest(t, "orders", "Ready"); string(got.Status.Generations[0].CiphertextBlob) != blob {
		t.Errorf("got blob %s, want %s", got.Status.Generations[0].CiphertextBlob, blob)
	}

	// A MasterKey made anew is another key: nothing is touched, and all is well when the old one is back.
	c.delete(t, restored)
	c.waitForRequest(t, "orders", "MasterKeyNotFound")
	anew := c.masterKey("key")
	c.create(t, anew)
	c.waitForRequest(t, "orders", "MasterKeyChanged")
	c.waitForSecret(t, "orders", "is as it was", func(s *corev1.Secret) bool { return blobIn(s) == blob })
	c.delete(t, anew)
	restored.ResourceVersion, restored.UID = "", ""
	restored.Annotations = map[string]string{v1alpha1.AnnotationKeyID: string(key.UID)}
	c.create(t, restored)
	c.waitForRequest(t, "orders", "Ready")
}

// A restore of everything but the statuses, from a backup: other UIDs, the same key and the same data key.
func TestRestoreWithoutStatus(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	stop := c.startManager(t, controllerstest.NewFaults(0, 0))
	c.create(t, c.masterKey("key"), c.request("orders", "key"))
	request := c.waitForRequest(t, "orders", "Ready")
	key := c.waitForMasterKey(t, "key", "Ready")
	blob := string(request.Status.Generations[0].CiphertextBlob)
	stop()

	c.delete(t, request)
	c.delete(t, key)
	key.ObjectMeta = metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Annotations: key.Annotations}
	request.ObjectMeta = metav1.ObjectMeta{Namespace: request.Namespace, Name: request.Name}
	c.create(t, request, key) // the API server drops the statuses
	c.startManager(t, controllerstest.NewFaults(0, 0))
	if got := c.waitForRequest(t, "orders", "Ready"); string(got.Status.Generations[0].CiphertextBlob) != blob {
		t.Errorf("got blob %s, want %s", got.Status.Generations[0].CiphertextBlob, blob)
	}
	materials := &corev1.SecretList{}
	if err := c.client.List(t.Context(), materials, client.InNamespace(c.manager)); err != nil {
		t.Fatal(err)
	}
	if len(materials.Items) != 1 {
		t.Errorf("got %d materials, want 1", len(materials.Items))
	}
}

// A Secret of the request's name that is somebody else's is left alone, and its deletion wakes the request.
func TestSecretConflict(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.startManager(t, controllerstest.NewFaults(0, 0))
	theirs := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: "orders"}, Data: map[string][]byte{"password": []byte("theirs")}}
	c.create(t, theirs, c.masterKey("key"), c.request("orders", "key"))
	c.waitForRequest(t, "orders", "SecretConflict")
	got := c.waitForSecret(t, "orders", "is left alone", func(s *corev1.Secret) bool { return s != nil })
	if got.ResourceVersion != theirs.ResourceVersion {
		t.Errorf("the Secret was written")
	}
	c.delete(t, theirs)
	c.waitForRequest(t, "orders", "Ready")
	c.waitForSecret(t, "orders", "is the request's", func(s *corev1.Secret) bool { return blobIn(s) != "" })
}

// With the policy Delete the Secret goes with the request; the policy can be changed both ways until then.
func TestDeletionPolicy(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.startManager(t, controllerstest.NewFaults(0, 0))
	c.create(t, c.masterKey("key"), c.request("kept", "key", withPolicy("Delete")), c.request("gone", "key"))
	kept, gone := c.waitForRequest(t, "kept", "Ready"), c.waitForRequest(t, "gone", "Ready")
	if len(kept.Finalizers) != 1 || len(gone.Finalizers) != 0 {
		t.Fatalf("got finalizers %v and %v, want one and none", kept.Finalizers, gone.Finalizers)
	}

	turn := func(name string, policy v1alpha1.DeletionPolicy, finalizers int) *v1alpha1.DataKeyRequest {
		t.Helper()
		patch := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"deletionPolicy":"`+policy+`"}}`))
		if err := c.client.Patch(t.Context(), c.request(name, "key"), patch); err != nil {
			t.Fatal(err)
		}
		return controllerstest.WaitFor(deadline(t), t, c.client, &v1alpha1.DataKeyRequestList{}, &v1alpha1.DataKeyRequest{}, c.key(name),
			"the finalizer of "+name+" follows the policy", func(r *v1alpha1.DataKeyRequest) bool {
				return r != nil && len(r.Finalizers) == finalizers && *r.Status.ObservedGeneration == r.Generation
			})
	}
	kept, gone = turn("kept", "Retain", 0), turn("gone", "Delete", 1)

	c.delete(t, kept)
	c.delete(t, gone)
	c.waitForSecret(t, "gone", "is gone", func(s *corev1.Secret) bool { return s == nil })
	isGone := func(r *v1alpha1.DataKeyRequest) bool { return r == nil }
	for _, name := range []string{"gone", "kept"} {
		controllerstest.WaitFor(deadline(t), t, c.client, &v1alpha1.DataKeyRequestList{}, &v1alpha1.DataKeyRequest{}, c.key(name), name+" is gone", isGone)
	}
	c.waitForSecret(t, "kept", "is kept", func(s *corev1.Secret) bool { return blobIn(s) != "" })
}

// In the steady state nothing is written: a new request is made Ready by exactly two writes, and nothing follows them.
func TestSteadyState(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	faults := controllerstest.NewFaults(0, 0)
	c.startManager(t, faults)
	c.create(t, c.masterKey("key"))
	c.waitForMasterKey(t, "key", "Ready")
	before := len(faults.Effects())
	if before != 3 {
		t.Errorf("got writes %v for a MasterKey, want the material, the annotation and the status", faults.Effects())
	}
	names := []string{"a", "b", "c", "d", "e"}
	for _, name := range names { // each one's echoes have passed when the next ones are Ready
		c.create(t, c.request(name, "key"))
		c.waitForRequest(t, name, "Ready")
	}
	got := slices.DeleteFunc(faults.Effects()[before:], func(write string) bool { return write == "update status MasterKey" }) // it counts them
	if len(got) != 2*len(names) {
		t.Errorf("got writes %v, want two for each of %d requests", got, len(names))
	}
}
