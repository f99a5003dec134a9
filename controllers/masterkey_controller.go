package controllers

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	v1alpha1ac "github.com/datakeys/datakeys/api/v1alpha1/applyconfiguration/api/v1alpha1"
)

// maxStatusVersions is how many versions a status shows. The material has all of them.
const maxStatusVersions = 20

// masterKeyReconciler sees to it that every MasterKey has material that opens. It never deletes any: a MasterKey that is gone
// leaves its material behind.
type masterKeyReconciler struct {
	client     client.Client // reads from the cache
	reader     client.Reader // reads from the API server
	keyService KeyService
	clock      clock.PassiveClock
	recorder   events.EventRecorder
}

// Secrets are watched, metadata only, so that material that was deleted or restored wakes its MasterKey; RBAC calls that
// list and watch. The material itself is the key service's.
//
// +kubebuilder:rbac:groups=datakeys.io,resources=masterkeys,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=datakeys.io,resources=masterkeys/status,verbs=patch
// +kubebuilder:rbac:groups="",resources=secrets,verbs=list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Reconcile brings one MasterKey to its material.
func (r *masterKeyReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	patch, told, err := r.reconcile(ctx, req)
	return ctrl.Result{}, finish(ctx, r.client, r.recorder, patch, told, err)
}

func (r *masterKeyReconciler) reconcile(ctx context.Context, req ctrl.Request) (runtime.ApplyConfiguration, []notice, error) {
	key := &v1alpha1.MasterKey{}
	if err := r.client.Get(ctx, req.NamespacedName, key); err != nil {
		return nil, nil, client.IgnoreNotFound(err) // gone: done, its material is kept
	}
	if _, found := key.Annotations[v1alpha1.AnnotationKeyID]; !found {
		// What follows makes material. The cache may be older than an annotation that says which material to use.
		if err := r.reader.Get(ctx, req.NamespacedName, key); err != nil {
			return nil, nil, client.IgnoreNotFound(err) // gone: done
		}
	}
	if !key.DeletionTimestamp.IsZero() {
		return nil, nil, nil // being deleted: done
	}

	info, err := r.ensureMaterial(ctx, key)
	problem, err := explain(err)
	if err != nil && problem == nil {
		return nil, nil, err // requeue with back-off
	}

	status, changed := r.status(key, info, problem)
	var told []notice
	switch {
	case problem == nil && info.Created:
		told = append(told, newNotice(key, corev1.EventTypeNormal, v1alpha1.ReasonCreated, "made version %d of master key %s", info.PrimaryVersion, key.KeyID()))
	case changed:
		told = append(told, readyEvent(key, problem, readyMasterKey(info)))
	}
	if equality.Semantic.DeepEqual(status, key.Status) {
		return nil, told, err // nothing changed: done
	}
	return applyMasterKeyStatus(key, status), told, err // apply patch, done or as explain says
}

// ensureMaterial finds the material of a MasterKey, and makes it where the object never had any. The order is what makes a
// crash harmless: the material is durable before the annotation names it, and it is found again by the same UID before the
// annotation is written.
func (r *masterKeyReconciler) ensureMaterial(ctx context.Context, key *v1alpha1.MasterKey) (MasterKeyInfo, error) {
	ref := masterKeyRef(key)
	if !v1alpha1.IsKeyID(ref.KeyID) {
		return MasterKeyInfo{}, permanentError{v1alpha1.ReasonInvalidKeyID, fmt.Sprintf(
			"the annotation %s is %q, which is not a lower-case UUID: set it to the key ID of this master key",
			v1alpha1.AnnotationKeyID, truncate(ref.KeyID))}
	}
	if _, found := key.Annotations[v1alpha1.AnnotationKeyID]; found {
		info, err := r.keyService.MasterKey(ctx, ref)
		return info, masterKeyError(ref, err)
	}
	if last := key.Status.KeyID; last != "" && last != ref.KeyID {
		// The status is no proof, but it is reason enough not to make another key.
		return MasterKeyInfo{}, permanentError{v1alpha1.ReasonInvalidKeyID, fmt.Sprintf(
			"the annotation %s is gone, but this was master key %s: set the annotation to that key ID", v1alpha1.AnnotationKeyID, last)}
	}

	info, err := r.keyService.EnsureMasterKey(ctx, ref)
	if err != nil {
		return info, masterKeyError(ref, err)
	}
	before := key.DeepCopy()
	metav1.SetMetaDataAnnotation(&key.ObjectMeta, v1alpha1.AnnotationKeyID, ref.KeyID)
	if err := r.client.Patch(ctx, key, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return info, fmt.Errorf("write the annotation %s: %w", v1alpha1.AnnotationKeyID, err)
	}
	return info, nil
}

