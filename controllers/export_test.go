package controllers

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// Reconciler is the two functions of a controller.
type Reconciler interface {
	Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error)
	Inner(ctx context.Context, req ctrl.Request) (client.Object, []string, error)
}

// ServerTime is a clock of the API server that tells the time of another clock.
func ServerTime(c clock.PassiveClock) func(context.Context) (time.Time, error) {
	return func(context.Context) (time.Time, error) { return c.Now(), nil }
}

func NewMasterKeyReconciler(c client.Client, reader client.Reader, keyService KeyService, clock clock.PassiveClock, recorder events.EventRecorder) Reconciler {
	return newReconcilers(c, reader, keyService, clock, recorder).MasterKey.(*masterKeyReconciler)
}

func NewDataKeyRequestReconciler(c client.Client, reader client.Reader, keyService KeyService, clock clock.PassiveClock, recorder events.EventRecorder) Reconciler {
	return newReconcilers(c, reader, keyService, clock, recorder).DataKeyRequest.(*dataKeyRequestReconciler)
}

func newReconcilers(c client.Client, reader client.Reader, keyService KeyService, clock clock.PassiveClock, recorder events.EventRecorder) Reconcilers {
	return NewReconcilers(c, reader, Config{
		KeyService: keyService, ServerTime: ServerTime(clock), Clock: clock, Recorder: recorder, RewrapRate: DefaultRewrapRate,
	})
}

// MasterKeyUseChanged passes the changes of a MasterKey that wake its requests.
var MasterKeyUseChanged = masterKeyUseChanged

func Again(r reconcile.Reconciler) reconcile.Reconciler { return again(r) }

// KeyServiceError is an error of the key service for that reason.
func KeyServiceError(err error) error { return keyServiceError{Err: err} }

func NewRecent(reader client.Reader, clock clock.PassiveClock) client.Reader {
	return newRecent(reader, clock)
}

func NewRationed(recorder events.EventRecorder) events.EventRecorder { return newRationed(recorder) }

func NewPodReconciler(c client.Client, recorder events.EventRecorder) Reconciler {
	return &podReconciler{client: c, recorder: recorder}
}

// UnmarkedLabels selects the pods that asked for the sidecar and were not marked with it.
const UnmarkedLabels = unmarkedLabels

// PendingPods wakes pods that are Pending.
func PendingPods(delay time.Duration) handler.EventHandler { return pendingPods(delay) }

// An InjectionReconciler tells of pods without a sidecar, and counts them.
type InjectionReconciler interface {
	Reconciler
	prometheus.Collector
}

func NewInjectionReconciler(caches []client.Reader, reader client.Reader, recorder events.EventRecorder) InjectionReconciler {
	return &injectionReconciler{caches: caches, reader: reader, recorder: recorder}
}

func (r *injectionReconciler) Inner(ctx context.Context, req ctrl.Request) (client.Object, []string, error) {
	told, err := r.reconcile(ctx, req)
	return nil, lines(told), err
}

func (r *masterKeyReconciler) Inner(ctx context.Context, req ctrl.Request) (client.Object, []string, error) {
	_, object, told, err := r.reconcile(ctx, req)
	return object, lines(told), err
}

func (r *dataKeyRequestReconciler) Inner(ctx context.Context, req ctrl.Request) (client.Object, []string, error) {
	_, object, told, err := r.reconcile(ctx, req)
	return object, lines(told), err
}

func (r *podReconciler) Inner(ctx context.Context, req ctrl.Request) (client.Object, []string, error) {
	told, err := r.reconcile(ctx, req)
	return nil, lines(told), err
}

func lines(told []notice) []string {
	var out []string
	for _, n := range told {
		out = append(out, n.kind+" "+n.reason+" "+n.message)
	}
	return out
}
