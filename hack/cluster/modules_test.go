package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPinnedModulesAreWhatTheirGoModSays(t *testing.T) {
	release := regexp.MustCompile(`^v\d+\.\d+\.\d+$`)
	for _, m := range pinnedModules {
		t.Run(m.folder, func(t *testing.T) {
			dir := filepath.Join("modules", m.folder)
			version, err := m.version(dir)
			if err != nil {
				t.Fatal(err)
			}
			if m.pinned != "" && !release.MatchString(version) {
				t.Errorf("version %q is not a release", version)
			}
			content, err := os.ReadFile(filepath.Join(dir, "go.mod"))
			if err != nil {
				t.Fatal(err)
			}
			for binary, source := range m.sources {
				// Without it go mod tidy would drop what the binary needs.
				if source != "." && !regexp.MustCompile(`(?m)^(tool )?\s*`+regexp.QuoteMeta(source)+`$`).Match(content) {
					t.Errorf("go.mod has no tool line for %s, the source of %s", source, binary)
				}
			}
		})
	}
}

func TestEveryBinaryOfTheNodeHasASource(t *testing.T) {
	for _, name := range []string{"helm", "kubectl", "etcd", "kube-apiserver"} {
		if _, err := moduleOf(name); err != nil {
			t.Error(err)
		}
	}
	_, err := moduleOf("kubeadm")
	if err == nil || !strings.Contains(err.Error(), `"kubeadm"`) || !strings.Contains(err.Error(), "kube-apiserver, ") {
		t.Errorf("an unknown binary: %v, want an error that names it and the known ones", err)
	}
}

func TestBuildFlagsCarryTheVersion(t *testing.T) {
	m := module{flags: []string{"-ldflags=-X a=$VERSION -X b=$MAJOR -X c=$MINOR"}}
	want := []string{"-mod=readonly", "-buildvcs=false", "-ldflags=-X a=v1.36.3 -X b=1 -X c=36"}
	if diff := cmp.Diff(want, m.buildFlags("v1.36.3")); diff != "" {
		t.Errorf("flags (-want +got):\n%s", diff)
	}
}

func TestKeyChangesWithWhatDecidesTheBinaries(t *testing.T) {
	base := module{folder: "some", pinned: "example.com/some", flags: []string{"-ldflags=-s"}}
	files := map[string]string{
		"go.mod":  "module x\n\nrequire example.com/some v1.2.3 // indirect\n",
		"go.sum":  "example.com/some v1.2.3 h1:x\n",
		"main.go": "package main\n",
	}
	key := func(m module, changed string) string {
		t.Helper()
		dir := t.TempDir()
		for name, content := range files {
			if name == changed {
				content = content[:len(content)-1] + " " // of the same length
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		version, err := m.version(dir)
		if err != nil {
			t.Fatal(err)
		}
		key, err := m.key(dir, version)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	flagged := base
	flagged.flags = []string{"-ldflags=-s -w"}
	keys := []string{key(base, ""), key(base, "go.mod"), key(base, "go.sum"), key(base, "main.go"), key(flagged, "")}
	if again := key(base, ""); again != keys[0] {
		t.Errorf("the same module has the keys %s and %s", keys[0], again)
	}
	if !strings.HasPrefix(keys[0], "some-v1.2.3-") {
		t.Errorf("key %s does not begin with module and version", keys[0])
	}
	slices.Sort(keys)
	if distinct := slices.Compact(slices.Clone(keys)); len(distinct) != len(keys) {
		t.Errorf("a change left the key as it was: %q", keys)
	}
}
