package controllers_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
)

func TestAMasterKeyIsReadOnceASecond(t *testing.T) {
	for name, tc := range map[string]struct {
		first, then func() client.Object // what is read; nil: the MasterKey
		pass        time.Duration
		fail        bool // the first time
		want        int  // reads
	}{
		"again within the second":       {pass: 999 * time.Millisecond, want: 1},
		"again after a second":          {pass: time.Second, want: 2},
		"again after the clock was set": {pass: -time.Nanosecond, want: 2},
		"again after a failure":         {fail: true, want: 2},
		"another one": {want: 2, then: func() client.Object {
			return masterKey(func(key *v1alpha1.MasterKey) { key.Name = "other" })
		}},
		"a request twice": {want: 2, first: func() client.Object { return request() },
			then: func() client.Object { return request() }},
	} {
		t.Run(name, func(t *testing.T) {
			world := newWorld(t, []client.Object{masterKey(), masterKey(func(key *v1alpha1.MasterKey) { key.Name = "other" }), request()}, nil)
			reads := 0
			reader := controllers.NewRecent(interceptor.NewClient(world.direct, interceptor.Funcs{
				Get: func(ctx context.Context, c client.WithWatch, name client.ObjectKey, object client.Object, options ...client.GetOption) error {
					if reads++; reads == 1 && tc.fail {
						return apierrors.NewInternalError(errors.New("no answer"))
					}
					return c.Get(ctx, name, object, options...)
				},
			}), world.clock)
			read := func(what func() client.Object, fails bool) {
				t.Helper()
				want := client.Object(masterKey())
				if what != nil {
					want = what()
				}
				got := want.DeepCopyObject().(client.Object)
				got.SetLabels(map[string]string{"before": "it was read"})
				switch err := reader.Get(t.Context(), client.ObjectKeyFromObject(want), got); {
				case (err != nil) != fails:
					t.Fatalf("got error %v", err)
				case err == nil:
					if diff := cmp.Diff(want.GetUID(), got.GetUID()); diff != "" {
						t.Errorf("UID (-want +got):\n%s", diff)
					}
					if got.GetLabels() != nil || got.GetResourceVersion() == "" {
						t.Errorf("got labels %v and resourceVersion %q, want those of the object", got.GetLabels(), got.GetResourceVersion())
					}
				}
			}
			read(tc.first, tc.fail)
			world.clock.SetTime(world.clock.Now().Add(tc.pass))
			read(tc.then, false)
			if reads != tc.want {
				t.Errorf("got %d reads, want %d", reads, tc.want)
			}
		})
	}
}

// Thousands of requests that become Ready at once are not thousands of events, and hide no warning.
func TestEventsAreRationed(t *testing.T) {
	const many = 10_000
	told := events.NewFakeRecorder(2 * many)
	recorder := controllers.NewRationed(told)
	for range many {
		recorder.Eventf(request(), nil, corev1.EventTypeNormal, v1alpha1.ReasonCreated, "Reconcile", "made")
	}
	recorder.Eventf(request(), nil, corev1.EventTypeWarning, v1alpha1.ReasonSecretConflict, "Reconcile", "in the way")
	close(told.Events)
	got := map[string]int{}
	for event := range told.Events {
		kind, _, _ := strings.Cut(event, " ")
		got[kind]++
	}
	if normal := got[corev1.EventTypeNormal]; normal < 100 || normal >= many/2 {
		t.Errorf("got %d events of %d, want 100 and a few more", normal, many)
	}
	if got[corev1.EventTypeWarning] != 1 {
		t.Errorf("got %d warnings, want 1", got[corev1.EventTypeWarning])
	}
}
