//go:build fips140v1.0

package fips_test

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// The manager makes a root key, sealing keys and certificates, speaks TLS to the API server and serves keys, and nothing that
// is not approved is let by.
func TestManagerServesUnderFIPSOnly(t *testing.T) {
	const namespace = "datakeys-system"
	t.Setenv("GODEBUG", "") // of the API server, which does more than what is approved
	env := &envtest.Environment{CRDDirectoryPaths: []string{"../../config/crd/bases"}, ErrorIfCRDPathMissing: true}
	config, err := env.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Error(err)
		}
	})
	user, err := env.AddUser(envtest.User{Name: "manager", Groups: []string{"system:masters"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := user.KubeConfig()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, kubeconfig, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}); err != nil {
		t.Fatal(err)
	}

	cmd := exec.CommandContext(t.Context(), filepath.Join(commands, "manager"), "--kubeconfig="+path, "--namespace="+namespace,
		"--sidecar-image=none", "--key-service-bind=127.0.0.1:0", "--webhook-bind=127.0.0.1:0", "--metrics-bind=0", "--health-bind=0",
		"--leader-elect=false")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only")
	var audit, said bytes.Buffer
	cmd.Stdout = &audit
	logs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	serves, mode := false, false
	for lines := bufio.NewScanner(logs); lines.Scan(); {
		line := lines.Text()
		said.WriteString(line + "\n")
		mode = mode || strings.Contains(line, "fips140=only, cryptographic module v1.0.0")
		if strings.Contains(line, "Serving keys") && !serves {
			serves = true
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil || !serves || !mode || !strings.Contains(audit.String(), "CreateSealingKey") {
		t.Errorf("%v: serves keys: %v, says its mode: %v\n%s%s", err, serves, mode, &audit, &said)
	}
}
