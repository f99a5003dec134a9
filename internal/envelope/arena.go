package envelope

import (
	"slices"
	"sync"
	"sync/atomic"
)

// slabSize is what is mapped and locked at once: a multiple of every page size that Go's Linux has up to 16 KiB; where
// pages are larger, the kernel rounds up.
const slabSize = 16 << 10

// slotSizes are the sizes that memory is handed out in. Half steps keep what is lost small; 48 is a material with
// its ID.
var slotSizes = [...]int{16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, MaxPlaintextSize}

// arena hands out memory for secrets, packed into slabs of locked memory: 512 keys of 32 bytes to a slab. An
// unprivileged process may lock 8 MiB in all (RLIMIT_MEMLOCK), and a page for each key would use that up with 2,000.
// The zero arena is empty and ready.
type arena struct {
	classes  [len(slotSizes)]class
	unlocked atomic.Pointer[error] // the first failure to lock
}

// class is the slabs of one slot size. It has a lock of its own, which is held for some ten nanoseconds, and every few
// hundred keys for the system calls that map or unmap a slab.
type class struct {
	mu   sync.Mutex
	open []*slab // those with a free slot; the last is used next
}

type slab struct {
	class *class
	size  int // of a slot
	bytes []byte
	unmap func()
	self  func() *slab

	// Under the lock of the class:
	free   []uint16 // slots
	isOpen bool
}

// slot is memory in a slab. The zero slot is none.
type slot struct {
	slab func() *slab // a function for the reason that secret gives
	at   uint16       // which of the slab's
	size uint16       // of the secret; the slot may be larger
}

func (s slot) bytes() []byte {
	of := s.slab()
	start := int(s.at) * of.size
	return of.bytes[start : start+int(s.size) : start+int(s.size)]
}

// alloc returns n zero bytes, 1 to MaxPlaintextSize.
func (a *arena) alloc(n int) slot {
	i, _ := slices.BinarySearch(slotSizes[:], n)
	c := &a.classes[i]
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) == 0 {
		c.open = append(c.open, a.newSlab(c, slotSizes[i]))
	}
	s := c.open[len(c.open)-1]
	last := len(s.free) - 1
	at := s.free[last]
	s.free = s.free[:last]
	if last == 0 {
		s.isOpen = false
		c.open = c.open[:len(c.open)-1]
	}
	return slot{slab: s.self, at: at, size: uint16(n)}
}

func (a *arena) newSlab(c *class, size int) *slab {
	b, unmap, err := mapMemory(slabSize)
	if err != nil {
		a.unlocked.CompareAndSwap(nil, &err)
	}
	s := &slab{class: c, size: size, bytes: b, unmap: unmap, isOpen: true}
	s.self = func() *slab { return s }
	for at := slabSize/size - 1; at >= 0; at-- { // the first is handed out first
		s.free = append(s.free, uint16(at))
	}
	return s
}

// release clears the slot and takes it back. A slab that is empty is given back to the system if its class has another
// with room: the last stays, or one key that comes and goes would map and unmap all the time.
func (s slot) release() {
	clear(s.bytes())
	of := s.slab()
	c := of.class
	c.mu.Lock()
	defer c.mu.Unlock()
	of.free = append(of.free, s.at)
	if !of.isOpen {
		of.isOpen = true
		c.open = append(c.open, of)
	}
	if len(c.open) > 1 && len(of.free) == slabSize/of.size {
		c.open = slices.DeleteFunc(c.open, func(o *slab) bool { return o == of })
		of.unmap()
	}
}

// locked returns nil if all memory handed out so far is locked, else the first reason why some is not.
func (a *arena) locked() error {
	a.alloc(MaterialSize).release() // so that there is memory to ask about
	if err := a.unlocked.Load(); err != nil {
		return *err
	}
	return nil
}

// keys is where all secrets are.
var keys arena

// MemoryLocked returns nil if the secrets of this package have, up to now, been kept in memory that is neither swapped
// to disk nor part of a core dump. The error says what is not so, and why. Secrets work all the same.
//
// The limit for an unprivileged process is RLIMIT_MEMLOCK, 8 MiB for all together unless somebody set another: room for
// 250,000 keys of 32 bytes.
func MemoryLocked() error { return keys.locked() }
