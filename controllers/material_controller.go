package controllers

import (
	"context"
	"errors"
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
	return ctrl.Result{RequeueAfter: after}, finish(ctx, r.client, r.recorder, nil, told, err)
}

func (r *materialReconciler) reconcile(ctx context.Context, keyID string) (time.Duration, []notice, error) {
	var keys v1alpha1.MasterKeyList
	if err := r.client.List(ctx, &keys, client.MatchingFields{indexKeyID: keyID}); err != nil {
		return 0, nil, err
	}
	for i := range keys.Items {
		if ready := readyOf(keys.Items[i].Status.Conditions); ready == nil || ready.Reason != v1alpha1.ReasonMaterialConflict {
			return 0, nil, nil // its MasterKey is there: done
		}
	}
	ref, info, err := r.keyService.OwnerOf(ctx, keyID)
	destroyed := errors.Is(err, ErrMaterialDestroyed)
	switch {
	case errors.Is(err, ErrMaterialMissing), errors.Is(err, ErrMaterialBroken):
		return 0, nil, nil // gone, or nothing that could be destroyed with good reason: done
	case err != nil && !destroyed:
		return 0, nil, err // requeue with back-off
	}
	// The cache may be older than the MasterKey.
	key := &v1alpha1.MasterKey{}
	switch err := r.reader.Get(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, key); {
	case err == nil && key.KeyID() == keyID:
		return 0, nil, nil // done
	case err != nil && !apierrors.IsNotFound(err) && !meta.IsNoMatchError(err):
		return 0, nil, err // requeue with back-off
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
	gone, err := destroy(ctx, r.keyService, r.reader, r.clocks, ref, info)
	if blocked, ok := errors.AsType[pendingError](err); ok {
		told = append(told, newNotice(nil, corev1.EventTypeWarning, blocked.Reason, "%s", blocked.Message))
		return maxPause, told, nil // each look tells of it
	}
	if err != nil || !gone {
		return again, told, err // requeue with back-off, or look again when the clocks may agree
	}
	return 0, told, r.keyService.ForgetMasterKey(ctx, keyID) // done, or requeue with back-off
}
