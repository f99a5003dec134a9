package controllers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// Names of the indexes of the cache.
const (
	// indexKeyID finds a MasterKey by its key ID.
	indexKeyID = "datakeys.io/key-id"
	// IndexAlias finds MasterKeys by the aliases that they claim.
	IndexAlias = "datakeys.io/alias"
	// indexMasterKey finds DataKeyRequests by namespace/name of their MasterKey.
	indexMasterKey = "datakeys.io/master-key"
	// indexDataKeys finds pods by the DataKeyRequests that they name.
	indexDataKeys = "datakeys.io/data-keys"
)

// maxBackoff is the longest pause before something that failed is tried again. Nothing else wakes an object when the key
// service has recovered.
const maxBackoff = 30 * time.Second

// defaultCountDelay is how long after a change of its DataKeyRequests a MasterKey counts them: many change at once, and a count in between
// is worth no write.
const defaultCountDelay = 5 * time.Second

// DefaultRewrapRate is how many DataKeyRequests are wrapped anew a second.
const DefaultRewrapRate = 500

// Config is what the controllers are made of.
type Config struct {
	// KeyService is required.
	KeyService KeyService
	// Namespace is the manager's own, where the Secrets with the material are. It is required.
	Namespace string
	// ServerTime reads the clock of the API server, which has to agree before what is due by time is done. It is required.
	ServerTime func(context.Context) (time.Time, error)
	// Clock is the manager's own. Nil is the real one.
	Clock clock.PassiveClock
	// Recorder takes the events. Nil is the manager's.
	Recorder events.EventRecorder
	// MaxConcurrentReconciles is how many objects each controller works on at once, at least 1.
	MaxConcurrentReconciles int
	// RewrapRate is how many DataKeyRequests are wrapped anew a second at most. 0 is DefaultRewrapRate.
	RewrapRate int
	// Registerer takes the metrics; nil: there are none.
	Registerer prometheus.Registerer
	// CountDelay is how long after a change of its DataKeyRequests a MasterKey counts them. 0 is 5 seconds.
	CountDelay time.Duration
	// Namespaces are those that the manager's cache is limited to; nil: it is not.
	Namespaces map[string]cache.Config
	// PendingDelay is how long a pod may be Pending before its sidecar is looked at. 0 is a minute.
	PendingDelay time.Duration
}

// CacheOptions is how the manager's cache has to be made for the controllers: it never holds the body of a Secret, and a
// reader that asks it for one gets an error instead of an informer for the whole cluster.
func CacheOptions() cache.Options {
	return cache.Options{
		ReaderFailOnMissingInformer: true,
		DefaultTransform:            cache.TransformStripManagedFields(),
		ByObject: map[client.Object]cache.ByObject{
			// No label selector here: a Secret that stands in the way of a request has none of our labels, and its deletion has
			// to wake the request. What is kept of each Secret is a few words instead.
			&corev1.Secret{}: {Transform: stripSecret},
			&corev1.Pod{}: {
				Label:     labels.SelectorFromSet(labels.Set{v1alpha1.LabelInject: "true"}),
				Field:     fields.OneTermEqualSelector("status.phase", string(corev1.PodPending)),
				Transform: stripPod,
			},
		},
	}
}

// stripSecret leaves of a Secret what names it and tells one version from another.
func stripSecret(in any) (any, error) {
	object, ok := in.(metav1.Object)
	if !ok {
		return in, nil // a tombstone
	}
	secret := &metav1.PartialObjectMetadata{ObjectMeta: strippedMeta(object)}
	secret.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Secret"))
	return secret, nil
}

// stripPod leaves of a pod what names it and what it asks of the sidecar.
func stripPod(in any) (any, error) {
	object, ok := in.(metav1.Object)
	if !ok {
		return in, nil // a tombstone
	}
	pod := newPodMetadata()
	pod.ObjectMeta = strippedMeta(object)
	for _, name := range []string{v1alpha1.AnnotationDataKeys, v1alpha1.AnnotationWait} {
		if value, found := object.GetAnnotations()[name]; found {
			metav1.SetMetaDataAnnotation(&pod.ObjectMeta, name, value)
		}
	}
	return pod, nil
}

func strippedMeta(object metav1.Object) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Namespace:         object.GetNamespace(),
		Name:              object.GetName(),
		UID:               object.GetUID(),
		ResourceVersion:   object.GetResourceVersion(),
		DeletionTimestamp: object.GetDeletionTimestamp(),
	}
}

// Reconcilers are what the controllers call for each object of their kinds.
type Reconcilers struct {
	// MasterKey and DataKeyRequest take the names of such objects, Material the names of Secrets in the manager's namespace that are named
	// by a key ID.
	MasterKey, Material, DataKeyRequest reconcile.Reconciler
}

