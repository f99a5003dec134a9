//go:build e2e

package e2e

import (
	"debug/buildinfo"
	"fmt"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// sidecarCost measures and reports; it asserts no time. It starts the same pod in rounds: plain, with a native sidecar that does
// nothing, and with ours, whose data key is there. The second is the floor: what Kubernetes itself takes for any native sidecar.
// The pods have the ServiceAccount token that pods have by default; a pod without any volume is measured besides. Then it looks at
// the memory of sidecar and manager, and at the processor time of a sidecar that nobody has asked meanwhile, which alone has a bound.
func sidecarCost(t *testing.T) {
	const rounds = 7
	namespace := tenant(t, "restricted", "orders")
	build := func(name string, injected bool, change func(*corev1.PodSpec)) *corev1.Pod {
		p := pod(namespace, name, "orders")
		p.Spec.AutomountServiceAccountToken = new(true)
		if !injected {
			p.Labels = nil
		}
		if change != nil {
			change(&p.Spec)
		}
		return p
	}
	nativeSidecar := func(s *corev1.PodSpec) {
		sidecar := container("nothing", "sleep")
		sidecar.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
		s.InitContainers = []corev1.Container{sidecar}
	}
	noVolume := func(s *corev1.PodSpec) { s.AutomountServiceAccountToken = new(false) }

	idle := build("idle", true, nil)
	untilReady(t, idle)
	idleProcess := processOf(t, namespace, idle.Name, v1alpha1.SidecarName)
	idleSince, idleUsed := time.Now(), mustSample(t, idleProcess).cpu

	took := map[string][]time.Duration{}
	for i := range rounds {
		for name, p := range map[string]*corev1.Pod{
			"plain":              build(fmt.Sprintf("plain-%d", i), false, nil),
			"with no volume":     build(fmt.Sprintf("no-volume-%d", i), false, noVolume),
			"any native sidecar": build(fmt.Sprintf("native-%d", i), false, nativeSidecar),
			"datakeys":           build(fmt.Sprintf("datakeys-%d", i), true, nil),
		} {
			took[name] = append(took[name], untilReady(t, p))
		}
	}
	for name, times := range took {
		differences := []time.Duration{}
		for i := range rounds {
			differences = append(differences, took["datakeys"][i]-times[i])
		}
		t.Logf("Ready after %v (median of %d, %v to %v): %s; datakeys takes %v more (median of %d pairs)",
			median(times), rounds, slices.Min(times), slices.Max(times), name, median(differences), rounds)
	}

	rest, used := time.Since(idleSince), mustSample(t, idleProcess).cpu-idleUsed
	t.Logf("processor: a sidecar at rest used %v in %v", used, rest)
	if used > rest/100 {
		t.Errorf("a sidecar at rest used %v of the processor in %v, want less than 1 %%", used, rest)
	}

	last := fmt.Sprintf("datakeys-%d", rounds-1)
	sha256Of(t, namespace, last, "app", "orders")
	process := processOf(t, namespace, last, "datakeys")
	t.Logf("resident: sidecar %d KiB", mustSample(t, process).resident)
	checkBuilt(t, process)
	managers := &corev1.PodList{}
	if err := kube.client.List(t.Context(), managers, client.InNamespace(systemNamespace)); err != nil {
		t.Fatal(err)
	}
	for _, m := range managers.Items {
		process := processOf(t, systemNamespace, m.Name, "manager")
		t.Logf("resident: manager %s %d KiB", m.Name, mustSample(t, process).resident)
		checkBuilt(t, process)
	}
}

// checkBuilt sees that a process runs what hack/images.sh makes small.
func checkBuilt(t *testing.T, pid int) {
	t.Helper()
	info, err := buildinfo.ReadFile(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	if want := (debug.BuildSetting{Key: "-tags", Value: "grpcnotrace"}); !slices.Contains(info.Settings, want) {
		t.Errorf("%s: built with %v, want %v among it", info.Path, info.Settings, want)
	}
}

// untilReady starts a pod, waits until it is Ready, deletes nothing, and returns how long it took.
func untilReady(t *testing.T, p *corev1.Pod) time.Duration {
	t.Helper()
	start := time.Now()
	kube.create(t, p)
	kube.waitPodReady(t, p.Namespace, p.Name)
	return time.Since(start).Round(time.Millisecond)
}

func median(d []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(d))
	return sorted[len(sorted)/2]
}
