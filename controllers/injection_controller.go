package controllers

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// defaultPendingDelay is how long a pod may be Pending before its sidecar is looked at.
const defaultPendingDelay = time.Minute

// Selectors of the pods that asked for the sidecar and were not marked with it: as the webhook selects them, unless they have ended.
const (
	unmarkedLabels = v1alpha1.LabelInject + "," + v1alpha1.LabelInject + "!=false,!" + v1alpha1.LabelInjected
	unmarkedFields = "status.phase!=Succeeded,status.phase!=Failed"
)

// injectionReconciler tells pods that asked for the sidecar and did not get it, or got one that does not work, and counts them. It changes
// nothing.
//
// It sees pods without the mark of the webhook, which are few, and those that have been Pending for a while, metadata only; of each it
// reads the rest once.
type injectionReconciler struct {
	caches   []client.Reader // of the one and the other
	reader   client.Reader   // reads from the API server
	recorder events.EventRecorder

	mutex sync.Mutex
	// looked is what was found of each pod that is there.
	looked map[types.NamespacedName]lookedPod
}

// lookedPod is a pod that was looked at: what its sidecar lacks, and nothing for one that is as it should be.
type lookedPod struct {
	uid  types.UID
	lack string
}

// +kubebuilder:rbac:groups="",resources=pods,verbs=get;list;watch
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Reconcile looks at one pod.
func (r *injectionReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	told, err := r.reconcile(ctx, req)
	return ctrl.Result{}, finish(ctx, nil, r.recorder, nil, told, err)
}

func (r *injectionReconciler) reconcile(ctx context.Context, req ctrl.Request) ([]notice, error) {
	uid, err := r.find(ctx, req.NamespacedName)
	switch {
	case err != nil:
		return nil, err // requeue with back-off
	case uid == "":
		r.note(req.NamespacedName, lookedPod{})
		return nil, nil // gone, ended, or runs with its sidecar: done
	case r.knows(req.NamespacedName, uid):
		return nil, nil // containers do not change: done
	}
	pod := &corev1.Pod{}
	switch err := r.reader.Get(ctx, req.NamespacedName, pod); {
	case apierrors.IsNotFound(err):
		r.note(req.NamespacedName, lookedPod{})
		return nil, nil // gone: done
	case err != nil:
		return nil, err // requeue with back-off
	}
	reason, message := lackOf(pod)
	r.note(req.NamespacedName, lookedPod{pod.UID, reason})
	if reason == "" {
		return nil, nil // as it should be: done
	}
	return []notice{newNotice(pod, corev1.EventTypeWarning, reason, "%s", message)}, nil // done
}

// find returns the UID of a pod that is to be looked at, nothing for one that is not.
func (r *injectionReconciler) find(ctx context.Context, name types.NamespacedName) (types.UID, error) {
	for _, c := range r.caches {
		pod := newPodMetadata()
		switch err := c.Get(ctx, name, pod); {
		case apierrors.IsNotFound(err):
		case err != nil:
			return "", err
		case pod.DeletionTimestamp.IsZero():
			return pod.UID, nil
		}
	}
	return "", nil
}

// lackOf says what the sidecar of a pod lacks that asks for one.
func lackOf(pod *corev1.Pod) (reason, message string) {
	isSidecar := func(c corev1.Container) bool { return c.Name == v1alpha1.SidecarName }
	i := slices.IndexFunc(pod.Spec.InitContainers, isSidecar)
	switch asks, err := v1alpha1.Injected(pod); {
	case !asks && err == nil:
		return "", ""
	case i < 0:
		return v1alpha1.ReasonSidecarMissing, fmt.Sprintf("the pod asks for data keys by its label %s and has no sidecar: it was created while "+
			"the webhook was not there, or in a namespace that the webhook leaves out; create it again, elsewhere if it has to be, or remove "+
			"the label", v1alpha1.LabelInject)
	}
	if policy := pod.Spec.InitContainers[i].RestartPolicy; policy == nil || *policy != corev1.ContainerRestartPolicyAlways {
		return v1alpha1.ReasonSidecarBlocks, fmt.Sprintf("the init container %s has lost its restartPolicy: Always, so the pod waits for it to end "+
			"for ever: another admission webhook, built with a library from before native sidecars (Kubernetes 1.28), has removed it; upgrade "+
			"that webhook, or let it leave the pod alone, and create the pod again", v1alpha1.SidecarName)
	}
	return "", ""
}

