//go:build e2e

package e2e

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/internal/rootkey/rootkeytest"
	"github.com/datakeys/datakeys/internal/seal"
)

// rootKeyIsChanged takes the installation from the embedded root key to an HSM behind a KMS v2 plugin, on to a file, and back,
// in the steps of docs/operations.md. At each root key the managers are restarted, and new data keys are made. A pod reads
// its data key all the time, and at the end a new one reads all of them. While the plugin is down, what runs makes and opens
// keys as before, and a manager that starts becomes ready when the plugin is back.
func rootKeyIsChanged(t *testing.T) {
	hsm := rootkeytest.NewSoftHSM(t)
	folder := filepath.Dir(hsm.Socket)
	letManagersReach(t, hsm)
	key := make([]byte, 32)
	rand.Read(key)
	seenPlaintexts.Store("root key in a file", key)
	file := filepath.Join(folder, "root-key")
	if err := os.WriteFile(file, []byte(base64.StdEncoding.EncodeToString(key)), 0o644); err != nil {
		t.Fatal(err)
	}

	namespace := tenant(t, "restricted", "embedded")
	all := []string{"embedded", "kmsv2", "down", "file", "back"}
	kube.create(t, permission(namespace, "app", all[1:]...)...)
	kube.create(t, pod(namespace, "first", "embedded"))
	kube.waitPodReady(t, namespace, "first")
	want := map[string]string{"embedded": sha256Of(t, namespace, "first", "app", "embedded")}
	// made makes a data key under a master key that is new too, has a new pod read it, and the first pod read its own.
	made := func(name string) {
		t.Helper()
		request := dataKeyRequest(namespace, name)
		request.Spec.MasterKeyRef.Name = name
		kube.create(t, masterKey(namespace, name), request, pod(namespace, name, name, "embedded"))
		kube.waitPodReady(t, namespace, name)
		want[name] = sha256Of(t, namespace, name, "app", name)
		for _, reader := range []string{"first", name} {
			if got := sha256Of(t, namespace, reader, "app", "embedded"); got != want["embedded"] {
				t.Errorf("at %s, pod %s reads another data key than before", name, reader)
			}
		}
	}

	mount := []string{
		"--set-json", fmt.Sprintf(`extraVolumes=[{"name":"root-keys","hostPath":{"path":%q,"type":"Directory"}}]`, folder),
		"--set-json", fmt.Sprintf(`extraVolumeMounts=[{"name":"root-keys","mountPath":%q,"readOnly":true}]`, folder),
	}
	changeRootKey(t, seal.DefaultRootKey, hsm.RootKey(), mount...)
	made("kmsv2")
	hsm.Kill(t)
	made("down")
	starting := replaceManager(t)
	kube.waitEvent(t, systemNamespace, starting, "Readiness probe failed", "Unhealthy")
	hsm.Start(t)
	letManagersReach(t, hsm)
	kube.waitPodReady(t, systemNamespace, starting)

	changeRootKey(t, hsm.RootKey(), "file://"+file)
	hsm.Stop(t) // nothing needs it any more
	restartManagers(t)
	made("file")

	changeRootKey(t, "file://"+file, seal.DefaultRootKey)
	install(t, "--reset-values") // without the volumes
	made("back")

	kube.create(t, pod(namespace, "last", all...))
	kube.waitPodReady(t, namespace, "last")
	for _, name := range all {
		if got := sha256Of(t, namespace, "last", "app", name); got != want[name] {
			t.Errorf("data key %s is another one than when it was made", name)
		}
		if got := plaintextSHA256(t, namespace, name); got != want[name] {
			t.Errorf("data key %s is another one than in its blob", name)
		}
	}
}

