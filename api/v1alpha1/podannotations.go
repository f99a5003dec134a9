package v1alpha1

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// MaxDataKeys is how many data keys a pod may name. Each is a volume of its own.
const MaxDataKeys = 100

// MinLoopbackPort is the first port that needs no privilege.
const MinLoopbackPort = 1024

// annotationPrefix begins the name of every annotation of this project.
const annotationPrefix = GroupName + "/"

// maxQuoted is how many bytes of a bad value an error repeats.
const maxQuoted = 64

// PodAnnotations are all annotations of this project that a pod may have. None of them is set but by who makes the pod.
func PodAnnotations() []string {
	return []string{
		AnnotationDataKeys, AnnotationContainers, AnnotationWait, AnnotationLoopbackPort, AnnotationLeaseDuration, AnnotationCoastTime,
	}
}

// UnknownAnnotations says of each annotation of a pod that is named like one of this project's, and is none, that it has no effect.
func UnknownAnnotations(pod metav1.Object) []string {
	known := PodAnnotations()
	var problems []string
	for _, name := range slices.Sorted(maps.Keys(pod.GetAnnotations())) {
		if strings.HasPrefix(name, annotationPrefix) && !slices.Contains(known, name) {
			problems = append(problems, fmt.Sprintf("%v: not known; the annotations are %s", annotationPath(quoted(name)), strings.Join(known, ", ")))
		}
	}
	return problems
}

// Injected reads the label LabelInject of a pod: whether it asks for the sidecar. One that has the label with any value but "false"
// asks.
func Injected(pod metav1.Object) (bool, *field.Error) {
	switch value, present := pod.GetLabels()[LabelInject]; {
	case !present, value == "false":
		return false, nil
	case value == "true":
		return true, nil
	default:
		return true, field.Invalid(field.NewPath("metadata", "labels").Key(LabelInject), quoted(value),
			`must be "true" or "false"; without the label a pod is left alone`)
	}
}

// WaitsForDataKeys reads the annotation AnnotationWait of a pod: whether its application starts only when its data keys can be
// issued, which is the default.
func WaitsForDataKeys(pod metav1.Object) (bool, *field.Error) {
	switch value, present := pod.GetAnnotations()[AnnotationWait]; {
	case !present, value == "true":
		return true, nil
	case value == "false":
		return false, nil
	default:
		return true, field.Invalid(annotationPath(AnnotationWait), quoted(value),
			`must be "true" (the default: the application waits for its data keys) or "false" (it starts at once)`)
	}
}

// LoopbackPort reads the annotation AnnotationLoopbackPort of a pod. It is 0 where the pod does not have it.
func LoopbackPort(pod metav1.Object) (int32, *field.Error) {
	value, present := pod.GetAnnotations()[AnnotationLoopbackPort]
	if !present {
		return 0, nil
	}
	port, err := strconv.ParseUint(value, 10, 16)
	if err != nil || port < MinLoopbackPort || strconv.FormatUint(port, 10) != value {
		return 0, field.Invalid(annotationPath(AnnotationLoopbackPort), quoted(value),
			fmt.Sprintf("must be a port, a number of %d to 65535", MinLoopbackPort))
	}
	return int32(port), nil
}

// DataKeyNames reads the annotation AnnotationDataKeys of a pod: the names of 1 to MaxDataKeys DataKeyRequests, each once, in the
// pod's order.
func DataKeyNames(pod metav1.Object) ([]string, field.ErrorList) {
	path := annotationPath(AnnotationDataKeys)
	value, present := pod.GetAnnotations()[AnnotationDataKeys]
	if !present {
		return nil, field.ErrorList{field.Required(path, fmt.Sprintf(
			"a pod with the label %s=true names its data keys here, for example \"orders,payments\"; remove the label if it needs none", LabelInject))}
	}
	return parseNames(path, value, MaxDataKeys, "a DataKeyRequest", validation.IsDNS1123Subdomain)
}

// ContainerNames reads the annotation AnnotationContainers of a pod with these containers: the names of some of them, each once, in
// the annotation's order. It is nil where the pod does not have the annotation.
func ContainerNames(pod metav1.Object, known []string) ([]string, field.ErrorList) {
	value, present := pod.GetAnnotations()[AnnotationContainers]
	if !present {
		return nil, nil
	}
	return parseNames(annotationPath(AnnotationContainers), value, len(known), "a container", func(name string) []string {
		if slices.Contains(known, name) {
			return nil
		}
		return []string{"must be a container or init container of this pod, one of " + strings.Join(known, ", ")}
	})
}

func annotationPath(name string) *field.Path {
	return field.NewPath("metadata", "annotations").Key(name)
}

// parseNames reads names separated by commas. Spaces around a name do not count.
func parseNames(path *field.Path, value string, most int, what string, validate func(string) []string) ([]string, field.ErrorList) {
	if strings.TrimSpace(value) == "" {
		return nil, field.ErrorList{field.Required(path, "must name "+what+", or several separated by commas")}
	}
	if n := strings.Count(value, ",") + 1; n > most {
		return nil, field.ErrorList{field.TooMany(path, n, most)}
	}
	var names []string
	var errs field.ErrorList
	for name := range strings.SplitSeq(value, ",") {
		name = strings.TrimSpace(name)
		switch problems := validate(name); {
		case name == "":
			errs = append(errs, field.Invalid(path, quoted(value), "must not have an empty name between, before or after the commas"))
			return nil, errs
		case len(problems) > 0:
			errs = append(errs, field.Invalid(path, quoted(name), strings.Join(problems, "; ")))
		case slices.Contains(names, name):
			errs = append(errs, field.Duplicate(path, name))
		default:
			names = append(names, name)
		}
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return names, nil
}

// quoted shortens a value for an error.
func quoted(value string) string {
	if len(value) > maxQuoted {
		return strings.ToValidUTF8(value[:maxQuoted], "") + "…"
	}
	return value
}
