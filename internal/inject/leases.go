package inject

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// Leases say for how long a sidecar issues a data key: Duration without having it renewed, and CoastTime while the key service cannot be
// reached.
type Leases struct{ Duration, CoastTime time.Duration }

// DefaultLeases are those of a cluster in which nobody sets others.
func DefaultLeases() Leases {
	return Leases{Duration: v1alpha1.DefaultLeaseDuration, CoastTime: v1alpha1.DefaultCoastTime}
}

// CheckLeaseDuration returns nil for a lease that a cluster may have.
func CheckLeaseDuration(d time.Duration) error {
	if d < v1alpha1.MinLeaseDuration || d > v1alpha1.MaxLeaseDuration {
		return fmt.Errorf("must be %v to %v, and is %v: %v is the default", v1alpha1.MinLeaseDuration, v1alpha1.MaxLeaseDuration, d,
			v1alpha1.DefaultLeaseDuration)
	}
	return nil
}

// CheckCoastTime returns nil for a coast time that a cluster may have.
func CheckCoastTime(d time.Duration) error {
	if d < 0 || d > v1alpha1.MaxCoastTime {
		return fmt.Errorf("must be 0s to %v, and is %v: %v is the default", v1alpha1.MaxCoastTime, d, v1alpha1.DefaultCoastTime)
	}
	return nil
}

// of returns the leases of a pod, in a cluster with these.
func (l Leases) of(pod *corev1.Pod) (Leases, field.ErrorList) {
	var errs field.ErrorList
	duration, err := v1alpha1.LeaseDuration(pod, l.Duration)
	if err != nil {
		errs = append(errs, err)
	}
	coast, err := v1alpha1.CoastTime(pod, l.CoastTime)
	if err != nil {
		errs = append(errs, err)
	}
	return Leases{Duration: duration, CoastTime: coast}, errs
}
