package main

import (
	"strings"
	"testing"
)

func TestCompare(t *testing.T) {
	const plain = `
apiVersion: v1
kind: Service
metadata:
  name: a
  namespace: ns
spec:
  ports: [{port: 1}]
`
	tests := map[string]struct {
		chart, kustomize string
		wantDifference   string
		wantError        string
	}{
		"the same object in another notation is the same": {
			chart:     plain,
			kustomize: `{"apiVersion":"v1","kind":"Service","metadata":{"namespace":"ns","name":"a"},"spec":{"ports":[{"port":1}]}}`,
		},
		"labels and annotations of Helm's make no difference": {
			chart:     strings.Replace(plain, "  name: a\n", "  name: a\n  labels: {helm.sh/chart: c, app.kubernetes.io/managed-by: Helm}\n  annotations: {helm.sh/resource-policy: keep}\n", 1),
			kustomize: plain,
		},
		"the namespace of the install makes no difference": {
			chart:     plain,
			kustomize: plain + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: datakeys-system}\n",
		},
		"another label is a difference": {
			chart:          strings.Replace(plain, "  name: a\n", "  name: a\n  labels: {tier: x}\n", 1),
			kustomize:      plain,
			wantDifference: "tier",
		},
		"another value is a difference": {
			chart:          plain,
			kustomize:      strings.Replace(plain, "port: 1", "port: 2", 1),
			wantDifference: "port",
		},
		"an object that only one of them makes is a difference": {
			chart:          plain,
			kustomize:      plain + "---\napiVersion: v1\nkind: Secret\nmetadata: {name: b}\n",
			wantDifference: "Secret <nil>/b",
		},
		"an object that stands there twice is an error": {
			chart:     plain + "---" + plain,
			kustomize: plain,
			wantError: "twice",
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			difference, err := compare([]byte(test.chart), []byte(test.kustomize))
			if test.wantError != "" {
				if err == nil || !strings.Contains(err.Error(), test.wantError) {
					t.Fatalf("got error %v, want one with %q", err, test.wantError)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if (difference != "") != (test.wantDifference != "") || !strings.Contains(difference, test.wantDifference) {
				t.Errorf("got difference %q, want one with %q", difference, test.wantDifference)
			}
		})
	}
}
