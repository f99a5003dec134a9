package inject

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gomodules.xyz/jsonpatch/v2"
	jsonpatchv4 "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files anew")

// notReadyCases are the golden cases whose data keys are not Ready when the pod is created.
var notReadyCases = map[string]bool{"waiting": true, "no-wait": true}

func testSidecar(ready bool) Sidecar {
	return Sidecar{
		Config: Config{
			Image:           "datakeys/sidecar:test",
			ImagePullPolicy: corev1.PullIfNotPresent,
			Resources:       DefaultResources(),
			Leases:          DefaultLeases(),
			KeyService:      "datakeys-key-service.datakeys-system.svc:8443",
		},
		Roots: []byte("-----BEGIN CERTIFICATE-----\nroots\n-----END CERTIFICATE-----\n"),
		Ready: ready,
	}
}

// TestGolden compares pods before and after. The patch is applied with the library and to the bytes that the API server
// uses, so fields that this build does not know are among what is compared.
func TestGolden(t *testing.T) {
	for _, name := range goldenCases(t) {
		t.Run(name, func(t *testing.T) {
			raw := readPod(t, name)
			patch, errs := inject(t, raw, testSidecar(!notReadyCases[name]))
			if len(errs) > 0 {
				t.Fatalf("Patch: %v", errs)
			}
			for _, operation := range patch {
				if operation.Operation != "add" {
					t.Errorf("the patch does more than add: %s %s", operation.Operation, operation.Path)
				}
			}
			got, err := yaml.JSONToYAML(apply(t, raw, patch))
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".golden.yaml")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("the injected pod differs from %s (-want +got):\n%s", golden, diff)
			}
		})
	}
}

// TestGoldenAgain: a pod that has the sidecar is left as it is, whatever is known of its data keys by then.
func TestGoldenAgain(t *testing.T) {
	for _, name := range goldenCases(t) {
		for _, ready := range []bool{true, false} {
			raw := readPod(t, name)
			patch, errs := inject(t, raw, testSidecar(!notReadyCases[name]))
			if len(errs) > 0 {
				t.Fatalf("%s: Patch: %v", name, errs)
			}
			again, errs := inject(t, apply(t, raw, patch), testSidecar(ready))
			if len(errs) > 0 || len(again) > 0 {
				t.Errorf("%s: a second injection: got patch %v and errors %v, want none", name, again, errs)
			}
		}
	}
}

// TestReinvocation: what another webhook does between two calls is completed, and not undone.
func TestReinvocation(t *testing.T) {
	raw := readPod(t, "deployment")
	patch, errs := inject(t, raw, testSidecar(true))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	pod := decode(t, apply(t, raw, patch))
	sidecar := &pod.Spec.InitContainers[0]
	sidecar.Image = "mirror.example/datakeys/sidecar@sha256:" + strings.Repeat("0", 64)
	sidecar.Resources.Limits = sidecar.Resources.Requests
	sidecar.VolumeMounts = append(sidecar.VolumeMounts, corev1.VolumeMount{Name: "other", MountPath: "/other"})
	pod.Spec.InitContainers = append([]corev1.Container{{Name: "mesh-init"}}, pod.Spec.InitContainers...)
	pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: "mesh"})

	again, errs := inject(t, encode(t, pod), testSidecar(true))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	want := []jsonpatch.Operation{
		add("/spec/initContainers/0/volumeMounts", []corev1.VolumeMount{socketMount}),
		add("/spec/initContainers/0/env", []corev1.EnvVar{socketEnv}),
		add("/spec/containers/2/volumeMounts", []corev1.VolumeMount{socketMount}),
		add("/spec/containers/2/env", []corev1.EnvVar{socketEnv}),
	}
	if diff := cmp.Diff(want, again); diff != "" {
		t.Errorf("the second patch (-want +got):\n%s", diff)
	}
}

func goldenCases(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.golden.yaml")
	if *update {
		files, err = filepath.Glob("testdata/*.yaml")
	}
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	var names []string
	for _, file := range files {
		name := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(file), ".yaml"), ".golden")
		if len(names) == 0 || names[len(names)-1] != name {
			names = append(names, name)
		}
	}
	return names
}

// readPod is the pod of a golden case as JSON, in the form in which it comes to the webhook.
func readPod(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func inject(t *testing.T, raw []byte, sidecar Sidecar) ([]jsonpatch.Operation, field.ErrorList) {
	t.Helper()
	pod := decode(t, raw)
	request, asked, errs := ParseRequest(pod)
	if !asked || len(errs) > 0 {
		t.Fatalf("ParseRequest: asked %v, errors %v", asked, errs)
	}
	before := pod.DeepCopy()
	patch, errs := Patch(pod, request, sidecar)
	if diff := cmp.Diff(before, pod); diff != "" {
		t.Errorf("Patch changed its argument:\n%s", diff)
	}
	return patch, errs
}

func apply(t *testing.T, raw []byte, patch []jsonpatch.Operation) []byte {
	t.Helper()
	decoded, err := jsonpatchv4.DecodePatch(encode(t, patch))
	if err != nil {
		t.Fatal(err)
	}
	if len(decoded) == 0 {
		return raw
	}
	patched, err := decoded.Apply(raw)
	if err != nil {
		t.Fatalf("the patch does not apply: %v", err)
	}
	return patched
}

func decode(t *testing.T, raw []byte) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	if err := json.NewDecoder(bytes.NewReader(raw)).Decode(pod); err != nil {
		t.Fatal(err)
	}
	return pod
}

func encode(t *testing.T, value any) []byte {
	t.Helper()
	raw, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
