package main

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/kms"
)

// masterKeys finds MasterKeys for the key service in the manager's cache and, because the cache of a replica may not have
// heard of a key yet, on a miss at the API server.
type masterKeys struct {
	cache, live client.Reader
}

func (m masterKeys) ByName(ctx context.Context, namespace, name string) (kms.MasterKey, error) {
	var o v1alpha1.MasterKey
	key := client.ObjectKey{Namespace: namespace, Name: name}
	err := m.cache.Get(ctx, key, &o)
	if apierrors.IsNotFound(err) {
		err = m.live.Get(ctx, key, &o)
	}
	if apierrors.IsNotFound(err) {
		return kms.MasterKey{}, fmt.Errorf("%s: %w", key, kms.ErrMasterKeyNotFound)
	}
	if err != nil {
		return kms.MasterKey{}, fmt.Errorf("read MasterKey %s: %w", key, err)
	}
	return kms.MasterKey{KeyID: o.KeyID(), Namespace: o.Namespace, Name: o.Name}, nil
}

// dataKeyRequests tells the pod injector, from the manager's cache, whether a pod's data keys are there.
type dataKeyRequests struct {
	cache client.Reader
}

func (d dataKeyRequests) Ready(ctx context.Context, namespace, name string) (found, ready bool, reason string) {
	var o v1alpha1.DataKeyRequest
	if err := d.cache.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &o); err != nil {
		return false, false, "" // an error of the cache is a request that it does not hold
	}
	if condition := meta.FindStatusCondition(o.Status.Conditions, v1alpha1.ConditionReady); condition != nil {
		reason = condition.Reason
	}
	return true, o.Ready(), reason
}
