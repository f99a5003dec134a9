//go:build e2e

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A liveCluster is a cluster of a test's own, in a folder of its own, beside whatever else runs on the machine.
// It needs root: go test -tags e2e -run TestLiveCluster ./hack/cluster
type liveCluster struct {
	*node
	t    *testing.T
	said *strings.Builder
}

func newLiveCluster(t *testing.T) liveCluster {
	t.Helper()
	// At the root of the checkout, where .ci/run finds it after a test that was interrupted.
	dir, err := os.MkdirTemp("../..", ".cluster-") //nolint:usetesting // t.TempDir has too long a path for sockets, too
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("not all is gone: %v", err)
		}
	})
	s, err := findSite(dir)
	if err != nil {
		t.Fatal(err)
	}
	said := &strings.Builder{}
	say := func(format string, args ...any) {
		t.Logf(format, args...)
		fmt.Fprintf(said, format+"\n", args...)
	}
	b := builder{modules: filepath.Join(s.root, "hack", "cluster", "modules"), cache: s.cache, say: say}
	n, err := newNode(s, b, say, said)
	if err != nil {
		t.Fatal(err)
	}
	c := liveCluster{node: n, t: t, said: said}
	t.Cleanup(func() {
		// Not the test's context, which has ended by now.
		if err := n.down(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

// mustUp brings the cluster up and returns what up said.
func (c liveCluster) mustUp() string {
	c.t.Helper()
	c.said.Reset()
	if err := c.up(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
	return c.said.String()
}

func (c liveCluster) api() *apiClient {
	c.t.Helper()
	ca, err := os.ReadFile(filepath.Join(c.state, "pki", "ca.crt"))
	if err != nil {
		c.t.Fatal(err)
	}
	admin, err := readCredential(filepath.Join(c.state, "pki"), "admin-client")
	if err != nil {
		c.t.Fatal(err)
	}
	w, whole, err := openNetwork(c.id)
	if err != nil || !whole {
		c.t.Fatalf("the network is whole: %t, %v", whole, err)
	}
	api, err := newAPIClient(plan{node: w.node}.server(), ca, admin)
	if err != nil {
		c.t.Fatal(err)
	}
	return api
}

const podPath = "/api/v1/namespaces/default/pods/waiter"

// runPod makes a pod of the pause image.
func (c liveCluster) runPod() {
	c.t.Helper()
	binary, err := c.builder.binary(c.t.Context(), "pause")
	if err != nil {
		c.t.Fatal(err)
	}
	pause, err := c.pauseImage(binary)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := c.api().apply(c.t.Context(), podPath, map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": "waiter"},
		"spec": map[string]any{"terminationGracePeriodSeconds": 0, "containers": []any{map[string]any{
			"name": "waiter", "image": pause.reference, "imagePullPolicy": "Never",
		}}},
	}); err != nil {
		c.t.Fatal(err)
	}
}

// podUID waits until the pod is reported Ready by a kubelet that runs, and returns its UID.
func (c liveCluster) podUID() string {
	c.t.Helper()
	var pod struct {
		Metadata struct{ UID string }
		Status   struct {
			Phase      string
			Conditions []struct{ Type, Status string }
		}
	}
	api := c.api()
	if err := c.await(c.t.Context(), "the pod", 2*time.Minute, func(ctx context.Context) error {
		if err := api.get(ctx, podPath, &pod); err != nil {
			return err
		}
		for _, condition := range pod.Status.Conditions {
			if condition.Type == "Ready" && condition.Status == "True" {
				return nil
			}
		}
		return fmt.Errorf("the pod is %s", pod.Status.Phase)
	}); err != nil {
		c.t.Fatal(err)
	}
	return pod.Metadata.UID
}

// kill ends processes without telling anybody.
func (c liveCluster) kill(found []process) {
	c.t.Helper()
	if len(found) == 0 {
		c.t.Fatal("nothing to kill")
	}
	for _, p := range found {
		if err := p.end(0); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c liveCluster) daemon(name string) process {
	c.t.Helper()
	r, ok := readRecord(c.records(), name)
	if !ok {
		c.t.Fatalf("%s does not run", name)
	}
	return r.process
}

func (c liveCluster) marked() []process {
	c.t.Helper()
	found, err := processes(func(p process) bool { return p.marked(c.state) })
	if err != nil {
		c.t.Fatal(err)
	}
	return found
}

func TestLiveCluster(t *testing.T) {
	c := newLiveCluster(t)
	t.Log("an empty machine")
	if err := c.status(t.Context()); !errors.As(err, new(exitError)) {
		t.Fatalf("status of no cluster: %v, want an exit code", err)
	}
	c.mustUp()
	c.runPod()
	uid := c.podUID()
	same := func(what string) {
		t.Helper()
		if got := c.podUID(); got != uid {
			t.Errorf("%s: the pod is another: %s, was %s", what, got, uid)
		}
		if err := c.status(t.Context()); err != nil {
			t.Errorf("%s: status: %v\n%s", what, err, c.said)
		}
	}

	if said := c.mustUp(); !strings.Contains(said, "runs already") {
		t.Errorf("up of a running cluster says %q", said)
	}
	same("a second up")

	for _, name := range daemonNames {
		c.kill([]process{c.daemon(name)})
		if err := c.status(t.Context()); !errors.As(err, new(exitError)) {
			t.Errorf("status without %s: %v, want an exit code", name, err)
		}
		if said := c.mustUp(); !strings.Contains(said, "started: "+name) {
			t.Errorf("up without %s says %q", name, said)
		}
		same(name + " killed")
	}

	c.kill(c.marked())
	c.mustUp()
	same("all daemons and shims killed")

	remove(t, recordPath(c.records(), kubelet)) // as if up had died before it wrote it
	if said := c.mustUp(); !strings.Contains(said, "without a record") {
		t.Errorf("up with a kubelet that has no record says %q", said)
	}
	same("a record lost")

	w, _, err := openNetwork(c.id)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.mustUp()
	same("the network removed")

	t.Log("what a reboot leaves")
	if err := c.endAll(); err != nil {
		t.Fatal(err)
	}
	if err := unmountBelow(c.state, c.run); err != nil {
		t.Fatal(err)
	}
	if err := w.remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(c.run); err != nil {
		t.Fatal(err)
	}
	c.mustUp()
	same("a reboot")

	c.kill(c.marked())
	if err := os.Truncate(filepath.Join(c.state, etcd, "member", "snap", "db"), 20000); err != nil {
		t.Fatal(err)
	}
	if said := c.mustUp(); !strings.Contains(said, "starting with an empty one") {
		t.Errorf("up on broken data says %q", said)
	}
	if err := c.api().get(t.Context(), podPath, nil); err == nil {
		t.Error("an empty cluster has the old pod")
	}
	c.runPod()
	c.podUID()

	if err := c.down(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.nothingIsLeft()
	if err := c.down(t.Context()); err != nil {
		t.Errorf("down again: %v", err)
	}
}

func TestLiveClusterInterrupted(t *testing.T) {
	for _, after := range []string{containerd, apiServer, controllerManager, kubelet, coreDNS} {
		t.Run("after the start of "+after, func(t *testing.T) {
			c := newLiveCluster(t)
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			watch, err := unix.InotifyInit1(unix.IN_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(watch)
			if err := os.MkdirAll(c.records(), 0o755); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.InotifyAddWatch(watch, c.records(), unix.IN_MOVED_TO); err != nil {
				t.Fatal(err)
			}
			go func() {
				buffer := make([]byte, 4096)
				for {
					n, err := unix.Read(watch, buffer)
					if err != nil || strings.Contains(string(buffer[:n]), after+".json") {
						interrupt()
						return
					}
				}
			}()
			if err := c.up(ctx); err == nil {
				t.Fatal("up was not interrupted")
			}
			c.mustUp()
			if err := c.down(t.Context()); err != nil {
				t.Fatal(err)
			}
			c.nothingIsLeft()
		})
	}
}

// nothingIsLeft looks for traces of the cluster all over the machine.
func (c liveCluster) nothingIsLeft() {
	c.t.Helper()
	for _, p := range c.marked() {
		c.t.Errorf("process %d (%s) is left", p.PID, p.binary())
	}
	mounts, err := mountPoints(func(m mountPoint) bool { return strings.Contains(m.path, c.state) || strings.Contains(m.path, c.id) })
	if err != nil || len(mounts) > 0 {
		c.t.Errorf("mounts are left: %q, %v", mounts, err)
	}
	w, _, err := openNetwork(c.id)
	if err != nil {
		c.t.Error(err)
	}
	if _, err := net.InterfaceByName(w.link); err == nil {
		c.t.Errorf("link %s is left", w.link)
	}
	p := plan{id: c.id}
	dirs, err := p.cgroup().dirs()
	if err != nil {
		c.t.Error(err)
	}
	paths := append(dirs, w.path(), c.state, c.run)
	results, err := filepath.Glob("/var/lib/cni/results/" + p.cniNetwork() + "*")
	if err != nil {
		c.t.Error(err)
	}
	for _, path := range append(paths, results...) {
		if _, err := os.Lstat(path); err == nil {
			c.t.Errorf("%s is left", path)
		}
	}
	links, _ := filepath.Glob("/var/log/containers/*")
	if i := slices.IndexFunc(links, func(link string) bool {
		target, _ := os.Readlink(link)
		return strings.HasPrefix(target, c.state)
	}); i >= 0 {
		c.t.Errorf("%s is left", links[i])
	}
}
