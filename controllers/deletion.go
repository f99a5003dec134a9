package controllers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// secretFinalizer holds a DataKeyRequest whose deletion policy is Delete until its Secret is deleted.
const secretFinalizer = "datakeys.io/data-key-secret"

// reconcileFinalizer sets the finalizer before there is a Secret to delete, and takes it away when the policy is Retain.
func (r *dataKeyRequestReconciler) reconcileFinalizer(ctx context.Context, request *v1alpha1.DataKeyRequest) error {
	before := request.DeepCopy()
	var changed bool
	if request.Spec.DeletionPolicy == v1alpha1.DeletionPolicyDelete {
		changed = controllerutil.AddFinalizer(request, secretFinalizer)
	} else {
		changed = controllerutil.RemoveFinalizer(request, secretFinalizer)
	}
	if !changed {
		return nil
	}
	return r.patchFinalizers(ctx, before, request)
}

// reconcileDeletion deletes the Secret of a request that asks for it, and lets the request go.
func (r *dataKeyRequestReconciler) reconcileDeletion(ctx context.Context, request *v1alpha1.DataKeyRequest) ([]notice, error) {
	if !controllerutil.ContainsFinalizer(request, secretFinalizer) {
		return nil, nil // done
	}
	// A change of mind may be newer than the cache, and what follows cannot be undone.
	deleted := request.UID
	if err := r.reader.Get(ctx, client.ObjectKeyFromObject(request), request); err != nil {
		return nil, client.IgnoreNotFound(err) // gone: done
	}
	if request.UID != deleted {
		return nil, nil // made again since: the Secret is that request's now, wait for the watch
	}
	var told []notice
	if request.Spec.DeletionPolicy == v1alpha1.DeletionPolicyDelete {
		var err error
		if told, err = r.deleteSecret(ctx, request); err != nil {
			return nil, err // requeue with back-off
		}
	}
	before := request.DeepCopy()
	if !controllerutil.RemoveFinalizer(request, secretFinalizer) {
		return told, nil // done
	}
	return told, r.patchFinalizers(ctx, before, request) // done, or requeue with back-off
}

// deleteSecret deletes the Secret if it holds this request's data key, and leaves it alone otherwise.
func (r *dataKeyRequestReconciler) deleteSecret(ctx context.Context, request *v1alpha1.DataKeyRequest) ([]notice, error) {
	secret, found, err := readSecret(ctx, r.reader, request)
	if err != nil || !found {
		return nil, err
	}
	owned, err := r.holdsDataKey(ctx, request, secret)
	if err != nil {
		return nil, err
	}
	if !owned {
		return []notice{newNotice(request, corev1.EventTypeWarning, v1alpha1.ReasonSecretConflict,
			"Secret %q is kept: it does not hold the data key of this request", secret.Name)}, nil
	}
	err = r.client.Delete(ctx, secret, client.Preconditions{UID: &secret.UID, ResourceVersion: &secret.ResourceVersion})
	return nil, client.IgnoreNotFound(err)
}

// holdsDataKey says whether a Secret holds the data key of a request: the blob of its status, or one that opens in its scope
// even where its MasterKey is gone.
func (r *dataKeyRequestReconciler) holdsDataKey(ctx context.Context, request *v1alpha1.DataKeyRequest, secret *corev1.Secret) (bool, error) {
	if secret.Type != v1alpha1.SecretTypeDataKey {
		return false, nil
	}
	blob := secret.Data[v1alpha1.SecretKeyCiphertextBlob]
	for _, generation := range request.Status.Generations {
		if bytes.Equal(generation.CiphertextBlob, blob) {
			return true, nil
		}
	}
	keyID := string(secret.Data[v1alpha1.SecretKeyKeyID])
	if !v1alpha1.IsKeyID(keyID) || len(blob) == 0 {
		return false, nil
	}
	namespace, name := masterKeyName(request)
	key := dataKeyOf(request, MasterKeyRef{KeyID: keyID, Namespace: namespace, Name: name})
	_, err := r.keyService.OpenDataKey(ctx, key, blob)
	switch {
	case err == nil:
		return true, nil
	case slices.ContainsFunc([]error{
		ErrBlobRefused, ErrKeyVersionMissing, ErrMaterialMissing, ErrMaterialConflict, ErrMaterialBroken, ErrMaterialDestroyed, ErrUnsupported,
	}, func(opensNoMore error) bool { return errors.Is(err, opensNoMore) }):
		return false, nil
	default:
		return false, err
	}
}

func (r *dataKeyRequestReconciler) patchFinalizers(ctx context.Context, before, after *v1alpha1.DataKeyRequest) error {
	// A merge patch replaces the whole list: the resourceVersion makes it fail where the list is another one by now.
	if err := r.client.Patch(ctx, after, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); err != nil {
		return fmt.Errorf("change the finalizers: %w", err)
	}
	return nil
}
