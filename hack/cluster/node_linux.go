package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"golang.org/x/sys/unix"
)

// A node is the cluster of one site: its verbs are those of the command.
type node struct {
	site
	builder builder
	say     func(format string, args ...any)
	out     io.Writer
	run     string   // folder of what does not survive a reboot
	needed  []daemon // those that must not end while up waits
}

func newNode(s site, b builder, say func(string, ...any), out io.Writer) (*node, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the local cluster needs root, as it makes network namespaces and containers: run this with " +
			"sudo, or use any other cluster instead: make one, with kind for one, and name its kubeconfig in KUBECONFIG")
	}
	return &node{site: s, builder: b, say: say, out: out, run: runPrefix + s.id}, nil
}

const runPrefix = "/run/datakeys-"

// records is the folder of the process records.
func (n *node) records() string { return filepath.Join(n.run, "processes") }

// lockFile is outside of the cluster's folder, which down removes while it holds the lock.
func (n *node) lockFile() string { return filepath.Join(n.cache, "cluster-"+n.id+".lock") }

// lockSite lets one verb at a time change the cluster.
func (n *node) lockSite(ctx context.Context) (unlock func(), err error) {
	return lock(ctx, n.lockFile(), func() {
		n.say("another up, down or load of this cluster is at work: waiting for it")
	})
}

// A deathError says that a component ended while it was needed.
type deathError struct{ name, log string }

func (e *deathError) Error() string {
	why := ""
	if e.wantOfRoom() {
		why = " for want of room on the disk: make some, and up goes on from here"
	}
	return fmt.Sprintf("%s ended%s; the end of %s:\n%s", e.name, why, e.log, logTail(e.log))
}

// wantOfRoom says whether the disk is full. Then the log may not say so, for it is on that disk.
func (e *deathError) wantOfRoom() bool {
	var s unix.Statfs_t
	err := unix.Statfs(e.log, &s)
	return err == nil && s.Bavail*uint64(s.Bsize) < neededRoom || strings.Contains(logTail(e.log), unix.ENOSPC.Error())
}

// neededRoom is a little more than etcd takes at its start for the next part of its log.
const neededRoom = 100 << 20

// ofData says whether the data that is there may be why it ended.
func (e *deathError) ofData() bool {
	return (e.name == etcd || e.name == apiServer) && !e.wantOfRoom()
}

// longestState is how long the path of the cluster's folder may be, in bytes: the kubelet listens at
// kubelet/pod-resources/NUMBER below it, the number of up to ten digits, and the address of a socket has at most 107.
const longestState = 107 - len("/kubelet/pod-resources/") - 10

