// The manager of Datakeys: the controllers (on the leader), the pod injector and the key service (on every replica).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	o, err := parseOptions(os.Args[1:], os.Getenv, os.Stderr)
	if err == nil {
		log := zap.New(zap.UseFlagOptions(&o.zap))
		ctrl.SetLogger(log)
		klog.SetLogger(log)
		err = run(ctx, o, log)
	}
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		_, _ = fmt.Fprintln(os.Stderr, "manager:", err)
		os.Exit(1)
	}
}
