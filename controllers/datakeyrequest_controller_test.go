package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
)

// requestStatus is the status that a run is to write: the Ready condition and, where there is a blob, the data key.
func requestStatus(status metav1.ConditionStatus, reason, message string, since metav1.Time, keyID string, createdAt metav1.Time, blob []byte) *written {
	next := v1alpha1.DataKeyRequestStatus{ObservedGeneration: new(int64(1)), Conditions: []metav1.Condition{{
		Type: "Ready", Status: status, Reason: reason, Message: message, ObservedGeneration: 1, LastTransitionTime: since,
	}}}
	if blob != nil {
		// The data key is as old as what is told of it.
		next.Conditions = append(next.Conditions, metav1.Condition{
			Type: "Rewrapped", Status: "True", Reason: "Rewrapped", Message: rewrappedMessage, ObservedGeneration: 1, LastTransitionTime: createdAt,
		})
		next.LastRotationTime, next.KeyID, next.KeyVersion, next.Generation = createdAt, keyID, new(int32(1)), new(int32(1))
		next.Generations = []v1alpha1.DataKeyGeneration{{Generation: 1, KeyVersion: 1, CreatedAt: createdAt, CiphertextBlob: blob}}
	}
	return &written{"orders", requestUID, "5", next}
}

func TestDataKeyRequest(t *testing.T) {
	const (
		createdMessage = "Normal Created made generation 1 of the data key, under version 1 of master key " + keyUID
		adoptedMessage = `Normal Adopted took the data key from Secret "orders", which was there before`
		brokenMessage  = `neither the status nor the Secret "orders" holds a blob that opens as generation 1 of this data key under master key ` +
			keyUID + `: restore the Secret; a new data key is never made in its place`
		refusedMessage = `Secret "orders" exists and holds no blob that opens as this data key under master key ` +
			keyUID + `: it was not touched; delete it, or make a DataKeyRequest of another name`
		opaqueMessage = `Secret "orders" exists and has type "Opaque": it was not touched; delete it, or make a DataKeyRequest of another name`
		crossMessage  = `spec.masterKeyRef.namespace is "team-b": a MasterKey of another namespace cannot be used; ` +
			`make a DataKeyRequest in that namespace, or a MasterKey in "team-a"`
		changedMessage = "this data key was wrapped by master key " + otherUID + ", but MasterKey team-a/orders-key is master key " + keyUID +
			" now: nothing was touched; restore the MasterKey with its annotation datakeys.io/key-id"
		immutableMessage = `Secret "orders" does not hold this data key as it has to and is immutable: delete it, and it is written again`
		missingMessage   = "MasterKey team-a/orders-key does not exist: make it, or make another DataKeyRequest, as spec.masterKeyRef cannot be changed"
		goneMessage      = "MasterKey team-a/orders-key does not exist; this data key needs it with the annotation datakeys.io/key-id: " + keyUID
		unsupported      = "spec.keyPairSpec is ECC_SECG_P256K1, which this installation does not offer because it runs in FIPS 140-3 mode: " +
			"make a DataKeyRequest with another keyPairSpec"
		unavailable = "the key service cannot work on this data key now; it is tried again"
		quota       = `the API server refuses Secret "orders", and is asked again: secrets "orders" is forbidden: exceeded quota: few, ` +
			`requested: count/secrets=1, used: count/secrets=1, limited: count/secrets=1`
		denied = `the API server refuses Secret "orders", and is asked again: admission webhook "policy.example" denied the request: no label team`
	)
	var (
		first, second = blobOf(t, keyUID, 1), blobOf(t, keyUID, 2)
		shorter       = blobOf(t, keyUID, 1, func(key *controllers.DataKey) { key.Length = 16 })
		otherContext  = blobOf(t, keyUID, 1, func(key *controllers.DataKey) { key.EncryptionContext = nil })
		aad           = []byte{0, 1, 0xff}
		asPair        = func(key *controllers.DataKey) {
			key.Length, key.KeyPairSpec, key.EncryptionContext, key.AAD = 0, "ECC_NIST_P256", nil, aad
		}
		keyPair     = blobOf(t, keyUID, 1, asPair)
		otherPair   = blobOf(t, keyUID, 2, asPair)
		rsaPair     = blobOf(t, keyUID, 1, asPair, func(key *controllers.DataKey) { key.KeyPairSpec = "RSA_2048" })
		otherAAD    = blobOf(t, keyUID, 1, asPair, func(key *controllers.DataKey) { key.AAD = []byte{0, 1} })
		pairRequest = func(options ...requestOption) *v1alpha1.DataKeyRequest {
			return request(append([]requestOption{func(r *v1alpha1.DataKeyRequest) {
				r.Spec.KeySpec, r.Spec.KeyPairSpec, r.Spec.EncryptionContext, r.Spec.AAD = "", "ECC_NIST_P256", nil, aad
			}}, options...)...)
		}
		pairSecret = func(blob []byte, publicKey string, options ...secretOption) *corev1.Secret {
			return secretWith(keyUID, blob, append([]secretOption{
				withoutEntry("encryptionContext"), withEntry("aad", string(aad)), withEntry("publicKey", publicKey),
			}, options...)...)
		}
		ofOtherKey  = blobOf(t, otherUID, 1)
		ownMaterial = material(keyUID, namespace, "orders-key")
		opaque      = secretWith(keyUID, first, func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque })
		immutable   = func(s *corev1.Secret) { s.Immutable = new(true) }
		overQuota   = apierrors.NewForbidden(corev1.Resource("secrets"), "orders",
			errors.New("exceeded quota: few, requested: count/secrets=1, used: count/secrets=1, limited: count/secrets=1"))
		byWebhook = &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusBadRequest, Message: `admission webhook "policy.example" denied the request: no label team`,
		}}
		terminating = &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden,
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}},
		}}
		theirs = func(s *corev1.Secret) {
			s.Data["note"] = []byte("mine")
			s.Labels["team"] = "a"
			s.Annotations = map[string]string{"note": "mine"}
		}
		ready = func(since, createdAt metav1.Time, blob []byte) *written {
			return requestStatus(metav1.ConditionTrue, "Ready", readyRequestMessage, since, keyUID, createdAt, blob)
		}
		notReady = func(reason, message string) *written {
			return requestStatus(metav1.ConditionFalse, reason, message, now, "", now, nil)
		}
		stillHas = func(reason, message, keyID string, blob []byte) *written {
			return requestStatus(metav1.ConditionFalse, reason, message, now, keyID, earlier, blob)
		}
	)

	for name, tc := range map[string]struct {
		objects []client.Object
		// stale is what the cache still says.
		stale []client.Object
		// meanwhile is what another manager creates just before this one does.
		meanwhile *corev1.Secret
		keyErr    error
		// refusal is what the API server says to a write of the Secret.
		refusal error

		wantStatus   *written
		wantEvents   []string
		wantErr      func(error) bool
		wantTerminal bool
		wantWrites   []string
		// wantSecret is the Secret afterwards, nil for none.
		wantSecret *corev1.Secret
		// wantFinalizers are those of the request afterwards.
		wantFinalizers []string
	}{
		"a request that is gone needs nothing": {},
		"with nothing there, make the Secret first and then tell of it": {
			objects:    []client.Object{request(), masterKey(readyKey), ownMaterial},
			wantStatus: ready(now, now, first),
			wantEvents: []string{createdMessage},
			wantWrites: []string{"create Secret"},
			wantSecret: secretWith(keyUID, first),
		},
		"a Secret that a quota leaves no place for is told of, and tried again": {
			objects:    []client.Object{request(), masterKey(readyKey), ownMaterial},
			refusal:    overQuota,
			wantStatus: notReady("SecretRefused", quota),
			wantEvents: []string{"Warning SecretRefused " + quota},
			wantErr:    apierrors.IsForbidden,
		},
		"a repair that an admission webhook denies is told of, and tried again": {
			objects: []client.Object{
				request(withBlob(keyUID, first)), masterKey(readyKey), ownMaterial, secretWith(keyUID, []byte("damaged")),
			},
			refusal:    byWebhook,
			wantStatus: stillHas("SecretRefused", denied, keyUID, first),
			wantEvents: []string{"Warning SecretRefused " + denied},
			wantErr:    apierrors.IsBadRequest,
			wantSecret: secretWith(keyUID, []byte("damaged")),
		},
		"in a namespace that goes there is no Secret, and nobody to tell": {
			objects: []client.Object{request(), masterKey(readyKey), ownMaterial},
			refusal: terminating,
			wantErr: apierrors.IsForbidden,
		},
		"without an encryption context there is no entry for it": {
			objects:    []client.Object{request(func(r *v1alpha1.DataKeyRequest) { r.Spec.EncryptionContext = nil }), masterKey(readyKey), ownMaterial},
			wantStatus: ready(now, now, otherContext),
			wantEvents: []string{createdMessage},
			wantWrites: []string{"create Secret"},
			wantSecret: secretWith(keyUID, otherContext, withoutEntry("encryptionContext")),
		},
		"a key pair bound to an aad has entries for the public key and the aad": {
			objects:    []client.Object{pairRequest(), masterKey(readyKey), ownMaterial},
			wantStatus: ready(now, now, keyPair),
			wantEvents: []string{createdMessage},
			wantWrites: []string{"create Secret"},
			wantSecret: pairSecret(keyPair, "public key 1 of ECC_NIST_P256"),
		},
		"a Secret of a key pair that is gone is written again with its public key": {
			objects:    []client.Object{pairRequest(withBlob(keyUID, otherPair)), masterKey(readyKey), ownMaterial},
			wantEvents: []string{`Normal Repaired wrote Secret "orders" again, which was gone`},
			wantWrites: []string{"create Secret"},
			wantSecret: pairSecret(otherPair, "public key 2 of ECC_NIST_P256"),
		},
		"another's public key in the Secret is brought back": {
			objects: []client.Object{
				pairRequest(withBlob(keyUID, keyPair)), masterKey(readyKey), ownMaterial, pairSecret(keyPair, "public key 2 of ECC_NIST_P256"),
			},
			wantEvents: []string{`Normal Repaired repaired Secret "orders", which had been changed`},
			wantWrites: []string{"update Secret"},
			wantSecret: pairSecret(keyPair, "public key 1 of ECC_NIST_P256"),
		},
		"another aad in the Secret, and a public key that is gone, are brought back": {
			objects: []client.Object{
				pairRequest(withBlob(keyUID, keyPair)), masterKey(readyKey), ownMaterial,
				pairSecret(keyPair, "", withEntry("aad", "another"), withoutEntry("publicKey")),
			},
			wantEvents: []string{`Normal Repaired repaired Secret "orders", which had been changed`},
			wantWrites: []string{"update Secret"},
			wantSecret: pairSecret(keyPair, "public key 1 of ECC_NIST_P256"),
		},
		"a public key and an aad that do not belong there are taken out": {
			objects: []client.Object{
				request(withBlob(keyUID, first)), masterKey(readyKey), ownMaterial,
				secretWith(keyUID, first, withEntry("publicKey", "another"), withEntry("aad", "another")),
			},
			wantEvents: []string{`Normal Repaired repaired Secret "orders", which had been changed`},
			wantWrites: []string{"update Secret"},
			wantSecret: secretWith(keyUID, first),
		},
		"a Secret of a key pair is adopted with its public key": {
			objects:    []client.Object{pairRequest(), masterKey(readyKey), ownMaterial, pairSecret(otherPair, "another")},
			wantStatus: ready(now, now, otherPair),
			wantEvents: []string{adoptedMessage},
			wantWrites: []string{"update Secret"},
			wantSecret: pairSecret(otherPair, "public key 2 of ECC_NIST_P256"),
		},
		"a Secret of a key pair of another spec is left alone": {
			objects:      []client.Object{pairRequest(), masterKey(readyKey), ownMaterial, pairSecret(rsaPair, "public key 1 of RSA_2048")},
			wantStatus:   notReady("SecretConflict", refusedMessage),
			wantEvents:   []string{"Warning SecretConflict " + refusedMessage},
			wantTerminal: true,
			wantSecret:   pairSecret(rsaPair, "public key 1 of RSA_2048"),
		},
		"a Secret of another aad is left alone": {
			objects:      []client.Object{pairRequest(), masterKey(readyKey), ownMaterial, pairSecret(otherAAD, "public key 1 of ECC_NIST_P256")},
			wantStatus:   notReady("SecretConflict", refusedMessage),
			wantEvents:   []string{"Warning SecretConflict " + refusedMessage},
			wantTerminal: true,
			wantSecret:   pairSecret(otherAAD, "public key 1 of ECC_NIST_P256"),
		},
		"a key pair that the key service does not offer is refused for good": {
			objects: []client.Object{
				pairRequest(func(r *v1alpha1.DataKeyRequest) { r.Spec.KeyPairSpec = "ECC_SECG_P256K1" }), masterKey(readyKey), ownMaterial,
			},
			keyErr:       fmt.Errorf("%w: detail", controllers.ErrUnsupported),
			wantStatus:   notReady("Unsupported", unsupported),
			wantEvents:   []string{"Warning Unsupported " + unsupported},
			wantTerminal: true,
		},
		"with the policy Delete, the finalizer comes before the Secret": {
			objects: []client.Object{request(withPolicy("Delete")), masterKey(readyKey), ownMaterial},
			wantStatus: func() *written {
				w := ready(now, now, first)
				w.ResourceVersion = "6"
				return w
			}(),
			wantEvents: []string{createdMessage},
			wantWrites: []string{"patch DataKeyRequest", "create Secret"},
			wantSecret: secretWith(keyUID, first), wantFinalizers: []string{"datakeys.io/data-key-secret"},
		},
		"when the policy turns to Retain, the finalizer goes": {
			objects:    []client.Object{request(withBlob(keyUID, first), withFinalizer), masterKey(readyKey), ownMaterial, secretWith(keyUID, first)},
			wantWrites: []string{"patch DataKeyRequest"},
			wantSecret: secretWith(keyUID, first),
		},
		"a MasterKey of another namespace is refused": {
			objects: []client.Object{
				request(func(r *v1alpha1.DataKeyRequest) { r.Spec.MasterKeyRef.Namespace = "team-b" }),
				masterKey(readyKey, func(k *v1alpha1.MasterKey) { k.Namespace = "team-b" }),
			},
			wantStatus:   notReady("CrossNamespaceReference", crossMessage),
			wantEvents:   []string{"Warning CrossNamespaceReference " + crossMessage},
			wantTerminal: true,
		},
		"a MasterKey named with the own namespace is used": {
			objects: []client.Object{
				request(func(r *v1alpha1.DataKeyRequest) { r.Spec.MasterKeyRef.Namespace = namespace }),
				masterKey(readyKey), ownMaterial,
			},
			wantStatus: ready(now, now, first),
			wantEvents: []string{createdMessage},
			wantWrites: []string{"create Secret"},
			wantSecret: secretWith(keyUID, first),
		},
		"without a MasterKey, wait for it": {
			objects:    []client.Object{request()},
			wantStatus: notReady("MasterKeyNotFound", missingMessage),
			wantEvents: []string{"Warning MasterKeyNotFound " + missingMessage},
		},
		"when the MasterKey of a data key is gone, say which one it needs": {
			objects:    []client.Object{request(withBlob(keyUID, first)), ownMaterial, secretWith(keyUID, first)},
			wantStatus: stillHas("MasterKeyNotFound", goneMessage, keyUID, first),
			wantEvents: []string{"Warning MasterKeyNotFound " + goneMessage},
			wantSecret: secretWith(keyUID, first),
		},
		"a MasterKey that nobody looked at yet is waited for": {
			objects: []client.Object{request(), masterKey()},
		},
		"a MasterKey that is not Ready is waited for": {
			objects: []client.Object{request(), masterKey(readyKey, func(k *v1alpha1.MasterKey) {
				meta.SetStatusCondition(&k.Status.Conditions, metav1.Condition{Type: "Ready", Status: "False", Reason: "MaterialBroken", Message: "it does not open"})
			})},
			wantStatus: notReady("MasterKeyNotReady", "MasterKey team-a/orders-key is not Ready: MaterialBroken: it does not open"),
			wantEvents: []string{"Warning MasterKeyNotReady MasterKey team-a/orders-key is not Ready: MaterialBroken: it does not open"},
		},
		"a MasterKey that is being deleted is waited for": {
			objects: []client.Object{request(), masterKey(readyKey, func(k *v1alpha1.MasterKey) {
				k.DeletionTimestamp, k.Finalizers = &earlier, []string{"example.com/hold"}
			})},
			wantStatus: notReady("MasterKeyNotReady", "MasterKey team-a/orders-key is being deleted"),
			wantEvents: []string{"Warning MasterKeyNotReady MasterKey team-a/orders-key is being deleted"},
		},
		"a MasterKey that says Ready of an older spec makes no data key": {
			objects: []client.Object{request(), masterKey(readyKey, func(k *v1alpha1.MasterKey) { k.Generation = 2 }), ownMaterial},
		},
		"a MasterKey that says Ready of an older spec unsettles no data key": {
			objects: []client.Object{
				request(withBlob(keyUID, first)), masterKey(readyKey, func(k *v1alpha1.MasterKey) { k.Generation = 2 }),
				ownMaterial, secretWith(keyUID, first),
			},
			wantSecret: secretWith(keyUID, first),
		},
		"a MasterKey that says Ready of another key ID is waited for": {
			objects: []client.Object{request(), masterKey(readyKey, withKeyID(otherUID)), ownMaterial},
		},
		"a cache that does not know yet that the MasterKey is another key makes no data key": {
			objects: []client.Object{request(), masterKey(withKeyID(otherUID), readyKey), ownMaterial},
			stale:   []client.Object{masterKey(readyKey)},
		},
		"a cache that does not know the status yet makes no second data key": {
			objects: []client.Object{
				request(withBlob(keyUID, first), func(r *v1alpha1.DataKeyRequest) { r.ResourceVersion = "8" }), masterKey(readyKey), ownMaterial,
			},
			stale: []client.Object{request()},
		},
		"a cache that does not know yet that the request is gone makes no data key": {
			objects: []client.Object{masterKey(readyKey), ownMaterial},
			stale:   []client.Object{request()},
		},
		"in the steady state nothing is written and nothing told": {
			objects:    []client.Object{request(withBlob(keyUID, first)), masterKey(readyKey), ownMaterial, secretWith(keyUID, first, theirs)},
			wantSecret: secretWith(keyUID, first, theirs),
		},
		"a Secret that is gone is written again": {
			objects:    []client.Object{request(withBlob(keyUID, second)), masterKey(readyKey), ownMaterial},
			wantEvents: []string{`Normal Repaired wrote Secret "orders" again, which was gone`},
			wantWrites: []string{"create Secret"},
			wantSecret: secretWith(keyUID, second),
		},
		"a Secret with another blob, even one that opens, is brought back": {
			objects:    []client.Object{request(withBlob(keyUID, second)), masterKey(readyKey), ownMaterial, secretWith(keyUID, first, theirs)},
			wantEvents: []string{`Normal Repaired repaired Secret "orders", which had been changed`},
			wantWrites: []string{"update Secret"},
			wantSecret: secretWith(keyUID, second, theirs),
		},
		"a spoilt Secret is repaired, and what is not ours in it is kept": {
			objects: []client.Object{request(withBlob(keyUID, first)), masterKey(readyKey), ownMaterial, secretWith(keyUID, first, theirs,
				withEntry("ciphertextBlob", "spoilt"), withEntry("keyVersion", "9"), withoutEntry("iv"), withoutEntry("encryptionContext"))},
			wantEvents: []string{`Normal Repaired repaired Secret "orders", which had been changed`},
			wantWrites: []string{"update Secret"},
			wantSecret: secretWith(keyUID, first, theirs),
		},
		"an entry of ours that does not belong there is taken out": {
			objects: []client.Object{
				request(withBlob(keyUID, otherContext), func(r *v1alpha1.DataKeyRequest) { r.Spec.EncryptionContext = nil }),
				masterKey(readyKey), ownMaterial, secretWith(keyUID, otherContext),
			},
			wantEvents: []string{`Normal Repaired repaired Secret "orders", which had been changed`},
			wantWrites: []string{"update Secret"},
			wantSecret: secretWith(keyUID, otherContext, withoutEntry("encryptionContext")),
		},
		"a Secret without the label gets it back": {
			objects:    []client.Object{request(withBlob(keyUID, first)), masterKey(readyKey), ownMaterial, secretWith(keyUID, first, func(s *corev1.Secret) { s.Labels = nil })},
			wantEvents: []string{`Normal Repaired repaired Secret "orders", which had been changed`},
			wantWrites: []string{"update Secret"},
			wantSecret: secretWith(keyUID, first),
		},
		"an immutable Secret that is right is fine": {
			objects:    []client.Object{request(withBlob(keyUID, first)), masterKey(readyKey), ownMaterial, secretWith(keyUID, first, immutable)},
			wantSecret: secretWith(keyUID, first, immutable),
		},
		"an immutable Secret that is spoilt cannot be repaired": {
			objects: []client.Object{
				request(withBlob(keyUID, first)), masterKey(readyKey), ownMaterial,
				secretWith(keyUID, first, immutable, withEntry("iv", "spoilt")),
			},
			wantStatus:   stillHas("SecretConflict", immutableMessage, keyUID, first),
			wantEvents:   []string{"Warning SecretConflict " + immutableMessage},
			wantTerminal: true,
			wantSecret:   secretWith(keyUID, first, immutable, withEntry("iv", "spoilt")),
		},
		"an immutable Secret that would have to be mended is not said to be adopted": {
			objects: []client.Object{
				request(), masterKey(readyKey), ownMaterial, secretWith(keyUID, first, immutable, withEntry("iv", "spoilt")),
			},
			wantStatus:   notReady("SecretConflict", immutableMessage),
			wantEvents:   []string{"Warning SecretConflict " + immutableMessage},
			wantTerminal: true,
			wantSecret:   secretWith(keyUID, first, immutable, withEntry("iv", "spoilt")),
		},
		"a Secret of another type takes the place of a known data key": {
			objects:      []client.Object{request(withBlob(keyUID, first)), masterKey(readyKey), ownMaterial, opaque},
			wantStatus:   stillHas("SecretConflict", opaqueMessage, keyUID, first),
			wantEvents:   []string{"Warning SecretConflict " + opaqueMessage},
			wantTerminal: true,
			wantSecret:   opaque,
		},
		"without a status, a Secret that opens is adopted": {
			objects:    []client.Object{request(), masterKey(readyKey), ownMaterial, secretWith(keyUID, second)},
			wantStatus: ready(now, now, second),
			wantEvents: []string{adoptedMessage},
			wantSecret: secretWith(keyUID, second),
		},
		"an adopted Secret gets the entries that it lacks": {
			objects: []client.Object{
				request(), masterKey(readyKey), ownMaterial,
				secretWith(keyUID, second, withoutEntry("iv"), withoutEntry("keyId"), func(s *corev1.Secret) { s.Labels = nil }),
			},
			wantStatus: ready(now, now, second),
			wantEvents: []string{adoptedMessage},
			wantWrites: []string{"update Secret"},
			wantSecret: secretWith(keyUID, second),
		},
		"without a status, a Secret of another length is left alone": {
			objects:      []client.Object{request(), masterKey(readyKey), ownMaterial, secretWith(keyUID, shorter)},
			wantStatus:   notReady("SecretConflict", refusedMessage),
			wantEvents:   []string{"Warning SecretConflict " + refusedMessage},
			wantTerminal: true,
			wantSecret:   secretWith(keyUID, shorter),
		},
		"without a status, a Secret of another encryption context is left alone": {
			objects:      []client.Object{request(), masterKey(readyKey), ownMaterial, secretWith(keyUID, otherContext)},
			wantStatus:   notReady("SecretConflict", refusedMessage),
			wantEvents:   []string{"Warning SecretConflict " + refusedMessage},
			wantTerminal: true,
			wantSecret:   secretWith(keyUID, otherContext),
		},
		"without a status, a Secret of another type is left alone": {
			objects:      []client.Object{request(), masterKey(readyKey), ownMaterial, opaque},
			wantStatus:   notReady("SecretConflict", opaqueMessage),
			wantEvents:   []string{"Warning SecretConflict " + opaqueMessage},
			wantTerminal: true,
			wantSecret:   opaque,
		},
		"a spoilt status is mended from a Secret that opens": {
			objects: []client.Object{request(withBlob(keyUID, []byte("spoilt"))), masterKey(readyKey), ownMaterial, secretWith(keyUID, first)},
			wantStatus: func() *written {
				w := ready(earlier, now, first)
				w.Status.(v1alpha1.DataKeyRequestStatus).Conditions[1].LastTransitionTime = earlier
				return w
			}(),
			wantEvents: []string{adoptedMessage},
			wantSecret: secretWith(keyUID, first),
		},
		"a status that lost its blob makes no second data key": {
			objects: []client.Object{
				request(withBlob(keyUID, first), func(r *v1alpha1.DataKeyRequest) { r.Status.Generations = nil }),
				masterKey(readyKey), ownMaterial,
			},
			wantStatus: func() *written {
				w := stillHas("DataKeyBroken", brokenMessage, keyUID, first)
				status := w.Status.(v1alpha1.DataKeyRequestStatus)
				status.Generations = nil
				w.Status = status
				return w
			}(),
			wantEvents:   []string{"Warning DataKeyBroken " + brokenMessage},
			wantTerminal: true,
		},
		"with a spoilt status and no Secret there is never a new data key": {
			objects:      []client.Object{request(withBlob(keyUID, []byte("spoilt"))), masterKey(readyKey), ownMaterial},
			wantStatus:   stillHas("DataKeyBroken", brokenMessage, keyUID, []byte("spoilt")),
			wantEvents:   []string{"Warning DataKeyBroken " + brokenMessage},
			wantTerminal: true,
		},
		"with a spoilt status and a spoilt Secret nothing is touched": {
			objects: []client.Object{
				request(withBlob(keyUID, []byte("spoilt"))), masterKey(readyKey), ownMaterial,
				secretWith(keyUID, []byte("spoilt too")),
			},
			wantStatus:   stillHas("DataKeyBroken", brokenMessage, keyUID, []byte("spoilt")),
			wantEvents:   []string{"Warning DataKeyBroken " + brokenMessage},
			wantTerminal: true,
			wantSecret:   secretWith(keyUID, []byte("spoilt too")),
		},
		"when the MasterKey is another key, nothing is touched": {
			objects:      []client.Object{request(withBlob(otherUID, ofOtherKey)), masterKey(readyKey), ownMaterial},
			wantStatus:   stillHas("MasterKeyChanged", changedMessage, otherUID, ofOtherKey),
			wantEvents:   []string{"Warning MasterKeyChanged " + changedMessage},
			wantTerminal: true,
		},
		"a Secret that another manager made meanwhile is adopted": {
			objects:    []client.Object{request(), masterKey(readyKey), ownMaterial},
			meanwhile:  secretWith(keyUID, second),
			wantStatus: ready(now, now, second),
			wantEvents: []string{adoptedMessage},
			wantWrites: []string{"create Secret"},
			wantSecret: secretWith(keyUID, second),
		},
		"a foreign Secret that was made meanwhile is left alone": {
			objects:      []client.Object{request(), masterKey(readyKey), ownMaterial},
			meanwhile:    opaque,
			wantStatus:   notReady("SecretConflict", opaqueMessage),
			wantEvents:   []string{"Warning SecretConflict " + opaqueMessage},
			wantTerminal: true,
			wantWrites:   []string{"create Secret"},
			wantSecret:   opaque,
		},
		"a key service that cannot work is tried again, and its error stays in the log": {
			objects:    []client.Object{request(), masterKey(readyKey), ownMaterial},
			keyErr:     errors.New("dial 10.0.0.1: detail"),
			wantStatus: notReady("KeyServiceUnavailable", unavailable),
			wantEvents: []string{"Warning KeyServiceUnavailable " + unavailable},
			wantErr:    func(err error) bool { return strings.Contains(err.Error(), "detail") },
		},
		"a key service that cannot work costs no blob": {
			objects:    []client.Object{request(withBlob(keyUID, first)), masterKey(readyKey), ownMaterial},
			keyErr:     errors.New("down"),
			wantStatus: stillHas("KeyServiceUnavailable", unavailable, keyUID, first),
			wantEvents: []string{"Warning KeyServiceUnavailable " + unavailable},
			wantErr:    func(err error) bool { return strings.Contains(err.Error(), "down") },
		},
		"material that is missing is its MasterKey's to tell of, and is tried again": {
			objects:    []client.Object{request(), masterKey(readyKey)},
			wantStatus: notReady("MasterKeyNotReady", "MasterKey team-a/orders-key: there is no material of that key ID"),
			wantEvents: []string{"Warning MasterKeyNotReady MasterKey team-a/orders-key: there is no material of that key ID"},
			wantErr:    func(err error) bool { return errors.Is(err, controllers.ErrMaterialMissing) },
		},
		"a request that is deleted with Retain leaves its Secret": {
			objects:    []client.Object{request(withBlob(keyUID, first), beingDeleted, withFinalizer), masterKey(readyKey), ownMaterial, secretWith(keyUID, first)},
			wantWrites: []string{"patch DataKeyRequest"},
			wantSecret: secretWith(keyUID, first),
		},
		"a request that is deleted and held by somebody else needs nothing": {
			objects:        []client.Object{request(beingDeleted, func(r *v1alpha1.DataKeyRequest) { r.Finalizers = []string{"example.com/hold"} }), masterKey(readyKey), ownMaterial},
			wantFinalizers: []string{"example.com/hold"},
		},
		"a request that is deleted with Delete takes its Secret along": {
			objects:    []client.Object{request(withPolicy("Delete"), withBlob(keyUID, first), beingDeleted, withFinalizer), masterKey(readyKey), ownMaterial, secretWith(keyUID, first)},
			wantWrites: []string{"delete Secret", "patch DataKeyRequest"},
		},
		"its Secret goes without a status and a MasterKey object too, if it opens": {
			objects:    []client.Object{request(withPolicy("Delete"), beingDeleted, withFinalizer), ownMaterial, secretWith(keyUID, first)},
			wantWrites: []string{"delete Secret", "patch DataKeyRequest"},
		},
		"a Secret that is gone already holds nothing up": {
			objects:    []client.Object{request(withPolicy("Delete"), withBlob(keyUID, first), beingDeleted, withFinalizer), masterKey(readyKey), ownMaterial},
			wantWrites: []string{"patch DataKeyRequest"},
		},
		"a Secret that is not the request's outlives it": {
			objects:    []client.Object{request(withPolicy("Delete"), beingDeleted, withFinalizer), masterKey(readyKey), ownMaterial, secretWith(keyUID, shorter)},
			wantEvents: []string{`Warning SecretConflict Secret "orders" is kept: it does not hold the data key of this request`},
			wantWrites: []string{"patch DataKeyRequest"},
			wantSecret: secretWith(keyUID, shorter),
		},
		"a Secret of another type outlives the request, whatever it holds": {
			objects:    []client.Object{request(withPolicy("Delete"), withBlob(keyUID, first), beingDeleted, withFinalizer), masterKey(readyKey), ownMaterial, opaque},
			wantEvents: []string{`Warning SecretConflict Secret "orders" is kept: it does not hold the data key of this request`},
			wantWrites: []string{"patch DataKeyRequest"},
			wantSecret: opaque,
		},
		"nothing is deleted while the key service cannot say whose it is": {
			objects: []client.Object{request(withPolicy("Delete"), beingDeleted, withFinalizer), masterKey(readyKey), ownMaterial, secretWith(keyUID, first)},
			keyErr:  errors.New("down"), wantErr: func(err error) bool { return strings.Contains(err.Error(), "down") },
			wantSecret: secretWith(keyUID, first), wantFinalizers: []string{"datakeys.io/data-key-secret"},
		},
		"a data key that this installation cannot read holds nothing up": {
			objects:    []client.Object{request(withPolicy("Delete"), beingDeleted, withFinalizer), masterKey(readyKey), ownMaterial, secretWith(keyUID, first)},
			keyErr:     fmt.Errorf("%w: detail", controllers.ErrUnsupported),
			wantEvents: []string{`Warning SecretConflict Secret "orders" is kept: it does not hold the data key of this request`},
			wantWrites: []string{"patch DataKeyRequest"},
			wantSecret: secretWith(keyUID, first),
		},
		"a cache that does not know yet that the request was made again deletes no Secret of the new one": {
			objects: []client.Object{
				request(withPolicy("Delete"), withFinalizer, func(r *v1alpha1.DataKeyRequest) { r.UID = "66666666-6666-4666-8666-666666666666" }),
				masterKey(readyKey), ownMaterial, secretWith(keyUID, first),
			},
			stale:          []client.Object{request(withPolicy("Delete"), withBlob(keyUID, first), beingDeleted, withFinalizer)},
			wantSecret:     secretWith(keyUID, first),
			wantFinalizers: []string{"datakeys.io/data-key-secret"},
		},
		"a cache that does not know yet of the turn to Retain deletes no Secret": {
			objects:    []client.Object{request(withBlob(keyUID, first), beingDeleted, withFinalizer), masterKey(readyKey), ownMaterial, secretWith(keyUID, first)},
			stale:      []client.Object{request(withPolicy("Delete"), withBlob(keyUID, first), beingDeleted, withFinalizer)},
			wantWrites: []string{"patch DataKeyRequest"},
			wantSecret: secretWith(keyUID, first),
		},
	} {
		t.Run(name, func(t *testing.T) {
			newReconciler := func() (*world, controllers.Reconciler, *events.FakeRecorder) {
				w := newWorld(t, tc.objects, tc.stale)
				w.keys.Err = tc.keyErr
				recorder := events.NewFakeRecorder(10)
				c := interceptor.NewClient(w.client, interceptor.Funcs{
					Update: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.UpdateOption) error {
						if tc.refusal != nil {
							return tc.refusal
						}
						return c.Update(ctx, object, options...)
					},
					Create: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.CreateOption) error {
						if tc.refusal != nil {
							return tc.refusal
						}
						if tc.meanwhile != nil {
							if err := w.direct.Create(ctx, tc.meanwhile.DeepCopy()); err != nil {
								t.Fatal(err)
							}
						}
						return c.Create(ctx, object, options...)
					},
				})
				return w, controllers.NewDataKeyRequestReconciler(c, w.direct, w.keys, w.clock, recorder), recorder
			}

			// The inner function: what it returns, what it wrote, and that it wrote no status.
			w, reconciler, _ := newReconciler()
			object, told, err := reconciler.Inner(t.Context(), dataKeyRequest)
			if diff := cmp.Diff(tc.wantStatus, writtenOf(object)); diff != "" {
				t.Errorf("status (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.wantEvents, told); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.wantWrites, w.faults.Writes()); diff != "" {
				t.Errorf("writes (-want +got):\n%s", diff)
			}
			switch {
			case errors.Is(err, reconcile.TerminalError(nil)) != tc.wantTerminal:
				t.Errorf("got error %v, want terminal: %t", err, tc.wantTerminal)
			case tc.wantErr != nil && (err == nil || !tc.wantErr(err)):
				t.Errorf("got error %v, want another", err)
			case tc.wantErr == nil && !tc.wantTerminal && err != nil:
				t.Errorf("got error %v, want none", err)
			}
			checkSecret(t, w.direct, tc.wantSecret)
			checkFinalizers(t, w.direct, tc.wantFinalizers)

			// The outer function: the same, with the status written and then the events; and a second run that finds all done.
			w, reconciler, recorder := newReconciler()
			result, err := reconciler.Reconcile(t.Context(), dataKeyRequest)
			if diff := cmp.Diff(ctrl.Result{}, result); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			wantWrites := tc.wantWrites
			if tc.wantStatus != nil {
				wantWrites = append(slices.Clip(wantWrites), "update status DataKeyRequest")
			}
			if diff := cmp.Diff(wantWrites, w.faults.Writes()); diff != "" {
				t.Errorf("writes of Reconcile (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.wantEvents, drain(recorder.Events)); diff != "" {
				t.Errorf("events of Reconcile (-want +got):\n%s", diff)
			}
			if (err != nil) != (tc.wantErr != nil || tc.wantTerminal) {
				t.Errorf("Reconcile: got error %v", err)
			}
			if tc.stale != nil || tc.meanwhile != nil {
				return
			}
			if _, err := reconciler.Reconcile(t.Context(), dataKeyRequest); (err != nil) != (tc.wantErr != nil || tc.wantTerminal) {
				t.Errorf("second Reconcile: got error %v", err)
			}
			if diff := cmp.Diff(wantWrites, w.faults.Writes()); diff != "" {
				t.Errorf("writes after a second run (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]string(nil), drain(recorder.Events)); diff != "" {
				t.Errorf("events of a second run (-want +got):\n%s", diff)
			}
		})
	}
}

