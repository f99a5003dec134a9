// Command scale measures the manager with many objects: how long it takes until all DataKeyRequests are Ready, and until all are wrapped
// anew after a rotation of all MasterKeys, how many API writes that costs, and how much memory. Beside it, in the same run, it measures
// a bare client that writes as many Secrets and statuses with the same parallelism and does nothing else. The two take turns of a few
// seconds, while the other one is stopped: so that a machine which is slow for a while is slow for both. Then it watches whether an idle
// manager writes anything but its Lease.
//
//	make scale                                        10,000 requests over 100 keys, 10 minutes idle
//	make scale ARGS="-requests 1000 -idle 1m"
//
// It starts etcd and a Kubernetes API server of its own for each of the two, and the manager as a process beside them. Nothing is left
// behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	ctrl "sigs.k8s.io/controller-runtime"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:])
	stop()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

// goals are the bounds that a run is held to.
const (
	maxRatio  = 1.5
	maxMemory = 150 // MB
	maxWrites = 2   // an object

	// installationSecrets is how many Secrets a new installation makes: the root key, the sealing keys and the serving roots.
	installationSecrets = 3
)

// scale is one run.
type scale struct {
	binary                   string
	keys, requests, parallel int
	idle                     time.Duration

	own, others *plane // the manager's and the bare client's
	manager     *manager
}

func command(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("scale", flag.ContinueOnError)
	s := &scale{}
	flags.StringVar(&s.binary, "manager", "", "`path` of the manager's binary")
	flags.IntVar(&s.keys, "keys", 100, "`number` of MasterKeys")
	flags.IntVar(&s.requests, "requests", 10_000, "`number` of DataKeyRequests")
	flags.IntVar(&s.parallel, "parallel", 8, "`number` of writes at once of the bare client: as many as the manager's controllers make")
	flags.DurationVar(&s.idle, "idle", 10*time.Minute, "for how `long` the idle manager is watched")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if s.binary == "" {
		return errors.New("-manager: must not be empty")
	}
	ctrl.SetLogger(logr.Discard())
	var err error
	if s.own, err = startPlane(ctx); err != nil {
		return err
	}
	defer s.own.environment.Stop() //nolint:errcheck // nothing of it is kept
	if s.others, err = startPlane(ctx); err != nil {
		return err
	}
	defer s.others.environment.Stop() //nolint:errcheck // nothing of it is kept
	return s.run(ctx)
}

// run tells the story.
func (s *scale) run(ctx context.Context) error {
	var missed []string
	hold := func(ok bool, format string, args ...any) {
		line := fmt.Sprintf(format, args...)
		if !ok {
			missed = append(missed, line)
			line += "  MISSED"
		}
		fmt.Println(line)
	}
	// material is how many writes of Secrets are of the material of master keys and of the installation.
	ratio := func(what string, manager, bare phase, material int) {
		r := manager.took.Seconds() / bare.took.Seconds()
		hold(r <= maxRatio, "%s: %.1fs, bare client %.1fs: %.2f times (goal %.1f)", what, manager.took.Seconds(), bare.took.Seconds(), r, maxRatio)
		writes := float64(manager.ofRequests+manager.ofSecrets-material) / float64(s.requests)
		hold(writes <= maxWrites, "%s: %.3f writes a DataKeyRequest, of it and its Secret (goal %d); beside them %d of MasterKeys, %d of their material and %d of events",
			what, writes, maxWrites, manager.ofKeys, material, manager.ofEvents)
	}

	bare, err := s.declare(ctx)
	if err != nil {
		return fmt.Errorf("declare the objects: %w", err)
	}
	made, bareMade, err := s.race(ctx, 1, bare.make, func() (err error) {
		s.manager, err = startManager(ctx, s.binary, s.own)
		return err
	})
	if s.manager != nil {
		defer s.manager.stop()
	}
	if err != nil {
		return fmt.Errorf("until all are Ready: %w", err)
	}
	ratio("all Ready", made, bareMade, s.keys+installationSecrets)
	rewrapped, bareRewrapped, err := s.race(ctx, 2, bare.rewrap, func() error { return s.rotate(ctx) })
	if err != nil {
		return fmt.Errorf("until all are wrapped anew: %w", err)
	}
	ratio("all wrapped anew", rewrapped, bareRewrapped, 2*s.keys)

	memory, err := s.manager.peakMemory()
	if err != nil {
		return err
	}
	hold(memory <= maxMemory, "memory of the manager at its peak: %d MB (goal %d)", memory, maxMemory)
	idle, err := s.watchIdle(ctx)
	if err != nil {
		return err
	}
	hold(idle == phase{}, "idle for %v: %d writes of DataKeyRequests, %d of Secrets, %d of MasterKeys, %d of events (goal 0)",
		s.idle, idle.ofRequests, idle.ofSecrets, idle.ofKeys, idle.ofEvents)
	if len(missed) > 0 {
		return fmt.Errorf("%d goals missed:\n%s", len(missed), strings.Join(missed, "\n"))
	}
	return nil
}
