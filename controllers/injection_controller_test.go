package controllers_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/controllers/controllerstest"
)

const (
	missingSidecar = "Warning SidecarMissing the pod asks for data keys by its label datakeys.io/inject and has no sidecar: it was created while " +
		"the webhook was not there, or in a namespace that the webhook leaves out; create it again, elsewhere if it has to be, or remove the label"
	blockingSidecar = "Warning SidecarBlocks the init container datakeys has lost its restartPolicy: Always, so the pod waits for it to end for " +
		"ever: another admission webhook, built with a library from before native sidecars (Kubernetes 1.28), has removed it; upgrade that " +
		"webhook, or let it leave the pod alone, and create the pod again"
)

func withInitContainer(name string, policy *corev1.ContainerRestartPolicy) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: name, RestartPolicy: policy})
	}
}

func withLabel(name, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { metav1.SetMetaDataLabel(&p.ObjectMeta, name, value) }
}

func TestInjection(t *testing.T) {
	always, never := corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicy("Never")
	for name, tc := range map[string]struct {
		pod        *corev1.Pod
		wantEvents []string
		wantMetric string
	}{
		"a pod with its sidecar is told nothing": {
			pod: pod("1", "orders", withLabel("datakeys.io/injected", "true"), withInitContainer("datakeys", &always)),
		},
		"a pod with the sidecar of an older version, which set no mark, is told nothing": {
			pod: pod("1", "orders", withInitContainer("mesh", nil), withInitContainer("datakeys", &always)),
		},
		"a pod without a sidecar is told so": {
			pod: pod("1", "orders", withInitContainer("migrate", nil)), wantEvents: []string{missingSidecar}, wantMetric: "SidecarMissing",
		},
		"a pod whose label has another value, which the webhook would have refused, is told so": {
			pod: pod("1", "orders", withLabel("datakeys.io/inject", "yes")), wantEvents: []string{missingSidecar}, wantMetric: "SidecarMissing",
		},
		"a pod that has taken its label back is told nothing": {
			pod: pod("1", "orders", withLabel("datakeys.io/inject", "false")),
		},
		"a pod whose sidecar has lost its restartPolicy is told so": {
			pod:        pod("1", "orders", withLabel("datakeys.io/injected", "true"), withInitContainer("datakeys", nil), withInitContainer("migrate", nil)),
			wantEvents: []string{blockingSidecar}, wantMetric: "SidecarBlocks",
		},
		"a pod whose sidecar has another restartPolicy is told so": {
			pod: pod("1", "orders", withInitContainer("datakeys", &never)), wantEvents: []string{blockingSidecar}, wantMetric: "SidecarBlocks",
		},
		"a pod that is being deleted is told nothing": {
			pod: pod("1", "orders", func(p *corev1.Pod) { p.DeletionTimestamp, p.Finalizers = &earlier, []string{"example.com/hold"} }),
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, []client.Object{tc.pod}, nil)
			recorder := events.NewFakeRecorder(10)
			reconciler := controllers.NewInjectionReconciler([]client.Reader{w.client}, w.client, recorder)
			for _, want := range [][]string{tc.wantEvents, nil} { // the same is told once
				if result, err := reconciler.Reconcile(t.Context(), podRequest); err != nil || result != (ctrl.Result{}) {
					t.Fatalf("got result %v, error %v", result, err)
				}
				if diff := cmp.Diff(want, drain(recorder.Events)); diff != "" {
					t.Errorf("events (-want +got):\n%s", diff)
				}
			}
			checkPodsWithoutSidecar(t, reconciler, tc.wantMetric)
			if writes := w.faults.Writes(); writes != nil {
				t.Errorf("got writes %v, want none", writes)
			}
		})
	}
}

func reasonAndNote(event string) (reason, note string) {
	parts := strings.SplitN(event, " ", 3)
	return parts[1], parts[2]
}

// checkPodsWithoutSidecar checks that one pod is counted, for that reason, or none.
func checkPodsWithoutSidecar(t *testing.T, c prometheus.Collector, reason string) {
	t.Helper()
	want := ""
	if reason != "" {
		want = `
			# HELP datakeys_pods_without_sidecar Of the leader: the number of pods of a namespace that ask for data keys and have no sidecar (SidecarMissing), or one that keeps them from starting (SidecarBlocks).
			# TYPE datakeys_pods_without_sidecar gauge
			datakeys_pods_without_sidecar{namespace="team-a",reason="` + reason + `"} 1
		`
	}
	if err := testutil.CollectAndCompare(c, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.CollectAndLint(c); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, error %v", problems, err)
	}
}

// countingReader counts reads, and fails where it is told to.
type countingReader struct {
	client.Reader
	reads int
	err   error
}

func (r *countingReader) Get(ctx context.Context, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
	r.reads++
	if r.err != nil {
		return r.err
	}
	return r.Reader.Get(ctx, key, object, options...)
}