// NewReconcilers makes the reconcilers for a client that reads from a cache with the indexes of Setup, and a reader that reads from the API
// server. The config is complete.
func NewReconcilers(c client.Client, reader client.Reader, config Config) Reconcilers {
	clocks := clocks{config.Clock, config.ServerTime}
	return Reconcilers{
		MasterKey: &masterKeyReconciler{c, reader, config.KeyService, clocks, config.Recorder},
		Material:  &materialReconciler{c, reader, config.KeyService, clocks, config.Recorder},
		DataKeyRequest: &dataKeyRequestReconciler{
			client: c, reader: reader, recent: newRecent(reader, config.Clock), keyService: config.KeyService, clocks: clocks,
			recorder: newRationed(config.Recorder), rewraps: newSpacing(config.RewrapRate), settled: newSettled(),
		},
	}
}

// Setup adds the controllers to a manager whose cache is made with CacheOptions. They run on the leader only. The caches of
// MasterKeys and DataKeyRequests are there on every replica, for whoever else reads them.
func Setup(ctx context.Context, mgr ctrl.Manager, config Config) error {
	if config.KeyService == nil || config.Namespace == "" || config.ServerTime == nil {
		return errors.New("controllers: KeyService, Namespace and ServerTime are required")
	}
	if config.Clock == nil {
		config.Clock = clock.RealClock{}
	}
	config.RewrapRate = cmp.Or(config.RewrapRate, DefaultRewrapRate)
	config.CountDelay = cmp.Or(config.CountDelay, defaultCountDelay)
	config.PendingDelay = cmp.Or(config.PendingDelay, defaultPendingDelay)
	if config.Recorder == nil {
		config.Recorder = mgr.GetEventRecorder(string(fieldOwner))
	}
	for _, index := range Indexes() {
		if err := mgr.GetFieldIndexer().IndexField(ctx, index.Object, index.Name, index.Values); err != nil {
			return fmt.Errorf("controllers: index %s: %w", index.Name, err)
		}
	}

	options := controller.Options{
		MaxConcurrentReconciles: max(config.MaxConcurrentReconciles, 1),
		RateLimiter:             workqueue.NewTypedItemExponentialFailureRateLimiter[ctrl.Request](10*time.Millisecond, maxBackoff),
	}
	if config.Registerer != nil {
		if err := config.Registerer.Register(collector{mgr.GetClient()}); err != nil {
			return fmt.Errorf("controllers: metrics: %w", err)
		}
	}
	reconcilers := NewReconcilers(mgr.GetClient(), mgr.GetAPIReader(), config)
	watched := watches{mgr.GetClient(), config.Namespace}
	if err := ctrl.NewControllerManagedBy(mgr).
		Named("masterkey").
		For(&v1alpha1.MasterKey{}).
		// Who lets an alias go leaves it to another.
		Watches(&v1alpha1.MasterKey{}, handler.EnqueueRequestsFromMapFunc(watched.claimants), builder.WithPredicates(notInInitialList, aliasesChanged)).
		// The status says how many data keys each version wraps.
		Watches(&v1alpha1.DataKeyRequest{}, later(config.CountDelay, watched.masterKeyOfRequest), builder.WithPredicates(notInInitialList, wrappingChanged)).
		// Material that was deleted or restored changes what the MasterKey may say of itself.
		WatchesMetadata(&corev1.Secret{}, handler.EnqueueRequestsFromMapFunc(watched.masterKeysOfMaterial), builder.WithPredicates(notInInitialList)).
		WithOptions(options).
		Complete(again(reconcilers.MasterKey)); err != nil {
		return fmt.Errorf("controllers: masterkey: %w", err)
	}
	if err := ctrl.NewControllerManagedBy(mgr).
		Named("material").
		For(&corev1.Secret{}, builder.OnlyMetadata, builder.WithPredicates(predicate.NewPredicateFuncs(watched.isMaterial))).
		Watches(&v1alpha1.MasterKey{}, handler.EnqueueRequestsFromMapFunc(watched.materialOfMasterKey), builder.WithPredicates(masterKeyGone)).
		WithOptions(options).
		Complete(reconcilers.Material); err != nil {
		return fmt.Errorf("controllers: material: %w", err)
	}
	if err := ctrl.NewControllerManagedBy(mgr).
		Named("datakeyrequest").
		For(&v1alpha1.DataKeyRequest{}).
		// Requests wait for their MasterKey, stop being Ready with it, and follow its rotations.
		Watches(&v1alpha1.MasterKey{}, handler.EnqueueRequestsFromMapFunc(watched.requestsOfMasterKey), builder.WithPredicates(notInInitialList, masterKeyUseChanged)).
		// A Secret that was deleted or edited is repaired, and one that was in the way may be gone.
		WatchesMetadata(&corev1.Secret{}, handler.EnqueueRequestsFromMapFunc(watched.requestOfSecret), builder.WithPredicates(notInInitialList)).
		WithOptions(options).
		Complete(again(reconcilers.DataKeyRequest)); err != nil {
		return fmt.Errorf("controllers: datakeyrequest: %w", err)
	}
	if err := ctrl.NewControllerManagedBy(mgr).
		Named("pod").
		For(&corev1.Pod{}, builder.OnlyMetadata).
		// A pod waits for other reasons, or for none any more, when a request that it names changes.
		Watches(&v1alpha1.DataKeyRequest{}, handler.EnqueueRequestsFromMapFunc(watched.podsOfRequest), builder.WithPredicates(notInInitialList, requestReadyChanged)).
		WithOptions(options).
		Complete(&podReconciler{client: mgr.GetClient(), recorder: config.Recorder}); err != nil {
		return fmt.Errorf("controllers: pod: %w", err)
	}
	if err := setupInjection(mgr, config, options); err != nil {
		return fmt.Errorf("controllers: injection: %w", err)
	}
	return nil
}

