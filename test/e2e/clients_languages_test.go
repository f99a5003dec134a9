//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// clientsOfOtherLanguages has what people use from Python and JavaScript use a sidecar in a pod.
func clientsOfOtherLanguages(t *testing.T) {
	c := newClients(t)
	meta := metav1.ObjectMeta{Namespace: c.namespace, Name: "uses-keys-in-every-way"}
	kube.create(t,
		&rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{v1alpha1.GroupName}, Resources: []string{v1alpha1.ResourceMasterKeys}, Verbs: []string{"*"},
		}}},
		&rbacv1.RoleBinding{
			ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: c.namespace, Name: "app"}},
		},
	)
	t.Run("boto3", c.boto3)
	t.Run("the AWS SDK and Encryption SDK for JavaScript", c.javascript)
}

func (c *clients) socket() string {
	return fmt.Sprintf("/proc/%d/root%s", c.process, v1alpha1.SocketPath)
}

// boto3 is Debian's, as is the interpreter.
func (c *clients) boto3(t *testing.T) {
	command := c.inPod(t, "/usr/bin/python3", filepath.Join(root, "test/clients/boto.py"), endpoint, c.arn, "alias/orders-prod")
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.home}
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func (c *clients) javascript(t *testing.T) {
	folder := filepath.Join(c.home, "js")
	if err := os.CopyFS(folder, os.DirFS(filepath.Join(root, "test/clients/js"))); err != nil {
		t.Fatal(err)
	}
	for _, arguments := range [][]string{
		{"npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"},
		{"node", "main.js", c.socket(), c.arn, "alias/orders-prod"},
	} {
		command := exec.CommandContext(t.Context(), arguments[0], arguments[1:]...)
		command.Dir = folder
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", arguments[:2], err, out)
		}
	}
}
