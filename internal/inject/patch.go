package inject

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

var (
	specPath = field.NewPath("spec")
	// socketMount and socketEnv are what a container of the application gets.
	socketMount = corev1.VolumeMount{Name: socketVolume, MountPath: v1alpha1.SocketDirectory, ReadOnly: true}
	socketEnv   = corev1.EnvVar{Name: v1alpha1.SocketEnv, Value: v1alpha1.SocketPath}
)

// injected is the value of the label v1alpha1.LabelInjected.
const injected = "true"

// endpointEnv is what it gets too where there is a loopback port.
func endpointEnv(port int32) corev1.EnvVar {
	return corev1.EnvVar{Name: v1alpha1.EndpointEnv, Value: fmt.Sprintf("http://127.0.0.1:%d", port)}
}

// Patch is what has to be added to a pod so that it has what it asks for. It adds and changes nothing else; for a pod that
// has all of it the patch is empty, and for one that has a part, because another webhook added a container since, it is the
// rest. The pod is not modified.
func Patch(pod *corev1.Pod, request Request, sidecar Sidecar) ([]jsonpatch.Operation, field.ErrorList) {
	errs := append(validatePod(pod), validatePort(&pod.Spec, request.LoopbackPort)...)
	env := []ownEnv{{socketEnv, "is the variable that holds the path of the sidecar's socket, "}}
	if request.LoopbackPort != 0 {
		env = append(env, ownEnv{endpointEnv(request.LoopbackPort), "is the variable that holds the address of the sidecar's loopback port, "})
	}
	leases, leaseErrs := sidecar.Leases.of(pod)
	errs = append(errs, leaseErrs...)
	sidecar.Leases = leases
	var patch []jsonpatch.Operation

	missing, volumeErrs := missingVolumes(pod.Spec.Volumes, volumes(&request))
	errs = append(errs, volumeErrs...)
	patch = append(patch, addAll("/spec/volumes", len(pod.Spec.Volumes), missing)...)

	for _, list := range []struct {
		name       string
		containers []corev1.Container
	}{{"initContainers", pod.Spec.InitContainers}, {"containers", pod.Spec.Containers}} {
		for i := range list.containers {
			c := &list.containers[i]
			if c.Name == v1alpha1.SidecarName || request.Containers != nil && !slices.Contains(request.Containers, c.Name) {
				continue
			}
			added, containerErrs := addSocket(c, env, fmt.Sprintf("/spec/%s/%d", list.name, i), specPath.Child(list.name).Index(i))
			patch = append(patch, added...)
			errs = append(errs, containerErrs...)
		}
	}

	if pod.Labels[v1alpha1.LabelInjected] != injected {
		patch = append(patch, add("/metadata/labels/"+strings.ReplaceAll(v1alpha1.LabelInjected, "/", "~1"), injected))
	}
	// Last, because it moves the other init containers on by one.
	ours := sidecar.container(&pod.Spec, &request)
	present, sidecarErrs := findSidecar(&pod.Spec, &ours)
	errs = append(errs, sidecarErrs...)
	switch {
	case present:
	case len(pod.Spec.InitContainers) == 0:
		patch = append(patch, add("/spec/initContainers", []corev1.Container{ours}))
	default:
		patch = append(patch, add("/spec/initContainers/0", ours))
	}
	if len(errs) > 0 {
		return nil, errs
	}
	return patch, nil
}

// validatePod refuses pods in which the sidecar cannot work.
func validatePod(pod *corev1.Pod) field.ErrorList {
	var errs field.ErrorList
	spec := &pod.Spec
	if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		errs = append(errs, field.Forbidden(annotationsPath.Key(corev1.MirrorPodAnnotationKey),
			"a static pod has neither Secrets nor a token, and so cannot have data keys; run it as a DaemonSet, or remove the label "+
				v1alpha1.LabelInject))
	}
	if spec.OS != nil && spec.OS.Name == corev1.Windows ||
		spec.NodeSelector[corev1.LabelOSStable] == string(corev1.Windows) ||
		podSecurityContext(spec).WindowsOptions != nil {
		errs = append(errs, field.Forbidden(specPath.Child("os"),
			"the sidecar runs on Linux only; remove the label "+v1alpha1.LabelInject+" from a Windows pod"))
	}
	switch {
	case spec.DNSPolicy == corev1.DNSDefault:
		errs = append(errs, field.Invalid(specPath.Child("dnsPolicy"), spec.DNSPolicy,
			"must be ClusterFirst, or None with a dnsConfig that finds Services: the sidecar finds the key service by its Service's name"))
	case spec.HostNetwork && (spec.DNSPolicy == "" || spec.DNSPolicy == corev1.DNSClusterFirst):
		// The kubelet takes the node's resolver then.
		errs = append(errs, field.Invalid(specPath.Child("dnsPolicy"), spec.DNSPolicy,
			"must be ClusterFirstWithHostNet with hostNetwork: the sidecar finds the key service by its Service's name"))
	}
	return errs
}

// validatePort refuses a loopback port that is not the pod's own, or not the sidecar's. 0 is none.
func validatePort(spec *corev1.PodSpec, port int32) field.ErrorList {
	if port == 0 {
		return nil
	}
	var errs field.ErrorList
	if spec.HostNetwork {
		errs = append(errs, field.Forbidden(annotationsPath.Key(v1alpha1.AnnotationLoopbackPort),
			"a pod with hostNetwork has the loopback addresses of its node, where every process could connect; use the socket"))
	}
	for _, list := range []struct {
		name       string
		containers []corev1.Container
	}{{"initContainers", spec.InitContainers}, {"containers", spec.Containers}} {
		for i := range list.containers {
			for j, p := range list.containers[i].Ports {
				if p.ContainerPort == port && (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) {
					errs = append(errs, field.Invalid(specPath.Child(list.name).Index(i).Child("ports").Index(j).Child("containerPort"), port,
						"is the port of the annotation "+v1alpha1.AnnotationLoopbackPort+", on which the sidecar listens: name another one there"))
				}
			}
		}
	}
	return errs
}