// An Index is one of the cache.
type Index struct {
	Object client.Object
	Name   string
	Values client.IndexerFunc
}

// Indexes are those that the controllers need of the cache.
func Indexes() []Index {
	return []Index{
		{&v1alpha1.MasterKey{}, indexKeyID, keyIDIndex},
		{&v1alpha1.MasterKey{}, IndexAlias, aliasIndex},
		{&v1alpha1.DataKeyRequest{}, indexMasterKey, masterKeyIndex},
		{newPodMetadata(), indexDataKeys, dataKeyNames},
	}
}

func keyIDIndex(object client.Object) []string {
	return []string{object.(*v1alpha1.MasterKey).KeyID()}
}

func masterKeyIndex(object client.Object) []string {
	namespace, name := masterKeyName(object.(*v1alpha1.DataKeyRequest))
	return []string{namespace + "/" + name}
}

// notInInitialList drops what a watch of another kind finds when it starts: the controller's own kind is listed then as well.
var notInInitialList = predicate.Funcs{CreateFunc: func(e event.CreateEvent) bool { return !e.IsInInitialList }}

// masterKeyUseChanged passes the changes of a MasterKey that matter to its requests.
var masterKeyUseChanged = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	before, after := e.ObjectOld.(*v1alpha1.MasterKey), e.ObjectNew.(*v1alpha1.MasterKey)
	return before.UID != after.UID ||
		before.DeletionTimestamp.IsZero() != after.DeletionTimestamp.IsZero() ||
		// Without the annotation a request waits, even where its value is the UID, which KeyID falls back to.
		before.Annotations[v1alpha1.AnnotationKeyID] != after.Annotations[v1alpha1.AnnotationKeyID] ||
		before.Status.KeyID != after.Status.KeyID ||
		ptr.Deref(before.Status.PrimaryVersion, 0) != ptr.Deref(after.Status.PrimaryVersion, 0) ||
		// A version that was made after an older backup was restored has the number of the one that a newer backup brings back.
		!before.Status.LastRotationTime.Equal(&after.Status.LastRotationTime) ||
		!equality.Semantic.DeepEqual(readyOf(before.Status.Conditions), readyOf(after.Status.Conditions))
}}

// aliasesChanged passes the changes of a MasterKey that matter to others that claim its aliases.
var aliasesChanged = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	before, after := e.ObjectOld.(*v1alpha1.MasterKey), e.ObjectNew.(*v1alpha1.MasterKey)
	return before.Status.State != after.Status.State || before.UID != after.UID ||
		!slices.Equal(before.Spec.Aliases, after.Spec.Aliases) || !slices.Equal(before.Status.Aliases, after.Status.Aliases)
}}

// masterKeyGone passes what leaves material without a MasterKey.
var masterKeyGone = predicate.Funcs{
	CreateFunc:  func(event.CreateEvent) bool { return false },
	GenericFunc: func(event.GenericEvent) bool { return false },
	UpdateFunc: func(e event.UpdateEvent) bool {
		return e.ObjectOld.(*v1alpha1.MasterKey).KeyID() != e.ObjectNew.(*v1alpha1.MasterKey).KeyID()
	},
}

// wrappingChanged passes the changes of a DataKeyRequest that its MasterKey counts.
var wrappingChanged = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	before, after := e.ObjectOld.(*v1alpha1.DataKeyRequest), e.ObjectNew.(*v1alpha1.DataKeyRequest)
	return before.Status.KeyID != after.Status.KeyID || before.Spec.RewrapPolicy != after.Spec.RewrapPolicy ||
		!slices.EqualFunc(before.Status.Generations, after.Status.Generations, func(a, b v1alpha1.DataKeyGeneration) bool { return a.KeyVersion == b.KeyVersion })
}}

