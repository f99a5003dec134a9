//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// sidecarCost measures and reports; it asserts no time. It starts pairs of the same pod without and with a sidecar whose data
// key is there, and looks at the memory of sidecar and manager.
func sidecarCost(t *testing.T) {
	const pairs = 7
	namespace := tenant(t, "restricted", "orders")
	var without, with, difference []time.Duration
	var last string
	for i := range pairs {
		plain := pod(namespace, fmt.Sprintf("plain-%d", i), "orders")
		plain.Labels = nil
		injected := pod(namespace, fmt.Sprintf("injected-%d", i), "orders")
		a, b := untilReady(t, plain), untilReady(t, injected)
		without, with, difference = append(without, a), append(with, b), append(difference, b-a)
		last = injected.Name
	}
	t.Logf("Ready after (median of %d): %v without, %v with the sidecar; difference %v (%v to %v)",
		pairs, median(without), median(with), median(difference), slices.Min(difference), slices.Max(difference))

	sha256Of(t, namespace, last, "app", "orders")
	t.Logf("resident: sidecar %d KiB", residentKiB(t, processOf(t, namespace, last, "datakeys")))
	managers := &corev1.PodList{}
	if err := kube.client.List(t.Context(), managers, client.InNamespace(systemNamespace)); err != nil {
		t.Fatal(err)
	}
	for _, m := range managers.Items {
		t.Logf("resident: manager %s %d KiB", m.Name, residentKiB(t, processOf(t, systemNamespace, m.Name, "manager")))
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

var residentLine = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB$`)

func residentKiB(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	match := residentLine.FindStringSubmatch(string(status))
	if match == nil {
		t.Fatalf("no VmRSS in %s", strings.TrimSpace(string(status)))
	}
	kib, err := strconv.Atoi(match[1])
	if err != nil {
		t.Fatal(err)
	}
	return kib
}
