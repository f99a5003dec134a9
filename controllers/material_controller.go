package controllers

import (
	"context"
	"errors"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// materialReconciler looks after material whose MasterKey is gone, by whatever path: the object, its namespace or the whole kind was
// deleted. The material is kept for the waiting period that its MasterKey stated last, and then destroyed. It works on the
// Secrets with material, which are named by their key IDs.
type materialReconciler struct {
	client     client.Client // reads from the cache
	reader     client.Reader // reads from the API server
	keyService KeyService
	clocks     clocks
	recorder   events.EventRecorder
}

// +kubebuilder:rbac:groups=datakeys.io,resources=masterkeys;datakeyrequests,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Reconcile looks after the material of one key ID.
func (r *materialReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	after, told, err := r.reconcile(ctx, req.Name)
	secret := newSecretMetadata()
	if len(told) > 0 && r.client.Get(ctx, req.NamespacedName, secret) != nil {
		told = nil // gone meanwhile
	}
	for i := range told {
		told[i].object = secret
	}
	if err != nil {
		after = 0 // the back-off of the error
	}
	return ctrl.Result{RequeueAfter: after}, finish(ctx, r.client, r.recorder, nil, told, err)
}

func (r *materialReconciler) reconcile(ctx context.Context, keyID string) (time.Duration, []notice, error) {
	if known, err := r.hasMasterKey(ctx, keyID); known || err != nil {
		return maxPause, nil, err // look again: it may turn out to be another's; or requeue with back-off
	}
	ref, info, err := r.keyService.OwnerOf(ctx, keyID)
	destroyed := errors.Is(err, ErrMaterialDestroyed)
	switch {
	case errors.Is(err, ErrMaterialMissing), errors.Is(err, ErrMaterialBroken):
		return 0, nil, nil // gone, or nothing that could be destroyed with good reason: done
	case err != nil && !destroyed:
		return 0, nil, err // requeue with back-off
	}
	if there, err := r.isThere(ctx, ref); there || err != nil {
		return 0, nil, err // done, or requeue with back-off
	}
	if destroyed {
		return 0, nil, r.keyService.ForgetMasterKey(ctx, keyID) // done, or requeue with back-off
	}

	var told []notice
	if info.DeletionTime.IsZero() {
		_, began, err := r.clocks.both(ctx)
		if err != nil {
			return 0, nil, err // requeue with back-off
		}
		if info, err = r.keyService.RecordDeletion(ctx, ref, info.Terms, began); err != nil {
			return 0, nil, err // requeue with back-off
		}
		told = append(told, newNotice(nil, corev1.EventTypeWarning, v1alpha1.ReasonOrphaned,
			"MasterKey %s/%s is gone: its material, key %s, is destroyed at %s. To have the key back, apply the MasterKey again with its annotation %s: %s",
			ref.Namespace, ref.Name, keyID, info.DeletionTime.UTC().Format(time.RFC3339), v1alpha1.AnnotationKeyID, keyID))
	}
	now := r.clocks.Now()
	again := pause(now, looksAgain(now, info))
	if now.Before(info.DeletionTime) {
		return again, told, nil // wait for the end of the period
	}
	gone, err := destroy(ctx, r.keyService, r.reader, r.clocks, ref, info, func() error {
		there, err := r.isThere(ctx, ref)
		if there {
			err = errors.New("the MasterKey is back: its material is not destroyed")
		}
		return err
	})
	if blocked, ok := errors.AsType[pendingError](err); ok {
		told = append(told, newNotice(nil, corev1.EventTypeWarning, blocked.Reason, "%s", blocked.Message))
		return maxPause, told, nil // each look tells of it
	}
	if err != nil || !gone {
		return again, told, err // requeue with back-off, or look again when the clocks may agree
	}
	return 0, told, r.keyService.ForgetMasterKey(ctx, keyID) // done, or requeue with back-off
}

// hasMasterKey reports whether a MasterKey has the key ID and its material, by the cache: of most keys that is all there is to know.
func (r *materialReconciler) hasMasterKey(ctx context.Context, keyID string) (bool, error) {
	var keys v1alpha1.MasterKeyList
	if err := r.client.List(ctx, &keys, client.MatchingFields{indexKeyID: keyID}); err != nil {
		return false, err
	}
	return slices.ContainsFunc(keys.Items, func(key v1alpha1.MasterKey) bool {
		ready := readyOf(key.Status.Conditions)
		return ready == nil || ready.Reason != v1alpha1.ReasonMaterialConflict
	}), nil
}

// isThere reports whether the MasterKey that the material belongs to is there, and is that key. The cache may be older than it.
func (r *materialReconciler) isThere(ctx context.Context, ref MasterKeyRef) (bool, error) {
	key := &v1alpha1.MasterKey{}
	err := r.reader.Get(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, key)
	switch {
	case apierrors.IsNotFound(err), meta.IsNoMatchError(err): // the object, or its whole kind
		return false, nil
	case err != nil:
		return false, err
	default:
		return key.KeyID() == ref.KeyID, nil
	}
}
