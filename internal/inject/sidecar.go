package inject

import (
	"path"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// What the sidecar is told. Flags are those of cmd/sidecar.
const (
	sidecarCommand = "/sidecar"
	// rootsEnv holds the PEM certificates that the sidecar trusts the key service by. They stand in the pod's own spec, not
	// in a ConfigMap of its namespace, which others may be allowed to edit.
	rootsEnv = "DATAKEYS_ROOTS"

	keysDirectory  = "/var/run/datakeys.io/keys"
	tokenDirectory = "/var/run/datakeys.io/token"
	tokenFile      = "token"
	// apiTokenDirectory is where the API server mounts a token for itself into every container that has nothing there.
	apiTokenDirectory = "/var/run/secrets/kubernetes.io/serviceaccount"

	tokenVolume     = "datakeys-token"
	socketVolume    = "datakeys-socket"
	keyVolumePrefix = "datakeys-key-"
)

const (
	// tokenSeconds is the life of the token; the kubelet renews it after four fifths.
	tokenSeconds int64 = 3600
	// readable is the mode of files that every user of the pod may read.
	readable int32 = 0o444
	// waitTimeout bounds the postStart hook: the pod cannot be deleted while it runs.
	waitTimeout = "10s"
	// probePeriodSeconds and probeFailures let a pod wait for a year.
	probePeriodSeconds  int32 = 1
	probeTimeoutSeconds int32 = 3
	probeFailures       int32 = 365 * 24 * 60 * 60
)

// socketSize bounds the volume of the socket, which holds nothing else.
var socketSize = resource.MustParse("1Mi")

// Sidecar is what Patch knows beside the pod.
type Sidecar struct {
	Config
	// Roots are the PEM certificates of the key service's roots.
	Roots []byte
	// Ready says that every data key that the pod names is Ready now.
	Ready bool
}

// container is the sidecar's.
func (s *Sidecar) container(spec *corev1.PodSpec, request *Request) corev1.Container {
	c := corev1.Container{
		Name:            v1alpha1.SidecarName,
		Image:           s.Image,
		ImagePullPolicy: s.ImagePullPolicy,
		Command:         []string{sidecarCommand},
		Args: []string{
			"--data-keys=" + strings.Join(request.DataKeys, ","),
			"--keys-dir=" + keysDirectory,
			"--token-file=" + path.Join(tokenDirectory, tokenFile),
			"--socket=" + v1alpha1.SocketPath,
			"--key-service=" + s.KeyService,
			"--lease=" + s.Leases.Duration.String(),
			"--coast=" + s.Leases.CoastTime.String(),
		},
		Env:                      []corev1.EnvVar{{Name: rootsEnv, Value: string(s.Roots)}},
		Resources:                s.Resources.of(spec),
		RestartPolicy:            new(corev1.ContainerRestartPolicyAlways),
		SecurityContext:          securityContext(spec),
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		VolumeMounts: []corev1.VolumeMount{
			{Name: socketVolume, MountPath: v1alpha1.SocketDirectory},
			{Name: tokenVolume, MountPath: tokenDirectory, ReadOnly: true},
			// Takes the place in which the API server, when it looks at the patched pod again, would mount a token for
			// itself. The sidecar has no use for one.
			{Name: tokenVolume, MountPath: apiTokenDirectory, ReadOnly: true},
		},
	}
	if request.LoopbackPort != 0 {
		c.Args = append(c.Args, "--loopback-port="+strconv.Itoa(int(request.LoopbackPort)))
	}
	for i, name := range request.DataKeys {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{
			Name: keyVolume(i), MountPath: path.Join(keysDirectory, name), ReadOnly: true,
		})
	}
	switch {
	case !request.Wait:
	case s.Ready:
		c.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{
			Command: []string{sidecarCommand, "wait", "--socket=" + v1alpha1.SocketPath, "--timeout=" + waitTimeout},
		}}}
	default:
		c.StartupProbe = &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{
				Command: []string{sidecarCommand, "ready", "--socket=" + v1alpha1.SocketPath},
			}},
			PeriodSeconds:    probePeriodSeconds,
			TimeoutSeconds:   probeTimeoutSeconds,
			FailureThreshold: probeFailures,
		}
	}
	return c
}

// isOurs reports whether a container of the sidecar's name is the sidecar that an earlier call added. It looks at what the
// sidecar is told to do: others may have set its resources since, or its image to that of a mirror or to a digest, and what the pod
// has to wait for may have changed.
func isOurs(existing, ours *corev1.Container) bool {
	return slices.Equal(existing.Command, ours.Command) && slices.Equal(existing.Args, ours.Args)
}

// volumes are the sidecar's. Every field with a default is set, so that they compare equal after the API server's defaults.
func volumes(request *Request) []corev1.Volume {
	list := []corev1.Volume{
		{Name: tokenVolume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
			DefaultMode: new(readable),
			Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
				Audience: v1alpha1.TokenAudience, ExpirationSeconds: new(tokenSeconds), Path: tokenFile,
			}}},
		}}},
		{Name: socketVolume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{
			Medium: corev1.StorageMediumMemory, SizeLimit: &socketSize,
		}}},
	}
	for i, name := range request.DataKeys {
		source := &corev1.SecretVolumeSource{SecretName: name, DefaultMode: new(readable)}
		if !request.Wait {
			// Else the kubelet would hold the whole pod back until the Secret is there.
			source.Optional = new(true)
		}
		list = append(list, corev1.Volume{Name: keyVolume(i), VolumeSource: corev1.VolumeSource{Secret: source}})
	}
	return list
}

func keyVolume(i int) string { return keyVolumePrefix + strconv.Itoa(i) }
