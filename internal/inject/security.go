package inject

import (
	corev1 "k8s.io/api/core/v1"
)

// sidecarID is the user and group of a sidecar that has no other to take over: the "nonroot" of many images.
const sidecarID int64 = 65532

// securityContext meets the restricted Pod Security Standard on its own, whatever the pod's context says.
func securityContext(spec *corev1.PodSpec) *corev1.SecurityContext {
	return &corev1.SecurityContext{
		RunAsUser:                runAsUser(spec),
		RunAsGroup:               runAsGroup(spec),
		RunAsNonRoot:             new(true),
		AllowPrivilegeEscalation: new(false),
		ReadOnlyRootFilesystem:   new(true),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

// runAsUser is the sidecar's user; nil inherits the pod's.
//
// If all containers agree on a user, the sidecar takes it too, for the sake of projected tokens: ours and those of the
// application. The kubelet gives them to that user alone (mode 0600) while all agree; a sidecar that did not would open the
// application's token to every user of the pod. Where they do not agree, a token is readable by all (0444 here), or with an
// fsGroup by that group (0640), which every container of the pod is in. So the sidecar reads its token in every case;
// Secrets are readable by all in the volume of a pod, and hold ciphertext only.
// Taking over a user also keeps to the range that a platform (OpenShift) has given to the namespace.
func runAsUser(spec *corev1.PodSpec) *int64 {
	podUser := podSecurityContext(spec).RunAsUser
	user := sidecarID
	if agreed := agreedUser(spec); agreed != nil && *agreed != 0 {
		user = *agreed
	} else if podUser != nil && *podUser != 0 {
		user = *podUser
	}
	if podUser != nil && *podUser == user {
		return nil
	}
	return &user
}

// runAsGroup is the sidecar's primary group; nil inherits the pod's. No file is readable by it alone. It is never root's,
// which it would be by default, since the image has no user database.
func runAsGroup(spec *corev1.PodSpec) *int64 {
	if group := podSecurityContext(spec).RunAsGroup; group != nil && *group != 0 {
		return nil
	}
	return new(sidecarID)
}

// agreedUser is the one user that the pod states for all its containers, nil if it states none for some or several. It is
// what the kubelet asks when it decides who owns a projected token.
func agreedUser(spec *corev1.PodSpec) *int64 {
	var agreed *int64
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			user := podSecurityContext(spec).RunAsUser
			if own := list[i].SecurityContext; own != nil && own.RunAsUser != nil {
				user = own.RunAsUser
			}
			if user == nil || agreed != nil && *agreed != *user {
				return nil
			}
			agreed = user
		}
	}
	return agreed
}

func podSecurityContext(spec *corev1.PodSpec) *corev1.PodSecurityContext {
	if spec.SecurityContext == nil {
		return &corev1.PodSecurityContext{}
	}
	return spec.SecurityContext
}
