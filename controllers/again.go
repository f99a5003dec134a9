package controllers

import (
	"context"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// cacheDelay is after how long what was written has come back to the cache, as a rule.
const cacheDelay = 200 * time.Millisecond

// again is a reconciler for which it is no failure that it decided from an older reading, as after a write of its own that is not in the
// cache yet: its write was refused, and it begins again. Logs and metrics of errors are for what somebody may have to mend.
func again(r reconcile.Reconciler) reconcile.Reconciler {
	return reconcile.Func(func(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
		result, err := r.Reconcile(ctx, req)
		if fromOlderReading(err) {
			return ctrl.Result{RequeueAfter: cacheDelay}, nil
		}
		return result, err
	})
}

// fromOlderReading says that an error is a conflict and nothing else. What the key service could not do is not of that kind.
func fromOlderReading(err error) bool {
	type joined interface {
		error
		Unwrap() []error
	}
	if _, ok := errors.AsType[keyServiceError](err); ok {
		return false
	}
	if all, ok := errors.AsType[joined](err); ok {
		for _, one := range all.Unwrap() {
			if !fromOlderReading(one) {
				return false
			}
		}
	}
	return apierrors.IsConflict(err)
}