// requestReadyChanged passes the changes of a DataKeyRequest that matter to pods.
var requestReadyChanged = predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
	before, after := e.ObjectOld.(*v1alpha1.DataKeyRequest), e.ObjectNew.(*v1alpha1.DataKeyRequest)
	return before.Generation != after.Generation || !equality.Semantic.DeepEqual(readyOf(before.Status.Conditions), readyOf(after.Status.Conditions))
}}

func readyOf(conditions []metav1.Condition) *metav1.Condition {
	return meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
}

// watches maps what happened to another object to the objects that have to look again.
type watches struct {
	client    client.Client // reads from the cache
	namespace string
}

func (w watches) masterKeysOfMaterial(ctx context.Context, secret client.Object) []ctrl.Request {
	if secret.GetNamespace() != w.namespace {
		return nil
	}
	return w.list(ctx, &v1alpha1.MasterKeyList{}, client.MatchingFields{indexKeyID: secret.GetName()})
}

func (w watches) isMaterial(secret client.Object) bool {
	return secret.GetNamespace() == w.namespace && v1alpha1.IsKeyID(secret.GetName())
}

func (w watches) materialOfMasterKey(_ context.Context, key client.Object) []ctrl.Request {
	return []ctrl.Request{{NamespacedName: client.ObjectKey{Namespace: w.namespace, Name: key.(*v1alpha1.MasterKey).KeyID()}}}
}

func (watches) masterKeyOfRequest(_ context.Context, request client.Object) []ctrl.Request {
	namespace, name := masterKeyName(request.(*v1alpha1.DataKeyRequest))
	return []ctrl.Request{{NamespacedName: client.ObjectKey{Namespace: namespace, Name: name}}}
}

// later wakes what an object maps to after a delay. Whatever happens meanwhile wakes it no further time.
func later(delay time.Duration, of handler.MapFunc) handler.EventHandler {
	enqueue := func(ctx context.Context, object client.Object, queue workqueue.TypedRateLimitingInterface[ctrl.Request]) {
		for _, r := range of(ctx, object) {
			queue.AddAfter(r, delay)
		}
	}
	return handler.Funcs{
		CreateFunc: func(ctx context.Context, e event.CreateEvent, q workqueue.TypedRateLimitingInterface[ctrl.Request]) {
			enqueue(ctx, e.Object, q)
		},
		UpdateFunc: func(ctx context.Context, e event.UpdateEvent, q workqueue.TypedRateLimitingInterface[ctrl.Request]) {
			enqueue(ctx, e.ObjectNew, q)
		},
		DeleteFunc: func(ctx context.Context, e event.DeleteEvent, q workqueue.TypedRateLimitingInterface[ctrl.Request]) {
			enqueue(ctx, e.Object, q)
		},
	}
}

func (w watches) requestsOfMasterKey(ctx context.Context, key client.Object) []ctrl.Request {
	index := key.GetNamespace() + "/" + key.GetName()
	return w.list(ctx, &v1alpha1.DataKeyRequestList{}, client.MatchingFields{indexMasterKey: index})
}

func (w watches) requestOfSecret(ctx context.Context, secret client.Object) []ctrl.Request {
	name := client.ObjectKeyFromObject(secret)
	// Most Secrets of a cluster have no request of their name, and this spares them the queue. A request that the cache does
	// not have yet is on its way to the queue by itself.
	if apierrors.IsNotFound(w.client.Get(ctx, name, &v1alpha1.DataKeyRequest{})) {
		return nil
	}
	return []ctrl.Request{{NamespacedName: name}}
}

func (w watches) podsOfRequest(ctx context.Context, request client.Object) []ctrl.Request {
	pods := &metav1.PartialObjectMetadataList{}
	pods.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PodList"))
	return w.list(ctx, pods, client.InNamespace(request.GetNamespace()), client.MatchingFields{indexDataKeys: request.GetName()})
}

func (w watches) list(ctx context.Context, list client.ObjectList, options ...client.ListOption) []ctrl.Request {
	if err := w.client.List(ctx, list, options...); err != nil {
		// The cache answers from memory and every index was added by Setup, so this cannot happen while the manager runs.
		ctrl.LoggerFrom(ctx).Error(err, "Could not list what has to look again")
		return nil
	}
	var requests []ctrl.Request
	_ = meta.EachListItem(list, func(item runtime.Object) error {
		requests = append(requests, ctrl.Request{NamespacedName: client.ObjectKeyFromObject(item.(client.Object))})
		return nil
	})
	return requests
}
