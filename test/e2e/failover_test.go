//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// leaderIsKilledWhileRequestsAreMade kills the process of the leader, as kill -9 does, in the middle of a stream of new
// requests, twice. Afterwards every request is Ready with one data key, the same in Secret and status, that opens, and no
// material was made twice.
func leaderIsKilledWhileRequestsAreMade(t *testing.T) {
	const requests = 120
	namespace := kube.namespace(t, "restricted")
	kube.create(t, masterKey(namespace, "orders"))
	name := func(i int) string { return fmt.Sprintf("request-%03d", i) }
	killed := ""
	for i := range requests {
		kube.create(t, dataKeyRequest(namespace, name(i)))
		if i == requests/3 || i == 2*requests/3 {
			killed = killLeader(t, killed)
		}
	}
	seen := map[string]string{}
	for i := range requests {
		waitRequestReady(t, namespace, name(i))
		key := plaintextOf(t, namespace, name(i)) // checks that Secret and status have the same blob, and that it opens
		if other, ok := seen[string(key)]; ok {
			t.Errorf("%s and %s have the same data key", name(i), other)
		}
		seen[string(key)] = name(i)
	}
	var key v1alpha1.MasterKey
	if err := kube.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "orders"}, &key); err != nil {
		t.Fatal(err)
	}
	var materials corev1.SecretList
	if err := kube.client.List(t.Context(), &materials, client.InNamespace(systemNamespace), client.MatchingFields{"type": string(v1alpha1.SecretTypeMasterKey)}); err != nil {
		t.Fatal(err)
	}
	ours := 0
	for _, secret := range materials.Items {
		if secret.Name == string(key.UID) {
			ours++
		}
	}
	if ours != 1 || key.Annotations[v1alpha1.AnnotationKeyID] != string(key.UID) {
		t.Errorf("MasterKey %s has %d materials and the key ID %q", key.UID, ours, key.Annotations[v1alpha1.AnnotationKeyID])
	}
	waitManagerReady(t)
}

// killLeader waits for a leader other than the one that was killed last, ends its process with SIGKILL, so that nothing is
// released and nothing is finished, and returns its identity.
func killLeader(t *testing.T, last string) (identity string) {
	t.Helper()
	lease := kube.waitFor(t, &coordinationv1.LeaseList{}, systemNamespace, "another leader", func(o client.Object) bool {
		holder := o.(*coordinationv1.Lease).Spec.HolderIdentity
		return o.GetName() == "datakeys-manager" && holder != nil && *holder != "" && *holder != last
	}).(*coordinationv1.Lease)
	identity = *lease.Spec.HolderIdentity
	leader, _, _ := strings.Cut(identity, "_")
	pid := processOf(t, systemNamespace, leader, "manager")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill the leader %s: %v", leader, err)
	}
	t.Logf("killed the leader %s, process %d", leader, pid)
	return identity
}

func waitManagerReady(t *testing.T) {
	t.Helper()
	pods := &corev1.PodList{}
	if err := kube.client.List(t.Context(), pods, client.InNamespace(systemNamespace)); err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		kube.waitPodReady(t, systemNamespace, p.Name)
	}
}

// processOf finds the process ID, on this machine, of a container's process.
func processOf(t *testing.T, namespace, pod, container string) int {
	t.Helper()
	var p corev1.Pod
	if err := kube.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: pod}, &p); err != nil {
		t.Fatal(err)
	}
	for _, status := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		if status.Name == container {
			return processOfContainer(t, strings.TrimPrefix(status.ContainerID, "containerd://"))
		}
	}
	t.Fatalf("pod %s has no container %s", pod, container)
	return 0
}

// processOfContainer finds a process in the control group that is named by the container's ID.
func processOfContainer(t *testing.T, id string) int {
	t.Helper()
	groups, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range groups {
		content, err := os.ReadFile(group)
		if err != nil || !bytes.Contains(content, []byte(id)) {
			continue // a process that has ended meanwhile, or another's
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(group)))
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	t.Fatalf("no process of container %s", id)
	return 0
}
