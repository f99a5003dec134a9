// The manager of Datakeys: the controllers (on the leader), the pod injector and the key service (on every replica).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	_ "time/tzdata" // for rotation.timeZone: the image has no time zones

	"github.com/KimMachineGun/automemlimit/memlimit"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"

	"github.com/datakeys/datakeys/internal/version"
)

// garbage is how much the manager's memory may grow, in percent of what is in use, before garbage is collected. Most of it is the cache,
// which grows with the cluster and is little garbage: at Go's own 100 it would have to be there twice. GOGC has the last word.
const garbage = 50

// memoryShare is how much of its container's memory the manager's Go memory may take before garbage is collected more often than
// usual. GOMEMLIMIT has the last word.
const memoryShare = 0.9

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := command(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		_, _ = fmt.Fprintln(os.Stderr, "manager:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case rootKeyStatusCommand:
			return rootKeyStatus(ctx, args[1:], os.Getenv, os.Stdout, os.Stderr)
		case version.Command:
			_, err := fmt.Println(version.String())
			return err
		}
	}
	o, err := parseOptions(args, os.Getenv, os.Stderr)
	if err != nil {
		return err
	}
	log := zap.New(zap.UseFlagOptions(&o.zap))
	ctrl.SetLogger(log)
	klog.SetLogger(log)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbage)
	}
	if _, err := memlimit.Set(memlimit.WithRatio(memoryShare)); err != nil && !errors.Is(err, memlimit.ErrNoCgroup) {
		log.Error(err, "The limit of the container's memory is not known: Go collects garbage as if there were none")
	}
	return run(ctx, o, log)
}
