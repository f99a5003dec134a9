//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	datakeys "github.com/datakeys/datakeys/client"
)

// template is the template of a workload's pods: pod with the given arguments for the application.
func template(name, dataKeys string, args ...string) corev1.PodTemplateSpec {
	p := pod("", "", dataKeys)
	p.Labels["app"] = name
	spec := podSpec(args...)
	spec.TerminationGracePeriodSeconds = new(int64(60)) // nothing here may take it all
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: p.Labels, Annotations: p.Annotations}, Spec: spec}
}

// wantEndedInOrder makes sure that the application of a pod ended with that code, that the sidecar ended after it, soon and by itself, and
// that nothing was started twice. Kubernetes says times to the second.
func wantEndedInOrder(t *testing.T, p *corev1.Pod, code int32) {
	t.Helper()
	ended := map[string]*corev1.ContainerStateTerminated{}
	for _, status := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
		ended[status.Name] = status.State.Terminated
		if status.RestartCount != 0 {
			t.Errorf("container %s of pod %s was started again %d times: %+v", status.Name, p.Name, status.RestartCount, status.LastTerminationState)
		}
	}
	app, sidecar := ended["app"], ended[v1alpha1.SidecarName]
	if app == nil || sidecar == nil {
		t.Fatalf("of pod %s the application has ended: %v, the sidecar: %v; want both", p.Name, app != nil, sidecar != nil)
	}
	if app.ExitCode != code || sidecar.ExitCode != 0 {
		t.Errorf("of pod %s the application ended with %d, the sidecar with %d: want %d and 0", p.Name, app.ExitCode, sidecar.ExitCode, code)
	}
	after := sidecar.FinishedAt.Sub(app.FinishedAt.Time)
	t.Logf("the sidecar of pod %s ended %v after the application", p.Name, after)
	if after < 0 || after > 10*time.Second {
		t.Errorf("the sidecar of pod %s ended %v after the application, want soon after", p.Name, after)
	}
}

// podsOf are the pods of a Job.
func podsOf(t *testing.T, job *batchv1.Job) []corev1.Pod {
	t.Helper()
	pods := &corev1.PodList{}
	ofJob := client.MatchingLabels{batchv1.JobNameLabel: job.Name}
	if err := kube.client.List(t.Context(), pods, client.InNamespace(job.Namespace), ofJob); err != nil {
		t.Fatal(err)
	}
	return pods.Items
}

func waitJob(t *testing.T, namespace string, condition batchv1.JobConditionType) *batchv1.Job {
	t.Helper()
	return kube.waitFor(t, &batchv1.JobList{}, namespace, "a Job that is "+string(condition), func(o client.Object) bool {
		for _, c := range o.(*batchv1.Job).Status.Conditions {
			if c.Status == corev1.ConditionTrue && (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) {
				if c.Type != condition {
					t.Fatalf("Job %s is %s: %s", o.GetName(), c.Type, c.Message)
				}
				return true
			}
		}
		return false
	}).(*batchv1.Job)
}

// jobFails asks for a data key that its pod does not have: each pod of it fails and ends, and so does the Job.
func jobFails(t *testing.T) {
	namespace := tenant(t, "restricted", "orders")
	one := template("fails", "orders", "sha256", "payments")
	one.Spec.RestartPolicy = corev1.RestartPolicyNever
	kube.create(t, &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "fails"},
		Spec:       batchv1.JobSpec{BackoffLimit: new(int32(1)), Template: one},
	})
	job := waitJob(t, namespace, batchv1.JobFailed)
	pods := podsOf(t, job)
	if len(pods) != 2 {
		t.Errorf("the Job had %d pods, want the first and its second try", len(pods))
	}
	for i := range pods {
		p := &pods[i]
		wantEndedInOrder(t, p, 1)
		said := kube.logs(t, namespace, p.Name, "app")
		if p.Status.Phase != corev1.PodFailed || !strings.Contains(said, "HTTP 404 Not Found: UnknownDataKey") {
			t.Errorf("pod %s is %s, and said %q", p.Name, p.Status.Phase, said)
		}
	}
}

