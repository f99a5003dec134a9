package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

func TestDescribeSecret(t *testing.T) {
	tests := map[string]struct {
		data      map[string][]byte
		want      []string
		wantError string
	}{
		"ciphertext is shown as base64, all else as it is": {
			data: map[string][]byte{
				"ciphertextBlob": bytes.Repeat([]byte{0}, 60),
				"iv":             {1, 2, 3},
				"keyVersion":     []byte("1"),
			},
			want: []string{
				"ciphertextBlob     60 bytes of ciphertext for a key of 32 bytes:",
				"    " + strings.Repeat("A", 76),
				"    " + strings.Repeat("A", 4),
				"iv                 AQID (3 bytes, base64)",
				"keyVersion         1",
			},
		},
		"what is left of an older generation is shown too": {
			data: map[string][]byte{
				"ciphertextBlob": make([]byte, 33), "ciphertextBlob.1": make([]byte, 36), "iv.1": {1, 2, 3}, "keyVersion.1": []byte("1"),
				"generation": []byte("2"),
			},
			want: []string{
				"ciphertextBlob     33 bytes of ciphertext for a key of 32 bytes:",
				"    " + strings.Repeat("A", 44),
				"ciphertextBlob.1   36 bytes of ciphertext for a key of 32 bytes:",
				"    " + strings.Repeat("A", 48),
				"generation         2",
				"iv.1               AQID (3 bytes, base64)",
				"keyVersion.1       1",
			},
		},
		"so must its blob be ciphertext": {
			data:      map[string][]byte{"ciphertextBlob": make([]byte, 60), "ciphertextBlob.1": make([]byte, 32), "generation": []byte("2")},
			wantError: "entry ciphertextBlob.1 has 32 bytes",
		},
		"what no older generation has is an error": {
			data:      map[string][]byte{"ciphertextBlob": make([]byte, 60), "algorithm.1": []byte("x"), "generation": []byte("2")},
			wantError: `"algorithm.1"`,
		},
		"so is a generation that is not older": {
			data:      map[string][]byte{"ciphertextBlob": make([]byte, 60), "keyVersion.2": []byte("1"), "generation": []byte("2")},
			wantError: `"keyVersion.2"`,
		},
		"a Secret without a blob is an error": {
			data:      map[string][]byte{"keyVersion": []byte("1")},
			wantError: `no entry "ciphertextBlob"`,
		},
		"a blob as short as the key is no ciphertext": {
			data:      map[string][]byte{"ciphertextBlob": make([]byte, 32)},
			wantError: "this is no ciphertext",
		},
		"an entry that nobody knows is an error": {
			data:      map[string][]byte{"ciphertextBlob": make([]byte, 60), "plaintext": []byte("x")},
			wantError: `"plaintext"`,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := describeSecret(test.data, 32)
			if (err != nil) != (test.wantError != "") || err != nil && !strings.Contains(err.Error(), test.wantError) {
				t.Fatalf("got error %v, want %q", err, test.wantError)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestReadiness(t *testing.T) {
	tests := map[string]struct {
		conditions []metav1.Condition
		want       string
		wantDone   bool
	}{
		"no condition yet": {want: "not looked at yet"},
		"ready": {
			conditions: []metav1.Condition{{Type: "Ready", Status: metav1.ConditionTrue}},
			want:       "Ready",
			wantDone:   true,
		},
		"not ready, with the reason": {
			conditions: []metav1.Condition{{Type: "Ready", Status: metav1.ConditionFalse, Reason: "MasterKeyNotFound", Message: "m"}},
			want:       "not Ready: MasterKeyNotFound (m)",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, done := readiness(test.conditions)
			if got != test.want || done != test.wantDone {
				t.Errorf("got %q, %v, want %q, %v", got, done, test.want, test.wantDone)
			}
		})
	}
}

func TestPodState(t *testing.T) {
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	tests := map[string]struct {
		status   corev1.PodStatus
		want     string
		wantDone bool
	}{
		"no container yet": {want: "not started yet"},
		"held back by its sidecar": {
			status: corev1.PodStatus{
				InitContainerStatuses: []corev1.ContainerStatus{{Name: "datakeys", State: running}},
				ContainerStatuses: []corev1.ContainerStatus{{
					Name:  "app",
					State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "PodInitializing"}},
				}},
			},
			want: "datakeys running, app waiting",
		},
		"an image that is not there": {
			status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{
				Name:  "app",
				State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff"}},
			}}},
			want: "app ImagePullBackOff",
		},
		"ready": {
			status:   corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
			want:     "Ready",
			wantDone: true,
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, done := podState(&corev1.Pod{Status: test.status})
			if got != test.want || done != test.wantDone {
				t.Errorf("got %q, %v, want %q, %v", got, done, test.want, test.wantDone)
			}
		})
	}
}

func TestIndented(t *testing.T) {
	var out bytes.Buffer
	w := &indented{out: &out}
	for _, piece := range []string{"one\ntw", "o", "\n", "\nthree"} {
		if _, err := w.Write([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff("    one\n    two\n    \n    three", out.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestInstallEndsHelmWhereItGivesUp has a kubectl that fails while Helm, in the place of which another program waits, is at work.
func TestInstallEndsHelmWhereItGivesUp(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("hack", 0o755); err != nil {
		t.Fatal(err)
	}
	for path, script := range map[string]string{
		"hack/install.sh": "echo Helm works; echo $$ >new && mv new pid; exec sleep 600",
		"kubectl":         "until test -e pid; do :; done; echo no cluster >&2; exit 1",
	} {
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d := &demo{out: io.Discard, kubectlPath: "./kubectl"}
	err := d.install(t.Context())
	if err == nil || !strings.Contains(err.Error(), "no cluster") || !strings.Contains(err.Error(), "Helm works") {
		t.Errorf("error %v, want what kubectl and Helm said", err)
	}
	text, err := os.ReadFile("pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("Helm goes on (%v)", err)
	}
}

// TestSamples reads every sample with the types of the API, and no field may be unknown.
func TestSamples(t *testing.T) {
	for _, document := range samples(t) {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(document), &kind); err != nil {
			t.Fatal(err)
		}
		var into any
		switch kind.Kind {
		case "MasterKey":
			into = &v1alpha1.MasterKey{}
		case "DataKeyRequest":
			into = &v1alpha1.DataKeyRequest{}
		case "Pod":
			into = &corev1.Pod{}
		default:
			continue
		}
		if err := yaml.UnmarshalStrict([]byte(document), into); err != nil {
			t.Errorf("%s: %v", kind.Kind, err)
		}
	}
}

// TestReadme holds the README to the samples: every YAML block of it stands in one of them, word for word.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(samples(t), "---\n")
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(readme, -1)
	if len(blocks) < 3 {
		t.Errorf("the README has %d YAML blocks, want the MasterKey, the DataKeyRequest and the pod", len(blocks))
	}
	for _, block := range blocks {
		if !strings.Contains(all, string(block[1])) {
			t.Errorf("this block of the README is in no sample:\n%s", block[1])
		}
	}
}

// samples are the documents of config/samples.
func samples(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../../config/samples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("config/samples: %d files, %v", len(files), err)
	}
	var documents []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, strings.Split(string(text), "---\n")...)
	}
	return documents
}
