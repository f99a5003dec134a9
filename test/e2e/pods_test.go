//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

var hexSHA256 = regexp.MustCompile(`[0-9a-f]{64}`)

func deploymentReadsItsDataKey(t *testing.T) {
	namespace := tenant(t, "restricted", "orders")
	template := pod(namespace, "", "orders")
	template.Labels["app"] = "reader"
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "reader"},
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32(2)),
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "reader"}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: template.Labels, Annotations: template.Annotations},
				Spec:       template.Spec,
			},
		},
	}
	kube.create(t, deployment)
	kube.waitFor(t, &appsv1.DeploymentList{}, namespace, "Deployment reader available", func(o client.Object) bool {
		return o.(*appsv1.Deployment).Status.AvailableReplicas == 2
	})
	pods := &corev1.PodList{}
	if err := kube.client.List(t.Context(), pods, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	want := plaintextSHA256(t, namespace, "orders")
	for _, p := range pods.Items {
		if got := sha256Of(t, namespace, p.Name, "app", "orders"); got != want {
			t.Errorf("pod %s has a data key with SHA-256 %s, the Secret's blob opens to %s", p.Name, got, want)
		}
	}

	secret := &corev1.Secret{}
	if err := kube.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "orders"}, secret); err != nil {
		t.Fatal(err)
	}
	entries := []string{}
	for entry, value := range secret.Data {
		entries = append(entries, entry)
		for offset := 0; offset+32 <= len(value); offset++ {
			if sum := sha256.Sum256(value[offset : offset+32]); hex.EncodeToString(sum[:]) == want {
				t.Errorf("the Secret's entry %s holds the plaintext", entry)
			}
		}
	}
	slices.Sort(entries)
	if want := []string{"algorithm", "ciphertextBlob", "encryptionContext", "generation", "iv", "keyId", "keyVersion"}; !slices.Equal(entries, want) {
		t.Errorf("the Secret has the entries %v, want %v", entries, want)
	}
}

func jobCompletes(t *testing.T) {
	namespace := tenant(t, "restricted", "orders")
	template := pod(namespace, "", "orders")
	template.Spec = podSpec("sha256", "orders")
	template.Spec.RestartPolicy = corev1.RestartPolicyNever
	kube.create(t, &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "once"},
		Spec: batchv1.JobSpec{
			BackoffLimit: new(int32(0)),
			Template:     corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: template.Labels, Annotations: template.Annotations}, Spec: template.Spec},
		},
	})
	kube.waitFor(t, &batchv1.JobList{}, namespace, "Job once complete", func(o client.Object) bool {
		job := o.(*batchv1.Job)
		if job.Status.Failed > 0 {
			t.Fatalf("the job failed: %+v", job.Status)
		}
		return job.Status.Succeeded == 1
	})
	pods := &corev1.PodList{}
	if err := kube.client.List(t.Context(), pods, client.InNamespace(namespace)); err != nil || len(pods.Items) != 1 {
		t.Fatalf("the job has %d pods, error %v", len(pods.Items), err)
	}
	wantEndedInOrder(t, &pods.Items[0], 0)
	if got, want := hexSHA256.FindString(kube.logs(t, namespace, pods.Items[0].Name, "app")), plaintextSHA256(t, namespace, "orders"); got != want {
		t.Errorf("the job read a data key with SHA-256 %q, want %s", got, want)
	}
}

func initContainerReadsADataKey(t *testing.T) {
	namespace := tenant(t, "restricted", "orders")
	p := pod(namespace, "migrate", "orders")
	p.Spec.InitContainers = []corev1.Container{container("migrate", "sha256", "orders")}
	kube.create(t, p)
	running := kube.waitPodReady(t, namespace, p.Name)
	if first := running.Spec.InitContainers[0]; first.Name != v1alpha1.SidecarName || first.RestartPolicy == nil || *first.RestartPolicy != corev1.ContainerRestartPolicyAlways {
		t.Errorf("the first init container is %s, want the native sidecar", first.Name)
	}
	if got, want := hexSHA256.FindString(kube.logs(t, namespace, p.Name, "migrate")), plaintextSHA256(t, namespace, "orders"); got != want {
		t.Errorf("the init container read a data key with SHA-256 %q, want %s", got, want)
	}
}

func podsOfAnyUser(t *testing.T) {
	for name, test := range map[string]struct {
		standard string
		change   func(*corev1.PodSpec)
	}{
		"an odd UID": {"restricted", func(s *corev1.PodSpec) { s.SecurityContext.RunAsUser = new(int64(12345)) }},
		"an odd UID with fsGroup": {"restricted", func(s *corev1.PodSpec) {
			s.SecurityContext.RunAsUser, s.SecurityContext.FSGroup = new(int64(12345)), new(int64(54321))
		}},
		"fsGroup only":           {"restricted", func(s *corev1.PodSpec) { s.SecurityContext.FSGroup = new(int64(54321)) }},
		"a UID of the container": {"restricted", func(s *corev1.PodSpec) { s.Containers[0].SecurityContext.RunAsUser = new(int64(4242)) }},
		"UID 0": {"baseline", func(s *corev1.PodSpec) {
			s.SecurityContext.RunAsUser, s.SecurityContext.RunAsNonRoot = new(int64(0)), nil
		}},
		"UID 0 with fsGroup": {"baseline", func(s *corev1.PodSpec) {
			s.SecurityContext.RunAsUser, s.SecurityContext.RunAsNonRoot, s.SecurityContext.FSGroup = new(int64(0)), nil, new(int64(7))
		}},
		"no security context at all": {"baseline", func(s *corev1.PodSpec) { s.SecurityContext, s.Containers[0].SecurityContext = nil, nil }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			namespace := tenant(t, test.standard, "orders")
			p := pod(namespace, "app", "orders")
			test.change(&p.Spec)
			kube.create(t, p)
			kube.waitPodReady(t, namespace, p.Name)
			if got, want := sha256Of(t, namespace, p.Name, "app", "orders"), plaintextSHA256(t, namespace, "orders"); got != want {
				t.Errorf("the pod has a data key with SHA-256 %s, want %s", got, want)
			}
		})
	}
}