func (r *injectionReconciler) knows(name types.NamespacedName, uid types.UID) bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return r.looked[name].uid == uid
}

// note keeps what was found of a pod, and forgets one of which there is nothing.
func (r *injectionReconciler) note(name types.NamespacedName, pod lookedPod) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if pod.uid == "" {
		delete(r.looked, name)
		return
	}
	if r.looked == nil {
		r.looked = map[types.NamespacedName]lookedPod{}
	}
	r.looked[name] = pod
}

var podsWithoutSidecar = prometheus.NewDesc("datakeys_pods_without_sidecar",
	"Of the leader: the number of pods of a namespace that ask for data keys and have no sidecar (SidecarMissing), or one that keeps them "+
		"from starting (SidecarBlocks).", []string{"namespace", "reason"}, nil)

// Describe implements prometheus.Collector.
func (r *injectionReconciler) Describe(descs chan<- *prometheus.Desc) { descs <- podsWithoutSidecar }

// Collect implements prometheus.Collector.
func (r *injectionReconciler) Collect(metrics chan<- prometheus.Metric) {
	counts := map[[2]string]int{}
	r.mutex.Lock()
	for name, pod := range r.looked {
		if pod.lack != "" {
			counts[[2]string{name.Namespace, pod.lack}]++
		}
	}
	r.mutex.Unlock()
	for of, n := range counts {
		metrics <- prometheus.MustNewConstMetric(podsWithoutSidecar, prometheus.GaugeValue, float64(n), of[0], of[1])
	}
}

// newUnmarkedPods is a cache of the pods that asked for the sidecar and were not marked with it, metadata only. It is beside the manager's,
// which has those that are Pending: a cache selects a kind in one way.
func newUnmarkedPods(mgr ctrl.Manager, namespaces map[string]cache.Config) (cache.Cache, error) {
	byLabels, err := labels.Parse(unmarkedLabels)
	if err != nil {
		return nil, err
	}
	byFields, err := fields.ParseSelector(unmarkedFields)
	if err != nil {
		return nil, err
	}
	return cache.New(mgr.GetConfig(), cache.Options{
		HTTPClient: mgr.GetHTTPClient(), Scheme: mgr.GetScheme(), Mapper: mgr.GetRESTMapper(), ReaderFailOnMissingInformer: true,
		DefaultNamespaces: namespaces,
		ByObject:          map[client.Object]cache.ByObject{&corev1.Pod{}: {Label: byLabels, Field: byFields, Transform: stripPod}},
	})
}

// setupInjection adds the controller to a manager.
func setupInjection(mgr ctrl.Manager, config Config, options controller.Options) error {
	unmarked, err := newUnmarkedPods(mgr, config.Namespaces)
	if err != nil {
		return err
	}
	if err := mgr.Add(unmarked); err != nil {
		return err
	}
	r := &injectionReconciler{
		caches: []client.Reader{unmarked, mgr.GetCache()}, reader: mgr.GetAPIReader(), recorder: newRationed(config.Recorder),
	}
	if config.Registerer != nil {
		if err := config.Registerer.Register(r); err != nil {
			return fmt.Errorf("metrics: %w", err)
		}
	}
	return ctrl.NewControllerManagedBy(mgr).
		Named("injection").
		WatchesRawSource(source.Kind(unmarked, client.Object(newPodMetadata()), &handler.EnqueueRequestForObject{})).
		WatchesMetadata(&corev1.Pod{}, pendingPods(config.PendingDelay)).
		WithOptions(options).
		Complete(r)
}

// pendingPods wakes a pod that has been Pending for a while, since most pods are so for a moment only; and at once when it is so no more, or
// gone, so that it is not counted for longer.
func pendingPods(delay time.Duration) handler.EventHandler {
	pending := later(delay, func(_ context.Context, pod client.Object) []ctrl.Request {
		return []ctrl.Request{{NamespacedName: client.ObjectKeyFromObject(pod)}}
	})
	return handler.Funcs{CreateFunc: pending.Create, UpdateFunc: pending.Update, DeleteFunc: (&handler.EnqueueRequestForObject{}).Delete}
}
