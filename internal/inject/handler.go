package inject

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/json"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// Path is where the webhook server serves the Handler.
const Path = "/inject-pod"

// maxWarnings bounds what the answer says of data keys that are not ready, and of annotations that are not known; the API server cuts off more than 4096 bytes.
const maxWarnings = 10

// DataKeyRequests looks DataKeyRequests up in a cache: admission waits for no network.
type DataKeyRequests interface {
	// Ready reports whether the DataKeyRequest exists and is Ready, with the reason of that condition, which may be empty.
	Ready(ctx context.Context, namespace, name string) (found, ready bool, reason string)
}

// Handler is the admission webhook for pods.
type Handler struct {
	config   Config
	roots    func() []byte
	requests DataKeyRequests
}

var _ admission.Handler = (*Handler)(nil)

// NewHandler returns the webhook. roots are the PEM certificates that a pod created now has to trust.
func NewHandler(config Config, roots func() []byte, requests DataKeyRequests) (*Handler, error) {
	if err := config.validate(); err != nil {
		return nil, err
	}
	if roots == nil || requests == nil {
		return nil, errors.New("the roots and the DataKeyRequests must be given")
	}
	return &Handler{config: config, roots: roots, requests: requests}, nil
}

// Handle answers one admission request.
func (h *Handler) Handle(ctx context.Context, req admission.Request) admission.Response {
	if req.Operation != admissionv1.Create || req.SubResource != "" ||
		req.Resource.Group != corev1.GroupName || req.Resource.Resource != "pods" {
		return admission.Allowed("only the creation of pods concerns this webhook")
	}
	pod := &corev1.Pod{}
	if err := json.Unmarshal(req.Object.Raw, pod); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("the pod does not decode: %w", err))
	}
	request, asked, errs := ParseRequest(pod)
	if !asked {
		return admission.Allowed("the pod does not ask for data keys")
	}
	// An annotation that is misspelt may be why the pod is refused.
	unknown := bounded(v1alpha1.UnknownAnnotations(pod), "annotations that are not known")
	if len(errs) > 0 {
		return admission.Denied(errs.ToAggregate().Error()).WithWarnings(unknown...)
	}
	roots := h.roots()
	if len(roots) == 0 {
		return admission.Errored(http.StatusServiceUnavailable,
			errors.New("the roots of the key service's certificates are not loaded yet; try again"))
	}

	// The pod's own namespace may still be empty here; the request's never is.
	notReady := h.notReady(ctx, req.Namespace, request.DataKeys)
	patch, errs := Patch(pod, request, Sidecar{Config: h.config, Roots: roots, Ready: len(notReady) == 0})
	if len(errs) > 0 {
		return admission.Denied(errs.ToAggregate().Error()).WithWarnings(unknown...)
	}
	return admission.Patched("", patch...).WithWarnings(append(unknown, warnings(notReady, request.Wait)...)...)
}

// notReady says of each data key that cannot be issued now, why.
func (h *Handler) notReady(ctx context.Context, namespace string, names []string) []string {
	var reasons []string
	for _, name := range names {
		switch found, ready, reason := h.requests.Ready(ctx, namespace, name); {
		case !found:
			reasons = append(reasons, fmt.Sprintf("DataKeyRequest %s/%s does not exist", namespace, name))
		case !ready && reason == "":
			reasons = append(reasons, fmt.Sprintf("DataKeyRequest %s/%s is not Ready yet", namespace, name))
		case !ready:
			reasons = append(reasons, fmt.Sprintf("DataKeyRequest %s/%s is not Ready (%s)", namespace, name, reason))
		}
	}
	return reasons
}

func warnings(notReady []string, wait bool) []string {
	consequence := "; the pod waits until it is Ready"
	if !wait {
		consequence = "; the application starts without that data key"
	}
	var list []string
	for _, reason := range notReady {
		list = append(list, reason+consequence)
	}
	return bounded(list, "data keys that are not ready")
}

// bounded returns the first maxWarnings of a list, and how many more there are of what it tells.
func bounded(list []string, what string) []string {
	if more := len(list) - maxWarnings; more > 0 {
		return append(list[:maxWarnings], fmt.Sprintf("and %d more %s", more, what))
	}
	return list
}