func unlabelledPodIsUntouched(t *testing.T) {
	namespace := tenant(t, "restricted", "orders")
	p := pod(namespace, "plain", "orders")
	p.Labels = nil
	kube.create(t, p)
	running := kube.waitPodReady(t, namespace, p.Name)
	if n := len(running.Spec.InitContainers); n != 0 {
		t.Errorf("the pod has %d init containers, want none", n)
	}
	if n := len(running.Spec.Volumes); n != 0 {
		t.Errorf("the pod has %d volumes, want none", n)
	}
	if _, ok := running.Annotations[v1alpha1.AnnotationDataKeys]; !ok || len(running.Spec.Containers[0].Env) != 0 {
		t.Errorf("the pod was changed: %+v", running)
	}
}

func serviceAccountWithoutPermission(t *testing.T) {
	namespace := tenant(t, "restricted", "orders", "payments")
	for _, name := range []string{"stranger", "refused"} { // each may have another data key, but not this one
		kube.create(t, decrypter(namespace, name, "payments")...)
	}

	t.Run("is held back with an event, until the permission is given", func(t *testing.T) {
		t.Parallel()
		p := pod(namespace, "held", "orders")
		p.Spec.ServiceAccountName = "stranger"
		kube.create(t, p)
		event := kube.waitEvent(t, namespace, p.Name, "orders", v1alpha1.ReasonDataKeyDenied)
		t.Logf("event: %s: %s", event.Reason, event.Note)
		kube.waitEvent(t, namespace, p.Name, "", "FailedPostStartHook")
		kube.waitPod(t, namespace, p.Name, "says why in its status", func(p *corev1.Pod) bool {
			for _, status := range p.Status.InitContainerStatuses {
				last := status.LastTerminationState.Terminated
				if status.Name == v1alpha1.SidecarName && last != nil && strings.Contains(last.Message, `data key "orders" is not issued`) {
					return true
				}
			}
			return false
		})
		if err := kube.client.Get(t.Context(), client.ObjectKeyFromObject(p), p); err != nil {
			t.Fatal(err)
		}
		if started := p.Status.ContainerStatuses[0].Started; started != nil && *started {
			t.Error("the application was started")
		}

		kube.create(t, permission(namespace, "stranger", "orders")...)
		kube.waitPodReady(t, namespace, p.Name)
	})

	t.Run("is refused with 403 when it does not wait", func(t *testing.T) {
		t.Parallel()
		p := pod(namespace, "refused", "orders", "payments")
		p.Spec.ServiceAccountName = "refused"
		p.Annotations[v1alpha1.AnnotationWait] = "false"
		kube.create(t, p)
		kube.waitPodReady(t, namespace, p.Name)
		kube.waitEvent(t, namespace, p.Name, "orders", v1alpha1.ReasonDataKeyDenied)
		stdout, _, err := kube.exec(t.Context(), namespace, p.Name, "app", "/reader", "get", "/v1/data-keys/orders")
		if err != nil || !strings.HasPrefix(string(stdout), "HTTP 403 application/problem+json") {
			t.Errorf("the socket answered %.200q, error %v, want 403 and problem details", stdout, err)
		}
		if got, want := sha256Of(t, namespace, p.Name, "app", "payments"), plaintextSHA256(t, namespace, "payments"); got != want {
			t.Errorf("the data key that is allowed has SHA-256 %s, want %s", got, want)
		}
	})
}

func dataKeyThatComesLate(t *testing.T) {
	namespace := tenant(t, "restricted", "orders")
	kube.create(t, decrypter(namespace, "waiter", "orders", "late")...)

	t.Run("a pod that waits can be deleted at once", func(t *testing.T) {
		t.Parallel()
		p := pod(namespace, "impatient", "orders", "missing")
		p.Spec.ServiceAccountName = "waiter"
		kube.create(t, p)
		event := kube.waitEvent(t, namespace, p.Name, "missing", v1alpha1.ReasonWaitingForDataKeys)
		t.Logf("event: %s", event.Note)
		if err := kube.client.Delete(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		kube.waitGone(t, &corev1.PodList{}, p)
	})

	t.Run("holds the pod back until it is there", func(t *testing.T) {
		t.Parallel()
		p := pod(namespace, "patient", "late")
		p.Spec.ServiceAccountName = "waiter"
		kube.create(t, p)
		kube.waitEvent(t, namespace, p.Name, "late", v1alpha1.ReasonWaitingForDataKeys)
		kube.create(t, dataKeyRequest(namespace, "late"))
		kube.waitPodReady(t, namespace, p.Name)
		if got, want := sha256Of(t, namespace, p.Name, "app", "late"), plaintextSHA256(t, namespace, "late"); got != want {
			t.Errorf("the pod has a data key with SHA-256 %s, want %s", got, want)
		}
	})
}
