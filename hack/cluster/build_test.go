package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var testModule = module{folder: "hello", title: "Hello", sources: map[string]string{"hello": "."}}

// newTestBuilder has one module, whose main.go is given, and notes what is said.
func newTestBuilder(t *testing.T, main string) (builder, func() []string) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"go.mod": "module hello\n\ngo 1.26.0\n", "main.go": main} {
		path := filepath.Join(dir, "modules", "hello", name)
		if err := writeFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	var said []string
	b := builder{modules: filepath.Join(dir, "modules"), cache: filepath.Join(dir, "cache"), say: func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, fmt.Sprintf(format, args...))
	}}
	return b, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(said)
	}
}

func TestBuildOnceForManyThatAsk(t *testing.T) {
	b, said := newTestBuilder(t, `package main; func main() { println("hello") }`)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			if _, err := b.build(t.Context(), testModule, "hello"); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	// The whole line: a build that takes long says later how far it is.
	built := slices.DeleteFunc(said(), func(line string) bool { return line != "building hello (Hello)" })
	if len(built) != 1 {
		t.Errorf("built %d times, want once", len(built))
	}
	dir, err := b.build(t.Context(), testModule, "hello")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(filepath.Join(dir, "hello")).CombinedOutput(); err != nil || string(out) != "hello\n" {
		t.Errorf("the binary says %q, %v", out, err)
	}
}

func TestFailedBuildLeavesNoBinary(t *testing.T) {
	tests := map[string]struct {
		main    string
		cancel  bool
		wantErr string
	}{
		"source that does not compile": {main: `package main; func main() { undefinedThing() }`, wantErr: "undefinedThing"},
		"an interrupt":                 {main: `package main; func main() {}`, cancel: true, wantErr: "context canceled"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b, _ := newTestBuilder(t, tt.main)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if tt.cancel {
				cancel()
			}
			_, err := b.build(ctx, testModule, "hello")
			if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("error %v, want one with %q", err, tt.wantErr)
			}
			left, err := filepath.Glob(filepath.Join(b.cache, "hello-*", "*"))
			if err != nil {
				t.Fatal(err)
			}
			hidden, err := filepath.Glob(filepath.Join(b.cache, "hello-*", ".build-*"))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]string(nil), append(left, hidden...)); diff != "" {
				t.Errorf("left behind (-want +got):\n%s", diff)
			}
		})
	}
}

func TestBuildIgnoresTheCallersGoFlags(t *testing.T) {
	t.Setenv("GOFLAGS", "-n") // only print what would be done
	b, _ := newTestBuilder(t, `package main; func main() {}`)
	if _, err := b.build(t.Context(), testModule, "hello"); err != nil {
		t.Error(err)
	}
}
