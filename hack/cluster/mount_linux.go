package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

type mountPoint struct{ path, kind string }

// mountPoints lists the paths of the mounts that keep wants, later mounts last. See proc_pid_mountinfo(5).
func mountPoints(keep func(mountPoint) bool) ([]string, error) {
	content, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(content)) {
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 1 {
			return nil, fmt.Errorf("/proc/self/mountinfo has the line %q", line)
		}
		if m := (mountPoint{path: unescapeMount(left[4]), kind: right[0]}); keep(m) {
			found = append(found, m.path)
		}
	}
	return found, nil
}

// unescapeMount undoes the octal escapes of blanks, newlines and backslashes.
func unescapeMount(path string) string {
	var out strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] == '\\' && i+3 < len(path) {
			if code, err := strconv.ParseUint(path[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(code))
				i += 3
				continue
			}
		}
		out.WriteByte(path[i])
	}
	return out.String()
}

// unmountBelow detaches every mount in the given folders, the newest first, so that none hides another.
func unmountBelow(dirs ...string) error {
	mounts, err := mountPoints(func(m mountPoint) bool {
		return slices.ContainsFunc(dirs, func(dir string) bool {
			return strings.HasPrefix(m.path, dir+string(filepath.Separator))
		})
	})
	if err != nil {
		return err
	}
	for _, path := range slices.Backward(mounts) {
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return nil
}