// checkFolder says why no cluster can be in the folder.
func (n *node) checkFolder() error {
	if len(n.state) > longestState {
		return fmt.Errorf("the path of the cluster's folder, %s, has %d bytes, and the kubelet's sockets in it allow for %d: "+
			"name a folder with a shorter path with -state or DATAKEYS_CLUSTER", n.state, len(n.state), longestState)
	}
	if strings.ContainsAny(n.state, `:,\`) {
		return fmt.Errorf("the path of the cluster's folder, %s, has a colon, a comma or a backslash, which mean something else in "+
			"the mounts of a container: name a folder without them with -state or DATAKEYS_CLUSTER", n.state)
	}
	if n.owned() {
		return nil
	}
	for _, entry := range stateEntries {
		if path := filepath.Join(n.state, entry); exists(path) {
			return fmt.Errorf("%s is not of a cluster, and a cluster in %s would overwrite it: name another folder, an empty or a "+
				"new one, with -state or DATAKEYS_CLUSTER", path, n.state)
		}
	}
	return nil
}

// up starts what does not run and waits until the cluster is usable.
func (n *node) up(ctx context.Context) error {
	if err := n.checkFolder(); err != nil {
		return err
	}
	unlock, err := n.lockSite(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	cniDir, err := ensurePackages(ctx, n.say)
	if err != nil {
		return err
	}
	runc, err := lookDaemonPath("runc")
	if err != nil {
		return err
	}
	binaries, err := n.builder.all(ctx, nodeBinaries...)
	if err != nil {
		return err
	}
	if n.folderGone() {
		n.say("the folder of the cluster is gone: ending what still runs of it, and starting with an empty one")
		if err := n.clear(ctx); err != nil {
			return err
		}
	}
	_, err = os.Stat(filepath.Join(n.state, etcd, "member"))
	data := err == nil
	p := plan{state: n.state, run: n.run, id: n.id, binaries: binaries, cniDir: cniDir, runc: runc}
	started, err := n.start(ctx, p)
	var died *deathError
	if data && errors.As(err, &died) && died.ofData() && ctx.Err() == nil {
		n.say("%v", err)
		n.say("trying once more with the data that is there")
		if started, err = n.start(ctx, p); errors.As(err, &died) && died.ofData() && ctx.Err() == nil {
			n.say("%v", err)
			n.say("the data of the old cluster cannot be used: starting with an empty one")
			if err := n.clear(ctx); err != nil {
				return err
			}
			started, err = n.start(ctx, p)
		}
	}
	switch {
	case err != nil:
		return err
	case len(started) == 0:
		n.say("the cluster runs already")
	case len(started) == len(daemonNames):
		n.say("the cluster runs")
	default:
		n.say("the cluster runs again; started: %s", strings.Join(started, ", "))
	}
	n.say("export KUBECONFIG=%s", n.kubeconfig())
	return nil
}

// A layout is all that the components of a node need before they start.
type layout struct {
	plan
	network *network
	pause   image
	daemons map[string]daemon
}

// layOut makes folders, network, certificates, configuration files and control groups, where they are not there.
func (n *node) layOut(ctx context.Context, p plan) (layout, error) {
	if err := n.prepare(); err != nil {
		return layout{}, err
	}
	w, err := n.ensureNetwork(ctx)
	if err != nil {
		return layout{}, err
	}
	p.node = w.node
	ca, err := openAuthority(filepath.Join(n.state, "pki"), time.Now)
	if err != nil {
		return layout{}, err
	}
	if p.pki, err = newPKI(ca, p.node); err != nil {
		return layout{}, err
	}
	pause, err := n.pauseImage(p.binaries["pause"])
	if err != nil {
		return layout{}, err
	}
	p.pauseImage = pause.reference
	files, err := p.files()
	if err != nil {
		return layout{}, err
	}
	for path, content := range files {
		if err := writeFile(path, content, 0o600); err != nil {
			return layout{}, err
		}
	}
	return layout{plan: p, network: w, pause: pause, daemons: p.daemons(files)}, p.cgroup().make()
}

// start does what is missing for the cluster to run, step by step, and says which components it started.
func (n *node) start(ctx context.Context, p plan) (started []string, err error) {
	l, err := n.layOut(ctx, p)
	if err != nil {
		return nil, err
	}
	if err := n.endStrays(); err != nil {
		return nil, err
	}
	api, err := newAPIClient(l.server(), l.pki.ca, l.pki.users["admin"])
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	n.needed = nil
	if started, err = n.ensureAll(ctx, l, containerd, etcd, apiServer); err != nil {
		return started, err
	}
	if err := n.ensurePause(ctx, l.plan, l.pause); err != nil {
		return started, err
	}
	if err := n.await(ctx, "the API server", apiServerWait, func(ctx context.Context) error {
		return api.get(ctx, "/readyz", nil)
	}); err != nil {
		return started, err
	}
	if slices.Contains(started, apiServer) {
		n.say("the API server answers")
	}
	others, err := n.ensureAll(ctx, l, controllerManager, scheduler, kubelet, proxy, coreDNS)
	started = append(started, others...)
	if err != nil {
		return started, err
	}
	for path, object := range l.dnsService() {
		if err := n.await(ctx, path, componentWait, func(ctx context.Context) error {
			return api.apply(ctx, path, object)
		}); err != nil {
			return started, err
		}
	}
	var since time.Time
	if slices.Contains(started, kubelet) {
		since = begun
	}
	for _, c := range l.checks(api, since) {
		if err := n.await(ctx, c.what, componentWait, c.check); err != nil {
			return started, err
		}
	}
	return started, nil
}

// ensureAll starts those of the named components that do not run, and returns which.
func (n *node) ensureAll(ctx context.Context, l layout, names ...string) (started []string, err error) {
	for _, name := range names {
		fresh, err := n.ensure(ctx, l.network, l.daemons[name])
		if err != nil {
			return started, err
		}
		n.needed = append(n.needed, l.daemons[name])
		if fresh {
			started = append(started, name)
		}
	}
	return started, nil
}

const (
	apiServerWait = 3 * time.Minute
	componentWait = 2 * time.Minute
	pollInterval  = 100 * time.Millisecond
)

// prepare makes the folders.
func (n *node) prepare() error {
	p := plan{state: n.state}
	for _, dir := range []string{filepath.Join(n.state, podLogs), filepath.Join(n.state, "log"), p.volumePlugins()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if _, err := os.Stat(n.run); err != nil {
		// A reboot took it, or somebody: what may still run from before cannot be told apart any more.
		if err := n.endAll(); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(n.records(), 0o755); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(n.run, stateFile), []byte(n.state+"\n"), 0o644); err != nil {
		return err
	}
	return saveSysctls(n.run)
}

// ensureNetwork returns the node's network, made anew unless it is whole.
func (n *node) ensureNetwork(ctx context.Context) (*network, error) {
	w, whole, err := openNetwork(n.id)
	if err != nil || whole {
		return w, err
	}
	// Whatever still runs is in a network that is no more.
	if err := n.endAll(); err != nil {
		return nil, err
	}
	err = w.make(ctx, n.id)
	return w, err
}

// ensure starts a daemon unless it runs, just so.
func (n *node) ensure(ctx context.Context, w *network, d daemon) (fresh bool, err error) {
	if r, ok := readRecord(n.records(), d.name); ok {
		if r.Config == d.digest() {
			return false, nil
		}
		n.say("%s is to run in another way: starting it again", d.name)
		if err := r.end(daemonGrace); err != nil {
			return false, err
		}
	}
	return true, w.within(func() error { return d.launch(ctx, n.records(), n.state) })
}

// daemonGrace is how long a daemon may take to end by itself.
const daemonGrace = 5 * time.Second

// endStrays ends daemons without a record: an up that was killed may have started one and not come to write it down.
func (n *node) endStrays() error {
	recorded := map[process]bool{}
	for _, name := range daemonNames {
		if r, ok := readRecord(n.records(), name); ok {
			recorded[r.process] = true
		}
	}
	strays, err := processes(func(p process) bool {
		return slices.Contains(daemonNames, p.binary()) && p.marked(n.state) && !recorded[p]
	})
	if err != nil {
		return err
	}
	for _, p := range strays {
		if name := p.binary(); p.alive() {
			n.say("ending %s, process %d, which an earlier up left without a record", name, p.PID)
		}
		if err := p.end(daemonGrace); err != nil {
			return err
		}
	}
	return nil
}

// await asks again and again until check is content, a component has ended, or it has taken too long.
func (n *node) await(ctx context.Context, what string, limit time.Duration, check func(context.Context) error) error {
	start := time.Now()
	for said := start; ; time.Sleep(pollInterval) {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted while waiting for %s; up goes on from here, down ends it", what)
		}
		for _, d := range n.needed {
			if _, ok := readRecord(n.records(), d.name); !ok {
				return &deathError{name: d.name, log: d.log}
			}
		}
		if time.Since(start) > limit {
			return fmt.Errorf("waited %v for %s: %w; the logs are in %s; down, then up, starts with an empty cluster",
				limit, what, err, filepath.Join(n.state, "log"))
		}
		if time.Since(said) > progressInterval {
			said = time.Now()
			n.say("waiting for %s: %v", what, err)
		}
	}
}

// How much of a log an error shows.
const (
	shownLines  = 12
	shownLength = 400
)

// fatalLine is how the components begin to say why they end: klog's level F, etcd's and Go's panics, and flags refused.
var fatalLine = regexp.MustCompile(`^F\d{4} |"level":"(fatal|panic)"|^panic: |^fatal error: |^[Ee]rror: |^Error `)

// logTail is the end of a log, from the last reason on that a component gave for its end.
func logTail(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	first := max(0, len(lines)-shownLines)
	for i, line := range slices.Backward(lines) {
		if fatalLine.MatchString(line) {
			first = i
			break
		}
	}
	lines = lines[first:min(first+shownLines, len(lines))]
	for i, line := range lines {
		lines[i] = line[:min(len(line), shownLength)]
	}
	return strings.Join(lines, "\n")
}

// pauseImage is named by its content, so that the node takes notice of a new one.
func (n *node) pauseImage(binary string) (image, error) {
	content, err := os.ReadFile(binary)
	if err != nil {
		return image{}, err
	}
	sum := sha256.Sum256(content)
	return image{
		reference:    "localhost/datakeys/pause:" + hex.EncodeToString(sum[:6]),
		architecture: runtime.GOARCH,
		name:         "pause",
		binary:       content,
	}, nil
}

// ensurePause loads the pause image unless containerd has it.
func (n *node) ensurePause(ctx context.Context, p plan, pause image) error {
	var listed []byte
	err := n.await(ctx, "containerd", componentWait, func(ctx context.Context) (err error) {
		listed, err = n.ctr(ctx, p, "images", "list", "--quiet", "name=="+pause.reference)
		return err
	})
	if err != nil || strings.TrimSpace(string(listed)) == pause.reference {
		return err
	}
	path := filepath.Join(n.run, "pause.tar")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(path) }()
	if err := errors.Join(pause.archive(f), f.Close()); err != nil {
		return err
	}
	_, err = n.importImages(ctx, p, path)
	return err
}

// load brings the images of an archive to the node.
func (n *node) load(ctx context.Context, archive string) error {
	if _, err := os.Stat(archive); err != nil {
		return err
	}
	unlock, err := n.lockSite(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if _, ok := readRecord(n.records(), containerd); !ok {
		return errors.New("the cluster does not run; start it with: go run ./hack/cluster up")
	}
	path, err := n.builder.binary(ctx, "ctr")
	if err != nil {
		return err
	}
	p := plan{state: n.state, run: n.run, id: n.id, binaries: map[string]string{"ctr": path}}
	out, err := n.importImages(ctx, p, archive)
	if err != nil {
		return err
	}
	if err := n.normalizeNames(ctx, p); err != nil {
		return err
	}
	_, err = n.out.Write(out)
	return err
}

// normalizeNames gives every image the name by which the kubelet asks for it. In an archive, and so in containerd, an image
// may be called NAME:TAG; the kubelet always puts the default registry in front.
func (n *node) normalizeNames(ctx context.Context, p plan) error {
	listed, err := n.ctr(ctx, p, "images", "list", "--quiet")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(listed)) {
		full, err := reference.ParseDockerRef(name)
		if err != nil || full.String() == name {
			continue // an image known by its digest alone, or normalized already
		}
		if _, err := n.ctr(ctx, p, "images", "tag", "--force", name, full.String()); err != nil {
			return err
		}
	}
	return nil
}

// importImages unpacks at once, so that the first pod of an image does not wait for it.
func (n *node) importImages(ctx context.Context, p plan, archive string) ([]byte, error) {
	return n.ctr(ctx, p, "images", "import", "--local", "--snapshotter", p.snapshotter(), archive)
}

// ctr calls containerd's own client, in the namespace that the kubelet uses.
func (n *node) ctr(ctx context.Context, p plan, args ...string) ([]byte, error) {
	args = append([]string{"--address", p.criSocket(), "--namespace", "k8s.io"}, args...)
	var out, errOut strings.Builder
	cmd := exec.CommandContext(ctx, p.binaries["ctr"], args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("ctr %s: %w: %s%s", strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return []byte(out.String()), nil
}
