// Command demo shows Datakeys from nothing to a key read, on a real Kubernetes, and says at every step what happened:
//
//	go run ./hack/demo
//
// It builds the images, starts the local Kubernetes of hack/cluster, installs the chart with Helm and applies
// config/samples. All of it stays up to be looked at. Run again, it goes through the same steps on what is there.
//
// The local Kubernetes needs root on Linux. With -kubeconfig, or with KUBECONFIG set and without root, the demo uses that
// cluster instead; the three images have to be on its nodes then.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

func main() {
	kubeconfig := flag.String("kubeconfig", "", "cluster to use instead of the local one; $KUBECONFIG does not count, which may be of any cluster")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *kubeconfig)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, kubeconfig string) error {
	if _, err := os.Stat("charts/datakeys/Chart.yaml"); err != nil {
		return errors.New("run the demo from the root of the repository: make demo")
	}
	if kubeconfig == "" && (runtime.GOOS != "linux" || os.Geteuid() != 0) {
		return errors.New("the local Kubernetes needs root on Linux. With a Kubernetes of your own, kind for example: make images, " +
			"bring the three images of dist/ to its nodes (kind load image-archive …), and go run ./hack/demo -kubeconfig FILE")
	}
	d := &demo{out: os.Stdout, started: time.Now(), kubeconfig: kubeconfig, local: kubeconfig == ""}
	for _, step := range []func(context.Context) error{
		d.prepare,
		d.install,
		d.masterKey,
		d.dataKey,
		d.reader,
		d.stranger,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	d.farewell()
	return nil
}