// cronJobCompletes runs by its schedule. Its restartPolicy is OnFailure, which is for the application and not for the sidecar.
func cronJobCompletes(t *testing.T) {
	namespace := tenant(t, "restricted", "orders")
	one := template("nightly", "orders", "sha256", "orders")
	one.Spec.RestartPolicy = corev1.RestartPolicyOnFailure
	kube.create(t, &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "nightly"},
		Spec: batchv1.CronJobSpec{
			Schedule: "* * * * *", ConcurrencyPolicy: batchv1.ForbidConcurrent,
			JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{BackoffLimit: new(int32(0)), Template: one}},
		},
	})
	job := waitJob(t, namespace, batchv1.JobComplete)
	pods := podsOf(t, job)
	if len(pods) != 1 {
		t.Fatalf("the Job had %d pods, want 1", len(pods))
	}
	wantEndedInOrder(t, &pods[0], 0)
	if got, want := hexSHA256.FindString(kube.logs(t, namespace, pods[0].Name, "app")), plaintextSHA256(t, namespace, "orders"); got != want {
		t.Errorf("the Job read a data key with SHA-256 %q, want %s", got, want)
	}
}

// deploymentIsRolled replaces the pods of a Deployment, which use their data key from their first moment to some time after they were told
// to end, and end with the first thing that fails. None does.
func deploymentIsRolled(t *testing.T) {
	namespace := tenant(t, "restricted", "orders")
	kube.create(t, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "works"},
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32(2)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "works"}},
			Template: template("works", "orders", "work", "-last=2s", "orders"),
		},
	})
	rolled := func(o client.Object) bool {
		d := o.(*appsv1.Deployment)
		return d.Status.ObservedGeneration == d.Generation &&
			d.Status.UpdatedReplicas == 2 && d.Status.AvailableReplicas == 2 && d.Status.Replicas == 2
	}
	kube.waitFor(t, &appsv1.DeploymentList{}, namespace, "Deployment works available", rolled)
	for _, p := range kube.untilGone(t, namespace, 2, func() { rollOut(t, &appsv1.Deployment{}, namespace, "works") }) {
		wantEndedInOrder(t, p, 0)
	}
	kube.waitFor(t, &appsv1.DeploymentList{}, namespace, "Deployment works rolled out", rolled)
	wantWorking(t, namespace, 2)
}

// statefulSetIsRolled starts the pods of a StatefulSet one after the other, and replaces them the other way round.
func statefulSetIsRolled(t *testing.T) {
	namespace := tenant(t, "restricted", "orders")
	kube.create(t, &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "works"},
		Spec: appsv1.StatefulSetSpec{
			Replicas: new(int32(2)), ServiceName: "works", Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "works"}},
			Template: template("works", "orders", "work", "-last=1s", "orders"),
		},
	})
	rolled := func(o client.Object) bool {
		s := o.(*appsv1.StatefulSet)
		return s.Status.ObservedGeneration == s.Generation && s.Status.ReadyReplicas == 2 && s.Status.CurrentRevision == s.Status.UpdateRevision
	}
	kube.waitFor(t, &appsv1.StatefulSetList{}, namespace, "StatefulSet works ready", rolled)
	first, second := kube.waitPodReady(t, namespace, "works-0"), kube.waitPodReady(t, namespace, "works-1")
	for _, c := range first.Status.Conditions {
		if c.Type == corev1.PodReady && c.LastTransitionTime.After(second.CreationTimestamp.Time) {
			t.Errorf("the second pod was made at %v, before the first had its data key at %v", second.CreationTimestamp, c.LastTransitionTime)
		}
	}
	old := kube.untilGone(t, namespace, 2, func() { rollOut(t, &appsv1.StatefulSet{}, namespace, "works") })
	for _, p := range old {
		wantEndedInOrder(t, p, 0)
	}
	if old[0].UID != second.UID || old[1].UID != first.UID {
		t.Errorf("the pods went in the order %s, %s, want the last one first", old[0].Name, old[1].Name)
	}
	kube.waitFor(t, &appsv1.StatefulSetList{}, namespace, "StatefulSet works rolled out", rolled)
	wantWorking(t, namespace, 2)
}

// rollOut does what kubectl rollout restart does.
func rollOut(t *testing.T, kind client.Object, namespace, name string) {
	t.Helper()
	mergePatch(t, kind, namespace, name, `{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":"now"}}}}}`)
}

// wantWorking makes sure that there are so many pods, each with a sidecar of its own that issues the data key, and that none has failed.
func wantWorking(t *testing.T, namespace string, want int) {
	t.Helper()
	pods := &corev1.PodList{}
	if err := kube.client.List(t.Context(), pods, client.InNamespace(namespace)); err != nil {
		t.Fatal(err)
	}
	if len(pods.Items) != want {
		t.Errorf("there are %d pods, want %d", len(pods.Items), want)
	}
	for _, p := range pods.Items {
		if got, want := sha256Of(t, namespace, p.Name, "app", "orders"), plaintextSHA256(t, namespace, "orders"); got != want {
			t.Errorf("pod %s has a data key with SHA-256 %s, want %s", p.Name, got, want)
		}
		for _, status := range append(p.Status.InitContainerStatuses, p.Status.ContainerStatuses...) {
			if status.RestartCount != 0 {
				t.Errorf("container %s of pod %s was started again: %+v", status.Name, p.Name, status.LastTerminationState)
			}
		}
	}
}

