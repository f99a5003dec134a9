package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tree writes files below a new directory and returns it.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestGather(t *testing.T) {
	type pkg struct{ module, dir string }
	for name, test := range map[string]struct {
		files map[string]string
		of    []pkg
		want  map[string][]string // texts, and the files that have them
		err   string
	}{
		"licence, notice and patents of a module": {
			files: map[string]string{"a/LICENSE": "L", "a/NOTICE.txt": "N", "a/PATENTS": "P", "a/README.md": "R", "a/license.go": "G"},
			of:    []pkg{{"a", "a"}},
			want:  map[string][]string{"go": {"go LICENSE"}, "L": {"a LICENSE"}, "N": {"a NOTICE.txt"}, "P": {"a PATENTS"}},
		},
		"one text of two modules is there once": {
			files: map[string]string{"a/LICENSE": "L\n", "b/LICENCE.md": "L\r\n"},
			of:    []pkg{{"b", "b"}, {"a", "a"}},
			want:  map[string][]string{"go": {"go LICENSE"}, "L": {"a LICENSE", "b LICENCE.md"}},
		},
		"code of somebody else, in a directory above the package's": {
			files: map[string]string{"a/LICENSE": "L", "a/third_party/COPYING": "T", "a/third_party/x/x.go": "", "a/other/LICENSE": "O"},
			of:    []pkg{{"a", "a/third_party/x"}},
			want:  map[string][]string{"go": {"go LICENSE"}, "L": {"a LICENSE"}, "T": {"a third_party/COPYING"}},
		},
		"a module without a licence": {
			files: map[string]string{"a/NOTICE": "N"},
			of:    []pkg{{"a", "a"}},
			err:   "a has no licence",
		},
		"a package without a licence in a module that has one elsewhere": {
			files: map[string]string{"a/x/LICENSE": "L", "a/y/y.go": ""},
			of:    []pkg{{"a", "a/x"}, {"a", "a/y"}},
			err:   "a has no licence",
		},
		"an empty licence": {
			files: map[string]string{"a/LICENSE": "\n"},
			of:    []pkg{{"a", "a"}},
			err:   "a has no licence",
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := tree(t, test.files)
			golang := goModule{Path: "go", Dir: tree(t, map[string]string{"LICENSE": "go"})}
			packages := []goPackage{
				{ImportPath: "fmt", Standard: true},
				{ImportPath: "own", Module: &goModule{Path: "own", Main: true}},
			}
			for _, p := range test.of {
				module := &goModule{Path: p.module, Version: "v1.0.0", Dir: filepath.Join(root, p.module)}
				packages = append(packages, goPackage{Dir: filepath.Join(root, p.dir), Module: module})
			}
			notices, err := gather(golang, packages)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got %v, want an error with %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := map[string][]string{}
			for _, n := range notices {
				for _, o := range n.of {
					got[n.text] = append(got[n.text], o.module.Path+" "+o.file)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("texts (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSourceThatCannotBeHadIsRefused(t *testing.T) {
	golang := goModule{Path: "go", Dir: tree(t, map[string]string{"LICENSE": "go"})}
	for name, module := range map[string]*goModule{
		"a replaced module": {Path: "a", Dir: golang.Dir, Replace: &goModule{Path: "../a"}},
		"a vendored module": {Path: "a"},
		"no module":         nil,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := gather(golang, []goPackage{{ImportPath: "a/x", Dir: golang.Dir, Module: module}}); err == nil {
				t.Error("got no error")
			}
		})
	}
}

// What hack/images.sh puts beside the sidecar, for each architecture.
func TestSidecarsLicences(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		out := filepath.Join(t.TempDir(), "licences")
		if err := run(t.Context(), arch, out, []string{"../../cmd/sidecar"}); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"go mod download", "Go's standard library and runtime go1.", "google.golang.org/grpc v1.", "(NOTICE.txt)", "(PATENTS)", "Apache License",
		} {
			if !strings.Contains(string(text), want) {
				t.Errorf("%s: %q is not in it", arch, want)
			}
		}
		if strings.Contains(string(text), "github.com/datakeys/datakeys") {
			t.Errorf("%s: Datakeys' own code is listed as somebody else's", arch)
		}
	}
}
