//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/rootkey"
)

// clientsOfOtherLanguages has what people use from Python and JavaScript, and as another manager's root key, use a sidecar in a pod.
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
	t.Run("another manager's root key", c.rootKey)
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

// rootKey wraps and unwraps by a MasterKey as the root key of another manager, which dials the pod's socket through a port of this machine.
func (c *clients) rootKey(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} { // nobody else in this process asks for them
		if err := os.Setenv(name, "any"); err != nil { //nolint:usetesting // t.Setenv is not for tests that run beside others
			t.Fatal(err)
		}
	}
	r, err := rootkey.Open(t.Context(), "awskms://"+strings.Split(c.arn, ":")[3]+"/"+c.arn+"?endpoint=http://"+forward(t, c.socket()), logr.Discard())
	if err != nil {
		t.Fatal(err)
	}
	key, err := envelope.PlaintextOfMaterial(envelope.NewMaterialID(), envelope.NewMaterial())
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := r.Wrap(t.Context(), key, []byte("ad"))
	if err != nil {
		t.Fatal(err)
	}
	opened, err := r.Unwrap(t.Context(), wrapped, []byte("ad"))
	if err != nil || !opened.Equal(key) {
		t.Errorf("it unwraps to something else (%v)", err)
	}
	if _, err := r.Unwrap(t.Context(), wrapped, []byte("other")); err == nil {
		t.Error("it unwraps with other additional data")
	}
}

// forward listens on a port of this machine for the socket, until the test ends.
func forward(t *testing.T, socket string) (address string) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := (&net.Dialer{}).DialContext(context.Background(), "unix", socket)
				if err != nil {
					return
				}
				defer out.Close()
				go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
	return l.Addr().String()
}
