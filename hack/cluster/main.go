package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

const usage = `A local Kubernetes of one node, built from pinned Go modules.

usage: go run ./hack/cluster [-state DIR] VERB

  up               start the cluster, or mend it, or say that it runs (root, Linux)
  down             end it; nothing stays but the built binaries (root, Linux)
  status           what runs; exit code 1 unless all does (root, Linux)
  load FILE.tar    load the images of an OCI or Docker archive (root, Linux)
  kubectl ARGS     kubectl with the cluster's kubeconfig
  bin NAME         build one binary if need be and print its path: helm, kubectl, ...
  assets           the same for envtest: print a folder with etcd, kube-apiserver, kubectl (KUBEBUILDER_ASSETS)

  -state DIR       the cluster's folder; default $DATAKEYS_CLUSTER, else .cluster at the root of the checkout

The kubeconfig is DIR/kubeconfig. 'go doc ./hack/cluster' tells what else is where.
`

// moduleLine is how the go.mod at the root of the checkout begins.
var moduleLine = regexp.MustCompile(`(?m)^module github\.com/datakeys/datakeys$`)

// errUsage means that the command line was wrong and that this has been said.
var errUsage = errors.New("wrong usage")

// exitError is the exit code of a command whose own words suffice.
type exitError int

func (c exitError) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	var code exitError
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	case errors.As(err, &code):
		os.Exit(int(code))
	default:
		_, _ = fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// run is the whole command: results go to out, progress to errOut.
func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	flags := flag.NewFlagSet("cluster", flag.ContinueOnError)
	flags.SetOutput(errOut)
	flags.Usage = func() { _, _ = fmt.Fprint(errOut, usage) }
	state := flags.String("state", os.Getenv("DATAKEYS_CLUSTER"), "")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	verb, rest := flags.Arg(0), flags.Args()
	if len(rest) > 0 {
		rest = rest[1:]
	}
	wanted, known := map[string]int{"up": 0, "down": 0, "status": 0, "load": 1, "kubectl": -1, "bin": 1, "assets": 0}[verb]
	if !known || (wanted >= 0 && wanted != len(rest)) {
		flags.Usage()
		return errUsage
	}

	site, err := findSite(*state)
	if err != nil {
		return err
	}
	start := time.Now()
	say := func(format string, args ...any) {
		_, _ = fmt.Fprintf(errOut, "%6.1fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
	b := builder{modules: filepath.Join(site.root, "hack", "cluster", "modules"), cache: site.cache, say: say}
	if err := os.MkdirAll(site.cache, 0o755); err != nil {
		return err
	}

	switch verb {
	case "bin":
		path, err := b.binary(ctx, rest[0])
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintln(out, path)
		return nil
	case "assets":
		dir, err := b.assets(ctx)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintln(out, dir)
		return nil
	case "kubectl":
		path, err := b.binary(ctx, "kubectl")
		if err != nil {
			return err
		}
		return kubectl(ctx, path, site.kubeconfig(), rest)
	}
	n, err := newNode(site, b, say, out)
	if err != nil {
		return err
	}
	switch verb {
	case "up":
		return n.up(ctx)
	case "down":
		return n.down(ctx)
	case "load":
		return n.load(ctx, rest[0])
	default:
		return n.status(ctx)
	}
}

// kubectl runs kubectl on this cluster, with the caller's terminal.
func kubectl(ctx context.Context, path, kubeconfig string, args []string) error {
	if _, err := os.Stat(kubeconfig); err != nil {
		return fmt.Errorf("no cluster: %w; start one with: go run ./hack/cluster up", err)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exitError(max(exit.ExitCode(), 1))
	}
	return err
}

// A site is where a cluster lives.
type site struct {
	root  string // of the checkout
	state string // the cluster's folder
	cache string // of the built binaries
	id    string // tells this cluster's things from those of others on the machine
}

func (s site) kubeconfig() string { return filepath.Join(s.state, "kubeconfig") }

// findSite looks for the root of the checkout from the working directory upwards.
func findSite(state string) (site, error) {
	dir, err := os.Getwd()
	if err != nil {
		return site{}, err
	}
	root, err := findRoot(dir)
	if err != nil {
		return site{}, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return site{}, fmt.Errorf("find a folder for the built binaries: %w", err)
	}
	if state == "" {
		state = filepath.Join(root, ".cluster")
	}
	if state, err = filepath.Abs(state); err != nil {
		return site{}, err
	}
	state = realPath(state) // the same folder reached by another path is the same cluster
	return site{root: root, state: state, cache: filepath.Join(cache, "datakeys", "cluster"), id: siteID(state)}, nil
}

// realPath follows the links of a path, also where what they lead to is not there yet, or no longer.
func realPath(path string) string {
	found, err := filepath.EvalSymlinks(path)
	if err == nil {
		return found
	}
	if !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path) {
		return path
	}
	dir := realPath(filepath.Dir(path))
	target, err := os.Readlink(path)
	switch {
	case err != nil:
		return filepath.Join(dir, filepath.Base(path))
	case filepath.IsAbs(target):
		return realPath(target)
	default:
		return realPath(filepath.Join(dir, target))
	}
}

// siteID is short, as the name of a network link has at most 15 bytes.
func siteID(state string) string {
	sum := sha256.Sum256([]byte(state))
	return hex.EncodeToString(sum[:4])
}

func findRoot(dir string) (string, error) {
	for d := dir; ; d = filepath.Dir(d) {
		content, err := os.ReadFile(filepath.Join(d, "go.mod"))
		if err == nil && moduleLine.Match(content) {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("neither %s nor a folder above it is a checkout of datakeys: run this inside one", dir)
		}
	}
}
