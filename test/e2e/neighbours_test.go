//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/cert"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// stripped is what the webhook of another party does that was built with a library from before native sidecars.
func stripped(p *corev1.Pod) {
	for i := range p.Spec.InitContainers {
		p.Spec.InitContainers[i].RestartPolicy = nil
	}
}

const annotated = "other.example/annotated"

// othersStripTheSidecar has another party's webhook, before ours or after it, take the restartPolicy from the sidecar. Ours is asked again
// and refuses the pod, and says so where one looks for the pod of a Job.
func othersStripTheSidecar(t *testing.T) {
	for name, configuration := range map[string]string{"before ours": "aa-", "after ours": "zz-"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			namespace := tenant(t, "restricted", "orders")
			otherParty(t, configuration, namespace, stripped)
			kube.poll(t, "the other webhook to be asked", func() bool {
				err := kube.client.Create(t.Context(), pod(namespace, "trial", "orders"), client.DryRunAll)
				return apierrors.IsForbidden(err)
			})
			one := template("stripped", "orders", "sha256", "orders")
			one.Spec.RestartPolicy = corev1.RestartPolicyNever
			kube.create(t, &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "stripped"}, Spec: batchv1.JobSpec{Template: one}})
			event := kube.waitEvent(t, namespace, "stripped", "has removed restartPolicy: Always from the injected sidecar", "FailedCreate")
			t.Logf("event: %s", event.Note)
		})
	}
}

// othersStripTheSidecarLast has it taken away after ours was asked again, the last time: by a webhook that is itself asked again because of
// a third one. A pod that waits for its data keys has a hook, or a probe, which the API server does not take then. Any other is there and
// cannot start. It is told so, and counted until it is gone.
func othersStripTheSidecarLast(t *testing.T) {
	namespace := tenant(t, "restricted", "orders")
	otherParty(t, "zz-", namespace,
		func(p *corev1.Pod) {
			if p.Annotations[annotated] != "" {
				stripped(p)
			}
		},
		func(p *corev1.Pod) { metav1.SetMetaDataAnnotation(&p.ObjectMeta, annotated, "true") },
	)
	p := pod(namespace, "blocked", "orders")
	p.Annotations[v1alpha1.AnnotationWait] = "false"
	kube.poll(t, "the other webhooks to be asked", func() bool {
		trial := p.DeepCopy()
		if err := kube.client.Create(t.Context(), trial, client.DryRunAll); err != nil {
			t.Fatal(err)
		}
		return len(trial.Spec.InitContainers) == 1 && trial.Spec.InitContainers[0].RestartPolicy == nil
	})
	err := kube.client.Create(t.Context(), pod(namespace, "waits", "orders"))
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "may not be set for init containers without restartPolicy=Always") {
		t.Errorf("a pod that waits for its data keys: got %v, want that the API server finds it invalid", err)
	}
	kube.create(t, p)
	event := kube.waitEvent(t, namespace, p.Name, "has lost its restartPolicy: Always", v1alpha1.ReasonSidecarBlocks)
	t.Logf("event: %s", event.Note)
	kube.poll(t, "the pod to be counted", func() bool {
		return maps.Equal(podsWithoutSidecar(t, namespace), map[string]int{v1alpha1.ReasonSidecarBlocks: 1})
	})
	if err := kube.client.Get(t.Context(), client.ObjectKeyFromObject(p), p); err != nil {
		t.Fatal(err)
	}
	if started := p.Status.ContainerStatuses[0].Started; p.Status.Phase != corev1.PodPending || started != nil && *started {
		t.Errorf("the pod is %s", p.Status.Phase)
	}
	if err := kube.client.Delete(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	kube.waitGone(t, &corev1.PodList{}, p)
	kube.poll(t, "the pod to be counted no more", func() bool { return len(podsWithoutSidecar(t, namespace)) == 0 })
}

// webhookIsAway takes our webhook away for a while. A pod that comes meanwhile starts without a sidecar, is told so, and is counted. When
// the webhook is back, what people do helps: they roll the Deployment out anew.
func webhookIsAway(t *testing.T) {
	namespace := tenant(t, "restricted", "orders")
	injected := func() bool {
		trial := pod(namespace, "trial", "orders")
		err := kube.client.Create(t.Context(), trial, client.DryRunAll)
		return err == nil && len(trial.Spec.InitContainers) == 1
	}
	configuration := &admissionregistrationv1.MutatingWebhookConfiguration{}
	if err := kube.client.Get(t.Context(), client.ObjectKey{Name: "datakeys-injector"}, configuration); err != nil {
		t.Fatal(err)
	}
	anew := configuration.DeepCopy()
	anew.ObjectMeta = metav1.ObjectMeta{Name: anew.Name, Labels: anew.Labels, Annotations: anew.Annotations}
	anew.Webhooks[0].ClientConfig.CABundle = nil // as in the chart: the manager writes it
	t.Cleanup(func() {
		if err := kube.client.Create(context.Background(), anew.DeepCopy()); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Errorf("bring the webhook back: %v", err)
		}
	})
	if err := kube.client.Delete(t.Context(), configuration); err != nil {
		t.Fatal(err)
	}
	kube.poll(t, "the webhook to be away", func() bool { return !injected() })
	kube.create(t, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "left"},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "left"}}, Template: template("left", "orders", "sleep"),
		},
	})
	left := kube.waitFor(t, &corev1.PodList{}, namespace, "a pod of the Deployment", func(client.Object) bool { return true })
	if n := len(kube.waitPodReady(t, namespace, left.GetName()).Spec.InitContainers); n != 0 {
		t.Fatalf("the pod has %d init containers: the webhook was there", n)
	}
	event := kube.waitEvent(t, namespace, left.GetName(), "has no sidecar", v1alpha1.ReasonSidecarMissing)
	t.Logf("event: %s", event.Note)
	kube.poll(t, "the pod to be counted", func() bool {
		return maps.Equal(podsWithoutSidecar(t, namespace), map[string]int{v1alpha1.ReasonSidecarMissing: 1})
	})

	kube.create(t, anew.DeepCopy())
	kube.poll(t, "the webhook to be back", injected)
	kube.untilGone(t, namespace, 1, func() { rollOut(t, &appsv1.Deployment{}, namespace, "left") })
	wantWorking(t, namespace, 1)
	kube.poll(t, "the pod to be counted no more", func() bool { return len(podsWithoutSidecar(t, namespace)) == 0 })
}

