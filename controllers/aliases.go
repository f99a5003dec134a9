package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// heldAliases are the aliases of a MasterKey's spec that it has, as the key service tells it too.
func (r *masterKeyReconciler) heldAliases(ctx context.Context, key *v1alpha1.MasterKey) ([]string, error) {
	var held []string
	for _, alias := range key.Spec.Aliases {
		var claimants v1alpha1.MasterKeyList
		err := r.client.List(ctx, &claimants, client.InNamespace(key.Namespace), client.MatchingFields{IndexAlias: alias}, client.UnsafeDisableDeepCopy)
		if err != nil {
			return nil, fmt.Errorf("read the MasterKeys of alias %s: %w", alias, err)
		}
		if holder := v1alpha1.AliasHolder(alias, claimants.Items); holder != nil && holder.Name == key.Name {
			held = append(held, alias)
		}
	}
	return held, nil
}

func aliasFinding(key *v1alpha1.MasterKey, held []string) finding {
	f := finding{kind: v1alpha1.ConditionAliasesHeld}
	lacking := slices.DeleteFunc(slices.Clone(key.Spec.Aliases), func(alias string) bool { return slices.Contains(held, alias) })
	switch {
	case len(key.Spec.Aliases) == 0: // there is nothing to tell
	case len(lacking) == 0:
		f.holds, f.reason, f.message = true, v1alpha1.ReasonAliasesHeld, "the key has all aliases of its spec"
	default:
		f.reason = v1alpha1.ReasonAliasConflict
		f.message = fmt.Sprintf("another MasterKey of namespace %s has %s: take the alias out of spec.aliases of one of the two",
			key.Namespace, strings.Join(lacking, ", "))
	}
	return f
}

// claimants wakes the MasterKeys that claim an alias that another one claims, or claimed until now.
func (w watches) claimants(ctx context.Context, object client.Object) []ctrl.Request {
	var requests []ctrl.Request
	for _, alias := range object.(*v1alpha1.MasterKey).Spec.Aliases {
		for _, r := range w.list(ctx, &v1alpha1.MasterKeyList{}, client.InNamespace(object.GetNamespace()), client.MatchingFields{IndexAlias: alias}) {
			if r.Name != object.GetName() && !slices.Contains(requests, r) {
				requests = append(requests, r)
			}
		}
	}
	return requests
}

func aliasIndex(object client.Object) []string { return object.(*v1alpha1.MasterKey).Spec.Aliases }
