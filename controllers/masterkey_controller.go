package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// maxStatusVersions is how many versions a status shows. The material has all of them.
const maxStatusVersions = 20

// masterKeyReconciler sees to it that every MasterKey has material that opens, that the material is rotated, and that it is kept
// for the waiting period where it is to be destroyed. Of a MasterKey that is gone the materialReconciler looks after the material.
type masterKeyReconciler struct {
	client     client.Client // reads from the cache
	reader     client.Reader // reads from the API server
	keyService KeyService
	clocks     clocks
	recorder   events.EventRecorder
}

// Secrets are watched, metadata only, so that material that was deleted or restored wakes its MasterKey; RBAC calls that
// list and watch. The material itself is the key service's.
//
// +kubebuilder:rbac:groups=datakeys.io,resources=masterkeys,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=datakeys.io,resources=masterkeys/status,verbs=update
// +kubebuilder:rbac:groups=datakeys.io,resources=datakeyrequests,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=secrets,verbs=list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Reconcile brings one MasterKey to its material.
func (r *masterKeyReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	result, object, told, err := r.reconcile(ctx, req)
	return result, finish(ctx, r.client, r.recorder, object, told, err)
}

// masterKeyView is what was found of a MasterKey and its material.
type masterKeyView struct {
	info     MasterKeyInfo
	aliases  []string // those that it has
	wrapped  wrapped
	rotation rotationPlan
	findings []finding
	told     []notice
	// failed is what went wrong with a rotation: the key is as usable as before.
	failed error
}

func (r *masterKeyReconciler) reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, client.Object, []notice, error) {
	key := &v1alpha1.MasterKey{}
	if err := r.client.Get(ctx, req.NamespacedName, key); err != nil {
		return ctrl.Result{}, nil, nil, client.IgnoreNotFound(err) // gone: done, its material is the materialReconciler's
	}
	if _, found := key.Annotations[v1alpha1.AnnotationKeyID]; !found {
		// What follows makes material. The cache may be older than an annotation that says which material to use.
		if err := r.reader.Get(ctx, req.NamespacedName, key); err != nil {
			return ctrl.Result{}, nil, nil, client.IgnoreNotFound(err) // gone: done
		}
	}
	if !key.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil, nil, nil // being deleted: done
	}

	view, err := r.bring(ctx, key)
	problem, err := explain(err)
	if err != nil && problem == nil {
		return ctrl.Result{}, nil, view.told, err // requeue with back-off
	}

	if problem != nil && problem.reason == v1alpha1.ReasonDestroyed {
		view.findings = destroyedFindings(key)
	}
	status, changed := r.status(key, view, problem)
	told := view.told
	if changed && len(view.told) == 0 {
		told = append(told, readyEvent(key, problem, readyMasterKey(view.info)))
	}
	told = append(told, troubles(key, key.Status.Conditions, status.Conditions)...)
	if rewrapped := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionRewrapped); rewrapped != nil && rewrapped.Status == metav1.ConditionTrue &&
		meta.IsStatusConditionFalse(key.Status.Conditions, v1alpha1.ConditionRewrapped) {
		told = append(told, newNotice(key, corev1.EventTypeNormal, rewrapped.Reason, "%s", rewrapped.Message))
	}
	if err == nil {
		err = view.failed // write status, requeue with back-off
	}
	result := ctrl.Result{RequeueAfter: pause(r.clocks.Now(), status.NextRotationTime.Time, looksAgain(r.clocks.Now(), view.info))}
	if err != nil {
		result = ctrl.Result{} // the back-off of the error
	}
	if equality.Semantic.DeepEqual(status, key.Status) {
		return result, nil, told, err // nothing changed: done
	}
	key.Status = status
	return result, key, told, err // write status, done or as explain says
}

