package inject

import (
	"errors"
	"fmt"
	"net"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Config is what the manager knows of the sidecar.
type Config struct {
	// Image is the sidecar's image.
	Image string
	// ImagePullPolicy is when the kubelet pulls it; empty means the API server's default.
	ImagePullPolicy corev1.PullPolicy
	// KeyService is the address of the key service, host:port. The host is the name that its certificate must have.
	KeyService string
	// Resources are the sidecar's requests and limits; nil means DefaultResources. A pod with the QoS class Guaranteed
	// keeps it: its sidecar requests what it is limited to. One with resources at the pod's level gets none of its own.
	Resources *corev1.ResourceRequirements
}

// DefaultResources request what the sidecar uses at rest (20 MB resident is its bound, its processor time is next to
// nothing), and leave memory for a burst of connections. There is no limit on processor time: it would make every start
// slower, and the application waits for that.
func DefaultResources() corev1.ResourceRequirements {
	return corev1.ResourceRequirements{
		Requests: corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse("5m"),
			corev1.ResourceMemory: resource.MustParse("20Mi"),
		},
		Limits: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")},
	}
}

// validate says what is wrong with the configuration.
func (c *Config) validate() error {
	if c.Image == "" {
		return errors.New("the sidecar's image is empty: it must be set")
	}
	switch c.ImagePullPolicy {
	case "", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
	default:
		return fmt.Errorf("the sidecar's image pull policy is %q: it must be Always, IfNotPresent or Never", c.ImagePullPolicy)
	}
	if host, port, err := net.SplitHostPort(c.KeyService); err != nil || host == "" || port == "" {
		return fmt.Errorf("the address of the key service is %q: it must be host:port", c.KeyService)
	}
	return nil
}
