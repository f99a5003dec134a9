package main

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCommandLine(t *testing.T) {
	tests := map[string]struct {
		args []string
		want error
	}{
		"help is asked for":          {args: []string{"-h"}, want: flag.ErrHelp},
		"no verb":                    {want: errUsage},
		"an unknown verb":            {args: []string{"restart"}, want: errUsage},
		"an unknown flag":            {args: []string{"-force", "up"}, want: errUsage},
		"up with something after it": {args: []string{"up", "now"}, want: errUsage},
		"load without an archive":    {args: []string{"load"}, want: errUsage},
		"bin without a name":         {args: []string{"bin"}, want: errUsage},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			if err := run(t.Context(), tt.args, &out, &errOut); !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if !strings.Contains(errOut.String(), "usage: go run ./hack/cluster") {
				t.Errorf("no usage in %q", errOut.String())
			}
			if out.Len() > 0 {
				t.Errorf("results where there are none: %q", out.String())
			}
		})
	}
}

func TestKubectlWithoutAClusterSaysHowToStartOne(t *testing.T) {
	err := kubectl(t.Context(), "kubectl", filepath.Join(t.TempDir(), "kubeconfig"), nil)
	if err == nil || !strings.Contains(err.Error(), "go run ./hack/cluster up") {
		t.Errorf("error %v", err)
	}
}

func TestFindRoot(t *testing.T) {
	dir := t.TempDir()
	for path, content := range map[string]string{
		"checkout/go.mod":                   "// datakeys\nmodule github.com/datakeys/datakeys\n",
		"checkout/hack/cluster/etcd/go.mod": "module github.com/datakeys/datakeys/hack/cluster/etcd\n",
		"other/go.mod":                      "module example.com/other\n",
	} {
		if err := writeFile(filepath.Join(dir, path), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tests := map[string]struct{ from, want string }{
		"at the root": {from: "checkout", want: "checkout"},
		"deep in a folder with a go.mod of its own": {from: "checkout/hack/cluster/etcd", want: "checkout"},
		"in the checkout of something else":         {from: "other"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := findRoot(filepath.Join(dir, tt.from))
			if tt.want == "" {
				if err == nil {
					t.Errorf("found %s", got)
				}
				return
			}
			if want := filepath.Join(dir, tt.want); err != nil || got != want {
				t.Errorf("got %s, %v; want %s", got, err, want)
			}
		})
	}
}

func TestSiteIsKnownByItsFolder(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	one, err := findSite(filepath.Join(dir, "one"))
	if err != nil {
		t.Fatal(err)
	}
	same, err := findSite(filepath.Join(dir, "link", "one"))
	if err != nil {
		t.Fatal(err)
	}
	two, err := findSite(filepath.Join(dir, "two"))
	if err != nil {
		t.Fatal(err)
	}
	if one != same {
		t.Errorf("the same folder is two sites: %+v and %+v", one, same)
	}
	for link, target := range map[string]string{"absolute": filepath.Join(dir, "one"), "relative": "one", "chain": "absolute"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	// Mounts and processes are known by the path without links, before the folder is made, while it is there and afterwards.
	for _, made := range []string{"", "one"} {
		if err := os.MkdirAll(filepath.Join(dir, made), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, link := range []string{"absolute", "relative", "chain"} {
			if linked, err := findSite(filepath.Join(dir, link)); err != nil || linked != one {
				t.Errorf("%s link to the folder, made %q: %+v, %v, want %+v", link, made, linked, err, one)
			}
		}
	}
	for _, made := range []string{"", "deep"} {
		if err := os.MkdirAll(filepath.Join(dir, made), 0o755); err != nil {
			t.Fatal(err)
		}
		below, err := findSite(filepath.Join(dir, "link", "deep", "one"))
		if want := filepath.Join(dir, "deep", "one"); err != nil || below.state != want {
			t.Errorf("below a link, made %q: %s, %v, want %s", made, below.state, err, want)
		}
	}
	if err := os.Symlink("loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	if looped, err := findSite(filepath.Join(dir, "loop")); err != nil || looped.state != filepath.Join(dir, "loop") {
		t.Errorf("a link to itself: %s, %v", looped.state, err)
	}
	if one.id == two.id {
		t.Errorf("two folders share the ID %s", one.id)
	}
	if want := filepath.Join(dir, "one", "kubeconfig"); one.kubeconfig() != want {
		t.Errorf("kubeconfig %s, want %s", one.kubeconfig(), want)
	}
}
