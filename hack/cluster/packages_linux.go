package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// cniFolders are where distributions put the network plugins.
var cniFolders = []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}

// cniPlugins are those that the node's network configuration names.
var cniPlugins = []string{"ptp", "host-local", "portmap"}

// ensurePackages installs what the node needs of the distribution, and returns the folder of the network plugins.
func ensurePackages(ctx context.Context, say func(string, ...any)) (cniDir string, err error) {
	cniDir, wanted := lookForPackages()
	if len(wanted) == 0 {
		return cniDir, nil
	}
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		return "", fmt.Errorf("the node needs runc, iptables, ip (iproute2) and the CNI plugins %s in one of %s, and there is no "+
			"apt-get to install what is missing: install what your distribution calls %s",
			strings.Join(cniPlugins, ", "), strings.Join(cniFolders, ", "), strings.Join(wanted, ", "))
	}
	say("installing the Debian packages %s", strings.Join(wanted, ", "))
	// On a machine that has just started, and beside another cluster's up, something else is often installing.
	install := append([]string{"-o", "DPkg::Lock::Timeout=600", "install", "-qq", "-y", "--no-install-recommends"}, wanted...)
	if _, err := runQuietly(ctx, apt, install...); err != nil {
		// The lists of what there is may be old, or absent.
		if out, err := runQuietly(ctx, apt, "update", "-qq"); err != nil {
			return "", fmt.Errorf("apt-get update: %w: %s", err, out)
		}
		if out, err := runQuietly(ctx, apt, install...); err != nil {
			return "", fmt.Errorf("apt-get install %s: %w: %s", strings.Join(wanted, " "), err, out)
		}
	}
	cniDir, wanted = lookForPackages()
	if len(wanted) > 0 {
		return "", fmt.Errorf("the packages %s are installed, but what they should bring is not there", strings.Join(wanted, ", "))
	}
	return cniDir, nil
}

// lookForPackages returns the folder of the network plugins and the packages that are missing.
func lookForPackages() (cniDir string, wanted []string) {
	for _, p := range []struct{ program, pkg string }{{"runc", "runc"}, {"ip", "iproute2"}, {"iptables", "iptables"}} {
		if _, err := lookDaemonPath(p.program); err != nil {
			wanted = append(wanted, p.pkg)
		}
	}
	for _, dir := range cniFolders {
		if len(missing(dir, cniPlugins)) == 0 {
			return dir, wanted
		}
	}
	return "", append(wanted, "containernetworking-plugins")
}

// lookDaemonPath finds a program where the daemons look for it.
func lookDaemonPath(program string) (string, error) {
	dirs := filepath.SplitList(daemonPath)
	i := slices.IndexFunc(dirs, func(dir string) bool { return len(missing(dir, []string{program})) == 0 })
	if i < 0 {
		return "", fmt.Errorf("find %s: %w", program, exec.ErrNotFound)
	}
	return filepath.Join(dirs[i], program), nil
}

// runQuietly runs a program to its end. When the context ends it is told to end too: dpkg, killed, would leave packages half
// installed.
func runQuietly(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	return cmd.CombinedOutput()
}
