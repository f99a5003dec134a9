package controllers

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
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

type toldPod struct {
	uid     types.UID
	message string
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
	if !pod.DeletionTimestamp.IsZero() || pod.Annotations[v1alpha1.AnnotationWait] == "false" {
		return nil, nil // does not wait: done
	}

	var problems []string
	for _, name := range dataKeyNames(pod) {
		problem, err := r.problemOf(ctx, types.NamespacedName{Namespace: pod.Namespace, Name: name})
		if err != nil {
			return nil, err // requeue with back-off
		}
		if problem != "" {
			problems = append(problems, problem)
		}
	}
	message := strings.Join(problems, "; ")
	if !r.remember(req.NamespacedName, toldPod{pod.UID, message}) || message == "" {
		return nil, nil // nothing new: done, the DataKeyRequests are watched
	}
	return []notice{{pod, corev1.EventTypeWarning, v1alpha1.ReasonWaitingForDataKeys, message}}, nil // done
}

// problemOf says why a pod has to wait for a DataKeyRequest, or nothing.
func (r *podReconciler) problemOf(ctx context.Context, name types.NamespacedName) (string, error) {
	request := &v1alpha1.DataKeyRequest{}
	if err := r.client.Get(ctx, name, request); err != nil {
		if apierrors.IsNotFound(err) {
			return fmt.Sprintf("DataKeyRequest %s does not exist", name), nil
		}
		return "", err
	}
	if Ready(request.Status.Conditions, request.Generation) {
		return "", nil
	}
	ready := meta.FindStatusCondition(request.Status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || ready.Status == metav1.ConditionTrue {
		return fmt.Sprintf("DataKeyRequest %s is not Ready yet", name), nil
	}
	return fmt.Sprintf("DataKeyRequest %s is not Ready: %s: %s", name, ready.Reason, ready.Message), nil
}

// remember notes what a pod is told and returns whether that is new. A pod without problems is forgotten.
func (r *podReconciler) remember(name types.NamespacedName, told toldPod) bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	changed := r.last[name] != told
	if told.message == "" {
		delete(r.last, name)
		return changed
	}
	if r.last == nil {
		r.last = map[types.NamespacedName]toldPod{}
	}
	r.last[name] = told
	return changed
}

// dataKeyNames are the DataKeyRequests that a pod names, each once, in the pod's order.
func dataKeyNames(pod client.Object) []string {
	var names []string
	for name := range strings.SplitSeq(pod.GetAnnotations()[v1alpha1.AnnotationDataKeys], ",") {
		if name = strings.TrimSpace(name); name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// newPodMetadata is a pod as this controller sees it: metadata only.
func newPodMetadata() *metav1.PartialObjectMetadata {
	pod := &metav1.PartialObjectMetadata{}
	pod.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	return pod
}
