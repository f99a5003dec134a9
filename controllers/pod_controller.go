package controllers

import (
	"context"
	"fmt"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// podReconciler tells pods that wait for their data keys why they wait. It changes nothing.
//
// It sees pods that ask for the sidecar and are Pending, metadata only: the API server selects by label and phase, so that a
// pod that runs costs nothing here. A pod that is held back by its native sidecar is Pending.
type podReconciler struct {
	client   client.Client // reads from the cache
	recorder events.EventRecorder

	mutex sync.Mutex
	// last is what each waiting pod was told, so that it is told again only when that changes.
	last map[types.NamespacedName]toldPod
}

// toldPod is what a pod was told: a message for each DataKeyRequest that it waits for, by name.
type toldPod struct {
	uid      types.UID
	messages map[string]string
}

// +kubebuilder:rbac:groups="",resources=pods,verbs=list;watch
// +kubebuilder:rbac:groups=datakeys.io,resources=datakeyrequests,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Reconcile tells one pod why it waits.
func (r *podReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	told, err := r.reconcile(ctx, req)
	return ctrl.Result{}, finish(ctx, r.client, r.recorder, nil, told, err)
}

func (r *podReconciler) reconcile(ctx context.Context, req ctrl.Request) ([]notice, error) {
	pod := newPodMetadata()
	if err := r.client.Get(ctx, req.NamespacedName, pod); err != nil {
		if apierrors.IsNotFound(err) {
			r.remember(req.NamespacedName, toldPod{})
			return nil, nil // gone, or no longer Pending: done
		}
		return nil, err // requeue with back-off
	}
	if waits, _ := v1alpha1.WaitsForDataKeys(pod); !waits || !pod.DeletionTimestamp.IsZero() {
		return nil, nil // does not wait: done
	}

	var told []notice
	messages := map[string]string{}
	for _, name := range dataKeyNames(pod) {
		n, waits, err := r.waitingFor(ctx, pod, name)
		if err != nil {
			return nil, err // requeue with back-off
		}
		if waits {
			told = append(told, n)
			messages[name] = n.message
		}
	}
	last := r.remember(req.NamespacedName, toldPod{pod.UID, messages})
	told = slices.DeleteFunc(told, func(n notice) bool {
		return last.uid == pod.UID && last.messages[n.related.(client.Object).GetName()] == n.message
	})
	return told, nil // done: the DataKeyRequests are watched
}

// waitingFor says whether a pod has to wait for a DataKeyRequest, and why.
func (r *podReconciler) waitingFor(ctx context.Context, pod client.Object, name string) (notice, bool, error) {
	request := &v1alpha1.DataKeyRequest{}
	err := r.client.Get(ctx, client.ObjectKey{Namespace: pod.GetNamespace(), Name: name}, request)
	ready := readyOf(request.Status.Conditions)
	var why string
	switch {
	case apierrors.IsNotFound(err):
		request.Namespace, request.Name = pod.GetNamespace(), name
		why = "does not exist"
	case err != nil:
		return notice{}, false, err
	case request.Ready():
		return notice{}, false, nil
	case ready == nil, ready.Status == metav1.ConditionTrue:
		why = "is not Ready yet"
	default:
		why = fmt.Sprintf("is not Ready: %s: %s", ready.Reason, ready.Message)
	}
	n := newNotice(pod, corev1.EventTypeWarning, v1alpha1.ReasonWaitingForDataKeys, "DataKeyRequest %s/%s %s", request.Namespace, name, why)
	n.related = request
	return n, true, nil
}

// remember notes what a pod is told and returns what it was told before. A pod that waits for nothing is forgotten.
func (r *podReconciler) remember(name types.NamespacedName, told toldPod) toldPod {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	last := r.last[name]
	if len(told.messages) == 0 {
		delete(r.last, name)
		return last
	}
	if r.last == nil {
		r.last = map[types.NamespacedName]toldPod{}
	}
	r.last[name] = told
	return last
}

// dataKeyNames are the DataKeyRequests that a pod names, none where the webhook would refuse it.
func dataKeyNames(pod client.Object) []string {
	names, _ := v1alpha1.DataKeyNames(pod)
	return names
}

// newPodMetadata is a pod as this controller sees it: metadata only.
func newPodMetadata() *metav1.PartialObjectMetadata {
	pod := &metav1.PartialObjectMetadata{}
	pod.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	return pod
}
