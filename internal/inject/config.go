package inject

import (
	"errors"
	"fmt"
	"net"

	corev1 "k8s.io/api/core/v1"
)

// Config is what the manager knows of the sidecar.
type Config struct {
	// Image is the sidecar's image.
	Image string
	// ImagePullPolicy is when the kubelet pulls it; empty means the API server's default.
	ImagePullPolicy corev1.PullPolicy
	// Resources are the sidecar's in each pod.
	Resources Resources
	// Leases are the cluster's. A pod may have shorter ones.
	Leases Leases
	// KeyService is the address of the key service, host:port. The host is the name that its certificate must have.
	KeyService string
}

// validate says what is wrong with the configuration.
func (c *Config) validate() error {
	if c.Image == "" {
		return errors.New("the sidecar's image is empty: it must be set")
	}
	if err := CheckPullPolicy(c.ImagePullPolicy); err != nil {
		return fmt.Errorf("the sidecar's image pull policy: %w", err)
	}
	if host, port, err := net.SplitHostPort(c.KeyService); err != nil || host == "" || port == "" {
		return fmt.Errorf("the address of the key service is %q: it must be host:port", c.KeyService)
	}
	if err := CheckLeaseDuration(c.Leases.Duration); err != nil {
		return fmt.Errorf("the lease duration: %w", err)
	}
	if err := CheckCoastTime(c.Leases.CoastTime); err != nil {
		return fmt.Errorf("the coast time: %w", err)
	}
	return nil
}

// CheckPullPolicy returns nil for a pull policy, and for none, which is the API server's default.
func CheckPullPolicy(policy corev1.PullPolicy) error {
	switch policy {
	case "", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever:
		return nil
	default:
		return fmt.Errorf("must be %s, %s or %s, and is %q", corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever, policy)
	}
}
