//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockPoll is how often a held lock is asked for again: flock can wait, but not be interrupted then.
const lockPoll = 200 * time.Millisecond

// lock takes the exclusive lock of a file, which it makes if need be. It calls busy once if somebody else holds it, and
// waits. The lock ends with unlock or with the process; the file stays, unless its holder removes it.
func lock(ctx context.Context, path string, busy func()) (unlock func(), err error) {
	for waited := false; ; waited = true {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
		if err != nil {
			return nil, err
		}
		held, err := holds(f, path)
		if held {
			return func() { _ = f.Close() }, nil
		}
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !waited {
			busy()
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: %w", path, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

// holds takes the lock of a file, and reports whether it is had, and is the lock of that path: who held it before may have
// removed the file since it was opened, and then the next one locks another.
func holds(f *os.File, path string) (bool, error) {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
			return false, nil
		}
		return false, err
	}
	mine, err := f.Stat()
	if err != nil {
		return false, err
	}
	current, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(mine, current), err
}
