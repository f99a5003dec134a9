package inject

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// askingPod has one init container, one container, and what the test says.
func askingPod(annotations map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "pod", Labels: map[string]string{v1alpha1.LabelInject: "true"}, Annotations: annotations,
		},
		Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Name: "migrate"}},
			Containers:     []corev1.Container{{Name: "app"}},
		},
	}
}

func TestParseRequest(t *testing.T) {
	const (
		dataKeys   = v1alpha1.AnnotationDataKeys
		containers = v1alpha1.AnnotationContainers
		wait       = v1alpha1.AnnotationWait
		port       = v1alpha1.AnnotationLoopbackPort
	)
	for name, test := range map[string]struct {
		label       string
		annotations map[string]string
		want        Request
		notAsked    bool
		wantErr     string
	}{
		"without the label a pod does not ask": {
			label: "-", annotations: map[string]string{dataKeys: "orders"}, notAsked: true,
		},
		"with the label false a pod does not ask": {
			label: "false", notAsked: true,
		},
		"one data key": {
			annotations: map[string]string{dataKeys: "orders"},
			want:        Request{DataKeys: []string{"orders"}, Wait: true},
		},
		"several data keys keep their order": {
			annotations: map[string]string{dataKeys: "payments,orders.v2", wait: "true"},
			want:        Request{DataKeys: []string{"payments", "orders.v2"}, Wait: true},
		},
		"spaces around names do not count": {
			annotations: map[string]string{dataKeys: " orders ,\tpayments\n", containers: " app "},
			want:        Request{DataKeys: []string{"orders", "payments"}, Containers: []string{"app"}, Wait: true},
		},
		"init containers can be chosen": {
			annotations: map[string]string{dataKeys: "orders", containers: "migrate", wait: "false"},
			want:        Request{DataKeys: []string{"orders"}, Containers: []string{"migrate"}},
		},
		"a loopback port can be asked for": {
			annotations: map[string]string{dataKeys: "orders", port: "1024"},
			want:        Request{DataKeys: []string{"orders"}, Wait: true, LoopbackPort: 1024},
		},
		"a privileged loopback port is refused": {
			annotations: map[string]string{dataKeys: "orders", port: "443"},
			wantErr:     `metadata.annotations[datakeys.io/loopback-port]: Invalid value: "443": must be a port, a number of 1024 to 65535`,
		},
		"a loopback port that is no port is refused": {
			annotations: map[string]string{dataKeys: "orders", port: "65536"},
			wantErr:     `metadata.annotations[datakeys.io/loopback-port]: Invalid value: "65536": must be a port, a number of 1024 to 65535`,
		},
		"a loopback port in words is refused": {
			annotations: map[string]string{dataKeys: "orders", port: "true"},
			wantErr:     `metadata.annotations[datakeys.io/loopback-port]: Invalid value: "true": must be a port, a number of 1024 to 65535`,
		},
		"an empty loopback port is refused": {
			annotations: map[string]string{dataKeys: "orders", port: ""},
			wantErr:     `metadata.annotations[datakeys.io/loopback-port]: Invalid value: "": must be a port, a number of 1024 to 65535`,
		},
		"another value of the label is refused": {
			label: "yes", annotations: map[string]string{dataKeys: "orders"},
			wantErr: `metadata.labels[datakeys.io/inject]: Invalid value: "yes": must be "true" or "false"; without the label a pod is left alone`,
		},
		"the annotation data-keys is required": {
			wantErr: `metadata.annotations[datakeys.io/data-keys]: Required value: a pod with the label datakeys.io/inject=true names ` +
				`its data keys here, for example "orders,payments"; remove the label if it needs none`,
		},
		"an empty annotation data-keys is refused": {
			annotations: map[string]string{dataKeys: " "},
			wantErr:     `metadata.annotations[datakeys.io/data-keys]: Required value: must name a DataKeyRequest, or several separated by commas`,
		},
		"an empty name is refused": {
			annotations: map[string]string{dataKeys: "orders,"},
			wantErr: `metadata.annotations[datakeys.io/data-keys]: Invalid value: "orders,": must not have an empty name between, ` +
				`before or after the commas`,
		},
		"a name that no object can have is refused": {
			annotations: map[string]string{dataKeys: "Orders"},
			wantErr: `metadata.annotations[datakeys.io/data-keys]: Invalid value: "Orders": ` +
				strings.Join(validation.IsDNS1123Subdomain("Orders"), "; "),
		},
		"a name that leads out of its directory is refused": {
			annotations: map[string]string{dataKeys: ".."},
			wantErr: `metadata.annotations[datakeys.io/data-keys]: Invalid value: "..": ` +
				strings.Join(validation.IsDNS1123Subdomain(".."), "; "),
		},
		"a name twice is refused": {
			annotations: map[string]string{dataKeys: "orders,payments,orders"},
			wantErr:     `metadata.annotations[datakeys.io/data-keys]: Duplicate value: "orders"`,
		},
		"101 names are refused": {
			annotations: map[string]string{dataKeys: numbered(v1alpha1.MaxDataKeys + 1)},
			wantErr:     `metadata.annotations[datakeys.io/data-keys]: Too many: 101: must have at most 100 items`,
		},
		"an unknown container is refused": {
			annotations: map[string]string{dataKeys: "orders", containers: "app,web"},
			wantErr: `metadata.annotations[datakeys.io/containers]: Invalid value: "web": must be a container or init container of ` +
				`this pod, one of migrate, app`,
		},
		"an empty annotation containers is refused": {
			annotations: map[string]string{dataKeys: "orders", containers: ""},
			wantErr:     `metadata.annotations[datakeys.io/containers]: Required value: must name a container, or several separated by commas`,
		},
		"another value of wait is refused": {
			annotations: map[string]string{dataKeys: "orders", wait: "no"},
			wantErr: `metadata.annotations[datakeys.io/wait]: Invalid value: "no": must be "true" (the default: the application waits ` +
				`for its data keys) or "false" (it starts at once)`,
		},
		"everything that is wrong is told at once": {
			annotations: map[string]string{containers: "web", wait: "1", port: "1"},
			wantErr:     "4 errors",
		},
	} {
		t.Run(name, func(t *testing.T) {
			pod := askingPod(test.annotations)
			switch test.label {
			case "":
			case "-":
				pod.Labels = nil
			default:
				pod.Labels[v1alpha1.LabelInject] = test.label
			}
			got, asked, errs := ParseRequest(pod)
			if asked == test.notAsked {
				t.Errorf("asked = %v, want %v", asked, !test.notAsked)
			}
			if test.wantErr != "" {
				if got := describe(errs); got != test.wantErr {
					t.Errorf("error\n got %s\nwant %s", got, test.wantErr)
				}
				return
			}
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRequestTakes100Names(t *testing.T) {
	request, _, errs := ParseRequest(askingPod(map[string]string{v1alpha1.AnnotationDataKeys: numbered(v1alpha1.MaxDataKeys)}))
	if len(errs) > 0 || len(request.DataKeys) != v1alpha1.MaxDataKeys {
		t.Errorf("got %d names and errors %v, want %d and none", len(request.DataKeys), errs, v1alpha1.MaxDataKeys)
	}
}

func numbered(n int) string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("key-%d", i)
	}
	return strings.Join(names, ",")
}

// describe is the error that a user sees, or how many there are.
func describe(errs field.ErrorList) string {
	switch len(errs) {
	case 0:
		return ""
	case 1:
		return errs[0].Error()
	default:
		return fmt.Sprintf("%d errors", len(errs))
	}
}
