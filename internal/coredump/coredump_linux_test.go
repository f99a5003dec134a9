package coredump

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestForbid(t *testing.T) {
	if err := Forbid(); err != nil {
		t.Fatal(err)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || dumpable != 0 {
		t.Errorf("PR_GET_DUMPABLE: got %d, %v", dumpable, err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil || limit != (unix.Rlimit{}) {
		t.Errorf("RLIMIT_CORE: got %+v, %v", limit, err)
	}
}
