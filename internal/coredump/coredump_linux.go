// Package coredump keeps the memory of a process that holds keys from being written to disk or read by others.
package coredump

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Forbid keeps the process's memory out of core dumps and from other processes of its UID: with PR_SET_DUMPABLE at 0 they
// can neither trace it nor read /proc/PID/mem (prctl(2)). It does not stop root.
func Forbid() error {
	var errs []error
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		errs = append(errs, fmt.Errorf("PR_SET_DUMPABLE: %w", err))
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		errs = append(errs, fmt.Errorf("RLIMIT_CORE: %w", err))
	}
	return errors.Join(errs...)
}
