package inject

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Resources are what the sidecar asks for in each pod, and what it may take.
type Resources struct {
	CPURequest, MemoryRequest resource.Quantity
	// CPULimit is none where it is zero. A limit makes every start slower, and the application waits for that.
	CPULimit    resource.Quantity
	MemoryLimit resource.Quantity
}

// DefaultResources are what a sidecar uses at rest, where 20 MB resident is its bound and its processor time is next to nothing,
// and a limit that leaves room for a burst of connections.
func DefaultResources() Resources {
	return Resources{
		CPURequest:    resource.MustParse("5m"),
		MemoryRequest: resource.MustParse("20Mi"),
		MemoryLimit:   resource.MustParse("64Mi"),
	}
}

// guaranteedCPU is the processor's limit in a pod of the QoS class Guaranteed, which needs one, where nothing else is said.
var guaranteedCPU = resource.MustParse("100m")

// of are the sidecar's in this pod, so that the pod keeps its QoS class and its own sum.
func (r Resources) of(spec *corev1.PodSpec) corev1.ResourceRequirements {
	if spec.Resources != nil && (len(spec.Resources.Requests) > 0 || len(spec.Resources.Limits) > 0) {
		// The containers share what the pod has; requests of our own could exceed it, and the pod would be refused.
		return corev1.ResourceRequirements{}
	}
	limits := corev1.ResourceList{corev1.ResourceMemory: r.MemoryLimit}
	if !r.CPULimit.IsZero() {
		limits[corev1.ResourceCPU] = r.CPULimit
	}
	if !guaranteed(spec) {
		return corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: r.CPURequest, corev1.ResourceMemory: r.MemoryRequest},
			Limits:   limits,
		}
	}
	if r.CPULimit.IsZero() {
		limits[corev1.ResourceCPU] = guaranteedCPU
		if r.CPURequest.Cmp(guaranteedCPU) > 0 {
			limits[corev1.ResourceCPU] = r.CPURequest
		}
	}
	return corev1.ResourceRequirements{Limits: limits, Requests: maps.Clone(limits)}
}

// guaranteed reports whether the pod is of the QoS class Guaranteed: every container has limits for processor and memory,
// and requests that equal them. Kubernetes, "Pod Quality of Service Classes".
func guaranteed(spec *corev1.PodSpec) bool {
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
				limit, limited := list[i].Resources.Limits[name]
				request, requested := list[i].Resources.Requests[name]
				if !limited || limit.IsZero() || requested && request.Cmp(limit) != 0 {
					return false
				}
			}
		}
	}
	return true
}
