package inject

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// leaseArgs are what the sidecar of a pod with these annotations is told, in a cluster with these leases.
func leaseArgs(t *testing.T, cluster Leases, annotations map[string]string) []string {
	t.Helper()
	annotations[v1alpha1.AnnotationDataKeys] = "orders"
	pod := askingPod(annotations)
	request, _, errs := ParseRequest(pod)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	sidecar := testSidecar(true)
	sidecar.Leases = cluster
	patch, errs := Patch(pod, request, sidecar)
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	container, ok := patch[len(patch)-1].Value.(corev1.Container)
	if !ok {
		t.Fatalf("the last operation is %v", patch[len(patch)-1])
	}
	return slices.DeleteFunc(container.Args, func(arg string) bool {
		return !strings.HasPrefix(arg, "--lease") && !strings.HasPrefix(arg, "--coast")
	})
}

func TestLeasesReachTheSidecar(t *testing.T) {
	const lease, coast = v1alpha1.AnnotationLeaseDuration, v1alpha1.AnnotationCoastTime
	cluster := Leases{Duration: 20 * time.Second, CoastTime: 10 * time.Minute}
	for name, test := range map[string]struct {
		cluster     Leases
		annotations map[string]string
		want        []string
	}{
		"nobody sets any":          {DefaultLeases(), map[string]string{}, []string{"--lease=15s", "--coast=1h0m0s"}},
		"the cluster's":            {cluster, map[string]string{}, []string{"--lease=20s", "--coast=10m0s"}},
		"a pod that lowers both":   {cluster, map[string]string{lease: "5s", coast: "0s"}, []string{"--lease=5s", "--coast=0s"}},
		"a pod that says the same": {cluster, map[string]string{lease: "20s", coast: "600s"}, []string{"--lease=20s", "--coast=10m0s"}},
		"in other words":           {cluster, map[string]string{coast: "1m30.5s"}, []string{"--lease=20s", "--coast=1m30.5s"}},
		"a cluster without coast":  {Leases{Duration: 5 * time.Second}, map[string]string{coast: "0"}, []string{"--lease=5s", "--coast=0s"}},
	} {
		t.Run(name, func(t *testing.T) {
			if got := leaseArgs(t, test.cluster, test.annotations); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// A pod with leases of its own that is seen a second time is left as it is.
func TestLeasesOfAPodAreSeenAgain(t *testing.T) {
	raw := encode(t, askingPod(map[string]string{v1alpha1.AnnotationDataKeys: "orders", v1alpha1.AnnotationCoastTime: "60s"}))
	patch, errs := inject(t, raw, testSidecar(true))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	again, errs := inject(t, apply(t, raw, patch), testSidecar(true))
	if len(errs) > 0 || len(again) > 0 {
		t.Errorf("got %v, %v", again, errs)
	}
}

func TestLeasesOfAClusterHaveBounds(t *testing.T) {
	for name, leases := range map[string]Leases{
		"none":                  {},
		"a lease too short":     {Duration: v1alpha1.MinLeaseDuration - 1},
		"a lease too long":      {Duration: v1alpha1.MaxLeaseDuration + 1},
		"a coast time too long": {Duration: v1alpha1.MinLeaseDuration, CoastTime: v1alpha1.MaxCoastTime + 1},
		"a negative coast time": {Duration: v1alpha1.MinLeaseDuration, CoastTime: -1},
	} {
		t.Run(name, func(t *testing.T) {
			config := testSidecar(true).Config
			config.Leases = leases
			if _, err := NewHandler(config, func() []byte { return nil }, fakeRequests{}); err == nil || !strings.Contains(err.Error(), "must be") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// FuzzLeasesOfAPod: whatever a pod says, it gets no more than the cluster's, and no less than a sidecar takes.
func FuzzLeasesOfAPod(f *testing.F) {
	for _, text := range []string{"5s", "15s", "0", "-1s", "1h", "9223372036854775807ns", "1e9h", "NaN", "5s5s", "\xff"} {
		f.Add(text, text)
	}
	f.Fuzz(func(t *testing.T, lease, coast string) {
		cluster := DefaultLeases()
		pod := askingPod(map[string]string{v1alpha1.AnnotationLeaseDuration: lease, v1alpha1.AnnotationCoastTime: coast})
		got, errs := cluster.of(pod)
		if got.Duration > cluster.Duration || got.CoastTime > cluster.CoastTime || CheckLeaseDuration(got.Duration) != nil || CheckCoastTime(got.CoastTime) != nil {
			t.Errorf("%q and %q are %v", lease, coast, got)
		}
		for _, err := range errs {
			if len(err.Error()) > 400 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		}
	})
}
