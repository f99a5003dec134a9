package inject

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// MaxDataKeys is how many data keys a pod may name. Each is a volume of its own.
const MaxDataKeys = 100

// maxQuoted is how many bytes of a bad value an error repeats.
const maxQuoted = 64

var annotationsPath = field.NewPath("metadata", "annotations")

// Request is what a pod asks for with its label and annotations.
type Request struct {
	// DataKeys are the names of DataKeyRequests in the pod's namespace: 1 to MaxDataKeys, each once, in the pod's order.
	DataKeys []string
	// Containers are the names of the containers and init containers that get the socket; nil means all.
	Containers []string
	// Wait says that the application starts only when its data keys can be issued.
	Wait bool
}

// ParseRequest reads what the pod asks for. It reports false if the pod does not ask.
func ParseRequest(pod *corev1.Pod) (Request, bool, field.ErrorList) {
	switch value, present := pod.Labels[v1alpha1.LabelInject]; {
	case !present, value == "false":
		return Request{}, false, nil
	case value != "true":
		return Request{}, true, field.ErrorList{field.Invalid(field.NewPath("metadata", "labels").Key(v1alpha1.LabelInject),
			quoted(value), `must be "true" or "false"; without the label a pod is left alone`)}
	}

	var errs field.ErrorList
	request := Request{Wait: true}

	path := annotationsPath.Key(v1alpha1.AnnotationDataKeys)
	if value, present := pod.Annotations[v1alpha1.AnnotationDataKeys]; !present {
		errs = append(errs, field.Required(path, fmt.Sprintf(
			"a pod with the label %s=true names its data keys here, for example \"orders,payments\"; remove the label if it needs none",
			v1alpha1.LabelInject)))
	} else {
		var listErrs field.ErrorList
		request.DataKeys, listErrs = parseList(path, value, MaxDataKeys, "a DataKeyRequest", validation.IsDNS1123Subdomain)
		errs = append(errs, listErrs...)
	}

	path = annotationsPath.Key(v1alpha1.AnnotationContainers)
	if value, present := pod.Annotations[v1alpha1.AnnotationContainers]; present {
		known := containerNames(&pod.Spec)
		var listErrs field.ErrorList
		request.Containers, listErrs = parseList(path, value, len(known), "a container", func(name string) []string {
			if slices.Contains(known, name) {
				return nil
			}
			return []string{"must be a container or init container of this pod, one of " + strings.Join(known, ", ")}
		})
		errs = append(errs, listErrs...)
	}

	if value, present := pod.Annotations[v1alpha1.AnnotationWait]; present {
		switch value {
		case "true":
		case "false":
			request.Wait = false
		default:
			errs = append(errs, field.Invalid(annotationsPath.Key(v1alpha1.AnnotationWait), quoted(value),
				`must be "true" (the default: the application waits for its data keys) or "false" (it starts at once)`))
		}
	}
	return request, true, errs
}

// parseList reads names separated by commas. Spaces around a name do not count.
func parseList(path *field.Path, value string, most int, what string, validate func(string) []string) ([]string, field.ErrorList) {
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

// quoted shortens a value for an error.
func quoted(value string) string {
	if len(value) > maxQuoted {
		return strings.ToValidUTF8(value[:maxQuoted], "") + "…"
	}
	return value
}
