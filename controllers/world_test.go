package controllers_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/controllers/controllerstest"
)

const (
	managerNamespace = "datakeys-system"
	namespace        = "team-a"

	keyUID     = "11111111-1111-4111-8111-111111111111"
	otherUID   = "22222222-2222-4222-8222-222222222222"
	requestUID = "33333333-3333-4333-8333-333333333333"
)

var (
	earlier = metav1.NewTime(time.Date(2026, time.May, 1, 12, 0, 0, 0, time.UTC))
	now     = metav1.NewTime(time.Date(2026, time.May, 2, 12, 0, 0, 0, time.UTC))

	masterKeyRequest = ctrl.Request{NamespacedName: types.NamespacedName{Namespace: namespace, Name: "orders-key"}}
	dataKeyRequest   = ctrl.Request{NamespacedName: types.NamespacedName{Namespace: namespace, Name: "orders"}}
)

func newScheme(t testing.TB) *runtime.Scheme {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return scheme
}

// written is a status that is to be written, and what it is written for.
type written struct {
	Name            string
	UID             types.UID
	ResourceVersion string
	Status          any // of the kind
}

func writtenOf(object client.Object) *written {
	switch o := object.(type) {
	case *v1alpha1.MasterKey:
		return &written{o.Name, o.UID, o.ResourceVersion, o.Status}
	case *v1alpha1.DataKeyRequest:
		return &written{o.Name, o.UID, o.ResourceVersion, o.Status}
	}
	return nil
}

// A world is a fake API server, a key service that keeps its material there, and what was written by the one under test.
type world struct {
	// direct is the API server; nothing done through it is counted.
	direct client.WithWatch
	// client counts writes and may be given an old view.
	client client.WithWatch
	faults *controllerstest.Faults
	keys   *controllerstest.KeyService
	clock  *clocktesting.FakePassiveClock
}

// newWorld makes a world with objects. What is in stale is what a cache still says of objects that have changed since.
func newWorld(t testing.TB, objects, stale []client.Object) *world {
	t.Helper()
	scheme := newScheme(t)
	w := &world{faults: controllerstest.NewFaults(0, 0), clock: clocktesting.NewFakePassiveClock(now.Time)}
	builder := fake.NewClientBuilder().
		WithScheme(scheme).
		WithStatusSubresource(&v1alpha1.MasterKey{}, &v1alpha1.DataKeyRequest{}).
		WithIndex(&corev1.Secret{}, "type", func(o client.Object) []string { return []string{string(o.(*corev1.Secret).Type)} })
	for _, index := range controllers.Indexes() {
		builder.WithIndex(index.Object, index.Name, index.Values)
	}
	for _, object := range objects {
		builder.WithObjects(object.DeepCopyObject().(client.Object))
	}
	w.direct = builder.Build()
	w.client = w.faults.Wrap(interceptor.NewClient(w.direct, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
			for _, old := range stale {
				if client.ObjectKeyFromObject(old) == key && fmt.Sprintf("%T", old) == fmt.Sprintf("%T", object) {
					return scheme.Convert(old, object, nil)
				}
			}
			return c.Get(ctx, key, object, options...)
		},
	}))
	w.keys = &controllerstest.KeyService{Client: w.direct, Namespace: managerNamespace, Serial: &atomic.Int64{}}
	return w
}

// terms are those of a MasterKey that states none.
var terms = controllers.DeletionTerms{WaitingPeriod: v1alpha1.DefaultWaitingPeriod}

// material is what the fake key service keeps of a master key.
func material(keyID, ownerNamespace, ownerName string) *corev1.Secret {
	return controllerstest.Material(managerNamespace, controllers.MasterKeyRef{KeyID: keyID, Namespace: ownerNamespace, Name: ownerName}, 0,
		controllerstest.MadeAt, terms)
}

type masterKeyOption func(*v1alpha1.MasterKey)

func masterKey(options ...masterKeyOption) *v1alpha1.MasterKey {
	key := &v1alpha1.MasterKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "orders-key", UID: keyUID, Generation: 1, ResourceVersion: "7"},
		Spec:       v1alpha1.MasterKeySpec{KeySpec: v1alpha1.MasterKeySpecAES256},
	}
	for _, option := range options {
		option(key)
	}
	return key
}

func withKeyID(keyID string) masterKeyOption {
	return func(key *v1alpha1.MasterKey) {
		metav1.SetMetaDataAnnotation(&key.ObjectMeta, v1alpha1.AnnotationKeyID, keyID)
	}
}

// readyKey is a MasterKey whose status is what the controller wrote earlier.
func readyKey(key *v1alpha1.MasterKey) {
	if key.Annotations[v1alpha1.AnnotationKeyID] == "" {
		withKeyID(keyUID)(key)
	}
	keyID := key.Annotations[v1alpha1.AnnotationKeyID]
	key.Status = v1alpha1.MasterKeyStatus{
		Conditions: []metav1.Condition{{
			Type: "Ready", Status: metav1.ConditionTrue, Reason: "Ready", Message: "version 1 is the primary version",
			ObservedGeneration: key.Generation, LastTransitionTime: earlier,
		}},
		ObservedGeneration: new(key.Generation),
		KeyID:              keyID,
		ARN:                "arn:datakeys:kms:fake:team-a:key/" + keyID,
		State:              v1alpha1.MasterKeyStateEnabled,
		DataKeys:           new(int32(0)),
		DataKeysBehind:     new(int32(0)),
		LastRotationTime:   metav1.NewTime(controllerstest.MadeAt),
		PrimaryVersion:     new(int32(1)),
		VersionCount:       new(int32(1)),
		Versions: []v1alpha1.MasterKeyVersion{{
			Version: 1, CreatedAt: metav1.NewTime(controllerstest.MadeAt), State: v1alpha1.VersionStatePrimary, DataKeys: new(int32(0)),
		}},
	}
}

