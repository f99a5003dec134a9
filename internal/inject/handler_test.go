package inject

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// fakeRequests maps namespace/name to the reason of a DataKeyRequest that is not Ready; "Ready" is one that is.
type fakeRequests map[string]string

func (f fakeRequests) Ready(_ context.Context, namespace, name string) (bool, bool, string) {
	reason, found := f[namespace+"/"+name]
	return found, reason == "Ready", reason
}

func TestHandle(t *testing.T) {
	pod := func(change func(*corev1.Pod)) []byte {
		p := askingPod(map[string]string{"datakeys.io/data-keys": "orders,payments"})
		if change != nil {
			change(p)
		}
		return encode(t, p)
	}
	const unknown = ": not known; the annotations are datakeys.io/data-keys, datakeys.io/containers, datakeys.io/wait, " +
		"datakeys.io/loopback-port, datakeys.io/lease-duration, datakeys.io/coast-time"
	ready := fakeRequests{"team-a/orders": "Ready", "team-a/payments": "Ready"}
	for name, test := range map[string]struct {
		requests fakeRequests
		noRoots  bool
		request  func(*admissionv1.AdmissionRequest)
		raw      []byte

		denied   string
		code     int32
		patched  bool
		warnings []string
		hook     bool
		probe    bool
	}{
		"a pod whose data keys are ready gets the hook": {
			requests: ready, raw: pod(nil), patched: true, hook: true,
		},
		"a dry run is the same": {
			requests: ready, raw: pod(nil), patched: true, hook: true,
			request: func(r *admissionv1.AdmissionRequest) { r.DryRun = new(true) },
		},
		"a pod with a data key that is missing gets the probe and a warning": {
			requests: fakeRequests{"team-a/orders": "Ready", "team-b/payments": "Ready"}, raw: pod(nil), patched: true, probe: true,
			warnings: []string{"DataKeyRequest team-a/payments does not exist; the pod waits until it is Ready"},
		},
		"a pod with data keys that are not ready gets the probe and warnings": {
			requests: fakeRequests{"team-a/orders": "MasterKeyNotFound", "team-a/payments": ""}, raw: pod(nil), patched: true, probe: true,
			warnings: []string{
				"DataKeyRequest team-a/orders is not Ready (MasterKeyNotFound); the pod waits until it is Ready",
				"DataKeyRequest team-a/payments is not Ready yet; the pod waits until it is Ready",
			},
		},
		"a pod that does not wait gets neither": {
			requests: fakeRequests{"team-a/payments": "Ready"}, patched: true,
			raw:      pod(func(p *corev1.Pod) { p.Annotations["datakeys.io/wait"] = "false" }),
			warnings: []string{"DataKeyRequest team-a/orders does not exist; the application starts without that data key"},
		},
		"the warnings have a bound": {
			raw:     pod(func(p *corev1.Pod) { p.Annotations["datakeys.io/data-keys"] = numbered(v1alpha1.MaxDataKeys) }),
			patched: true, probe: true,
			warnings: func() []string {
				var list []string
				for name := range strings.SplitSeq(numbered(maxWarnings), ",") {
					list = append(list, "DataKeyRequest team-a/"+name+" does not exist; the pod waits until it is Ready")
				}
				return append(list, "and 90 more data keys that are not ready")
			}(),
		},
		"annotations that are not known are warned of": {
			requests: ready, patched: true, hook: true,
			raw: pod(func(p *corev1.Pod) {
				p.Annotations["datakeys.io/inject"] = "true"
				p.Annotations["datakeys.io/coast"] = "10m"
				p.Annotations["other.datakeys.io/coast"] = "10m"
			}),
			warnings: []string{"metadata.annotations[datakeys.io/coast]" + unknown, "metadata.annotations[datakeys.io/inject]" + unknown},
		},
		"all that are known are not": {
			requests: ready, patched: true, hook: true,
			raw: pod(func(p *corev1.Pod) {
				maps.Copy(p.Annotations, map[string]string{
					"datakeys.io/containers": "app", "datakeys.io/wait": "true", "datakeys.io/loopback-port": "8080",
					"datakeys.io/lease-duration": "10s", "datakeys.io/coast-time": "1m",
				})
			}),
		},
		"an annotation that is not known is told before a data key that is not ready": {
			requests: fakeRequests{"team-a/orders": "Ready"}, patched: true, probe: true,
			raw: pod(func(p *corev1.Pod) { p.Annotations["datakeys.io/coast"] = "10m" }),
			warnings: []string{
				"metadata.annotations[datakeys.io/coast]" + unknown,
				"DataKeyRequest team-a/payments does not exist; the pod waits until it is Ready",
			},
		},
		"a misspelt annotation is told with the refusal": {
			raw:    pod(func(p *corev1.Pod) { p.Annotations = map[string]string{"datakeys.io/data-key": "orders"} }),
			denied: "metadata.annotations[datakeys.io/data-keys]: Required value", code: http.StatusForbidden,
			warnings: []string{"metadata.annotations[datakeys.io/data-key]" + unknown},
		},
		"the warnings of annotations have a bound": {
			requests: ready, patched: true, hook: true,
			raw: pod(func(p *corev1.Pod) {
				for i := range 25 {
					p.Annotations[fmt.Sprintf("datakeys.io/%02d", i)] = ""
				}
			}),
			warnings: func() []string {
				var list []string
				for i := range maxWarnings {
					list = append(list, fmt.Sprintf("metadata.annotations[datakeys.io/%02d]%s", i, unknown))
				}
				return append(list, "and 15 more annotations that are not known")
			}(),
		},
		"a pod that does not ask is left alone": {
			raw: pod(func(p *corev1.Pod) { p.Labels = nil }),
		},
		"an update is left alone": {
			raw: pod(nil), request: func(r *admissionv1.AdmissionRequest) { r.Operation = admissionv1.Update },
		},
		"a subresource is left alone": {
			raw: pod(nil), request: func(r *admissionv1.AdmissionRequest) { r.SubResource = "binding" },
		},
		"another resource is left alone": {
			raw: pod(nil), request: func(r *admissionv1.AdmissionRequest) { r.Resource.Resource = "secrets" },
		},
		"bad annotations are refused": {
			raw:    pod(func(p *corev1.Pod) { p.Annotations = nil }),
			denied: "metadata.annotations[datakeys.io/data-keys]: Required value", code: http.StatusForbidden,
		},
		"a pod in which the sidecar cannot work is refused": {
			requests: ready, raw: pod(func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
			denied: "spec.dnsPolicy: Invalid value", code: http.StatusForbidden,
		},
		"a body that is no pod is refused": {
			raw: []byte(`{"spec": 1}`), denied: "the pod does not decode", code: http.StatusBadRequest,
		},
		"without roots nothing is injected": {
			requests: ready, noRoots: true, raw: pod(nil),
			denied: "the roots of the key service's certificates are not loaded yet; try again", code: http.StatusServiceUnavailable,
		},
	} {
		t.Run(name, func(t *testing.T) {
			sidecar := testSidecar(true)
			roots := func() []byte { return sidecar.Roots }
			if test.noRoots {
				roots = func() []byte { return nil }
			}
			handler, err := NewHandler(sidecar.Config, roots, test.requests)
			if err != nil {
				t.Fatal(err)
			}
			request := &admissionv1.AdmissionRequest{
				UID: "u", Operation: admissionv1.Create, Namespace: "team-a",
				Resource: metav1.GroupVersionResource{Version: "v1", Resource: "pods"},
				Object:   runtime.RawExtension{Raw: test.raw},
			}
			if test.request != nil {
				test.request(request)
			}
			response := serve(t, handler, request)
			if diff := cmp.Diff(test.warnings, response.Warnings); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
			if test.denied != "" {
				if response.Allowed || !strings.Contains(response.Result.Message, test.denied) || response.Result.Code != test.code {
					t.Errorf("got allowed %v, %+v, want %d %q", response.Allowed, response.Result, test.code, test.denied)
				}
				return
			}
			if !response.Allowed || (len(response.Patch) > 0) != test.patched {
				t.Fatalf("got allowed %v, %d bytes of patch, %+v, want a patch: %v",
					response.Allowed, len(response.Patch), response.Result, test.patched)
			}
			if got := strings.Contains(string(response.Patch), "postStart"); got != test.hook {
				t.Errorf("a postStart hook: %v, want %v", got, test.hook)
			}
			if got := strings.Contains(string(response.Patch), "startupProbe"); got != test.probe {
				t.Errorf("a startup probe: %v, want %v", got, test.probe)
			}
		})
	}
}

// serve sends a request through the HTTP handler, as the API server does.
func serve(t *testing.T, handler admission.Handler, request *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	t.Helper()
	review := &admissionv1.AdmissionReview{Request: request}
	review.SetGroupVersionKind(admissionv1.SchemeGroupVersion.WithKind("AdmissionReview"))
	httpRequest := httptest.NewRequest(http.MethodPost, Path, strings.NewReader(string(encode(t, review))))
	httpRequest.Header.Set("Content-Type", "application/json")
	recorder := httptest.NewRecorder()
	(&admission.Webhook{Handler: handler}).ServeHTTP(recorder, httpRequest)
	answer := &admissionv1.AdmissionReview{}
	if err := json.Unmarshal(recorder.Body.Bytes(), answer); err != nil || answer.Response == nil {
		t.Fatalf("the answer does not decode: %v\n%s", err, recorder.Body)
	}
	return answer.Response
}

func TestNewHandlerRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no image":              {func(c *Config) { c.Image = "" }, "the sidecar's image is empty: it must be set"},
		"an unknown policy":     {func(c *Config) { c.ImagePullPolicy = "Sometimes" }, `the sidecar's image pull policy: must be Always, IfNotPresent or Never, and is "Sometimes"`},
		"an address of no port": {func(c *Config) { c.KeyService = "service" }, `the address of the key service is "service": it must be host:port`},
		"an address of no host": {func(c *Config) { c.KeyService = ":8443" }, `the address of the key service is ":8443": it must be host:port`},
	} {
		t.Run(name, func(t *testing.T) {
			config := testSidecar(true).Config
			test.change(&config)
			_, err := NewHandler(config, func() []byte { return nil }, fakeRequests{})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
