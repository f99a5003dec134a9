//go:build unix

package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
)

func TestLockIsHeldByOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), path, func() { t.Error("a free lock is busy") })
	if err != nil {
		t.Fatal(err)
	}
	busy, taken := make(chan struct{}), make(chan error, 1)
	go func() {
		second, err := lock(t.Context(), path, func() { close(busy) })
		if err == nil {
			second()
		}
		taken <- err
	}()
	select {
	case <-busy:
	case err := <-taken:
		t.Fatalf("a held lock was given to another (%v)", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lock(ctx, path, func() {}); err == nil {
		t.Error("a held lock was given to one who was interrupted")
	}
	unlock()
	if err := <-taken; err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the lock file is gone: %v", err)
	}
}

func TestALockWhoseFileWasRemovedIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), path, func() {})
	if err != nil {
		t.Fatal(err)
	}
	waiter, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = waiter.Close() }()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	unlock()
	if held, err := holds(waiter, path); held || err != nil {
		t.Errorf("who waited has the lock of a file that is gone (%v)", err)
	}
	unlock, err = lock(t.Context(), path, func() { t.Error("the lock of a new file is busy") })
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if held, err := holds(waiter, path); held || err != nil {
		t.Errorf("two have the lock (%v)", err)
	}
}
