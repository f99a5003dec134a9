// The sidecar issues a pod's data keys on a unix socket. See package sidecar.
//
//	sidecar --data-keys=… --keys-dir=… --token-file=… --socket=… --key-service=…   serves; DATAKEYS_ROOTS holds PEM
//	sidecar wait --socket=… [--timeout=10s]    exits 0 once every data key can be issued, 1 when one is refused
//	sidecar ready --socket=… [--timeout=10s]   asks once: exits 0 if every data key can be issued, else 1
//	sidecar version                            says what it is
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/datakeys/datakeys/internal/coredump"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/version"
	"github.com/datakeys/datakeys/sidecar"
)

// rootsEnv is the environment variable with the certificates, in PEM, that may sign the key service's.
const rootsEnv = "DATAKEYS_ROOTS"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:], os.Getenv, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		_, _ = fmt.Fprintln(os.Stderr, "sidecar:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, env func(string) string, stderr io.Writer) error {
	if len(args) > 0 {
		switch args[0] {
		case "wait":
			return ask(ctx, args, stderr, sidecar.Wait)
		case "ready":
			return ask(ctx, args, stderr, sidecar.Ready)
		case version.Command:
			_, err := fmt.Println(version.String())
			return err
		}
	}
	return serve(ctx, args, env, stderr)
}

// ask runs the commands that the kubelet runs in the container.
func ask(ctx context.Context, args []string, stderr io.Writer, f func(context.Context, string) error) error {
	flags := flag.NewFlagSet("sidecar "+args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	socket := flags.String("socket", "", "`path` of the sidecar's socket")
	timeout := flags.Duration("timeout", 10*time.Second, "how long to wait at most")
	lastWords := flags.String("termination-log", "/dev/termination-log", "`file` that takes the reason of a failure, if it exists")
	if err := parse(flags, args[1:]); err != nil {
		return err
	}
	if *socket == "" {
		return errors.New("--socket: must be the path of the sidecar's socket")
	}
	if *timeout <= 0 {
		return errors.New("--timeout: must be more than 0")
	}
	// It holds no key, but it stands where the sidecar does: whoever may look into it reaches the token and the socket's
	// directory through its /proc/PID/root.
	if err := coredump.Forbid(); err != nil {
		_, _ = fmt.Fprintln(stderr, "sidecar: others may look into this process:", err)
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	err := f(ctx, *socket)
	if err != nil {
		sayWhy(*lastWords, err)
	}
	return err
}

// sayWhy leaves the reason where the kubelet looks for a container's last words. It ends the container after a hook that
// failed, and its event does not repeat what the hook said.
func sayWhy(path string, reason error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0) //nolint:gosec // whoever runs the command names the file
	if err != nil {
		return // not in a container: the standard error has it
	}
	_, _ = fmt.Fprintln(f, reason)
	_ = f.Close()
}

func serve(ctx context.Context, args []string, env func(string) string, stderr io.Writer) error {
	flags := flag.NewFlagSet("sidecar", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var (
		config   sidecar.Config
		dataKeys = flags.String("data-keys", "", "`names` of the data keys to issue, separated by commas")
		level    slog.Level
	)
	flags.StringVar(&config.KeysDir, "keys-dir", "", "`directory` with one directory for each data key: its mounted Secret")
	flags.StringVar(&config.TokenFile, "token-file", "", "`file` with the pod's token for the key service")
	flags.StringVar(&config.Socket, "socket", "", "`path` of the socket to listen on")
	flags.IntVar(&config.LoopbackPort, "loopback-port", 0, "`port` of 127.0.0.1 on which to serve AWS KMS and Alibaba Cloud KMS; 0: none")
	flags.StringVar(&config.KeyService, "key-service", "", "`host:port` of the key service; "+rootsEnv+
		" in the environment holds the PEM certificates that may sign its own")
	flags.DurationVar(&config.Leases.Lease, "lease", sidecar.DefaultLease,
		"how long a data key is issued without being renewed; it is, when about half of that is over")
	flags.DurationVar(&config.Leases.Coast, "coast", sidecar.DefaultCoast,
		"how long a data key is issued while the key service cannot be reached, from when it was renewed last")
	flags.TextVar(&level, "log-level", slog.LevelInfo, "`level` from which on to log: DEBUG, INFO, WARN or ERROR")
	if err := parse(flags, args); err != nil {
		return err
	}
	config.DataKeys = strings.Split(*dataKeys, ",")
	config.Roots = []byte(env(rootsEnv))
	config.Logger = slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: level}))
	if err := coredump.Forbid(); err != nil {
		config.Logger.Warn("a crash may leave a memory dump with data keys", "error", err.Error())
	}
	if err := envelope.MemoryLocked(); err != nil {
		config.Logger.Warn("data keys are not in locked memory", "error", err.Error())
	}
	stayLean(env)
	return sidecar.Run(ctx, config)
}

func parse(flags *flag.FlagSet, args []string) error {
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q: is neither a flag nor a command", flags.Arg(0))
	}
	return nil
}

// stayLean trades processor time for memory: a sidecar does little, and there is one in every pod. Go's own variables
// have the last word.
func stayLean(env func(string) string) {
	if env("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	if env("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(16 << 20)
	}
	if env("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), 4)) // each has caches of its own
	}
}
