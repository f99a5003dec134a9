package inject

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

var (
	// The sidecar requests what it uses at rest: 20 MB resident is its bound, its processor time is next to nothing.
	requestedCPU    = resource.MustParse("5m")
	requestedMemory = resource.MustParse("20Mi")
	// limitMemory leaves room for a burst of connections.
	limitMemory = resource.MustParse("64Mi")
	// guaranteedCPU limits the sidecar's processor time only in a pod of the QoS class Guaranteed, which needs a limit: it makes
	// every start slower, and the application waits for that.
	guaranteedCPU = resource.MustParse("100m")
)

// resources are the sidecar's, so that the pod keeps its QoS class and its own sum.
func resources(spec *corev1.PodSpec) corev1.ResourceRequirements {
	if spec.Resources != nil && (len(spec.Resources.Requests) > 0 || len(spec.Resources.Limits) > 0) {
		// The containers share what the pod has; requests of our own could exceed it, and the pod would be refused.
		return corev1.ResourceRequirements{}
	}
	if guaranteed(spec) {
		limits := corev1.ResourceList{corev1.ResourceCPU: guaranteedCPU, corev1.ResourceMemory: limitMemory}
		return corev1.ResourceRequirements{Limits: limits, Requests: maps.Clone(limits)}
	}
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: requestedCPU, corev1.ResourceMemory: requestedMemory},
		Limits:   corev1.ResourceList{corev1.ResourceMemory: limitMemory},
	}
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
