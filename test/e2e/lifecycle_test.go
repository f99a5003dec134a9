//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// older is the last commit before keys had a lifecycle: one version, one generation, and sidecars that know no other.
const older = "e3368987c5ce9b078558a8613ced833d8753f745"

// TestLifecycle has two pods encrypt and decrypt all the time, one of them since before the manager was rolled from an older commit to
// this one, while their master key is rotated 20 times, their data key 5 times, and the leader is killed 10 times. Nothing fails, and
// at the end a new pod opens all that they encrypted.
func TestLifecycle(t *testing.T) {
	onOlderInstallation(t, ".cluster-e2e-l") // kept short: sockets lie below it
	namespace := tenant(t, "restricted", "orders")
	plaintextOf(t, namespace, "orders")
	before := startWork(t, namespace, "before", older, "-keep", "orders") // its sidecar will never know but the newest generation
	old := managers(t)
	install(t, "--reset-values")
	for i := range old { // they may go on injecting until they are gone
		kube.waitGone(t, &corev1.PodList{}, &old[i])
	}
	after := startWork(t, namespace, "after", "dev", "orders")

	const rounds = 10
	killed, version, generation := "", int32(1), int32(1)
	for round := range rounds {
		// The first rotation of a round is waited for. In the second one, and every other time in that of the data key, the leader dies:
		// the next one goes on.
		version++
		requestRotation(t, &v1alpha1.MasterKey{}, namespace, "orders", fmt.Sprintf("version %d", version))
		waitRotated(t, namespace, "orders", version, generation)
		version++
		requestRotation(t, &v1alpha1.MasterKey{}, namespace, "orders", fmt.Sprintf("version %d", version))
		if round%2 == 0 {
			generation++
			requestRotation(t, &v1alpha1.DataKeyRequest{}, namespace, "orders", fmt.Sprintf("generation %d", generation))
		}
		killed = killLeader(t, killed)
		replaceKilled(t, killed)
		waitRotated(t, namespace, "orders", version, generation)
		stillWork(t, namespace, "before", "after")
	}
	kube.waitFor(t, &v1alpha1.MasterKeyList{}, namespace, "MasterKey orders with no data key behind", func(o client.Object) bool {
		status := o.(*v1alpha1.MasterKey).Status
		return status.VersionCount != nil && *status.VersionCount == version && status.DataKeysBehind != nil && *status.DataKeysBehind == 0 &&
			apimeta.IsStatusConditionTrue(status.Conditions, v1alpha1.ConditionRewrapped)
	})
	if version != 2*rounds+1 || generation != rounds/2+1 {
		t.Fatalf("there were rotations to version %d and generation %d", version, generation)
	}

	// The kubelet brings what changed to running pods within about a minute and a half.
	newest := fmt.Sprintf("%d ", generation)
	for _, said := range []*spoken{before, after} {
		said.waitLine(t, "a message of generation "+newest, func(line string) bool { return strings.HasPrefix(line, newest) })
	}
	records := endWork(t, namespace, "before") + endWork(t, namespace, "after")
	kube.create(t, pod(namespace, "fresh", "orders"))
	kube.waitPodReady(t, namespace, "fresh")
	stdout, stderr, err := kube.feed(t.Context(), strings.NewReader(records), namespace, "fresh", "app", "/reader", "open", "orders")
	if err != nil {
		t.Fatalf("not every ciphertext opens in a new pod: %v: %s", err, stderr)
	}
	t.Logf("a new pod opened them all:\n%s", stdout)
	want := map[string]int{}
	for line := range strings.Lines(records) {
		if number, _, found := strings.Cut(line, " "); found && number != "#" {
			want[number]++
		}
	}
	for number, n := range want {
		if line := fmt.Sprintf("generation %s: %d opened\n", number, n); !strings.Contains(string(stdout), line) {
			t.Errorf("the new pod did not say: %s", line)
		}
	}
	if first, last := want["1"], want[strings.TrimSpace(newest)]; first == 0 || last == 0 {
		t.Errorf("there are %d ciphertexts of the first generation and %d of the last, want some of each", first, last)
	}

	if opened := plaintextsOf(t, namespace, "orders"); len(opened) != int(generation) {
		t.Errorf("%d generations open, want %d", len(opened), generation)
	}
	searchForLeaks(t)
}

