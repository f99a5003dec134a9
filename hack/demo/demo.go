package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	// namespace is the one of config/samples.
	namespace = "demo"
	// systemNamespace is where the chart is installed.
	systemNamespace = "datakeys-system"
)

// interrupt asks a child process to end.
var interrupt = os.Interrupt

// demo is one run.
type demo struct {
	out     io.Writer
	started time.Time
	steps   int

	// kubeconfig is of the cluster in use; local says that it is the one of hack/cluster.
	kubeconfig string
	local      bool

	kubectlPath, helmPath string
	// sha256 of the data key, as the first pod saw it.
	sha256 string
}

// kubectlCommand is kubectl as the user can type it.
func (d *demo) kubectlCommand() string {
	return "kubectl --kubeconfig " + d.kubeconfig
}

// prepare builds the images and has them on a running cluster.
func (d *demo) prepare(ctx context.Context) error {
	d.step("Build the manager, the sidecar and the demo's application (the first time: some minutes)")
	if err := d.stream(ctx, "make", "--no-print-directory", "images"); err != nil {
		return err
	}
	if d.local {
		d.step("Start a Kubernetes on this machine (the first time it is built: about ten minutes)")
		if err := d.stream(ctx, "hack/install.sh", "up"); err != nil {
			return fmt.Errorf("%w\nWith a Kubernetes of your own: go run ./hack/demo -kubeconfig FILE", err)
		}
		d.kubeconfig = filepath.Join(cmp.Or(os.Getenv("DATAKEYS_CLUSTER"), ".cluster"), "kubeconfig")
	} else {
		d.step("Use the Kubernetes of %s", d.kubeconfig)
		d.say(`Its nodes need the three images of dist/, which only you can bring there. For example, with kind:
  for image in manager sidecar demo-reader; do kind load image-archive dist/$image.tar; done`)
	}
	// Helm is built here, where it shows, and not while the installation is waited for.
	if err := d.stream(ctx, "go", "run", "./hack/cluster", "bin", "helm"); err != nil {
		return err
	}
	for name, path := range map[string]*string{"kubectl": &d.kubectlPath, "helm": &d.helmPath} {
		printed, err := output(ctx, "", "go", "run", "./hack/cluster", "bin", name)
		if err != nil {
			return err
		}
		*path = strings.TrimSpace(printed)
	}
	version, err := d.kubectl(ctx, "version")
	if err != nil {
		return err
	}
	for line := range strings.Lines(version) {
		if strings.HasPrefix(line, "Server Version") {
			d.say("%s", strings.TrimSpace(line))
		}
	}
	return nil
}

// install installs the chart, or upgrades it, and tells meanwhile how many replicas are ready.
func (d *demo) install(ctx context.Context) error {
	d.step("Install Datakeys with Helm")
	d.say("$ DATAKEYS_KUBECONFIG=%s hack/install.sh chart", d.kubeconfig)
	d.say("  (helm upgrade --install datakeys charts/datakeys --namespace=%s --create-namespace --wait …)", systemNamespace)
	helmContext, giveUp := context.WithCancel(ctx)
	defer giveUp()
	helm := command(helmContext, "hack/install.sh", "chart", "--hide-notes")
	helm.Env = append(os.Environ(), "DATAKEYS_KUBECONFIG="+d.kubeconfig)
	var said bytes.Buffer
	helm.Stdout, helm.Stderr = &said, &said
	if err := helm.Start(); err != nil {
		return err
	}
	var failed error
	finished := make(chan struct{})
	go func() {
		failed = helm.Wait()
		close(finished)
	}()
	err := d.waitFor(ctx, 4*time.Minute, "the manager is ready", func(ctx context.Context) (string, bool, error) {
		select {
		case <-finished:
			return "", true, failed
		default:
		}
		state, err := d.kubectl(ctx, "get", "deployment", "datakeys-manager", "--namespace="+systemNamespace, "--ignore-not-found",
			"--output=jsonpath=replicas of datakeys-manager ready: {.status.readyReplicas}, wanted: {.spec.replicas}")
		return strings.Replace(state, "ready: ,", "ready: 0,", 1), false, err
	})
	if err != nil {
		giveUp()
		<-finished // what Helm said is all there then, and it does not go on
		logs, _ := d.kubectl(ctx, "logs", "deployment/datakeys-manager", "--namespace="+systemNamespace, "--tail=20")
		return fmt.Errorf("%w\n%s\nThe manager's last words:\n%s", err, said.Bytes(), logs)
	}
	d.say(`Two replicas of the manager run in namespace %s. Both serve keys and inject sidecars; one, the leader, runs the
controllers. The root key that protects everything was made inside the cluster: it is embedded, in a Secret of that
namespace (docs/threat-model.md says what that means). No key and no certificate was made by Helm.`, systemNamespace)
	return nil
}

// farewell says what is left and how to go on.
func (d *demo) farewell() {
	d.print("\nDone in %.0f s.\n\n", time.Since(d.started).Seconds())
	kubeconfig, err := filepath.Abs(d.kubeconfig)
	if err != nil {
		kubeconfig = d.kubeconfig
	}
	d.print(`What stays: the cluster, with namespace %[1]s: MasterKey orders, DataKeyRequest orders and its Secret, pod reader (and pod
stranger, which gets no key). To look further:

  alias kubectl='%[2]s --kubeconfig %[4]s' helm='%[3]s --kubeconfig %[4]s'
  kubectl -n demo get masterkeys,datakeyrequests,secrets,pods
  kubectl -n demo get secret orders -o yaml
  kubectl -n demo exec reader -c app -- /reader get /v1/data-keys
  kubectl -n demo get pod reader -o yaml             # what was injected
  kubectl -n datakeys-system logs -l app.kubernetes.io/name=datakeys --tail=-1 | grep '"operation"'   # the audit records

`, namespace, d.kubectlPath, d.helmPath, kubeconfig)
	if d.local {
		d.print("An image of your own (an OCI or Docker archive): go run ./hack/cluster load FILE.tar\n")
		d.print("Take it all down with: make demo-down\n")
	} else {
		// A namespace with a master key in it is deleted in two steps: the first one says that this is meant.
		d.print(`Take it down with:
  kubectl annotate masterkeys --all -n demo datakeys.io/allow-deletion=true
  kubectl delete namespace demo
  helm uninstall datakeys -n datakeys-system
`)
	}
}
