package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// A module is one of the pinned Go modules below hack/cluster/modules.
type module struct {
	folder  string            // below hack/cluster/modules
	title   string            // for progress lines
	pinned  string            // the module path whose version names the release; none for what is ours
	flags   []string          // of go build; $VERSION, $MAJOR and $MINOR stand for the pinned version
	sources map[string]string // binary name to package path
}

const kubernetesVersion = "k8s.io/component-base/version"

// pinnedModules are all that the cluster is made of. Clients and the kubelet refuse a server without a version, so
// Kubernetes gets its own stamped in as its release build does.
var pinnedModules = []module{
	{
		folder:  "etcd",
		title:   "etcd",
		pinned:  "go.etcd.io/etcd/server/v3",
		flags:   []string{"-ldflags=-s -w"},
		sources: map[string]string{"etcd": "go.etcd.io/etcd/server/v3"},
	},
	{
		folder: "kubernetes",
		title:  "Kubernetes",
		pinned: "k8s.io/kubernetes",
		flags: []string{"-ldflags=-s -w" +
			" -X " + kubernetesVersion + ".gitVersion=$VERSION" +
			" -X " + kubernetesVersion + ".gitMajor=$MAJOR" +
			" -X " + kubernetesVersion + ".gitMinor=$MINOR"},
		sources: map[string]string{
			"kube-apiserver":          "k8s.io/kubernetes/cmd/kube-apiserver",
			"kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
			"kube-proxy":              "k8s.io/kubernetes/cmd/kube-proxy",
			"kube-scheduler":          "k8s.io/kubernetes/cmd/kube-scheduler",
			"kubectl":                 "k8s.io/kubernetes/cmd/kubectl",
			"kubelet":                 "k8s.io/kubernetes/cmd/kubelet",
		},
	},
	{
		folder: "containerd",
		title:  "containerd",
		pinned: "github.com/containerd/containerd/v2",
		flags:  []string{"-tags=no_btrfs,no_devmapper,no_zfs", "-ldflags=-s -w"},
		sources: map[string]string{
			"containerd":              "github.com/containerd/containerd/v2/cmd/containerd",
			"containerd-shim-runc-v2": "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			"ctr":                     "github.com/containerd/containerd/v2/cmd/ctr",
		},
	},
	{
		folder:  "coredns",
		title:   "CoreDNS",
		pinned:  "github.com/coredns/coredns",
		flags:   []string{"-ldflags=-s -w"},
		sources: map[string]string{"coredns": "."},
	},
	{
		folder:  "helm",
		title:   "Helm",
		pinned:  "helm.sh/helm/v4",
		flags:   []string{"-ldflags=-s -w -X helm.sh/helm/v4/internal/version.version=$VERSION"},
		sources: map[string]string{"helm": "helm.sh/helm/v4/cmd/helm"},
	},
	{
		folder:  "pause",
		title:   "the pods' pause container",
		flags:   []string{"-ldflags=-s -w"},
		sources: map[string]string{"pause": "."},
	},
}

// moduleOf finds the module that a binary is built from.
func moduleOf(binary string) (module, error) {
	var known []string
	for _, m := range pinnedModules {
		if _, ok := m.sources[binary]; ok {
			return m, nil
		}
		for name := range m.sources {
			known = append(known, name)
		}
	}
	slices.Sort(known)
	return module{}, fmt.Errorf("binary %q is not one of this cluster's: %s", binary, strings.Join(known, ", "))
}

// version reads from the module's go.mod which release it pins.
func (m module) version(dir string) (string, error) {
	if m.pinned == "" {
		return "", nil
	}
	path := filepath.Join(dir, "go.mod")
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		words := strings.Fields(strings.TrimPrefix(strings.TrimSpace(lines.Text()), "require "))
		if len(words) >= 2 && words[0] == m.pinned && strings.HasPrefix(words[1], "v") {
			return words[1], nil
		}
	}
	return "", fmt.Errorf("%s requires no version of %s", path, m.pinned)
}

// buildFlags are the module's flags with the version filled in.
func (m module) buildFlags(version string) []string {
	parts := append(strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3), "", "")
	fill := strings.NewReplacer("$VERSION", version, "$MAJOR", parts[0], "$MINOR", parts[1])
	flags := []string{"-mod=readonly", "-buildvcs=false"}
	for _, f := range m.flags {
		flags = append(flags, fill.Replace(f))
	}
	return flags
}

// key names the folder of the module's binaries: it changes with whatever decides what they are.
func (m module) key(dir, version string) (string, error) {
	h := sha256.New()
	sources, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return "", err
	}
	slices.Sort(sources)
	for _, path := range append([]string{filepath.Join(dir, "go.mod"), filepath.Join(dir, "go.sum")}, sources...) {
		content, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // what needs no module has no go.sum
			return "", err
		}
		_, _ = fmt.Fprintf(h, "%s %d\n", filepath.Base(path), len(content))
		h.Write(content)
	}
	_, _ = fmt.Fprintf(h, "%q %s %s\n", m.buildFlags(version), runtime.GOOS, runtime.GOARCH)
	return strings.Join(slices.DeleteFunc([]string{m.folder, version, hex.EncodeToString(h.Sum(nil))[:12]},
		func(part string) bool { return part == "" }), "-"), nil
}