// TestInjectionFollowsThePods: one is read once, counted while it is there, and forgotten with it.
func TestInjectionFollowsThePods(t *testing.T) {
	unmarked, pending := newWorld(t, nil, nil), newWorld(t, nil, nil)
	reader := &countingReader{Reader: pending.direct, err: errors.New("no answer")}
	recorder := events.NewFakeRecorder(10)
	reconciler := controllers.NewInjectionReconciler([]client.Reader{unmarked.direct, pending.direct}, reader, recorder)
	reconcile := func(step string, wantReads int, want ...string) {
		t.Helper()
		if _, err := reconciler.Reconcile(t.Context(), podRequest); (err != nil) != (reader.err != nil) {
			t.Fatalf("%s: %v", step, err)
		}
		if got := drain(recorder.Events); strings.Join(got, "\n") != strings.Join(want, "\n") || reader.reads != wantReads {
			t.Errorf("%s: got %d reads and %q, want %d and %q", step, reader.reads, got, wantReads, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(pending.direct.Create(t.Context(), pod("1", "orders")))
	reconcile("the API server does not answer", 1)
	checkPodsWithoutSidecar(t, reconciler, "")
	reader.err = nil
	reconcile("it answers", 2, missingSidecar)
	must(unmarked.direct.Create(t.Context(), pod("1", "orders")))
	must(pending.direct.Delete(t.Context(), pod("1", "orders")))
	reader.Reader = unmarked.direct
	reconcile("it is no longer Pending", 2)
	checkPodsWithoutSidecar(t, reconciler, "SidecarMissing")
	must(unmarked.direct.Delete(t.Context(), pod("1", "orders")))
	reconcile("it is gone", 2)
	checkPodsWithoutSidecar(t, reconciler, "")
	must(unmarked.direct.Create(t.Context(), pod("2", "orders")))
	reconcile("another of its name", 3, missingSidecar)
	reader.Reader = pending.direct
	must(unmarked.direct.Delete(t.Context(), pod("2", "orders")))
	must(unmarked.direct.Create(t.Context(), pod("3", "orders")))
	reconcile("a third, which the cache still has", 4)
	checkPodsWithoutSidecar(t, reconciler, "")
}

// TestPodsWithoutSidecar lets a real API server select the pods.
func TestPodsWithoutSidecar(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	registry := prometheus.NewRegistry()
	c.startManager(t, controllerstest.NewFaults(0, 0), func(config *controllers.Config) {
		config.Registerer, config.PendingDelay = registry, 1
	})
	always := corev1.ContainerRestartPolicyAlways
	create := func(name, mark string, phase corev1.PodPhase, policy *corev1.ContainerRestartPolicy, sidecar bool) *corev1.Pod {
		t.Helper()
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: name, Labels: map[string]string{"datakeys.io/inject": "true"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "app"}}},
		}
		if mark != "" {
			p.Labels["datakeys.io/injected"] = mark
		}
		if sidecar {
			p.Spec.InitContainers = []corev1.Container{{Name: "datakeys", Image: "sidecar", RestartPolicy: policy}}
		}
		c.create(t, p)
		p.Status.Phase = phase
		if err := c.client.Status().Update(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	create("whole", "true", corev1.PodRunning, &always, true)
	create("older", "", corev1.PodRunning, &always, true)
	create("ended", "", corev1.PodSucceeded, nil, true) // before anybody looks, or told and forgotten
	running := create("running", "", corev1.PodRunning, nil, false)
	create("pending", "", corev1.PodPending, nil, false)
	create("blocked", "true", corev1.PodPending, nil, true)

	for name, event := range map[string]string{"running": missingSidecar, "pending": missingSidecar, "blocked": blockingSidecar} {
		reason, note := reasonAndNote(event)
		c.waitForEvent(t, "Pod", name, reason, note)
	}
	// One worker goes after the other: when the last pod is told, the one that was deleted is forgotten.
	c.delete(t, running)
	create("last", "", corev1.PodRunning, nil, false)
	reason, note := reasonAndNote(missingSidecar)
	c.waitForEvent(t, "Pod", "last", reason, note)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == "datakeys_pods_without_sidecar" && m.GetLabel()[0].GetValue() == c.namespace {
				got[m.GetLabel()[1].GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	if diff := cmp.Diff(map[string]float64{"SidecarMissing": 2, "SidecarBlocks": 1}, got); diff != "" {
		t.Errorf("pods without a sidecar (-want +got):\n%s", diff)
	}
}

// TestPendingPods: a pod is looked at when it has been Pending for a while, and at once when it is so no more.
func TestPendingPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queue := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[ctrl.Request]())
		defer queue.ShutDown()
		woken := func() int {
			t.Helper()
			synctest.Wait()
			n := queue.Len()
			for range n {
				one, _ := queue.Get()
				if one != podRequest {
					t.Errorf("got %v, want %v", one, podRequest)
				}
				queue.Done(one)
			}
			return n
		}
		pods := controllers.PendingPods(time.Minute)
		pods.Create(t.Context(), event.CreateEvent{Object: pod("1", "orders")}, queue)
		time.Sleep(time.Minute - time.Nanosecond)
		pods.Update(t.Context(), event.UpdateEvent{ObjectNew: pod("1", "orders")}, queue)
		if n := woken(); n != 0 {
			t.Errorf("%d were woken within the minute", n)
		}
		time.Sleep(time.Nanosecond)
		if n := woken(); n != 1 {
			t.Errorf("%d were woken after the minute, want the pod", n)
		}
		pods.Delete(t.Context(), event.DeleteEvent{Object: pod("1", "orders")}, queue)
		if n := woken(); n != 1 {
			t.Errorf("%d were woken when the pod was gone, want it", n)
		}
	})
}

// TestUnmarkedPods: what the API server is to select is what the webhook is asked about, less what it has marked.
func TestUnmarkedPods(t *testing.T) {
	selector, err := labels.Parse(controllers.UnmarkedLabels)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		labels labels.Set
		want   bool
	}{
		"asks, and is not marked":        {labels.Set{"datakeys.io/inject": "true"}, true},
		"asks with another word":         {labels.Set{"datakeys.io/inject": "yes"}, true},
		"asks, and is marked":            {labels.Set{"datakeys.io/inject": "true", "datakeys.io/injected": "true"}, false},
		"does not ask":                   {labels.Set{"app": "x"}, false},
		"says that it does not ask":      {labels.Set{"datakeys.io/inject": "false"}, false},
		"is marked, and no longer asks":  {labels.Set{"datakeys.io/injected": "true"}, false},
		"has no label, as most pods are": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := selector.Matches(tc.labels); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}
