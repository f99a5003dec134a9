// Command bench measures what applications get of a sidecar, each answer beside the least that it could cost, in one run: the processes
// of a pod and of a key service on this machine, asked over 1 and over 16 connections. The targets take turns, so that a machine which is
// slow for a while is slow for all, and what counts are the ratios.
//
//	make bench                        5 rounds of a second, then a million requests
//	make bench ARGS="-rounds 20"
//	make bench ARGS="-only Decrypt"
//
// Floor A is a bare handler of net/http on a unix socket. Floor B is the same handler, which makes one empty unary gRPC call over TLS on
// loopback before it answers: the least that an answer of the key service costs. Where a binary of OpenBao or Vault is on the PATH, an agent
// of theirs decrypts beside. CPU is the processor time of all that answer, of which a busy machine changes less than of the rest.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:])
	stop()
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// What of this program the processes beside it are.
const (
	roleKeyService = "key-service"
	roleFloor      = "floor"
)

func command(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	sidecar := flags.String("sidecar", "", "`path` of the sidecar's binary")
	rounds := flags.Int("rounds", 5, "`number` of rounds")
	turn := flags.Duration("turn", time.Second, "how `long` a target is asked in each round")
	only := flags.String("only", "", "ask only the floors and what has this `text` in its name")
	role := flags.String("role", "", "what this process is; for the program's own use")
	dir := flags.String("dir", "", "`directory` of the run; for the program's own use")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch *role {
	case roleKeyService:
		return serveKeys(ctx, *dir)
	case roleFloor:
		return serveFloor(ctx, *dir)
	}
	if *sidecar == "" || *rounds < 1 || *turn <= 0 {
		return errors.New("-sidecar, -rounds and -turn: must be a binary, 1 or more, and more than 0")
	}
	run, err := start(ctx, *sidecar)
	if err != nil {
		return err
	}
	defer run.stop()
	return run.measure(ctx, *rounds, *turn, *only)
}

// Names of the floors. They begin as they are called in the columns.
const (
	floorA = "A"
	bare   = floorA + ": bare handler"
	empty  = "B: with an empty call"
	native = "get"
)

// connections are over how many a target is asked at once.
var connections = []int{1, 16}

// measure asks every target in turn, and prints what came of it.
func (r *run) measure(ctx context.Context, rounds int, turn time.Duration, only string) error {
	targets, err := r.targets(ctx)
	if err != nil {
		return err
	}
	if binary := findAgent(); binary == "" {
		fmt.Println("neither bao nor vault is on the PATH: an agent of theirs is not measured beside")
	} else {
		beside, err := r.agent(ctx, binary)
		if err != nil {
			return fmt.Errorf("%s: %w", binary, err)
		}
		targets = append(targets, beside)
	}
	targets = slices.DeleteFunc(targets, func(t target) bool { return t.socket != r.path(socketFloor) && !strings.Contains(t.name, only) })
	for _, conns := range connections {
		took := map[string]*sample{}
		for round := range rounds + 1 { // the first one warms up
			for _, target := range targets {
				before := r.cpu()
				got, err := ask(ctx, target, conns, turn, math.MaxInt)
				if err != nil {
					return fmt.Errorf("%s: %w", target.name, err)
				}
				got.cpu = r.cpu() - before
				if round > 0 {
					took[target.name] = got.and(took[target.name])
				}
			}
		}
		report(targets, took, conns)
	}
	return r.fill(ctx, targets)
}

// What is asked before the sidecar's memory is looked at, over all connections together.
const (
	manyGets  = 1_000_000
	manyCalls = 4_000 // of each target that asks the key service
	// patience is what all gets may take, and all calls of one target.
	patience = 10 * time.Minute
)

// fill asks for a data key a million times, beside some thousand calls of the front doors, and prints what the sidecar's memory is then.
func (r *run) fill(ctx context.Context, targets []target) error {
	gets, calls, conns := 0, 0, connections[len(connections)-1]
	for _, t := range targets {
		n := 0
		switch {
		case t.name == native:
			n = manyGets
			gets += n
		case t.socket == r.path(socketSidecar) && t.floor == empty:
			n = manyCalls
			calls += n
		}
		if n == 0 {
			continue
		}
		got, err := ask(ctx, t, conns, patience, n/conns)
		if err == nil && len(got.latencies) < n {
			err = fmt.Errorf("got %d answers in %v, want %d", len(got.latencies), patience, n)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	rss, peak, err := resident(r.sidecar.Process.Pid)
	if err != nil {
		return err
	}
	fmt.Printf("\nsidecar after %d gets and %d calls of the front doors: resident %.1f MB, at most %.1f MB; goal: at most 20 MB\n",
		gets, calls, rss, peak)
	if r.other == nil {
		return nil
	}
	if rss, peak, err = resident(r.other.Process.Pid); err == nil {
		fmt.Printf("agent after the calls above alone: resident %.1f MB, at most %.1f MB\n", rss, peak)
	}
	return err
}

// report prints a line a target: medians and throughputs beside those of its floor.
func report(targets []target, took map[string]*sample, conns int) {
	fmt.Printf("\n%d connections    median     p99     per second   median/floor  throughput/floor   CPU  CPU/floor\n", conns)
	for _, s := range slices.Collect(maps.Values(took)) {
		slices.Sort(s.latencies)
	}
	for _, t := range targets {
		s, floor := took[t.name], took[cmp.Or(t.floor, t.name)]
		fmt.Printf("%-28s %10v %10v %10.0f %10.2f %s %10.2f %14v %8.2f\n", t.name, s.at(0.5), s.at(0.99), s.perSecond(),
			float64(s.at(0.5))/float64(floor.at(0.5)), cmp.Or(t.floor, t.name)[:len(floorA)], s.perSecond()/floor.perSecond(),
			s.cpuEach(), float64(s.cpuEach())/float64(floor.cpuEach()))
	}
}

// sample is what was measured of a target.
type sample struct {
	latencies []time.Duration
	elapsed   time.Duration
	cpu       time.Duration // that the processes took which answer
}

func (s *sample) and(before *sample) *sample {
	if before == nil {
		return s
	}
	return &sample{append(before.latencies, s.latencies...), before.elapsed + s.elapsed, before.cpu + s.cpu}
}

func (s *sample) at(share float64) time.Duration {
	return s.latencies[int(share*float64(len(s.latencies)-1))].Round(100 * time.Nanosecond)
}

func (s *sample) cpuEach() time.Duration {
	return (s.cpu / time.Duration(len(s.latencies))).Round(100 * time.Nanosecond)
}

func (s *sample) perSecond() float64 { return float64(len(s.latencies)) / s.elapsed.Seconds() }

// Names in the directory of a run.
func (r *run) path(name string) string { return filepath.Join(r.dir, name) }
