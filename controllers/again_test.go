package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
)

func TestAgain(t *testing.T) {
	conflict := apierrors.NewConflict(schema.GroupResource{Resource: "masterkeys"}, "orders", errors.New("modified"))
	other := errors.New("the API server is away")
	later := ctrl.Result{RequeueAfter: time.Hour}
	for name, tc := range map[string]struct {
		err   error
		again bool
	}{
		"what went well stays as it is":             {nil, false},
		"a conflict is begun again":                 {conflict, true},
		"so is one that was wrapped":                {fmt.Errorf("change the finalizers: %w", conflict), true},
		"so is one that was joined with nothing":    {errors.Join(nil, conflict), true},
		"so are two":                                {errors.Join(conflict, conflict), true},
		"one beside another failure is told":        {errors.Join(other, conflict), false},
		"one before another failure is told":        {fmt.Errorf("both: %w", errors.Join(conflict, other)), false},
		"another failure is told":                   {other, false},
		"what is not found is told":                 {apierrors.NewNotFound(schema.GroupResource{}, "orders"), false},
		"a conflict that the key service had is":    {controllers.KeyServiceError(conflict), false},
		"and so it is beside one with a status":     {errors.Join(controllers.KeyServiceError(conflict), conflict), false},
		"what is wrong for good is told":            {reconcile.TerminalError(other), false},
		"what is wrong for good with a status, too": {errors.Join(reconcile.TerminalError(other), conflict), false},
	} {
		t.Run(name, func(t *testing.T) {
			r := controllers.Again(reconcile.Func(func(context.Context, ctrl.Request) (ctrl.Result, error) { return later, tc.err }))
			result, err := r.Reconcile(t.Context(), dataKeyRequest)
			if tc.again {
				if err != nil || result.RequeueAfter <= 0 || result.RequeueAfter > time.Second {
					t.Errorf("got %v and error %v, want to begin again soon", result, err)
				}
				return
			}
			if !errors.Is(err, tc.err) || result != later {
				t.Errorf("got %v and error %v, want %v and %v", result, err, later, tc.err)
			}
		})
	}
}

// A status that was decided from an older reading is refused, and that is nothing to tell of.
func TestAnOlderReadingIsNoFailure(t *testing.T) {
	blob := blobOf(t, keyUID, 1)
	w := newWorld(t, []client.Object{masterKey(readyKey), request(withBlob(keyUID, blob)), secretWith(keyUID, blob), material(keyUID, namespace, "orders-key")},
		[]client.Object{request(withBlob(keyUID, []byte("older")), func(r *v1alpha1.DataKeyRequest) { r.ResourceVersion = "4" })})
	r := controllers.NewDataKeyRequestReconciler(w.client, w.direct, w.keys, w.clock, events.NewFakeRecorder(10))
	if result, err := controllers.Again(r).Reconcile(t.Context(), dataKeyRequest); err != nil || result.RequeueAfter == 0 {
		t.Errorf("got %v and error %v, want to begin again", result, err)
	}
}
