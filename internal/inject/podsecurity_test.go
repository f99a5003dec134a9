package inject

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// TestRestricted asks the API server's own judge of the restricted Pod Security Standard: a pod that meets it still does, and
// in one that does not, nothing is said of the sidecar.
func TestRestricted(t *testing.T) {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	judge := func(pod *corev1.Pod) policy.AggregateCheckResult {
		return policy.AggregateCheckResults(evaluator.EvaluatePod(
			api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}, &pod.ObjectMeta, &pod.Spec))
	}
	pods := map[string][]byte{}
	for _, name := range goldenCases(t) {
		pods[name] = readPod(t, name)
	}
	// The pod's context against it in every field that containers inherit.
	hostile := askingPod(map[string]string{"datakeys.io/data-keys": "orders"})
	hostile.Spec.SecurityContext = &corev1.PodSecurityContext{
		RunAsUser: new(int64(0)), RunAsGroup: new(int64(0)), RunAsNonRoot: new(false),
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined},
	}
	pods["hostile"] = encode(t, hostile)

	for name, raw := range pods {
		t.Run(name, func(t *testing.T) {
			before := judge(decode(t, raw))
			patch, errs := inject(t, raw, testSidecar(true))
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			after := judge(decode(t, apply(t, raw, patch)))
			if name == "restricted" && !after.Allowed {
				t.Errorf("the restricted pod is refused after the injection: %s", after.ForbiddenDetail())
			}
			if before.Allowed != after.Allowed || !slices.Equal(before.ForbiddenReasons, after.ForbiddenReasons) {
				t.Errorf("reasons before: %v, after: %v", before.ForbiddenReasons, after.ForbiddenReasons)
			}
			if strings.Contains(after.ForbiddenDetail(), `"datakeys`) {
				t.Errorf("the sidecar is not restricted: %s", after.ForbiddenDetail())
			}
		})
	}
}
