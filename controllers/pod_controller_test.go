package controllers_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
)

var podRequest = ctrl.Request{NamespacedName: types.NamespacedName{Namespace: namespace, Name: "app"}}

func pod(uid, dataKeys string, options ...func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: namespace, Name: "app", UID: types.UID(uid),
		Labels:      map[string]string{"datakeys.io/inject": "true"},
		Annotations: map[string]string{"datakeys.io/data-keys": dataKeys},
	}}
	for _, option := range options {
		option(pod)
	}
	return pod
}

func TestPod(t *testing.T) {
	blob := blobOf(t, keyUID, 1)
	notReady := func(reason, message string) requestOption {
		return func(r *v1alpha1.DataKeyRequest) {
			meta.SetStatusCondition(&r.Status.Conditions, metav1.Condition{Type: "Ready", Status: "False", Reason: reason, Message: message, ObservedGeneration: 1})
		}
	}
	for name, tc := range map[string]struct {
		objects []client.Object
		want    []string
	}{
		"a pod that is gone is told nothing": {},
		"a pod whose data keys are Ready is told nothing": {
			objects: []client.Object{pod("1", "orders"), request(withBlob(keyUID, blob))},
		},
		"a pod that names no data key is told nothing": {
			objects: []client.Object{pod("1", " , ")},
		},
		"a missing DataKeyRequest is named": {
			objects: []client.Object{pod("1", "orders")},
			want:    []string{"Warning WaitingForDataKeys DataKeyRequest team-a/orders does not exist"},
		},
		"a DataKeyRequest that is not Ready is named with its reason": {
			objects: []client.Object{pod("1", "orders"), request(notReady("MasterKeyNotFound", "MasterKey team-a/orders-key does not exist"))},
			want:    []string{"Warning WaitingForDataKeys DataKeyRequest team-a/orders is not Ready: MasterKeyNotFound: MasterKey team-a/orders-key does not exist"},
		},
		"a DataKeyRequest that nobody looked at yet is named": {
			objects: []client.Object{pod("1", "orders"), request()},
			want:    []string{"Warning WaitingForDataKeys DataKeyRequest team-a/orders is not Ready yet"},
		},
		"a pod whose list is malformed, which has no sidecar, is told nothing": {
			objects: []client.Object{pod("1", "payments,payments")},
		},
		"all that are not Ready are named in the pod's order": {
			objects: []client.Object{pod("1", "payments, orders,audit"), request(withBlob(keyUID, blob))},
			want:    []string{"Warning WaitingForDataKeys DataKeyRequest team-a/payments does not exist", "Warning WaitingForDataKeys DataKeyRequest team-a/audit does not exist"},
		},
		"a pod that does not wait is told nothing": {
			objects: []client.Object{pod("1", "orders", func(p *corev1.Pod) { p.Annotations["datakeys.io/wait"] = "false" })},
		},
		"a pod that is being deleted is told nothing": {
			objects: []client.Object{pod("1", "orders", func(p *corev1.Pod) {
				p.DeletionTimestamp, p.Finalizers = &earlier, []string{"example.com/hold"}
			})},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, tc.objects, nil)
			recorder := events.NewFakeRecorder(10)
			reconciler := controllers.NewPodReconciler(w.client, recorder)
			for _, want := range [][]string{tc.want, nil} { // the same is told once
				result, err := reconciler.Reconcile(t.Context(), podRequest)
				if err != nil || result != (ctrl.Result{}) {
					t.Fatalf("got result %v, error %v", result, err)
				}
				if diff := cmp.Diff(want, drain(recorder.Events)); diff != "" {
					t.Errorf("events (-want +got):\n%s", diff)
				}
			}
			if writes := w.faults.Writes(); writes != nil {
				t.Errorf("got writes %v, want none", writes)
			}
		})
	}
}

func TestPodIsToldAgainOnlyWhenTheReasonChanges(t *testing.T) {
	w := newWorld(t, []client.Object{pod("1", "orders")}, nil)
	recorder := events.NewFakeRecorder(10)
	reconciler := controllers.NewPodReconciler(w.client, recorder)
	told := func(step string, want ...string) {
		t.Helper()
		if _, err := reconciler.Reconcile(t.Context(), podRequest); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(drain(recorder.Events), "\n"); got != strings.Join(want, "\n") {
			t.Errorf("%s: got %q, want %q", step, got, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	const missing = "Warning WaitingForDataKeys DataKeyRequest team-a/orders does not exist"

	told("missing", missing)
	told("still missing")
	fresh := request(func(r *v1alpha1.DataKeyRequest) { r.ResourceVersion = "" })
	must(w.direct.Create(t.Context(), fresh))
	told("there, not Ready", "Warning WaitingForDataKeys DataKeyRequest team-a/orders is not Ready yet")
	withBlob(keyUID, blobOf(t, keyUID, 1))(fresh)
	must(w.direct.Status().Update(t.Context(), fresh))
	told("Ready")
	must(w.direct.Delete(t.Context(), fresh))
	told("gone again", missing)
	must(w.direct.Delete(t.Context(), pod("1", "")))
	told("the pod is gone")
	must(w.direct.Create(t.Context(), pod("2", "orders")))
	told("another pod of the name", missing)
}
