package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupMount = "/sys/fs/cgroup"

// A cgroupTree is the part of the control groups below which the kubelet puts the pods: one folder in each hierarchy of
// version 1, or one in all with version 2.
type cgroupTree struct{ name string }

// make creates the tree. With version 2 it also has the controllers passed down to it.
func (t cgroupTree) make() error {
	v2, err := cgroupVersion2()
	if err != nil {
		return err
	}
	if v2 {
		if err := delegateControllers(); err != nil {
			return err
		}
	}
	dirs, err := t.dirs()
	if err != nil {
		return err
	}
	if len(dirs) == 0 {
		return fmt.Errorf("no control groups below %s: the kubelet needs them mounted there", cgroupMount)
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// dirs are the tree's folders, there or not.
func (t cgroupTree) dirs() ([]string, error) {
	mounts, err := mountPoints(func(m mountPoint) bool {
		return (m.kind == "cgroup" || m.kind == "cgroup2") && strings.HasPrefix(m.path, cgroupMount)
	})
	if err != nil {
		return nil, err
	}
	for i := range mounts {
		mounts[i] = filepath.Join(mounts[i], t.name)
	}
	slices.Sort(mounts)
	return slices.Compact(mounts), nil
}

// kill ends every process in the tree: the containers.
func (t cgroupTree) kill() error {
	found, err := processes(t.holds)
	if err != nil {
		return err
	}
	var failed []error
	for _, p := range found {
		failed = append(failed, p.end(0))
	}
	return errors.Join(failed...)
}

// holds says whether a process is in the tree.
func (t cgroupTree) holds(p process) bool {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(content)) {
		// HIERARCHY:CONTROLLERS:PATH, see cgroups(7)
		if parts := strings.SplitN(strings.TrimSpace(line), ":", 3); len(parts) == 3 &&
			strings.Contains(parts[2]+"/", "/"+t.name+"/") {
			return true
		}
	}
	return false
}

// remove deletes the tree, which must be empty of processes.
func (t cgroupTree) remove() error {
	dirs, err := t.dirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		var below []string
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && d.IsDir() {
				below = append(below, path)
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, path := range slices.Backward(below) { // children first
			if err := removeCgroup(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeCgroup is patient: a control group is busy for a moment after its last process has gone.
func removeCgroup(path string) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := os.Remove(path)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
	}
}

func cgroupVersion2() (bool, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(cgroupMount, &s); err != nil {
		return false, fmt.Errorf("look at %s: %w", cgroupMount, err)
	}
	return s.Type == unix.CGROUP2_SUPER_MAGIC, nil
}

// delegateControllers turns on all controllers for the children of the topmost control group. In a container that group
// is not the real root, and may then not have processes of its own: they move into a child, as other tools that run a
// node in a container do.
func delegateControllers() error {
	controllers, err := os.ReadFile(filepath.Join(cgroupMount, "cgroup.controllers"))
	if err != nil {
		return err
	}
	enable := func(name string) error {
		return os.WriteFile(filepath.Join(cgroupMount, "cgroup.subtree_control"), []byte("+"+name), 0o644)
	}
	for name := range strings.FieldsSeq(string(controllers)) {
		err := enable(name)
		if errors.Is(err, unix.EBUSY) {
			if err := emptyTopCgroup(); err != nil {
				return err
			}
			err = enable(name)
		}
		if err != nil && slices.Contains(neededControllers, name) {
			return fmt.Errorf("turn on the control group controller %s: %w", name, err)
		}
	}
	return nil
}

// neededControllers are those without which the kubelet does not start.
var neededControllers = []string{"cpu", "cpuset", "memory", "pids"}

func emptyTopCgroup() error {
	child := filepath.Join(cgroupMount, "init")
	if err := os.MkdirAll(child, 0o755); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(cgroupMount, "cgroup.procs"))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if _, err := strconv.Atoi(lines.Text()); err != nil {
			continue
		}
		err := os.WriteFile(filepath.Join(child, "cgroup.procs"), lines.Bytes(), 0o644)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("move process %s out of the topmost control group: %w", lines.Text(), err)
		}
	}
	return nil
}
