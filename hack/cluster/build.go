package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// progressInterval is how often a build that still goes on says so.
const progressInterval = 20 * time.Second

// A builder makes binaries from the pinned modules and keeps them in the user's cache folder.
type builder struct {
	modules string // the folder of the modules in this checkout
	cache   string
	say     func(format string, args ...any)
}

// binary returns the path of one binary, built if need be.
func (b builder) binary(ctx context.Context, name string) (string, error) {
	m, err := moduleOf(name)
	if err != nil {
		return "", err
	}
	dir, err := b.build(ctx, m, name)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, name), nil
}

// all builds the given binaries, in their order but one go build for neighbours of the same module, and returns the
// path of each.
func (b builder) all(ctx context.Context, names ...string) (map[string]string, error) {
	paths := make(map[string]string, len(names))
	for len(names) > 0 {
		m, err := moduleOf(names[0])
		if err != nil {
			return nil, err
		}
		n := slices.IndexFunc(names, func(name string) bool { return m.sources[name] == "" })
		if n < 0 {
			n = len(names)
		}
		dir, err := b.build(ctx, m, names[:n]...)
		if err != nil {
			return nil, err
		}
		for _, name := range names[:n] {
			paths[name] = filepath.Join(dir, name)
		}
		names = names[n:]
	}
	return paths, nil
}

// assets returns a folder that holds what envtest starts: etcd, kube-apiserver and kubectl.
func (b builder) assets(ctx context.Context) (string, error) {
	paths, err := b.all(ctx, "etcd", "kube-apiserver", "kubectl")
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, name := range []string{"etcd", "kube-apiserver", "kubectl"} {
		_, _ = fmt.Fprintln(h, paths[name])
	}
	dir := filepath.Join(b.cache, "assets-"+hex.EncodeToString(h.Sum(nil))[:12])
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	temporary, err := os.MkdirTemp(b.cache, ".assets-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(temporary) }()
	for name, path := range paths {
		if err := os.Symlink(path, filepath.Join(temporary, name)); err != nil {
			return "", err
		}
	}
	if err := os.Chmod(temporary, 0o755); err != nil {
		return "", err
	}
	// Whoever came first won: the name says what is in it.
	if err := os.Rename(temporary, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return dir, nil
}

// build makes sure that the named binaries of one module are there and returns their folder. Another build of the same
// module, by whomever, is waited for.
func (b builder) build(ctx context.Context, m module, names ...string) (string, error) {
	source := filepath.Join(b.modules, m.folder)
	version, err := m.version(source)
	if err != nil {
		return "", err
	}
	key, err := m.key(source, version)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(b.cache, key)
	if len(missing(dir, names)) == 0 {
		return dir, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(ctx, filepath.Join(b.cache, key+".lock"), func() {
		b.say("another process builds %s: waiting for it", strings.TrimSpace(m.title+" "+version))
	})
	if err != nil {
		return "", err
	}
	defer unlock()
	if names = missing(dir, names); len(names) == 0 {
		return dir, nil
	}

	temporary, err := os.MkdirTemp(dir, ".build-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(temporary) }()
	output := temporary + string(filepath.Separator) // go build names each binary by the end of its path,
	if len(names) == 1 {
		output += names[0] // but a package path may end otherwise
	}
	args := append([]string{"build", "-v", "-o", output}, m.buildFlags(version)...)
	for _, name := range names {
		args = append(args, m.sources[name])
	}
	what := fmt.Sprintf("%s (%s)", strings.Join(names, ", "), strings.TrimSpace(m.title+" "+version))
	if err := b.goBuild(ctx, source, what, args); err != nil {
		return "", err
	}
	for _, name := range names {
		if err := os.Rename(filepath.Join(temporary, name), filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// goBuild runs go with progress lines.
func (b builder) goBuild(ctx context.Context, dir, what string, args []string) error {
	start := time.Now()
	b.say("building %s", what)
	var out countedLines
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("build %s: %w", what, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(progressInterval)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			took := time.Since(start).Round(time.Second)
			if ctx.Err() != nil {
				return fmt.Errorf("build %s: interrupted after %v", what, took)
			}
			if err != nil {
				return fmt.Errorf("build %s in %s: go %s: %w\n%s", what, dir, strings.Join(args, " "), err, out.tail())
			}
			b.say("built %s in %v", what, took)
			return nil
		case <-tick.C:
			b.say("building %s: %v, %d packages compiled", what, time.Since(start).Round(time.Second), out.count())
		}
	}
}

// missing returns those of names that dir does not hold.
func missing(dir string, names []string) []string {
	var gone []string
	for _, name := range names {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			gone = append(gone, name)
		}
	}
	return gone
}

// countedLines counts the lines written to it and keeps the end of them for an error message.
type countedLines struct {
	lines atomic.Int64
	kept  []byte
}

// keptOutput is how much of a failed build's output is shown.
const keptOutput = 4 << 10

func (c *countedLines) Write(p []byte) (int, error) {
	c.lines.Add(int64(bytes.Count(p, []byte("\n"))))
	c.kept = append(c.kept, p...)
	if over := len(c.kept) - keptOutput; over > 0 {
		c.kept = slices.Delete(c.kept, 0, over)
	}
	return len(p), nil
}

func (c *countedLines) count() int64 { return c.lines.Load() }

// tail must not be called before the writer has stopped.
func (c *countedLines) tail() string { return string(c.kept) }
