package controllers_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/controllers/controllerstest"
)

func TestMasterKey(t *testing.T) {
	const (
		readyMessage   = "version 1 is the primary version"
		createdMessage = "Normal Created made version 1 of master key " + keyUID
		missingMessage = "there is no material of master key " + otherUID + `: restore the Secret "` + otherUID +
			`" in the namespace of the manager; a new key is never made in its place`
		conflictMessage = "the material of master key " + otherUID + " belongs to a MasterKey of another namespace or name: use that one; to have a new key here, delete this MasterKey (annotated with datakeys.io/allow-deletion=true) and make it again without the annotation datakeys.io/key-id"
		brokenMessage   = "the material of master key " + otherUID + " is damaged: a version is missing or does not open, or its record does not fit: " +
			`restore the Secret "` + otherUID + `" in the namespace of the manager, or the sealing keys that sealed it; nothing was changed`
		invalidMessage  = `the annotation datakeys.io/key-id is "11111111-1111-4111-8111-11111111111A", which is not a lower-case UUID: set it to the key ID of this master key`
		strippedMessage = "the annotation datakeys.io/key-id is gone, but this was master key " + otherUID + ": set the annotation to that key ID"
		unavailable     = "the key service cannot read its material now; it is tried again"
	)
	condition := func(status metav1.ConditionStatus, reason, message string) v1alpha1.MasterKeyStatus {
		return v1alpha1.MasterKeyStatus{ObservedGeneration: new(int64(1)), State: "Enabled", Conditions: []metav1.Condition{{
			Type: "Ready", Status: status, Reason: reason, Message: message, ObservedGeneration: 1, LastTransitionTime: now,
		}}}
	}
	withKey := func(status v1alpha1.MasterKeyStatus, keyID string) v1alpha1.MasterKeyStatus {
		status.KeyID, status.ARN = keyID, "arn:datakeys:kms:fake:team-a:key/"+keyID
		status.PrimaryVersion, status.VersionCount = new(int32(1)), new(int32(1))
		status.DataKeys, status.DataKeysBehind = new(int32(0)), new(int32(0))
		status.LastRotationTime = metav1.NewTime(controllerstest.MadeAt)
		status.Versions = []v1alpha1.MasterKeyVersion{{
			Version: 1, CreatedAt: metav1.NewTime(controllerstest.MadeAt), State: "Primary", DataKeys: new(int32(0)),
		}}
		return status
	}
	since := func(t metav1.Time, status v1alpha1.MasterKeyStatus) v1alpha1.MasterKeyStatus {
		status.Conditions[0].LastTransitionTime = t
		return status
	}
	ofKey := func(status v1alpha1.MasterKeyStatus, keyID string) v1alpha1.MasterKeyStatus {
		status.KeyID = keyID
		return status
	}
	writes := func(resourceVersion string, status v1alpha1.MasterKeyStatus) *written {
		return &written{"orders-key", keyUID, resourceVersion, status}
	}
	broken := material(otherUID, namespace, "orders-key")
	broken.Data = nil

	for name, tc := range map[string]struct {
		objects []client.Object
		stale   []client.Object
		keyErr  error

		wantStatus   *written
		wantEvents   []string
		wantErr      string
		wantTerminal bool
		wantWrites   []string
		// wantKeyID is the annotation afterwards.
		wantKeyID string
		// wantMaterial are the names of the material Secrets afterwards.
		wantMaterial []string
	}{
		"a MasterKey that is gone needs nothing, and its material stays": {
			objects:      []client.Object{material(keyUID, namespace, "orders-key")},
			wantMaterial: []string{keyUID},
		},
		"a MasterKey that is being deleted gets no material": {
			objects: []client.Object{masterKey(func(k *v1alpha1.MasterKey) {
				k.DeletionTimestamp, k.Finalizers = &earlier, []string{"example.com/hold"}
			})},
		},
		"a new MasterKey gets material, then its annotation, then its status": {
			objects:      []client.Object{masterKey()},
			wantStatus:   writes("8", withKey(condition("True", "Ready", readyMessage), keyUID)),
			wantEvents:   []string{createdMessage},
			wantWrites:   []string{"patch MasterKey"},
			wantKeyID:    keyUID,
			wantMaterial: []string{keyUID},
		},
		"material that was made before a crash is found again": {
			objects:      []client.Object{masterKey(), material(keyUID, namespace, "orders-key")},
			wantStatus:   writes("8", withKey(condition("True", "Ready", readyMessage), keyUID)),
			wantEvents:   []string{"Normal Ready " + readyMessage},
			wantWrites:   []string{"patch MasterKey"},
			wantKeyID:    keyUID,
			wantMaterial: []string{keyUID},
		},
		"a restored MasterKey, without a status and with another UID, finds its material": {
			objects:      []client.Object{masterKey(withKeyID(otherUID)), material(otherUID, namespace, "orders-key")},
			wantStatus:   writes("7", withKey(condition("True", "Ready", readyMessage), otherUID)),
			wantEvents:   []string{"Normal Ready " + readyMessage},
			wantKeyID:    otherUID,
			wantMaterial: []string{otherUID},
		},
		"a cache that does not know the annotation yet makes no second material": {
			objects:      []client.Object{masterKey(withKeyID(otherUID)), material(otherUID, namespace, "orders-key")},
			stale:        []client.Object{masterKey()},
			wantStatus:   writes("7", withKey(condition("True", "Ready", readyMessage), otherUID)),
			wantEvents:   []string{"Normal Ready " + readyMessage},
			wantKeyID:    otherUID,
			wantMaterial: []string{otherUID},
		},
		"a cache that does not know yet that the MasterKey is gone makes no material": {
			stale: []client.Object{masterKey()},
		},
		"an annotation without material never makes a new key": {
			objects:      []client.Object{masterKey(withKeyID(otherUID))},
			wantStatus:   writes("7", ofKey(condition("False", "MaterialMissing", missingMessage), otherUID)),
			wantEvents:   []string{"Warning MaterialMissing " + missingMessage},
			wantTerminal: true,
			wantKeyID:    otherUID,
		},
		"material of another namespace is not inherited": {
			objects:      []client.Object{masterKey(withKeyID(otherUID)), material(otherUID, "team-b", "orders-key")},
			wantStatus:   writes("7", ofKey(condition("False", "MaterialConflict", conflictMessage), otherUID)),
			wantEvents:   []string{"Warning MaterialConflict " + conflictMessage},
			wantTerminal: true,
			wantKeyID:    otherUID,
			wantMaterial: []string{otherUID},
		},
		"material that does not open is told of loudly, left alone and looked at again": {
			objects:      []client.Object{masterKey(withKeyID(otherUID)), broken},
			wantStatus:   writes("7", ofKey(condition("False", "MaterialBroken", brokenMessage), otherUID)),
			wantEvents:   []string{"Warning MaterialBroken " + brokenMessage},
			wantErr:      controllers.ErrMaterialBroken.Error(),
			wantKeyID:    otherUID,
			wantMaterial: []string{otherUID},
		},
		"what was known of a key stays in the status when its material goes": {
			objects:      []client.Object{masterKey(withKeyID(otherUID), readyKey)},
			wantStatus:   writes("7", withKey(condition("False", "MaterialMissing", missingMessage), otherUID)),
			wantEvents:   []string{"Warning MaterialMissing " + missingMessage},
			wantTerminal: true,
			wantKeyID:    otherUID,
		},
		"an annotation that is no canonical UUID names no key": {
			objects:      []client.Object{masterKey(withKeyID("11111111-1111-4111-8111-11111111111A"))},
			wantStatus:   writes("7", condition("False", "InvalidKeyID", invalidMessage)),
			wantEvents:   []string{"Warning InvalidKeyID " + invalidMessage},
			wantTerminal: true,
			wantKeyID:    "11111111-1111-4111-8111-11111111111A",
		},
		"an empty annotation names no key": {
			objects:      []client.Object{masterKey(withKeyID(""))},
			wantStatus:   writes("7", condition("False", "InvalidKeyID", strings.Replace(invalidMessage, "11111111-1111-4111-8111-11111111111A", "", 1))),
			wantEvents:   []string{"Warning InvalidKeyID " + strings.Replace(invalidMessage, "11111111-1111-4111-8111-11111111111A", "", 1)},
			wantTerminal: true,
		},
		"a restored MasterKey that lost its annotation gets no new key": {
			objects: []client.Object{
				masterKey(withKeyID(otherUID), readyKey, func(k *v1alpha1.MasterKey) { k.Annotations = nil }),
				material(otherUID, namespace, "orders-key"),
			},
			wantStatus:   writes("7", withKey(condition("False", "InvalidKeyID", strippedMessage), otherUID)),
			wantEvents:   []string{"Warning InvalidKeyID " + strippedMessage},
			wantTerminal: true,
			wantMaterial: []string{otherUID},
		},
		"in the steady state nothing is written and nothing told": {
			objects:      []client.Object{masterKey(readyKey), material(keyUID, namespace, "orders-key")},
			wantKeyID:    keyUID,
			wantMaterial: []string{keyUID},
		},
		"a status that lies is put right": {
			objects: []client.Object{
				masterKey(readyKey, func(k *v1alpha1.MasterKey) { k.Status.ARN, k.Status.PrimaryVersion = "arn:wrong", new(int32(9)) }),
				material(keyUID, namespace, "orders-key"),
			},
			wantStatus:   writes("7", since(earlier, withKey(condition("True", "Ready", readyMessage), keyUID))),
			wantKeyID:    keyUID,
			wantMaterial: []string{keyUID},
		},
		"a new description moves the observed generation and nothing else": {
			objects: []client.Object{masterKey(readyKey, func(k *v1alpha1.MasterKey) { k.Generation = 2 }), material(keyUID, namespace, "orders-key")},
			wantStatus: func() *written {
				status := since(earlier, withKey(condition("True", "Ready", readyMessage), keyUID))
				status.ObservedGeneration, status.Conditions[0].ObservedGeneration = new(int64(2)), 2
				return writes("7", status)
			}(),
			wantKeyID:    keyUID,
			wantMaterial: []string{keyUID},
		},
		"a key service that cannot work is tried again, and its error stays in the log": {
			objects:    []client.Object{masterKey()},
			keyErr:     errors.New("dial 10.0.0.1: detail"),
			wantStatus: writes("7", condition("False", "KeyServiceUnavailable", unavailable)),
			wantEvents: []string{"Warning KeyServiceUnavailable " + unavailable},
			wantErr:    "detail",
		},
	} {
		t.Run(name, func(t *testing.T) {
			newReconciler := func() (*world, controllers.Reconciler, *events.FakeRecorder) {
				w := newWorld(t, tc.objects, tc.stale)
				w.keys.Err = tc.keyErr
				recorder := events.NewFakeRecorder(10)
				return w, controllers.NewMasterKeyReconciler(w.client, w.direct, w.keys, w.clock, recorder), recorder
			}

			w, reconciler, _ := newReconciler()
			object, told, err := reconciler.Inner(t.Context(), masterKeyRequest)
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
			case !tc.wantTerminal && (err != nil) != (tc.wantErr != ""), tc.wantErr != "" && !strings.Contains(err.Error(), tc.wantErr):
				t.Errorf("got error %v, want %q", err, tc.wantErr)
			}
			key := &v1alpha1.MasterKey{}
			if err := w.direct.Get(t.Context(), masterKeyRequest.NamespacedName, key); client.IgnoreNotFound(err) != nil {
				t.Fatal(err)
			}
			if got := key.Annotations[v1alpha1.AnnotationKeyID]; got != tc.wantKeyID {
				t.Errorf("got annotation %q, want %q", got, tc.wantKeyID)
			}
			secrets := &corev1.SecretList{}
			if err := w.direct.List(t.Context(), secrets); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, secret := range secrets.Items {
				got = append(got, secret.Name)
			}
			if diff := cmp.Diff(tc.wantMaterial, got); diff != "" {
				t.Errorf("material (-want +got):\n%s", diff)
			}

			w, reconciler, recorder := newReconciler()
			wantFailure := tc.wantErr != "" || tc.wantTerminal
			result, err := reconciler.Reconcile(t.Context(), masterKeyRequest)
			if diff := cmp.Diff(ctrl.Result{}, result); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if (err != nil) != wantFailure {
				t.Errorf("Reconcile: got error %v", err)
			}
			wantWrites := tc.wantWrites
			if tc.wantStatus != nil {
				wantWrites = append(slices.Clip(wantWrites), "update status MasterKey")
			}
			if diff := cmp.Diff(wantWrites, w.faults.Writes()); diff != "" {
				t.Errorf("writes of Reconcile (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.wantEvents, drain(recorder.Events)); diff != "" {
				t.Errorf("events of Reconcile (-want +got):\n%s", diff)
			}
			if tc.stale != nil {
				return
			}
			if _, err := reconciler.Reconcile(t.Context(), masterKeyRequest); (err != nil) != wantFailure {
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

func TestMasterKeyShowsItsNewestVersions(t *testing.T) {
	w := newWorld(t, []client.Object{masterKey(readyKey)}, nil)
	reconciler := controllers.NewMasterKeyReconciler(w.client, w.direct, manyVersions{w.keys}, w.clock, events.NewFakeRecorder(10))
	if _, err := reconciler.Reconcile(t.Context(), masterKeyRequest); err != nil {
		t.Fatal(err)
	}
	key := &v1alpha1.MasterKey{}
	if err := w.direct.Get(t.Context(), masterKeyRequest.NamespacedName, key); err != nil {
		t.Fatal(err)
	}
	if *key.Status.VersionCount != 25 || *key.Status.PrimaryVersion != 25 || len(key.Status.Versions) != 20 || key.Status.Versions[19].Version != 6 {
		t.Errorf("got status %+v, want versions 25 to 6 of 25", key.Status)
	}
}

// manyVersions is a key service whose keys have 25 versions.
type manyVersions struct{ controllers.KeyService }

func (manyVersions) MasterKey(context.Context, controllers.MasterKeyRef) (controllers.MasterKeyInfo, error) {
	info := controllers.MasterKeyInfo{ARN: "arn", PrimaryVersion: 25, Terms: terms}
	for version := int32(25); version > 0; version-- {
		info.Versions = append(info.Versions, controllers.MasterKeyVersion{Version: version, CreatedAt: controllerstest.MadeAt})
	}
	return info, nil
}

// A failing write: what is told and what is tried again.
func TestStatusWriteFails(t *testing.T) {
	conflict := func(reason, message string) []client.Object {
		return []client.Object{masterKey(readyKey), request(), secretWith(keyUID, []byte(reason+message))}
	}
	for name, tc := range map[string]struct {
		objects []client.Object
		at      int
		wantErr error
	}{
		"after a Secret was made, the status is tried again and nothing is told": {
			objects: []client.Object{masterKey(readyKey), request(), material(keyUID, namespace, "orders-key")},
			at:      2, wantErr: controllerstest.ErrInjected,
		},
		"after a permanent error, the status is tried again all the same": {
			objects: append(conflict("x", "y"), material(keyUID, namespace, "orders-key")),
			at:      1, wantErr: controllerstest.ErrInjected,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tc.objects, nil)
			w.faults.At, w.faults.Fault = tc.at, controllerstest.FailBefore
			recorder := events.NewFakeRecorder(10)
			_, err := controllers.NewDataKeyRequestReconciler(w.client, w.direct, w.keys, w.clock, recorder).Reconcile(t.Context(), dataKeyRequest)
			if !errors.Is(err, tc.wantErr) || errors.Is(err, reconcile.TerminalError(nil)) {
				t.Errorf("got error %v, want %v and not terminal", err, tc.wantErr)
			}
			if diff := cmp.Diff([]string(nil), drain(recorder.Events)); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
		})
	}
}

// A status that was decided from an older reading must not overwrite what another manager wrote meanwhile.
func TestStatusOfAnOlderReadingIsRefused(t *testing.T) {
	blob := blobOf(t, keyUID, 1)
	fresh := request(withBlob(keyUID, blob))
	w := newWorld(t, []client.Object{masterKey(readyKey), fresh, secretWith(keyUID, blob), material(keyUID, namespace, "orders-key")},
		[]client.Object{request(withBlob(keyUID, []byte("older")), func(r *v1alpha1.DataKeyRequest) { r.ResourceVersion = "4" })})
	_, err := controllers.NewDataKeyRequestReconciler(w.client, w.direct, w.keys, w.clock, events.NewFakeRecorder(10)).Reconcile(t.Context(), dataKeyRequest)
	if !apierrors.IsConflict(err) {
		t.Errorf("got error %v, want a conflict", err)
	}
	got := &v1alpha1.DataKeyRequest{}
	if err := w.direct.Get(t.Context(), dataKeyRequest.NamespacedName, got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fresh.Status.Generations, got.Status.Generations); diff != "" {
		t.Errorf("generations (-want +got):\n%s", diff)
	}
}