// otherParty has webhooks of another party, which this process serves, asked for each pod that is created in the namespace, until the test
// ends: in this order, before ours or after it by the name of their configuration.
func otherParty(t *testing.T, name, namespace string, changes ...func(*corev1.Pod)) {
	t.Helper()
	host, ca, handlers := serveOthers(t)
	configuration := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name + namespace}}
	for i, change := range changes {
		path := "/" + strconv.Itoa(i)
		handlers.Handle(path, &admission.Webhook{Handler: admission.HandlerFunc(func(_ context.Context, r admission.Request) admission.Response {
			p := &corev1.Pod{}
			if err := json.Unmarshal(r.Object.Raw, p); err != nil {
				return admission.Errored(http.StatusBadRequest, err)
			}
			change(p)
			changed, err := json.Marshal(p)
			if err != nil {
				return admission.Errored(http.StatusInternalServerError, err)
			}
			return admission.PatchResponseFromRaw(r.Object.Raw, changed)
		})})
		address := url.URL{Scheme: "https", Host: host, Path: path}
		configuration.Webhooks = append(configuration.Webhooks, admissionregistrationv1.MutatingWebhook{
			Name:                    "webhook-" + strconv.Itoa(i) + ".other.example",
			ClientConfig:            admissionregistrationv1.WebhookClientConfig{URL: new(address.String()), CABundle: ca},
			AdmissionReviewVersions: []string{"v1"},
			SideEffects:             new(admissionregistrationv1.SideEffectClassNone),
			ReinvocationPolicy:      new(admissionregistrationv1.IfNeededReinvocationPolicy),
			NamespaceSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: namespace}},
			Rules: []admissionregistrationv1.RuleWithOperations{{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
		})
	}
	kube.create(t, configuration)
	t.Cleanup(func() {
		if err := kube.client.Delete(context.Background(), configuration); err != nil {
			t.Errorf("take the other party's webhooks away: %v", err)
		}
	})
}

// serveOthers serves on the address of this machine that the API server reaches, the one from which this machine reaches the API server.
func serveOthers(t *testing.T) (host string, ca []byte, handlers *http.ServeMux) {
	t.Helper()
	apiServer, err := url.Parse(kube.config.Host)
	if err != nil {
		t.Fatal(err)
	}
	toward, err := (&net.Dialer{}).DialContext(t.Context(), "udp", apiServer.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer toward.Close()
	address := toward.LocalAddr().(*net.UDPAddr).IP
	ca, key, err := cert.GenerateSelfSignedCertKey("other.example", []net.IP{address}, nil)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(ca, key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", net.JoinHostPort(address.String(), "0"))
	if err != nil {
		t.Fatal(err)
	}
	handlers = http.NewServeMux()
	server := &httptest.Server{Listener: l, TLS: &tls.Config{Certificates: []tls.Certificate{pair}}, Config: &http.Server{Handler: handlers}}
	server.StartTLS()
	t.Cleanup(server.Close)
	return l.Addr().String(), ca, handlers
}

var podsWithoutSidecarLine = regexp.MustCompile(`(?m)^datakeys_pods_without_sidecar\{namespace="([^"]+)",reason="([^"]+)"\} (\d+)$`)

// podsWithoutSidecar is what the managers' metrics say of a namespace, by reason.
func podsWithoutSidecar(t *testing.T, namespace string) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, m := range managers(t) {
		metrics, err := kube.set.CoreV1().Pods(systemNamespace).ProxyGet("http", m.Name, "8080", "metrics", nil).DoRaw(t.Context())
		if err != nil {
			t.Fatalf("the metrics of manager %s: %v", m.Name, err)
		}
		for _, match := range podsWithoutSidecarLine.FindAllStringSubmatch(string(metrics), -1) {
			n, err := strconv.Atoi(match[3])
			if err != nil {
				t.Fatal(err)
			}
			if match[1] == namespace {
				counts[match[2]] += n
			}
		}
	}
	return counts
}