// letManagersReach opens the plugin's socket to the managers, which run as another user. The token stays closed.
func letManagersReach(t *testing.T, hsm *rootkeytest.SoftHSM) {
	t.Helper()
	for path, mode := range map[string]os.FileMode{filepath.Dir(hsm.Socket): 0o711, hsm.Socket: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
}

// changeRootKey goes from one root key to another as docs/operations.md says, and checks what the manager says at each step.
func changeRootKey(t *testing.T, from, to string, more ...string) {
	t.Helper()
	check := func(verdict seal.Verdict, wrappedBy ...string) {
		t.Helper()
		kube.waitFor(t, &corev1.SecretList{}, systemNamespace, fmt.Sprintf("sealing keys wrapped by %v", wrappedBy), func(o client.Object) bool {
			return o.GetName() == seal.SealingKeysSecret && wrapped(t, o.(*corev1.Secret), wrappedBy...)
		})
		status := rootKeyStatus(t)
		if !strings.Contains(status, "verdict") || !strings.Contains(status, string(verdict)+": ") {
			t.Errorf("from %s to %s: the manager does not say %s:\n%s", from, to, verdict, status)
		}
	}
	check(seal.VerdictSettled, from)
	install(t, append(more, "--reuse-values", "--set", "rootKey.uri="+to, "--set", "rootKey.previousUri="+from)...)
	check(seal.VerdictKeepsPrevious, from, to)
	install(t, "--reuse-values", "--set", "rootKey.previousUri=")
	check(seal.VerdictSettled, to)
}

// wrapped reports whether sealing keys are wrapped by these root keys and no other, and the installation relies on the last.
func wrapped(t *testing.T, secret *corev1.Secret, by ...string) bool {
	t.Helper()
	var index struct {
		SettledOn string
		RootKeys  map[string]struct{ URI string }
	}
	if err := json.Unmarshal(secret.Data["index"], &index); err != nil {
		t.Fatalf("read the index of the sealing keys: %v", err)
	}
	uris := []string{}
	for _, root := range index.RootKeys {
		uris = append(uris, root.URI)
	}
	slices.Sort(uris)
	return slices.Equal(uris, slices.Sorted(slices.Values(by))) && index.RootKeys[index.SettledOn].URI == by[len(by)-1]
}

func rootKeyStatus(t *testing.T) string {
	t.Helper()
	stdout, stderr, err := kube.exec(t.Context(), systemNamespace, managers(t)[0].Name, "manager", "/manager", "root-key-status")
	if err != nil {
		t.Fatalf("root-key-status: %v: %s", err, stderr)
	}
	return string(stdout)
}

// install upgrades the chart, and waits until every replica runs with the new values.
func install(t *testing.T, args ...string) {
	t.Helper()
	if err := run(t.Context(), kube.state, "hack/install.sh", append([]string{"chart"}, args...)...); err != nil {
		t.Fatal(err)
	}
}

// managers are the manager's pods that are not on their way out.
func managers(t *testing.T) []corev1.Pod {
	t.Helper()
	pods := &corev1.PodList{}
	selector := client.MatchingLabelsSelector{Selector: labels.SelectorFromSet(labels.Set{"app.kubernetes.io/component": "manager"})}
	if err := kube.client.List(t.Context(), pods, client.InNamespace(systemNamespace), selector); err != nil {
		t.Fatal(err)
	}
	var live []corev1.Pod
	for _, p := range pods.Items {
		if p.DeletionTimestamp == nil {
			live = append(live, p)
		}
	}
	if len(live) == 0 {
		t.Fatal("there is no manager")
	}
	return live
}

// replaceManager deletes one of the manager's pods, and returns the name of the one that comes instead.
func replaceManager(t *testing.T) (name string) {
	t.Helper()
	before := map[string]bool{}
	for _, p := range managers(t) {
		before[p.Name] = true
		name = p.Name
	}
	if err := kube.client.Delete(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: systemNamespace, Name: name}}); err != nil {
		t.Fatal(err)
	}
	return kube.waitFor(t, &corev1.PodList{}, systemNamespace, "another manager", func(o client.Object) bool {
		return !before[o.GetName()] && strings.HasPrefix(o.GetName(), "datakeys-manager-")
	}).GetName()
}

// restartManagers has every manager start again, one after the other.
func restartManagers(t *testing.T) {
	t.Helper()
	for range managers(t) {
		kube.waitPodReady(t, systemNamespace, replaceManager(t))
	}
}