// bring finds or makes the material of a MasterKey, and brings it to where the spec and the time want it.
func (r *masterKeyReconciler) bring(ctx context.Context, key *v1alpha1.MasterKey) (view masterKeyView, err error) {
	if view.info, err = r.ensureMaterial(ctx, key); err != nil {
		return view, err
	}
	if view.info.Created {
		view.told = append(view.told, newNotice(key, corev1.EventTypeNormal, v1alpha1.ReasonCreated,
			"made version %d of master key %s", view.info.PrimaryVersion, key.KeyID()))
	}
	unusable := r.reconcileDeletion(ctx, key, &view)
	r.reconcileRotation(ctx, key, &view)
	if err := r.look(ctx, key, &view); err != nil {
		return view, err
	}
	return view, unusable
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

	ensure := func() (MasterKeyInfo, error) {
		if key.Status.PrimaryVersion != nil { // it had material, which must not be made again
			return r.keyService.MasterKey(ctx, ref)
		}
		return r.keyService.EnsureMasterKey(ctx, ref, termsOf(key), v1alpha1.RequestedAt(key.Annotations[v1alpha1.AnnotationRotateRequestedAt]))
	}
	info, err := ensure()
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
	case errors.Is(err, ErrMaterialDestroyed):
		return pendingError{Reason: v1alpha1.ReasonDestroyed, Wanted: true, Message: fmt.Sprintf(
			"the material of master key %s was destroyed at the end of its waiting period: delete this MasterKey; what it wrapped opens no more", ref.KeyID)}
	case errors.Is(err, ErrMaterialConflict):
		return permanentError{v1alpha1.ReasonMaterialConflict, fmt.Sprintf(
			"the material of master key %s belongs to a MasterKey of another namespace or name: "+
				"use that one; to have a new key here, delete this MasterKey (annotated with %s=true) and make it again without the annotation %s",
			ref.KeyID, v1alpha1.AnnotationAllowDeletion, v1alpha1.AnnotationKeyID)}
	case errors.Is(err, ErrMaterialBroken):
		// It may be for want of a sealing key, whose Secret is not watched: it is tried again. The log says what is wrong.
		return keyServiceError{v1alpha1.ReasonMaterialBroken, fmt.Sprintf("the material of master key %s is damaged: "+
			"a version is missing or does not open, or its record does not fit: restore the Secret %q in the namespace of the manager, "+
			"or the sealing keys that sealed it; nothing was changed", ref.KeyID, ref.KeyID), err}
	default:
		return keyServiceError{v1alpha1.ReasonKeyServiceUnavailable, "the key service cannot read its material now; it is tried again", err}
	}
}

// status is the next status of a MasterKey, and whether its Ready condition changed. What a failure did not look at stays, as
// long as it speaks of the same key.
func (r *masterKeyReconciler) status(key *v1alpha1.MasterKey, view masterKeyView, problem *problem) (v1alpha1.MasterKeyStatus, bool) {
	next := *key.Status.DeepCopy()
	_, annotated := key.Annotations[v1alpha1.AnnotationKeyID] // without it, a key that has no material yet has no key ID
	if keyID := key.KeyID(); next.KeyID != keyID && v1alpha1.IsKeyID(keyID) && annotated {
		next = v1alpha1.MasterKeyStatus{KeyID: keyID, Conditions: next.Conditions}
	}
	next.State = key.WantedState()
	next.Aliases = slices.DeleteFunc(next.Aliases, func(alias string) bool { return !slices.Contains(key.Spec.Aliases, alias) })
	next.NextRotationTime, next.DeletionTime = metav1.Time{}, metav1.Time{}
	if problem != nil && problem.reason == v1alpha1.ReasonDestroyed {
		next.State = v1alpha1.MasterKeyStateDestroyed
		next.Aliases, next.Versions, next.PrimaryVersion, next.VersionCount = nil, nil, nil, nil
		next.DataKeys, next.DataKeysBehind = nil, nil
	}
	if info := view.info; info.PrimaryVersion > 0 {
		next.ARN = info.ARN
		next.PrimaryVersion = new(info.PrimaryVersion)
		next.VersionCount = new(int32(len(info.Versions)))
		next.Versions = view.versions()
		next.LastRotationTime = timeOf(info.PrimarySince)
		next.NextRotationTime = timeOf(view.rotation.next)
		next.RotateRequestedAt = info.RotateRequestedAt
		next.DeletionTime = timeOf(info.DeletionTime)
		next.Aliases = view.aliases
		next.DataKeys, next.DataKeysBehind = new(view.wrapped.requests), new(view.wrapped.behind)
	}
	next.ObservedGeneration = new(key.Generation)
	changed := setConditions(&next.Conditions, r.clocks, key.Generation, problem, readyMasterKey(view.info), view.findings)
	return next, changed
}

// versions are the newest versions as the status shows them.
func (v masterKeyView) versions() []v1alpha1.MasterKeyVersion {
	var versions []v1alpha1.MasterKeyVersion
	for _, version := range v.info.Versions[:min(len(v.info.Versions), maxStatusVersions)] {
		state := v1alpha1.VersionStatePrevious
		switch {
		case version.Version == v.info.PrimaryVersion:
			state = v1alpha1.VersionStatePrimary
		case version.Version > v.info.PrimaryVersion:
			state = v1alpha1.VersionStatePending
		}
		versions = append(versions, v1alpha1.MasterKeyVersion{
			Version: version.Version, CreatedAt: timeOf(version.CreatedAt), State: state, DataKeys: new(v.wrapped.byVersion[version.Version]),
		})
	}
	return versions
}

func readyMasterKey(info MasterKeyInfo) string {
	return fmt.Sprintf("version %d is the primary version", info.PrimaryVersion)
}

// timeOf is a moment as a status has it, to the second.
func timeOf(t time.Time) metav1.Time {
	if t.IsZero() {
		return metav1.Time{}
	}
	return metav1.NewTime(t).Rfc3339Copy()
}

func masterKeyRef(key *v1alpha1.MasterKey) MasterKeyRef {
	return MasterKeyRef{KeyID: key.KeyID(), Namespace: key.Namespace, Name: key.Name}
}
