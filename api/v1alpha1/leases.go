package v1alpha1

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Bounds of the leases of data keys. The sidecar repeats them.
const (
	MinLeaseDuration     = 5 * time.Second
	MaxLeaseDuration     = 5 * time.Minute
	DefaultLeaseDuration = 15 * time.Second
	MaxCoastTime         = 24 * time.Hour
	DefaultCoastTime     = time.Hour
)

// LeaseDuration reads the annotation AnnotationLeaseDuration of a pod. The cluster's is the default, and the most.
func LeaseDuration(pod metav1.Object, cluster time.Duration) (time.Duration, *field.Error) {
	return podDuration(pod, AnnotationLeaseDuration, MinLeaseDuration, cluster)
}

// CoastTime reads the annotation AnnotationCoastTime of a pod. The cluster's is the default, and the most.
func CoastTime(pod metav1.Object, cluster time.Duration) (time.Duration, *field.Error) {
	return podDuration(pod, AnnotationCoastTime, 0, cluster)
}

func podDuration(pod metav1.Object, annotation string, least, cluster time.Duration) (time.Duration, *field.Error) {
	value, present := pod.GetAnnotations()[annotation]
	if !present {
		return cluster, nil
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < least || d > cluster {
		return cluster, field.Invalid(annotationPath(annotation), quoted(value), fmt.Sprintf(
			"must be a time of %v to %v, such as %[2]v: a pod may lower what is set for the cluster, and not raise it", least, cluster))
	}
	return d, nil
}