// keysAreThereToTheEnd deletes a pod whose application has a preStop hook of 2 s, and goes on for 6 s after it was told to end. It encrypts
// and decrypts all that time, and the data key, and the front door, are there for it. Then the sidecar ends, too, long before the grace
// period is over.
func keysAreThereToTheEnd(t *testing.T) {
	namespace := tenant(t, "restricted", "orders")
	p := pod(namespace, "finishes", "orders")
	p.Spec = template("finishes", "orders", "work", "-last=6s", "orders").Spec
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 2}}}
	kube.create(t, p)
	kube.waitPodReady(t, namespace, p.Name)
	said := kube.listen(t, namespace, p.Name, "app")
	socket := socketOf(t, namespace, p.Name)
	keys, door := keysOn(t, socket), awsOn(socket)
	secret := &corev1.Secret{}
	if err := kube.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "orders"}, secret); err != nil {
		t.Fatal(err)
	}
	pairs := map[string]string{}
	if err := json.Unmarshal(secret.Data[v1alpha1.SecretKeyEncryptionContext], &pairs); err != nil {
		t.Fatal(err)
	}
	once := func() {
		key, err := keys.DataKey(t.Context(), "orders")
		if err != nil {
			t.Fatalf("the data key of a pod that ends: %v", err)
		}
		key.Destroy()
		input := &awskms.DecryptInput{CiphertextBlob: secret.Data[v1alpha1.SecretKeyCiphertextBlob], EncryptionContext: pairs}
		if opened, err := door.Decrypt(t.Context(), input); err != nil || len(opened.Plaintext) != 32 || aws.ToString(opened.KeyId) == "" {
			t.Fatalf("the front door in a pod that ends: %v", err)
		}
	}
	use := func(d time.Duration) {
		pace := time.NewTicker(50 * time.Millisecond)
		defer pace.Stop()
		for start := time.Now(); time.Since(start) < d; <-pace.C {
			once()
		}
	}
	deleted := time.Now()
	ended := kube.untilGone(t, namespace, 1, func() {
		if err := kube.client.Delete(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		use(time.Second)
		said.waitLine(t, "that it was told to end", func(line string) bool { return line == "# told to end" })
		use(3 * time.Second)
		messages := 0
		said.waitLine(t, "its end", func(line string) bool { messages++; return strings.HasPrefix(line, "# told to end after ") })
		if messages < 10 {
			t.Errorf("the application encrypted %d messages in its last 6 s", messages-1)
		}
	})
	wantEndedInOrder(t, ended[0], 0)
	if took := time.Since(deleted); took > 30*time.Second {
		t.Errorf("the pod took %v to go, its application 8 s, and 60 s is its grace period", took)
	}
}

// untilGone does something, and returns that many pods of the namespace that are gone by then or then go, as they were seen last.
func (c *cluster) untilGone(t *testing.T, namespace string, n int, do func()) []*corev1.Pod {
	t.Helper()
	w, err := c.client.Watch(t.Context(), &corev1.PodList{}, client.InNamespace(namespace))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	do()
	var gone []*corev1.Pod
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for len(gone) < n {
		select {
		case event, open := <-w.ResultChan():
			if !open {
				t.Fatal("the watch of the pods has ended")
			}
			if event.Type == watch.Deleted {
				gone = append(gone, event.Object.(*corev1.Pod))
			}
		case <-timer.C:
			t.Fatalf("%s: only %d of %d pods were gone within %v", namespace, len(gone), n, patience)
		}
	}
	return gone
}

// socketOf is the socket of a pod as this machine reaches it, for as long as its application runs.
func socketOf(t *testing.T, namespace, pod string) string {
	t.Helper()
	return fmt.Sprintf("/proc/%d/root%s", processOf(t, namespace, pod, "app"), v1alpha1.SocketPath)
}

// keysOn is our client on a pod's socket.
func keysOn(t *testing.T, socket string) *datakeys.Client {
	t.Helper()
	keys, err := datakeys.New(datakeys.Options{Socket: socket, KeyAge: datakeys.MaxKeyAge})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(keys.Close)
	return keys
}