type requestOption func(*v1alpha1.DataKeyRequest)

func request(options ...requestOption) *v1alpha1.DataKeyRequest {
	request := &v1alpha1.DataKeyRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "orders", UID: requestUID, Generation: 1, ResourceVersion: "5"},
		Spec: v1alpha1.DataKeyRequestSpec{
			MasterKeyRef:      v1alpha1.MasterKeyReference{Name: "orders-key"},
			KeySpec:           v1alpha1.DataKeySpecAES256,
			EncryptionContext: map[string]v1alpha1.EncryptionContextValue{"tenant": "a", "app": "<orders>"},
			DeletionPolicy:    v1alpha1.DeletionPolicyRetain,
		},
	}
	for _, option := range options {
		option(request)
	}
	return request
}

const rewrappedMessage = "no generation is behind version 1 of the master key"

const readyRequestMessage = "generation 1 is wrapped by version 1 of master key " + keyUID

// withBlob is a status as the controller wrote it earlier.
func withBlob(keyID string, blob []byte) requestOption {
	return func(request *v1alpha1.DataKeyRequest) {
		request.Status = v1alpha1.DataKeyRequestStatus{
			Conditions: []metav1.Condition{{
				Type: "Ready", Status: metav1.ConditionTrue, Reason: "Ready",
				Message:            "generation 1 is wrapped by version 1 of master key " + keyID,
				ObservedGeneration: 1, LastTransitionTime: earlier,
			}, {
				Type: "Rewrapped", Status: metav1.ConditionTrue, Reason: "Rewrapped", Message: rewrappedMessage,
				ObservedGeneration: 1, LastTransitionTime: earlier,
			}},
			ObservedGeneration: new(int64(1)),
			LastRotationTime:   earlier,
			KeyID:              keyID,
			KeyVersion:         new(int32(1)),
			Generation:         new(int32(1)),
			Generations:        []v1alpha1.DataKeyGeneration{{Generation: 1, KeyVersion: 1, CreatedAt: earlier, CiphertextBlob: blob}},
		}
	}
}

func withPolicy(policy v1alpha1.DeletionPolicy) requestOption {
	return func(request *v1alpha1.DataKeyRequest) { request.Spec.DeletionPolicy = policy }
}

func keyPairWithAAD(request *v1alpha1.DataKeyRequest) {
	request.Spec.KeySpec, request.Spec.KeyPairSpec, request.Spec.AAD = "", v1alpha1.KeyPairSpecNISTP256, []byte{0, 1, 0xff}
}

func withFinalizer(request *v1alpha1.DataKeyRequest) {
	request.Finalizers = append(request.Finalizers, "datakeys.io/data-key-secret")
}

func beingDeleted(request *v1alpha1.DataKeyRequest) { request.DeletionTimestamp = &earlier }

// blobOf is the blob with a serial number, of the request of these tests under a master key.
func blobOf(t testing.TB, keyID string, serial int64, change ...func(*controllers.DataKey)) []byte {
	t.Helper()
	w := newWorld(t, []client.Object{material(keyID, namespace, "orders-key")}, nil)
	w.keys.Serial.Store(serial - 1)
	key := controllers.DataKey{
		MasterKey: controllers.MasterKeyRef{KeyID: keyID, Namespace: namespace, Name: "orders-key"},
		Namespace: namespace, Name: "orders", Generation: 1, Length: 32,
		EncryptionContext: map[string]string{"tenant": "a", "app": "<orders>"},
	}
	for _, c := range change {
		c(&key)
	}
	sealed, err := w.keys.GenerateDataKeyWithoutPlaintext(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return sealed.CiphertextBlob
}

type secretOption func(*corev1.Secret)

// secretWith is the Secret of the request as the controller makes it.
func secretWith(keyID string, blob []byte, options ...secretOption) *corev1.Secret {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: "orders", UID: "44444444-4444-4444-8444-444444444444",
			Labels: map[string]string{"app.kubernetes.io/managed-by": "datakeys"},
		},
		Type: "datakeys.io/data-key",
		Data: map[string][]byte{
			"ciphertextBlob":    blob,
			"iv":                []byte(controllerstest.IV),
			"algorithm":         []byte("AES_GCM"),
			"encryptionContext": []byte(`{"app":"<orders>","tenant":"a"}`),
			"keyId":             []byte(keyID),
			"keyVersion":        []byte("1"),
			"generation":        []byte("1"),
		},
	}
	for _, option := range options {
		option(secret)
	}
	return secret
}

func withEntry(name, value string) secretOption {
	return func(secret *corev1.Secret) { secret.Data[name] = []byte(value) }
}

func withoutEntry(name string) secretOption {
	return func(secret *corev1.Secret) { delete(secret.Data, name) }
}

func drain(events chan string) []string {
	var out []string
	for {
		select {
		case e := <-events:
			out = append(out, e)
		default:
			return out
		}
	}
}