// masterKeyError gives an error of the key service its fate.
func masterKeyError(ref MasterKeyRef, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrInvalidKeyID):
		return permanentError{v1alpha1.ReasonInvalidKeyID, fmt.Sprintf("%q is not a lower-case UUID", ref.KeyID)}
	case errors.Is(err, ErrMaterialMissing):
		return permanentError{v1alpha1.ReasonMaterialMissing, fmt.Sprintf("there is no material of master key %s: "+
			"restore the Secret %q in the namespace of the manager; a new key is never made in its place", ref.KeyID, ref.KeyID)}
	case errors.Is(err, ErrMaterialConflict):
		return permanentError{v1alpha1.ReasonMaterialConflict, fmt.Sprintf(
			"the material of master key %s belongs to a MasterKey of another namespace or name: this one cannot use it", ref.KeyID)}
	case errors.Is(err, ErrMaterialBroken):
		return permanentError{v1alpha1.ReasonMaterialBroken, fmt.Sprintf("the material of master key %s does not open: "+
			"restore the Secret %q in the namespace of the manager, and the sealing keys that sealed it; nothing was changed", ref.KeyID, ref.KeyID)}
	default:
		return keyServiceError{v1alpha1.ReasonKeyServiceUnavailable, "the key service cannot read its material now; it is tried again", err}
	}
}

// status is the next status of a MasterKey, and whether its Ready condition changed. What a failure did not look at stays, as
// long as it speaks of the same key.
func (r *masterKeyReconciler) status(key *v1alpha1.MasterKey, info MasterKeyInfo, problem *problem) (v1alpha1.MasterKeyStatus, bool) {
	next := *key.Status.DeepCopy()
	if keyID := key.KeyID(); next.KeyID != keyID && v1alpha1.IsKeyID(keyID) && (problem == nil || problem.reason != v1alpha1.ReasonInvalidKeyID) {
		next = v1alpha1.MasterKeyStatus{KeyID: keyID, Conditions: next.Conditions}
	}
	if problem == nil {
		next.ARN = info.ARN
		next.PrimaryVersion = new(info.PrimaryVersion)
		next.VersionCount = new(int32(len(info.Versions)))
		next.Versions = nil
		for _, version := range info.Versions[:min(len(info.Versions), maxStatusVersions)] {
			next.Versions = append(next.Versions, v1alpha1.MasterKeyVersion{
				Version:   version.Version,
				CreatedAt: metav1.NewTime(version.CreatedAt).Rfc3339Copy(),
			})
		}
	}
	next.ObservedGeneration = new(key.Generation)
	changed := setReady(&next.Conditions, r.clock, key.Generation, problem, readyMasterKey(info))
	return next, changed
}

func readyMasterKey(info MasterKeyInfo) string {
	return fmt.Sprintf("version %d is the primary version", info.PrimaryVersion)
}

// applyMasterKeyStatus is the whole status as an apply configuration: a field that is left out would be removed.
func applyMasterKeyStatus(key *v1alpha1.MasterKey, status v1alpha1.MasterKeyStatus) *v1alpha1ac.MasterKeyApplyConfiguration {
	apply := v1alpha1ac.MasterKeyStatus().
		WithConditions(applyReady(status.Conditions)).
		WithObservedGeneration(*status.ObservedGeneration)
	if status.KeyID != "" {
		apply.WithKeyID(status.KeyID)
	}
	if status.ARN != "" {
		apply.WithARN(status.ARN)
	}
	apply.PrimaryVersion, apply.VersionCount = status.PrimaryVersion, status.VersionCount
	for _, version := range status.Versions {
		apply.WithVersions(v1alpha1ac.MasterKeyVersion().WithVersion(version.Version).WithCreatedAt(version.CreatedAt))
	}
	return v1alpha1ac.MasterKey(key.Name, key.Namespace).
		WithUID(key.UID).
		WithResourceVersion(key.ResourceVersion).
		WithStatus(apply)
}

func masterKeyRef(key *v1alpha1.MasterKey) MasterKeyRef {
	return MasterKeyRef{KeyID: key.KeyID(), Namespace: key.Namespace, Name: key.Name}
}