// findSidecar reports whether the pod has the sidecar, and refuses another container of its name.
func findSidecar(spec *corev1.PodSpec, ours *corev1.Container) (bool, field.ErrorList) {
	var errs field.ErrorList
	present := false
	for i := range spec.InitContainers {
		if spec.InitContainers[i].Name != v1alpha1.SidecarName {
			continue
		}
		existing, where := &spec.InitContainers[i], specPath.Child("initContainers").Index(i)
		present = isOurs(existing, ours)
		switch {
		case !present:
			errs = append(errs, notOurs(where.Child("name"), v1alpha1.SidecarName))
		case existing.RestartPolicy == nil || *existing.RestartPolicy != corev1.ContainerRestartPolicyAlways:
			errs = append(errs, field.Required(where.Child("restartPolicy"), "another admission webhook or client, built with a library from "+
				"before native sidecars (Kubernetes 1.28), has removed restartPolicy: Always from the injected sidecar, and the pod would wait "+
				"for it to end for ever: upgrade it, or let it leave this pod alone"))
		}
	}
	for i := range spec.Containers {
		if spec.Containers[i].Name == v1alpha1.SidecarName {
			errs = append(errs, notOurs(specPath.Child("containers").Index(i).Child("name"), v1alpha1.SidecarName))
		}
	}
	return present, errs
}

// missingVolumes are those of ours that are not there yet. One of the same name that is another is refused.
func missingVolumes(existing, ours []corev1.Volume) ([]corev1.Volume, field.ErrorList) {
	var missing []corev1.Volume
	var errs field.ErrorList
	for _, volume := range ours {
		i := slices.IndexFunc(existing, func(v corev1.Volume) bool { return v.Name == volume.Name })
		switch {
		case i < 0:
			missing = append(missing, volume)
		case !apiequality.Semantic.DeepEqual(existing[i], volume):
			errs = append(errs, notOurs(specPath.Child("volumes").Index(i).Child("name"), volume.Name))
		}
	}
	return missing, errs
}

// ownEnv is a variable of the sidecar's, and what it is for.
type ownEnv struct {
	corev1.EnvVar
	purpose string
}

// addSocket adds the socket's directory and the environment variables to a container. A container that has its own at the
// same place is refused rather than left with one that leads nowhere.
func addSocket(c *corev1.Container, own []ownEnv, pointer string, where *field.Path) ([]jsonpatch.Operation, field.ErrorList) {
	const wayOut = "; remove it, or leave the container out of the annotation " + v1alpha1.AnnotationContainers
	var patch []jsonpatch.Operation
	var errs field.ErrorList

	mounted := false
	for i, mount := range c.VolumeMounts {
		at := path.Clean("/" + mount.MountPath) // as the kubelet takes a relative path
		if strings.HasPrefix(at, socketMount.MountPath+"/") {
			// The runtime could not make the directory to mount it on, and the container would never start.
			errs = append(errs, field.Invalid(where.Child("volumeMounts").Index(i).Child("mountPath"), mount.MountPath,
				"is in the directory of the sidecar's socket, which is mounted read-only"+wayOut))
		}
		if at != socketMount.MountPath {
			continue
		}
		mounted = true
		if mount.Name != socketMount.Name || !mount.ReadOnly || mount.SubPath != "" || mount.SubPathExpr != "" {
			errs = append(errs, field.Invalid(where.Child("volumeMounts").Index(i).Child("mountPath"), mount.MountPath,
				"is where the sidecar's socket is mounted"+wayOut))
		}
	}
	if !mounted {
		patch = append(patch, addAll(pointer+"/volumeMounts", len(c.VolumeMounts), []corev1.VolumeMount{socketMount})...)
	}

	var missing []corev1.EnvVar
	for _, ours := range own {
		set := false
		for i, env := range c.Env {
			if env.Name != ours.Name {
				continue
			}
			set = true
			if env != ours.EnvVar {
				errs = append(errs, field.Invalid(where.Child("env").Index(i), env.Name, ours.purpose+ours.Value+wayOut))
			}
		}
		if !set {
			missing = append(missing, ours.EnvVar)
		}
	}
	patch = append(patch, addAll(pointer+"/env", len(c.Env), missing)...)
	return patch, errs
}

func notOurs(where *field.Path, name string) *field.Error {
	return field.Invalid(where, name, "is a name of the injected sidecar, and what has it here was not injected by this installation; "+
		"rename it, or, if it comes from a copy of an injected pod, remove it")
}

// addAll appends to the list at pointer, which has so many elements already.
func addAll[T any](pointer string, length int, values []T) []jsonpatch.Operation {
	switch {
	case len(values) == 0:
		return nil
	case length == 0:
		return []jsonpatch.Operation{add(pointer, values)}
	}
	patch := make([]jsonpatch.Operation, len(values))
	for i := range values {
		patch[i] = add(pointer+"/-", values[i])
	}
	return patch
}

// add is the operation of RFC 6902 section 4.1.
func add(pointer string, value any) jsonpatch.Operation {
	return jsonpatch.NewOperation("add", pointer, value)
}
