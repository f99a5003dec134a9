//go:build e2e

// Package e2e tests Datakeys as people meet it: installed with Helm or kustomize on a real Kubernetes with a real kubelet,
// with pods that read their data keys from the socket. `make test-e2e` runs it. It brings up a cluster of its own with
// hack/cluster, in the state folder .cluster-e2e, and takes it down at the end; DATAKEYS_E2E_KEEP=1 keeps it.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

const systemNamespace = "datakeys-system"

// root is the root of the checkout, and state the folder of the cluster.
const (
	root  = "../.."
	state = ".cluster-e2e"
)

// kube is the cluster with the Helm install. Tests that do not run beside others may put a cluster of their own in its place.
var kube *cluster

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard()) // client-go's own words, which no test needs
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func runTests(m *testing.M) (code int, err error) {
	ctx := context.Background()
	defer func() {
		if os.Getenv("DATAKEYS_E2E_KEEP") == "" {
			if downErr := run(ctx, state, "go", "run", "./hack/cluster", "down"); err == nil {
				err = downErr
			}
		}
	}()
	if err := run(ctx, state, "hack/install.sh"); err != nil {
		return 1, err
	}
	if kube, err = connect(state); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// run runs a command at the root of the checkout, for the cluster with that state folder, and shows what it prints.
func run(ctx context.Context, state, name string, arguments ...string) error {
	c := exec.CommandContext(ctx, name, arguments...)
	c.Dir = root
	c.Env = append(os.Environ(), "DATAKEYS_CLUSTER="+state)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	if err := c.Run(); err != nil {
		return fmt.Errorf("%s %v: %w", name, arguments, err)
	}
	return nil
}
