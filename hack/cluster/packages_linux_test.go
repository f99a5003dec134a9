package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAnInterruptTellsThePackageManagerToEnd(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "begun")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	ended := make(chan error, 1)
	go func() {
		_, err := runQuietly(ctx, "sh", "-c", `echo >"$0"; exec sleep 600`, fifo)
		ended <- err
	}()
	if _, err := os.ReadFile(fifo); err != nil {
		t.Fatal(err)
	}
	interrupt()
	err := <-ended
	// Killed, it would leave packages half installed, which nothing but dpkg --configure -a mends.
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGINT {
		t.Errorf("ended by %v, want an interrupt", err)
	}
}
