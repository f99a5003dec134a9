package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestChooseAddresses(t *testing.T) {
	prefixes := func(texts ...string) []netip.Prefix {
		var all []netip.Prefix
		for _, text := range texts {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	tests := map[string]struct {
		id    string
		taken []netip.Prefix
		want  string // host and node
	}{
		"the first network":                        {id: "00000000", want: "198.18.0.1 198.18.0.2"},
		"the last network":                         {id: "00007fff", want: "198.19.255.253 198.19.255.254"},
		"beyond the last network":                  {id: "00008001", want: "198.18.0.5 198.18.0.6"},
		"the next when another has it":             {id: "00000000", taken: prefixes("198.18.0.0/30"), want: "198.18.0.5 198.18.0.6"},
		"the next that a larger one leaves":        {id: "00000001", taken: prefixes("198.18.0.0/28"), want: "198.18.0.17 198.18.0.18"},
		"the first when the last is taken":         {id: "00007fff", taken: prefixes("198.19.255.252/30"), want: "198.18.0.1 198.18.0.2"},
		"its own when others are elsewhere":        {id: "00000000", taken: prefixes("10.0.0.0/8", "fe80::/64"), want: "198.18.0.1 198.18.0.2"},
		"none when one network covers them all":    {id: "00000000", taken: prefixes("198.18.0.0/15"), want: ""},
		"none when the host has an odd wide range": {id: "00000000", taken: prefixes("0.0.0.0/0"), want: ""},
		"none for what is no ID":                   {id: "zz", want: ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			host, node, err := chooseAddresses(tt.id, tt.taken)
			if tt.want == "" {
				if err == nil {
					t.Errorf("got %v and %v, want an error", host, node)
				}
				return
			}
			if got := fmt.Sprint(host, " ", node); err != nil || got != tt.want {
				t.Errorf("got %s, %v; want %s", got, err, tt.want)
			}
		})
	}
}

func TestNamesFitTheKernelsLimits(t *testing.T) {
	const longestLink = 15 // IFNAMSIZ less the final zero
	w, whole, err := openNetwork(siteID("/a/folder/of/no/cluster"))
	if err != nil || whole {
		t.Fatalf("a network that nobody made: whole %t, %v", whole, err)
	}
	if len(w.link) > longestLink {
		t.Errorf("link %s has %d bytes, more than %d", w.link, len(w.link), longestLink)
	}
	const longestSocket = 107 // sun_path less the final zero
	p := plan{run: runPrefix + siteID("x"), state: "/" + strings.Repeat("long/", 50)}
	if len(p.criSocket()) > longestSocket {
		t.Errorf("socket %s has %d bytes, more than %d", p.criSocket(), len(p.criSocket()), longestSocket)
	}
}

func TestUpRefusesAPathThatCannotServe(t *testing.T) {
	tests := map[string]struct{ state, want string }{
		"too long for sockets":    {state: "/" + strings.Repeat("x", longestState), want: fmt.Sprint(longestState)},
		"two paths in KUBECONFIG": {state: "/a:b", want: "colon"},
		"two options of a mount":  {state: "/a,b", want: "comma"},
		"an escape of a mount":    {state: `/a\b`, want: "backslash"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			n := &node{site: site{state: tt.state}}
			err := n.up(t.Context())
			if err == nil || !strings.Contains(err.Error(), "-state") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one that names the limit, %q, and the way out", err, tt.want)
			}
		})
	}
}

