package inject

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

var annotationsPath = field.NewPath("metadata", "annotations")

// Request is what a pod asks for with its label and annotations.
type Request struct {
	// DataKeys are the names of DataKeyRequests in the pod's namespace: 1 to v1alpha1.MaxDataKeys, each once, in the pod's order.
	DataKeys []string
	// Containers are the names of the containers and init containers that get the socket; nil means all.
	Containers []string
	// Wait says that the application starts only when its data keys can be issued.
	Wait bool
	// LoopbackPort is the port of 127.0.0.1 that the sidecar serves; 0: none.
	LoopbackPort int32
}

// ParseRequest reads what the pod asks for. It reports false if the pod does not ask.
func ParseRequest(pod *corev1.Pod) (Request, bool, field.ErrorList) {
	switch asks, err := v1alpha1.Injected(pod); {
	case err != nil:
		return Request{}, true, field.ErrorList{err}
	case !asks:
		return Request{}, false, nil
	}
	var request Request
	var errs, containerErrs field.ErrorList
	request.DataKeys, errs = v1alpha1.DataKeyNames(pod)
	request.Containers, containerErrs = v1alpha1.ContainerNames(pod, containerNames(&pod.Spec))
	errs = append(errs, containerErrs...)
	wait, err := v1alpha1.WaitsForDataKeys(pod)
	if err != nil {
		errs = append(errs, err)
	}
	request.Wait = wait
	port, err := v1alpha1.LoopbackPort(pod)
	if err != nil {
		errs = append(errs, err)
	}
	request.LoopbackPort = port
	return request, true, errs
}

// containerNames are the containers that can get the socket: all but the sidecar.
func containerNames(spec *corev1.PodSpec) []string {
	var names []string
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			if list[i].Name != v1alpha1.SidecarName {
				names = append(names, list[i].Name)
			}
		}
	}
	return names
}
