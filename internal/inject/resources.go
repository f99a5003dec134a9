package inject

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Limits of the sidecar in a pod of the QoS class Guaranteed, where the configuration names none.
var (
	guaranteedCPU    = resource.MustParse("100m")
	guaranteedMemory = resource.MustParse("64Mi")
)

// resources are the sidecar's, so that the pod keeps its QoS class and its own sum.
func resources(spec *corev1.PodSpec, config *Config) corev1.ResourceRequirements {
	if spec.Resources != nil && (len(spec.Resources.Requests) > 0 || len(spec.Resources.Limits) > 0) {
		// The containers share what the pod has; requests of our own could exceed it, and the pod would be refused.
		return corev1.ResourceRequirements{}
	}
	configured := DefaultResources()
	if config.Resources != nil {
		configured = *config.Resources.DeepCopy()
	}
	if !guaranteed(spec) {
		return configured
	}
	limits := corev1.ResourceList{corev1.ResourceCPU: guaranteedCPU, corev1.ResourceMemory: guaranteedMemory}
	maps.Copy(limits, configured.Limits)
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