// onOlderInstallation brings a cluster up for this test alone, with the images and the chart of the older commit installed. What this commit
// builds is loaded too.
func onOlderInstallation(t *testing.T, state string) {
	t.Helper()
	shared := kube
	t.Cleanup(func() {
		kube = shared
		if err := run(context.WithoutCancel(t.Context()), state, "go", "run", "./hack/cluster", "down"); err != nil {
			t.Error(err)
		}
	})
	olderInstall := []string{"env", "DIST=dist/" + older, "CHART=dist/" + older + "/datakeys", "hack/install.sh"}
	for _, command := range [][]string{
		{"hack/images.sh", older},
		{"hack/install.sh", "up"},
		append(olderInstall, "up"),
		append(olderInstall, "chart", "--set=image.manager.tag="+older, "--set=image.sidecar.tag="+older),
	} {
		if err := run(t.Context(), state, command[0], command[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if kube, err = connect(state); err != nil {
		t.Fatal(err)
	}
}

// startWork starts a pod that encrypts and decrypts from now on, with a sidecar of that tag, and returns what it prints after its first
// message. It ends with the first failure, and is not started again.
func startWork(t *testing.T, namespace, name, tag string, arguments ...string) *spoken {
	t.Helper()
	p := pod(namespace, name, arguments[len(arguments)-1])
	p.Spec = podSpec(append([]string{"work"}, arguments...)...)
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	kube.create(t, p)
	if got, want := kube.waitPodReady(t, namespace, name).Spec.InitContainers[0].Image, "datakeys/sidecar:"+tag; got != want {
		t.Fatalf("pod %s has the sidecar %s, want %s", name, got, want)
	}
	said := kube.listen(t, namespace, name, "app")
	said.waitLine(t, "a message", func(line string) bool { return strings.HasPrefix(line, "1 ") })
	return said
}

// stillWork makes sure that nothing has failed in these pods up to now.
func stillWork(t *testing.T, namespace string, names ...string) {
	t.Helper()
	for _, name := range names {
		var p corev1.Pod
		if err := kube.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, &p); err != nil {
			t.Fatal(err)
		}
		if p.Status.Phase != corev1.PodRunning {
			said := kube.logs(t, namespace, name, "app")
			t.Fatalf("pod %s is %s, and said at last %q", name, p.Status.Phase, said[max(0, len(said)-500):])
		}
	}
}

// endWork tells the application of a pod to end, makes sure that nothing of the pod failed at any time, and returns all that it printed.
func endWork(t *testing.T, namespace, name string) string {
	t.Helper()
	if err := syscall.Kill(processOf(t, namespace, name, "app"), syscall.SIGTERM); err != nil {
		t.Fatalf("end the application of pod %s: %v", name, err)
	}
	p := kube.waitPod(t, namespace, name, "completed", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	})
	said := kube.logs(t, namespace, name, "app")
	if ended := "\n# told to end after "; p.Status.Phase != corev1.PodSucceeded || !strings.Contains(said, ended) {
		t.Fatalf("pod %s is %s, and said at last %q", name, p.Status.Phase, said[max(0, len(said)-500):])
	}
	for _, status := range p.Status.InitContainerStatuses {
		if status.RestartCount != 0 {
			t.Errorf("container %s of pod %s was started again %d times: %+v", status.Name, name, status.RestartCount, status.LastTerminationState)
		}
	}
	t.Logf("pod %s: %d messages", name, strings.Count(said, "\n")-1)
	return said
}

// replaceKilled has another pod take the place of a manager that was killed at once: the kubelet would start it again after growing
// pauses.
func replaceKilled(t *testing.T, identity string) {
	t.Helper()
	name, _, _ := strings.Cut(identity, "_")
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: systemNamespace, Name: name}}
	if err := kube.client.Delete(t.Context(), p, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
}

// requestRotation asks for a rotation of a MasterKey or a DataKeyRequest.
func requestRotation(t *testing.T, kind client.Object, namespace, name, request string) {
	t.Helper()
	annotate(t, kind, namespace, name, v1alpha1.AnnotationRotateRequestedAt, request)
}

func annotate(t *testing.T, kind client.Object, namespace, name, annotation, value string) {
	t.Helper()
	mergePatch(t, kind, namespace, name, fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, annotation, value))
}

func mergePatch(t *testing.T, kind client.Object, namespace, name, patch string) {
	t.Helper()
	kind.SetNamespace(namespace)
	kind.SetName(name)
	if err := kube.client.Patch(t.Context(), kind, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		t.Fatalf("patch %T %s/%s: %v", kind, namespace, name, err)
	}
}