// What a request waits for in silence has to wake it.
func TestWhatOfAMasterKeyWakesItsRequests(t *testing.T) {
	for name, tc := range map[string]struct {
		before, after *v1alpha1.MasterKey
		want          bool
	}{
		"it is looked at":                 {masterKey(withKeyID(keyUID)), masterKey(readyKey), true},
		"it is another key":               {masterKey(readyKey), masterKey(withKeyID(otherUID)), true},
		"its annotation is written again": {masterKey(readyKey, func(k *v1alpha1.MasterKey) { k.Annotations = nil }), masterKey(readyKey), true},
		"its primary version is another one of the same number": {masterKey(readyKey), masterKey(readyKey, func(k *v1alpha1.MasterKey) {
			k.Status.LastRotationTime = now
		}), true},
		"it has another annotation": {masterKey(readyKey), masterKey(readyKey, func(k *v1alpha1.MasterKey) { k.Annotations["team"] = "a" }), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := controllers.MasterKeyUseChanged.Update(event.UpdateEvent{ObjectOld: tc.before, ObjectNew: tc.after}); got != tc.want {
				t.Errorf("got %t, want %t", got, tc.want)
			}
		})
	}
}

func checkSecret(t *testing.T, reader client.Reader, want *corev1.Secret) {
	t.Helper()
	got := &corev1.Secret{}
	err := reader.Get(t.Context(), dataKeyRequest.NamespacedName, got)
	switch {
	case want == nil:
		if !apierrors.IsNotFound(err) {
			t.Errorf("got Secret %v (error %v), want none", got, err)
		}
		return
	case err != nil:
		t.Errorf("read the Secret: %v", err)
		return
	}
	text := func(data map[string][]byte) map[string]string {
		out := map[string]string{}
		for name, value := range maps.All(data) {
			out[name] = string(value)
		}
		return out
	}
	if diff := cmp.Diff(text(want.Data), text(got.Data)); diff != "" {
		t.Errorf("Secret data (-want +got):\n%s", diff)
	}
	if want.Type != got.Type {
		t.Errorf("got Secret type %q, want %q", got.Type, want.Type)
	}
	wantMeta := metav1.ObjectMeta{Labels: want.Labels, Annotations: want.Annotations}
	gotMeta := metav1.ObjectMeta{Labels: got.Labels, Annotations: got.Annotations, OwnerReferences: got.OwnerReferences, Finalizers: got.Finalizers}
	if diff := cmp.Diff(wantMeta, gotMeta); diff != "" {
		t.Errorf("Secret metadata (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want.Immutable, got.Immutable); diff != "" {
		t.Errorf("Secret immutable (-want +got):\n%s", diff)
	}
}

func checkFinalizers(t *testing.T, reader client.Reader, want []string) {
	t.Helper()
	got := &v1alpha1.DataKeyRequest{}
	if err := reader.Get(t.Context(), dataKeyRequest.NamespacedName, got); client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got.Finalizers); diff != "" {
		t.Errorf("finalizers of the request (-want +got):\n%s", diff)
	}
}
