package envelope

import (
	"fmt"
	"syscall"
)

const (
	// Of the kernel's interface (mman.h, getrlimit(2)), the same for every architecture that Go's Linux has; package
	// syscall lacks them for some.
	madvDontdump  = 16
	rlimitMemlock = 8
)

// mapMemory returns n zero bytes outside the garbage-collected heap that are not swapped to disk and not part of a core
// dump. The memory is good where there is an error too: then it is memory without one of these properties.
func mapMemory(n int) (b []byte, unmap func(), err error) {
	b, err = syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return make([]byte, n), func() {}, fmt.Errorf("mmap of %d bytes: %w: keys are kept on Go's heap, and may be "+
			"swapped to disk and dumped after a crash: give the process more memory", n, err)
	}
	unmap = func() { _ = syscall.Munmap(b) }
	if err := syscall.Madvise(b, madvDontdump); err != nil {
		return b, unmap, fmt.Errorf("madvise: %w: a crash may leave a memory dump with keys", err)
	}
	if err := syscall.Mlock(b); err != nil {
		var limit syscall.Rlimit
		if syscall.Getrlimit(rlimitMemlock, &limit) != nil {
			return b, unmap, fmt.Errorf("mlock: %w: keys may be swapped to disk", err)
		}
		return b, unmap, fmt.Errorf("mlock: %w: keys may be swapped to disk: raise the limit of locked memory "+
			"(RLIMIT_MEMLOCK), which is %d bytes, or turn swap off", err, limit.Cur)
	}
	return b, unmap, nil
}