func TestUnescapeMount(t *testing.T) {
	tests := map[string]struct{ in, want string }{
		"a plain path":           {in: "/run/x", want: "/run/x"},
		"a blank":                {in: `/a\040b`, want: "/a b"},
		"a backslash":            {in: `/a\134040`, want: `/a\040`},
		"a backslash at the end": {in: `/a\04`, want: `/a\04`},
		"no number":              {in: `/a\xyz`, want: `/a\xyz`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := unescapeMount(tt.in); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestMountPointsOfThisProcess(t *testing.T) {
	found, err := mountPoints(func(m mountPoint) bool { return m.path == "/proc" && m.kind == "proc" })
	if err != nil || len(found) == 0 {
		t.Errorf("found %q, %v; want /proc", found, err)
	}
}

// newTestPlan is a plan with all that a plan has, for a node that never runs.
func newTestPlan(t *testing.T) plan {
	t.Helper()
	p := plan{
		state: filepath.Join(t.TempDir(), `a "quoted" folder`), run: "/run/datakeys-test", id: "01234567",
		node: netip.MustParseAddr("198.18.0.2"), binaries: map[string]string{}, cniDir: "/usr/lib/cni", runc: "/usr/sbin/runc",
		pauseImage: "localhost/datakeys/pause:1",
	}
	for _, name := range nodeBinaries {
		p.binaries[name] = filepath.Join("/cache", name)
	}
	pki, err := newPKI(mustAuthority(t, filepath.Join(p.state, "pki"), testTime), p.node)
	if err != nil {
		t.Fatal(err)
	}
	p.pki = pki
	return p
}

func mustFiles(t *testing.T, p plan) map[string][]byte {
	t.Helper()
	files, err := p.files()
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestPlanNamesOnlyFilesThatAreThere(t *testing.T) {
	p := newTestPlan(t)
	files := mustFiles(t, p)
	for path, content := range files {
		if err := writeFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, ".json") || strings.HasSuffix(path, ".conflist") {
			if !json.Valid(content) {
				t.Errorf("%s is not JSON:\n%s", path, content)
			}
		}
	}
	daemons := p.daemons(files)
	var names []string
	for name, d := range daemons {
		names = append(names, name)
		if d.args[0] != p.binaries[name] {
			t.Errorf("%s runs %q, want %q", name, d.args[0], p.binaries[name])
		}
		for _, arg := range d.args[1:] {
			_, path, _ := strings.Cut(arg, "=")
			inside := strings.HasPrefix(path, filepath.Join(p.state, "pki")+"/") || strings.HasPrefix(path, filepath.Join(p.state, "config"))
			if _, err := os.Stat(path); inside && err != nil {
				t.Errorf("%s is given %s: %v", name, arg, err)
			}
		}
	}
	slices.Sort(names)
	want := slices.Sorted(slices.Values(daemonNames))
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("daemons (-want +got):\n%s", diff)
	}
}

func TestCorefileIsReadWhateverTheFolderIsCalled(t *testing.T) {
	p := newTestPlan(t)
	for line := range strings.Lines(string(p.corefile())) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != "kubeconfig" {
			continue
		}
		// A blank or a quotation mark would end the path there.
		if len(words) != 3 || strings.Contains(line, `"`) {
			t.Fatalf("the line %q, want a path and a context", line)
		}
		if _, read := mustFiles(t, p)[filepath.Join(p.state, words[1])]; !read {
			t.Errorf("%s is no file of the plan, from the folder that daemons run in", words[1])
		}
		return
	}
	t.Error("the Corefile names no kubeconfig")
}

func TestPlanWritesOnlyWhereDownRemoves(t *testing.T) {
	p := newTestPlan(t)
	for path := range mustFiles(t, p) {
		inside, err := filepath.Rel(p.state, path)
		if err != nil {
			t.Fatal(err)
		}
		if top, _, _ := strings.Cut(inside, "/"); !slices.Contains(stateEntries, top) {
			t.Errorf("%s is not among what down removes: %q", path, stateEntries)
		}
	}
}

func TestDaemonStartsAnewOnlyWhenItsInputsChange(t *testing.T) {
	p := newTestPlan(t)
	before := p.daemons(mustFiles(t, p))
	same := p.daemons(mustFiles(t, p))
	moved := p
	moved.node = netip.MustParseAddr("198.18.0.6")
	upgraded := p
	upgraded.binaries = map[string]string{}
	for name, path := range p.binaries {
		upgraded.binaries[name] = path + "-newer"
	}
	for _, name := range daemonNames {
		if before[name].digest() != same[name].digest() {
			t.Errorf("%s: the same plan gives another digest", name)
		}
		if before[name].digest() == upgraded.daemons(mustFiles(t, upgraded))[name].digest() {
			t.Errorf("%s: another binary gives the same digest", name)
		}
		// etcd and containerd do not know the node's address.
		changed := before[name].digest() != moved.daemons(mustFiles(t, moved))[name].digest()
		if want := name != etcd && name != containerd; changed != want {
			t.Errorf("%s: another address changes the digest: %t, want %t", name, changed, want)
		}
	}
}

// newTestNode has folders of its own that are not there yet, with paths short enough for sockets.
func newTestNode(t *testing.T) *node {
	t.Helper()
	t.Chdir(t.TempDir())
	return &node{site: site{state: "state"}, run: "run"}
}

func TestAFolderOfSomebodyElseIsLeftAlone(t *testing.T) {
	tests := map[string]struct {
		files []string
		want  []string // what is left once the cluster is removed; none: all
		err   string   // of up
	}{
		"no folder":                        {},
		"a folder with other things":       {files: []string{"state/README.md"}, want: []string{"state/README.md"}},
		"a folder with a config":           {files: []string{"state/config/crd.yaml"}, want: []string{"state/config/crd.yaml"}, err: "state/config is not of a cluster"},
		"a folder with logs":               {files: []string{"state/log/syslog"}, want: []string{"state/log/syslog"}, err: "state/log is not of a cluster"},
		"a cluster":                        {files: []string{"state/podlogs/x", "state/log/etcd.log", "run/state"}},
		"a cluster after a reboot":         {files: []string{"state/podlogs/x", "state/log/etcd.log"}},
		"a cluster with other things":      {files: []string{"state/podlogs/x", "state/log/etcd.log", "state/mine"}, want: []string{"state/mine"}},
		"a cluster that somebody took out": {files: []string{"state/kubelet/pods/x", "run/state"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			n := newTestNode(t)
			for _, path := range tt.files {
				if err := writeFile(path, nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := n.checkFolder(); (err != nil) != (tt.err != "") || err != nil &&
				(!strings.Contains(err.Error(), tt.err) || !strings.Contains(err.Error(), "-state")) {
				t.Errorf("error %v, want one with %q that names the way out", err, tt.err)
			}
			if err := n.removeFolder(); err != nil {
				t.Fatal(err)
			}
			var left []string
			for _, path := range tt.files {
				if exists(path) && !strings.HasPrefix(path, "run/") {
					left = append(left, path)
				}
			}
			if diff := cmp.Diff(tt.want, left); diff != "" {
				t.Errorf("left (-want +got):\n%s", diff)
			}
			if len(tt.want) == 0 && exists(n.state) {
				t.Error("the empty folder is left")
			}
		})
	}
}

func TestAFolderThatIsGoneIsNoticed(t *testing.T) {
	tests := map[string]struct {
		files []string
		want  bool
	}{
		"no cluster yet":                           {},
		"a cluster":                                {files: []string{"state/podlogs/x", "run/state"}},
		"a cluster after a reboot":                 {files: []string{"state/podlogs/x"}},
		"an up that was just begun":                {files: []string{"run/processes/x"}},
		"a folder that was removed":                {files: []string{"run/state"}, want: true},
		"a folder removed but for what is mounted": {files: []string{"run/state", "state/kubelet/pods/x"}, want: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			n := newTestNode(t)
			for _, path := range tt.files {
				if err := writeFile(path, nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if got := n.folderGone(); got != tt.want {
				t.Errorf("the folder is gone: %t, want %t", got, tt.want)
			}
		})
	}
}

func TestStatusOfAClusterWithoutAFolderSaysHowToMendIt(t *testing.T) {
	n := newTestNode(t)
	var out strings.Builder
	n.out, n.id = &out, siteID(t.Name())
	p, _ := startChild(t, "obedient")
	content, err := json.Marshal(record{process: p})
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(recordPath(n.records(), etcd), content, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeFile("run/state", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := n.status(t.Context()); !errors.As(err, new(exitError)) || !strings.Contains(out.String(), "folder of the cluster is gone\n") ||
		!strings.Contains(out.String(), "mend it with") {
		t.Errorf("error %v, want an exit code; it says %q", err, out.String())
	}
}

func TestDownLeavesWhatIsNotTheClusters(t *testing.T) {
	dir := t.TempDir()
	if err := removeEmpty(filepath.Join(dir, "absent")); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "somebody's"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := removeEmpty(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "somebody's")); err != nil {
		t.Error(err)
	}
}

func TestOnlyBrokenDataIsGivenUp(t *testing.T) {
	tests := map[string]struct {
		name, log string
		want      bool
	}{
		"etcd on a broken database":        {name: etcd, log: `panic: freepages: failed to get all reachable pages`, want: true},
		"an API server that cannot decode": {name: apiServer, log: `F0101 12:00:00 unable to decode`, want: true},
		"etcd on a full disk": {
			name: etcd, log: `{"level":"fatal","msg":"failed to save","error":"write /x/member/wal/0.wal: no space left on device"}`,
		},
		"the API server on a full disk": {name: apiServer, log: `Error: open /x/audit.log: no space left on device`},
		"a kubelet":                     {name: kubelet, log: `E0101 12:00:00 no`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(path, []byte(tt.log+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			died := &deathError{name: tt.name, log: path}
			if got := died.ofData(); got != tt.want {
				t.Errorf("ended by its data: %t, want %t", got, tt.want)
			}
			if said := died.Error(); !strings.Contains(said, tt.log) || strings.Contains(said, "make some") != strings.Contains(tt.log, "no space") {
				t.Errorf("it says %q, want the log, and the way out of a full disk alone", said)
			}
		})
	}
}

func TestASettingThatIsAsItWasIsNotWritten(t *testing.T) {
	const readOnly = "kernel/ostype" // to everybody, as all of them are where /proc/sys is
	run := t.TempDir()
	for value, wantErr := range map[string]bool{"Linux": false, "Other": true} {
		content, err := json.Marshal(map[string]string{readOnly: value})
		if err != nil {
			t.Fatal(err)
		}
		if err := writeFile(filepath.Join(run, sysctlsFile), content, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := restoreSysctls(run); (err != nil) != wantErr {
			t.Errorf("restoring %s to %s: %v, want an error: %t", readOnly, value, err, wantErr)
		}
	}
}

func TestLogTailBeginsWithTheReason(t *testing.T) {
	long := strings.Repeat("x", shownLength+1)
	tests := map[string]struct {
		log  []string
		want string
	}{
		"a short log":          {log: []string{"one", "two"}, want: "one\ntwo"},
		"a crash with a stack": {log: []string{"one", "panic: no", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"}, want: "panic: no\na\nb\nc\nd\ne\nf\ng\nh\ni\nj\nk"},
		"the last of two runs": {log: []string{`{"level":"fatal","msg":"first"}`, "one", `{"level":"fatal","msg":"second"}`}, want: `{"level":"fatal","msg":"second"}`},
		"a line too long":      {log: []string{long}, want: long[:shownLength]},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(path, []byte(strings.Join(tt.log, "\n")+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, logTail(path)); diff != "" {
				t.Errorf("tail (-want +got):\n%s", diff)
			}
		})
	}
}
