//go:build e2e && measured

package e2e

import (
	"bufio"
	"context"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// TestCoast stops the key service for ten minutes. Pods that coast for an hour notice nothing; pods that coast for a minute have their data
// key until a minute after it was renewed last, and again when the key service is back.
func TestCoast(t *testing.T) {
	const (
		outage = 10 * time.Minute
		short  = time.Minute
		// oldest is the longest that a lease is old where the key service answers: two thirds of it (docs/operations.md).
		oldest = 10 * time.Second
		// late is what a machine that is busy may add to an answer, or a second that the metric leaves out.
		late = time.Second
	)
	var f figures
	defer func() { f.log(t) }()
	namespace := tenant(t, "restricted", "orders")
	long, _ := startPolled(t, namespace, "long", sideBySide, nil, 250*time.Millisecond)
	brief, _ := startPolled(t, namespace, "brief", 10, map[string]string{v1alpha1.AnnotationCoastTime: short.String()}, 100*time.Millisecond)
	all := slices.Concat(long, brief)
	pass(t, 30*time.Second) // renewals of pods that started one after the other get out of step

	before := managers(t)
	replicas := scaleManager(t, 0)
	stopping := time.Now()
	t.Cleanup(func() {
		if t.Failed() {
			scaleManager(t, replicas)
		}
	})
	for i := range before {
		kube.waitGone(t, &corev1.PodList{}, &before[i])
	}
	stopped := time.Now()
	t.Logf("the key service was gone %v after it was told to", stopped.Sub(stopping).Round(time.Millisecond))
	pass(t, outage)

	var sinceStop, sinceAnswer []time.Duration
	for _, p := range brief {
		end, answer := p.dataKey.ended(t, p.pod.Name, "LeaseExpired"), lastAnswer(t, p)
		if answer.After(stopped) || answer.Add(oldest+late).Before(stopping) {
			t.Errorf("pod %s had the last answer %v after the key service was told to stop", p.pod.Name, answer.Sub(stopping))
		}
		sinceStop, sinceAnswer = append(sinceStop, end.Sub(stopped)), append(sinceAnswer, end.Sub(answer))
		if least := stopping.Add(short - oldest - late); end.Before(least) {
			t.Errorf("pod %s had its data key for %v, want %v at least", p.pod.Name, end.Sub(stopping), short-oldest)
		}
		if end.Before(answer.Add(short - late)) {
			t.Errorf("pod %s had its data key for %v after the last answer, want %v", p.pod.Name, end.Sub(answer), short)
		}
	}
	f.add(t, "coast time of 60 s: last data key, after the key service is gone", sinceStop, short+late)
	f.add(t, "the same, after its last answer to the pod, to the second", sinceAnswer, short+2*late)

	restarting := time.Now()
	scaleManager(t, replicas)
	kube.waitFor(t, &appsv1.DeploymentList{}, systemNamespace, "the key service", func(o client.Object) bool {
		status := o.(*appsv1.Deployment).Status
		return status.ObservedGeneration == o.GetGeneration() && status.ReadyReplicas == replicas
	})
	ready := time.Now()
	t.Logf("the key service was back after %v", ready.Sub(stopped).Round(time.Second))
	answered := map[*polled]time.Duration{}
	kube.poll(t, "all pods have an answer of the key service", func() bool {
		for _, p := range all {
			if _, found := answered[p]; found {
				continue
			}
			if at := lastAnswer(t, p); at.After(restarting) {
				answered[p] = after(ready, at)
			}
		}
		return len(answered) == len(all)
	})
	var back []time.Duration
	for _, p := range brief {
		kube.poll(t, p.pod.Name+" has its data key back", func() bool { return p.dataKey.begun().After(restarting) })
		back = append(back, after(ready, p.dataKey.begun()))
	}
	f.add(t, "coast time of 60 s: first data key, after the key service is back", back, 0)
	f.add(t, "all: first answer of the key service, after it is back, to the second", slices.Collect(maps.Values(answered)), 0)
	pass(t, 30*time.Second) // longer than a lease: it is renewed again

	var gaps []time.Duration
	for _, p := range long {
		p.dataKey.mu.Lock()
		if spells := p.dataKey.spells; len(spells) != 1 || spells[0].reason != given {
			t.Errorf("pod %s was not served all the time: %v", p.pod.Name, spells)
		}
		gaps = append(gaps, p.dataKey.gap)
		p.dataKey.mu.Unlock()
	}
	f.add(t, "coast time of 1 h: longest time between two answers of the sidecar, none an error", gaps, 0)
	wantEvents(t, long, "generation")
	wantEvents(t, brief, "generation", "revoked LeaseExpired", "restored")
}

// scaleManager sets the number of managers, and returns how many there were to be.
func scaleManager(t *testing.T, replicas int32) (before int32) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	var d appsv1.Deployment
	if err := kube.client.Get(ctx, client.ObjectKey{Namespace: systemNamespace, Name: "datakeys-manager"}, &d); err != nil {
		t.Fatal(err)
	}
	patch := client.MergeFrom(d.DeepCopy())
	before, d.Spec.Replicas = *d.Spec.Replicas, &replicas
	if err := kube.client.Patch(ctx, &d, patch); err != nil {
		t.Fatal(err)
	}
	return before
}

// lastAnswer is when the key service has last answered the pod's sidecar, in whole seconds.
func lastAnswer(t *testing.T, p *polled) time.Time {
	t.Helper()
	transport := socketTransport(p.socket)
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://datakeys/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if value, found := strings.CutPrefix(lines.Text(), "datakeys_sidecar_key_service_last_answer_timestamp_seconds "); found {
			seconds, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return time.Unix(seconds, 0)
		}
	}
	t.Fatalf("pod %s does not say when the key service has answered it last", p.pod.Name)
	return time.Time{}
}
