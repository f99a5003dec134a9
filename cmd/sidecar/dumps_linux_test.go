package main

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestNoDumps(t *testing.T) {
	if err := noDumps(); err != nil {
		t.Fatal(err)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || dumpable != 0 {
		t.Errorf("PR_GET_DUMPABLE: got %d, %v", dumpable, err)
	}
}
