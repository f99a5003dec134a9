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
