package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/internal/coredump"
	"github.com/datakeys/datakeys/internal/rootkey"
	"github.com/datakeys/datakeys/internal/seal"
)

// rootKeyStatusCommand, as the first argument, prints which root keys wrap the sealing keys and what this manager opens of them.
const rootKeyStatusCommand = "root-key-status"

// Environment variables with the root keys. A command that is started in the manager's container finds them there as the
// manager does.
const (
	rootKeyEnv         = "DATAKEYS_ROOT_KEY"
	previousRootKeyEnv = "DATAKEYS_PREVIOUS_ROOT_KEY"
)

// rootKeyFlags adds the flags that name root keys.
func rootKeyFlags(flags *flag.FlagSet, env func(string) string, rootKey, previous *string) {
	byDefault := seal.DefaultRootKey
	if uri := env(rootKeyEnv); uri != "" {
		byDefault = uri
	}
	flags.StringVar(rootKey, "root-key", byDefault, "`URI` of the root key, one of "+strings.Join(rootkey.Forms(), ", ")+
		"; secret://NAME is a Secret of the manager's namespace, made when there is none; the default is $"+rootKeyEnv)
	flags.StringVar(previous, "previous-root-key", env(previousRootKeyEnv),
		"`URI` of the root key that --root-key takes the place of, while the root key is being changed; the default is $"+previousRootKeyEnv)
}

// rootKeyStatus reads everything anew, asks the root keys, and writes nothing but the report. The error says that the verdict is
// not a good one.
func rootKeyStatus(ctx context.Context, args []string, env func(string) string, stdout, stderr io.Writer) error {
	if err := coredump.Forbid(); err != nil {
		_, _ = fmt.Fprintln(stderr, "A crash may leave a memory dump with sealing keys:", err)
	}
	var namespace, rootKey, previous, kubeconfig string
	flags := flag.NewFlagSet("manager "+rootKeyStatusCommand, flag.ContinueOnError)
	flags.SetOutput(stderr)
	namespaceFlag(flags, env, &namespace)
	rootKeyFlags(flags, env, &rootKey, &previous)
	kubeconfigFlag(flags, &kubeconfig)
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.NArg() > 0:
		return fmt.Errorf("%q: %s takes flags only", flags.Arg(0), rootKeyStatusCommand)
	case namespace == "":
		return errEmptyNamespace
	}
	config, err := loadKubeconfig(kubeconfig)
	if err != nil {
		return err
	}
	c, err := client.New(config, client.Options{})
	if err != nil {
		return err
	}
	report, err := seal.Config{
		RootKey: rootKey, PreviousRootKey: previous,
		Store: secretStore{reader: c, writer: c, namespace: namespace}, OpenRootKey: rootkey.Open,
	}.Inspect(ctx)
	if err != nil {
		return err
	}
	if err := writeReport(stdout, report); err != nil {
		return err
	}
	if report.Verdict != seal.VerdictSettled && report.Verdict != seal.VerdictKeepsPrevious {
		return fmt.Errorf("the verdict is %s", report.Verdict)
	}
	return nil
}

// writeReport prints a report for people.
func writeReport(out io.Writer, r seal.Report) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(columns ...string) { _, _ = fmt.Fprintln(w, strings.Join(columns, "\t")) } // Flush has the error
	line("installation", r.InstallID)
	line("sealing key", fmt.Sprintf("version %d, since %s", r.Primary, r.PrimarySince.UTC().Format(time.RFC3339)))
	if r.Newest > r.Primary {
		line("", fmt.Sprintf("version %d is made and seals nothing yet", r.Newest))
	}
	for _, root := range r.RootKeys {
		settled := ""
		if root.Settled {
			settled = ", the installation relies on it"
		}
		line("wrapped by", root.ID+": "+versions(root.Wraps, r.Newest)+settled)
	}
	for _, c := range []struct {
		flag string
		key  seal.ConfiguredRootKey
	}{{"--root-key", r.Current}, {"--previous-root-key", r.Previous}} {
		if c.key.URI == "" {
			continue
		}
		says := c.key.Name() + " opens " + versions(c.key.Opens, r.Newest)
		if c.key.Problem != "" {
			says += ": " + c.key.Problem
		}
		line(c.flag, says)
		for _, key := range keysOf(c.key) {
			line("", key.says(r.Newest))
		}
	}
	line("verdict", string(r.Verdict)+": "+r.Advice)
	return w.Flush()
}

// serviceKey is a key of a root key's service, and the versions that it wrapped.
type serviceKey struct {
	name     string
	stale    bool
	versions []uint32
}

// keysOf are the keys of the service behind a root key, the one of the oldest version first.
func keysOf(c seal.ConfiguredRootKey) []serviceKey {
	var keys []serviceKey
	for _, v := range c.Opens {
		name, stale := c.Keys[v], slices.Contains(c.Stale, v)
		if name == "" {
			continue
		}
		at := slices.IndexFunc(keys, func(k serviceKey) bool { return k.name == name && k.stale == stale })
		if at < 0 {
			at, keys = len(keys), append(keys, serviceKey{name: name, stale: stale})
		}
		keys[at].versions = append(keys[at].versions, v)
	}
	return keys
}

func (k serviceKey) says(newest uint32) string {
	says := versions(k.versions, newest) + " by its key " + k.name
	if k.stale {
		says += ", which it needs until the leader has wrapped anew by the newer one"
	}
	return says
}

func versions(some []uint32, newest uint32) string {
	switch len(some) {
	case 0:
		return "no version"
	case int(newest):
		return fmt.Sprintf("all %d versions", newest)
	}
	names := make([]string, len(some))
	for i, v := range some {
		names[i] = seal.VersionEntry(v)
	}
	return strings.Join(names, ", ")
}
