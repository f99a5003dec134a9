package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// stateEntries are what a cluster has in its folder. Only these are removed: -state may name a folder that holds more. The
// last of them is made first and removed last, as the sign that all of them are a cluster's.
var stateEntries = []string{"kubeconfig", "etcd", "log", "containerd", "kubelet", "pki", "config", "cni", podLogs}

const podLogs = "podlogs"

// owned says whether what the folder has under the names of stateEntries is a cluster's: others too call something log or
// config.
func (n *node) owned() bool {
	return exists(filepath.Join(n.state, podLogs)) || n.folderGone()
}

// folderGone says whether somebody removed the folder under a cluster, as git clean would: what still runs has files that
// nobody can find any more.
func (n *node) folderGone() bool {
	return exists(filepath.Join(n.run, stateFile)) && !exists(filepath.Join(n.state, podLogs))
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// down ends the cluster. It needs no record of it to be whole, and no cluster to be there.
func (n *node) down(ctx context.Context) error {
	unlock, err := n.lockSite(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := n.clear(ctx); err != nil {
		return fmt.Errorf("%w; some of the cluster is left: try down again", err)
	}
	if err := os.Remove(n.lockFile()); err != nil {
		return err
	}
	n.say("the cluster is down; the built binaries stay in %s", n.cache)
	return nil
}

// clear removes all of the cluster: processes, mounts, network, control groups, files.
func (n *node) clear(ctx context.Context) error {
	if err := n.endAll(); err != nil {
		return err
	}
	// Before anything is deleted: a volume may be a mount of a folder that is not the cluster's.
	folders := []string{n.run}
	if n.owned() {
		folders = append(folders, n.state)
	}
	if err := unmountBelow(folders...); err != nil {
		return err
	}
	w, _, err := openNetwork(n.id)
	if err != nil {
		return err
	}
	if err := w.remove(ctx); err != nil {
		return err
	}
	p := plan{state: n.state, run: n.run, id: n.id}
	if err := p.cgroup().remove(); err != nil {
		return err
	}
	if err := n.clearElsewhere(ctx, p); err != nil {
		return err
	}
	if err := n.removeFolder(); err != nil {
		return err
	}
	return os.RemoveAll(n.run)
}

// removeFolder removes the cluster's folder, but nothing in it that is not the cluster's.
func (n *node) removeFolder() error {
	if !n.owned() {
		return nil
	}
	for _, entry := range stateEntries {
		if err := os.RemoveAll(filepath.Join(n.state, entry)); err != nil {
			return err
		}
	}
	return removeEmpty(n.state)
}

// endAll ends every process of the cluster. The kubelet goes first, as it would start containers again; the rest is
// killed: what they leave is thrown away, and where up goes on with it, it must bear a kill anyway.
func (n *node) endAll() error {
	if r, ok := readRecord(n.records(), kubelet); ok {
		if err := r.end(daemonGrace); err != nil {
			return err
		}
	}
	tree := plan{id: n.id}.cgroup()
	// Twice: while the first round went on, a shim may have started a container or a daemon a helper.
	for range 2 {
		marked, err := processes(func(p process) bool { return p.marked(n.state) })
		if err != nil {
			return err
		}
		var failed []error
		for _, p := range marked {
			failed = append(failed, p.end(0))
		}
		if err := errors.Join(append(failed, tree.kill())...); err != nil {
			return err
		}
	}
	return nil
}

// Where components write whatever folders they are given.
const (
	containerLogs = "/var/log/containers" // the kubelet's links to logs, by a path that log collectors know
	deviceSocket  = "/var/lib/kubelet/device-plugins/kubelet.sock"
	shimSockets   = "/run/containerd/s"
	cniResults    = "/var/lib/cni/results" // what plugins answered, kept for each sandbox until it is taken down in order
)

// clearElsewhere removes what components write outside of the cluster's folders.
func (n *node) clearElsewhere(ctx context.Context, p plan) error {
	links, err := filepath.Glob(containerLogs + "/*")
	if err != nil {
		return err
	}
	links = slices.DeleteFunc(links, func(path string) bool {
		target, err := os.Readlink(path)
		return err != nil || !strings.HasPrefix(target, n.state+string(filepath.Separator))
	})
	results, err := filepath.Glob(cniResults + "/" + p.cniNetwork() + "-*")
	if err != nil {
		return err
	}
	sockets, err := filepath.Glob(shimSockets + "/*")
	if err != nil {
		return err
	}
	sockets = slices.DeleteFunc(append(sockets, deviceSocket), func(path string) bool {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err == nil { // another node's
			_ = conn.Close()
		}
		return !errors.Is(err, unix.ECONNREFUSED)
	})
	for _, path := range slices.Concat(links, results, sockets) {
		if err := ignoreNotExist(os.Remove(path)); err != nil {
			return err
		}
	}
	if len(n.otherClusters()) > 0 {
		return nil
	}
	return n.clearShared()
}

// clearShared undoes what the clusters of a machine have in common, after the last of them.
func (n *node) clearShared() error {
	if err := restoreSysctls(n.run); err != nil {
		return err
	}
	// ip has made a mount of its folder of namespaces, which nothing else undoes.
	if names, err := os.ReadDir(netnsDir); err == nil && len(names) == 0 {
		if err := unix.Unmount(netnsDir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", netnsDir, err)
		}
	}
	for _, dir := range []string{
		netnsDir, containerLogs,
		cniResults, filepath.Dir(cniResults),
		shimSockets, filepath.Dir(shimSockets),
		filepath.Dir(deviceSocket), filepath.Dir(filepath.Dir(deviceSocket)),
		"/run/mount", // mount's own
	} {
		if err := removeEmpty(dir); err != nil {
			return err
		}
	}
	return nil
}

// removeEmpty removes a folder if nothing is in it.
func removeEmpty(dir string) error {
	err := os.Remove(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}

// kubeletSysctls are settings of the whole machine that a kubelet changes to its liking.
var kubeletSysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

func sysctlPath(name string) string { return "/proc/sys/" + name }

func readSysctl(name string) (string, error) {
	content, err := os.ReadFile(sysctlPath(name))
	return strings.TrimSpace(string(content)), err
}

const sysctlsFile = "sysctls.json"

// saveSysctls notes the machine's settings before the first kubelet of any cluster changes them.
func saveSysctls(run string) error {
	own := filepath.Join(run, sysctlsFile)
	if _, err := os.Stat(own); err == nil {
		return nil
	}
	others, err := filepath.Glob(runPrefix + "*/" + sysctlsFile)
	if err != nil {
		return err
	}
	if len(others) > 0 {
		content, err := os.ReadFile(others[0])
		if err != nil {
			return err
		}
		return writeFile(own, content, 0o644)
	}
	values := map[string]string{}
	for _, name := range kubeletSysctls {
		if value, err := readSysctl(name); err == nil { // else the kernel does not have it
			values[name] = value
		}
	}
	content, err := json.Marshal(values)
	if err != nil {
		return err
	}
	return writeFile(own, content, 0o644)
}

func restoreSysctls(run string) error {
	content, err := os.ReadFile(filepath.Join(run, sysctlsFile))
	if err != nil {
		return ignoreNotExist(err)
	}
	values := map[string]string{}
	if err := json.Unmarshal(content, &values); err != nil {
		return err
	}
	for name, value := range values {
		if current, err := readSysctl(name); err == nil && current == value {
			continue // it may not be for us to write: then no kubelet has written it either
		}
		if err := os.WriteFile(sysctlPath(name), []byte(value), 0o644); err != nil {
			return err
		}
	}
	return nil
}