// waitRotated waits until version is the primary version of MasterKey orders, generation the newest of a DataKeyRequest of it, and all
// its generations are wrapped by that version, in the status as in the Secret.
func waitRotated(t *testing.T, namespace, request string, version, generation int32) {
	t.Helper()
	kube.waitFor(t, &v1alpha1.MasterKeyList{}, namespace, fmt.Sprintf("version %d of MasterKey orders", version), func(o client.Object) bool {
		status := o.(*v1alpha1.MasterKey).Status
		return o.GetName() == "orders" && status.PrimaryVersion != nil && *status.PrimaryVersion == version &&
			status.RotateRequestedAt == o.GetAnnotations()[v1alpha1.AnnotationRotateRequestedAt]
	})
	kube.waitFor(t, &v1alpha1.DataKeyRequestList{}, namespace, fmt.Sprintf("generation %d of DataKeyRequest %s under version %d", generation, request, version), func(o client.Object) bool {
		status := o.(*v1alpha1.DataKeyRequest).Status
		if o.GetName() != request || len(status.Generations) != int(generation) || status.Generation == nil || *status.Generation != generation {
			return false
		}
		for _, g := range status.Generations {
			if g.KeyVersion != version {
				return false
			}
		}
		return status.RotateRequestedAt == o.GetAnnotations()[v1alpha1.AnnotationRotateRequestedAt] &&
			apimeta.IsStatusConditionTrue(status.Conditions, v1alpha1.ConditionRewrapped)
	})
	kube.waitFor(t, &corev1.SecretList{}, namespace, fmt.Sprintf("Secret %s with generation %d under version %d", request, generation, version), func(o client.Object) bool {
		data := o.(*corev1.Secret).Data
		if o.GetName() != request || string(data[v1alpha1.SecretKeyGeneration]) != fmt.Sprint(generation) {
			return false
		}
		for number := range generation {
			entry := v1alpha1.SecretKeyKeyVersion
			if number > 0 {
				entry = v1alpha1.SecretKeyOf(entry, number)
			}
			if string(data[entry]) != fmt.Sprint(version) {
				return false
			}
		}
		return true
	})
}

// keyIsDisabledForAWhile disables a master key: a pod that comes meanwhile is refused its data key, and has it when the key is enabled
// again. When it is disabled once more, the pod loses it within 30 seconds, and has it back afterwards.
func keyIsDisabledForAWhile(t *testing.T) {
	namespace := tenant(t, "restricted", "orders")
	want := plaintextSHA256(t, namespace, "orders")
	mergePatch(t, &v1alpha1.MasterKey{}, namespace, "orders", `{"spec":{"state":"Disabled"}}`)
	kube.waitFor(t, &v1alpha1.MasterKeyList{}, namespace, "MasterKey orders Disabled", func(o client.Object) bool {
		ready := apimeta.FindStatusCondition(o.(*v1alpha1.MasterKey).Status.Conditions, v1alpha1.ConditionReady)
		return ready != nil && ready.Reason == v1alpha1.ReasonDisabled
	})
	said := startServing(t, namespace, "orders")
	refused := func(line string) bool {
		return strings.HasPrefix(line, "HTTP 403 Forbidden: MasterKeyState: ") && strings.Contains(line, "is Disabled")
	}
	served := func(line string) bool { return line == want }
	t.Log(said.waitLine(t, "a refusal", refused))
	mergePatch(t, &v1alpha1.MasterKey{}, namespace, "orders", `{"spec":{"state":"Enabled"}}`)
	said.waitLine(t, "the data key", served)

	start := time.Now()
	mergePatch(t, &v1alpha1.MasterKey{}, namespace, "orders", `{"spec":{"state":"Disabled"}}`)
	said.waitLine(t, "a refusal of what it has", refused)
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("the data key was issued for %v after its master key was disabled", took)
	}
	mergePatch(t, &v1alpha1.MasterKey{}, namespace, "orders", `{"spec":{"state":"Enabled"}}`)
	said.waitLine(t, "the data key again", served)
}

// startServing starts a pod that says all the time whether it has a data key, and does not wait for it, and returns what it says.
func startServing(t *testing.T, namespace, dataKey string) *spoken {
	t.Helper()
	p := pod(namespace, "serving", dataKey)
	p.Spec = podSpec("serve", dataKey)
	p.Annotations[v1alpha1.AnnotationWait] = "false"
	kube.create(t, p)
	kube.waitPodReady(t, namespace, p.Name)
	return kube.listen(t, namespace, p.Name, "app")
}
