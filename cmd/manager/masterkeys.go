package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/kms"
)

// indexAlias finds MasterKeys in the cache by the aliases that they claim.
const indexAlias = "datakeys.io/alias"

// livePage is how many MasterKeys are read from the API server at once, where all of a namespace are needed.
const livePage = 500

// masterKeys finds MasterKeys for the key service in the manager's cache and, because the cache of a replica may not have
// heard of a key yet, on a miss at the API server.
type masterKeys struct {
	cache, live client.Reader
}

func newMasterKeys(ctx context.Context, mgr ctrl.Manager) (masterKeys, error) {
	err := mgr.GetFieldIndexer().IndexField(ctx, &v1alpha1.MasterKey{}, indexAlias, func(o client.Object) []string {
		return o.(*v1alpha1.MasterKey).Spec.Aliases
	})
	if err != nil {
		return masterKeys{}, fmt.Errorf("index %s: %w", indexAlias, err)
	}
	return masterKeys{cache: mgr.GetClient(), live: mgr.GetAPIReader()}, nil
}

var _ kms.MasterKeys = masterKeys{}

// ByName implements kms.MasterKeys.
func (m masterKeys) ByName(ctx context.Context, namespace, name string) (kms.MasterKey, error) {
	var o v1alpha1.MasterKey
	key := client.ObjectKey{Namespace: namespace, Name: name}
	// Every call of a pod comes here: no copy is made of what is only read.
	err := m.cache.Get(ctx, key, &o, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) {
		err = m.live.Get(ctx, key, &o)
	}
	if apierrors.IsNotFound(err) {
		return kms.MasterKey{}, fmt.Errorf("%s: %w", key, kms.ErrMasterKeyNotFound)
	}
	if err != nil {
		return kms.MasterKey{}, fmt.Errorf("read MasterKey %s: %w", key, err)
	}
	return masterKey(&o), nil
}

// ByAlias implements kms.MasterKeys.
func (m masterKeys) ByAlias(ctx context.Context, namespace, alias string) (kms.MasterKey, error) {
	var list v1alpha1.MasterKeyList
	err := m.cache.List(ctx, &list, client.InNamespace(namespace), client.MatchingFields{indexAlias: alias}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return kms.MasterKey{}, fmt.Errorf("read the MasterKeys of alias %s/%s: %w", namespace, alias, err)
	}
	first, found := holder(list.Items, alias)
	if found {
		return first, nil
	}
	// The API server has no index of aliases, so all MasterKeys of the namespace are read.
	for next, more := "", true; more; more = next != "" {
		var page v1alpha1.MasterKeyList
		if err := m.live.List(ctx, &page, client.InNamespace(namespace), client.Limit(livePage), client.Continue(next)); err != nil {
			return kms.MasterKey{}, fmt.Errorf("read the MasterKeys of namespace %s: %w", namespace, err)
		}
		if k, ok := holder(page.Items, alias); ok && (!found || k.Before(first)) {
			first, found = k, true
		}
		next = page.Continue
	}
	if !found {
		return kms.MasterKey{}, fmt.Errorf("alias %s/%s: %w", namespace, alias, kms.ErrMasterKeyNotFound)
	}
	return first, nil
}

// holder returns the oldest of the MasterKeys that claim an alias.
func holder(items []v1alpha1.MasterKey, alias string) (first kms.MasterKey, found bool) {
	for i := range items {
		if !slices.Contains(items[i].Spec.Aliases, alias) {
			continue
		}
		if k := masterKey(&items[i]); !found || k.Before(first) {
			first, found = k, true
		}
	}
	return first, found
}

// List implements kms.MasterKeys.
func (m masterKeys) List(ctx context.Context, namespace string) ([]kms.MasterKey, error) {
	var list v1alpha1.MasterKeyList
	if err := m.cache.List(ctx, &list, client.InNamespace(namespace), client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("read the MasterKeys of namespace %s: %w", namespace, err)
	}
	keys := make([]kms.MasterKey, len(list.Items))
	for i := range list.Items {
		keys[i] = masterKey(&list.Items[i])
	}
	slices.SortFunc(keys, func(a, b kms.MasterKey) int { return strings.Compare(a.Name, b.Name) })
	return keys, nil
}

// masterKey is what the key service needs of o. Its slices are o's own.
func masterKey(o *v1alpha1.MasterKey) kms.MasterKey {
	return kms.MasterKey{
		KeyID:       o.KeyID(),
		Namespace:   o.Namespace,
		Name:        o.Name,
		UID:         string(o.UID),
		State:       kms.KeyStateEnabled, // until spec has a state
		Description: o.Spec.Description,
		Aliases:     o.Spec.Aliases,
		CreatedAt:   o.CreationTimestamp.Time,
	}
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
