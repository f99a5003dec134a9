package envelope

import (
	"bytes"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// slabs counts those of a class that have a free slot, and their free slots.
func (c *class) slabs() (open, free int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.open {
		free += len(s.free)
	}
	return len(c.open), free
}

func (a *arena) class(size int) *class {
	i, _ := slices.BinarySearch(slotSizes[:], size)
	return &a.classes[i]
}

func TestArenaHandsOutEachByteOnce(t *testing.T) {
	var a arena
	type lent struct {
		slot slot
		want byte
	}
	for n := 1; n <= MaxPlaintextSize; n += 1 + n/8 {
		var all []lent
		for i := range 3*slabSize/n + 1 { // more than one slab
			s := a.alloc(n)
			b := s.bytes()
			if len(b) != n || cap(b) != n || !bytes.Equal(b, make([]byte, n)) {
				t.Fatalf("%d bytes: got %d of %d, or they are not zero", n, len(b), cap(b))
			}
			want := byte(i%255 + 1)
			copy(b, bytes.Repeat([]byte{want}, n))
			all = append(all, lent{s, want})
		}
		for i, l := range all {
			b := l.slot.bytes()
			if !bytes.Equal(b, bytes.Repeat([]byte{l.want}, n)) {
				t.Fatalf("%d bytes: somebody else wrote into slot %d", n, i)
			}
			if i%2 == 0 { // in another order than that of the slabs
				l.slot.release()
			}
		}
		for i, l := range all {
			if i%2 == 1 {
				l.slot.release()
			}
		}
		c := a.class(n)
		open, free := c.slabs()
		if want := slabSize / slotSizes[slices.Index(slotSizes[:], c.open[0].size)]; open != 1 || free != want {
			t.Errorf("%d bytes, all released: %d slabs with %d free slots, want one with %d", n, open, free, want)
		}
	}
	if err := a.locked(); err != nil {
		t.Error(err)
	}
}

func TestArenaClearsWhatIsReleased(t *testing.T) {
	var a arena
	first := a.alloc(32)
	b := first.bytes()
	copy(b, counted(1, 32))
	first.release()
	if !bytes.Equal(b, make([]byte, 32)) {
		t.Error("the bytes are still there")
	}
	if again := a.alloc(20); &again.bytes()[0] != &b[0] {
		t.Error("the slot is not used again")
	}
}

func TestArenaIsSafeForConcurrentUse(t *testing.T) {
	var a arena
	var all sync.WaitGroup
	for worker := range 4 {
		all.Go(func() {
			var held []slot
			want := byte(worker + 1)
			for i := range 4000 {
				s := a.alloc(1 + i%64)
				for j := range s.bytes() {
					s.bytes()[j] = want
				}
				held = append(held, s)
				if i%3 != 0 {
					s, held = held[0], held[1:]
					for _, got := range s.bytes() {
						if got != want {
							t.Errorf("got a byte of %d, want %d", got, want)
							return
						}
					}
					s.release()
				}
			}
			for _, s := range held {
				s.release()
			}
		})
	}
	all.Wait()
	for _, size := range []int{16, 32, 48, 64} {
		if open, free := a.class(size).slabs(); open != 1 || free != slabSize/size {
			t.Errorf("%d bytes, all released: %d slabs with %d free slots", size, open, free)
		}
	}
}

// A secret that nobody holds any more is cleared and its memory used again.
func TestForgottenSecretIsFreed(t *testing.T) {
	const n = 700 // a class that no other test leaves secrets in
	c := keys.class(n)
	forget := func() (live []byte) {
		p := newPlaintext(t, n)
		if err := p.Use(insecuresecret.Token{}, func(b []byte) error { live = b; return nil }); err != nil {
			t.Fatal(err)
		}
		return live
	}
	live := forget()
	for open, free := c.slabs(); open != 1 || free != slabSize/c.open[0].size; open, free = c.slabs() {
		if t.Context().Err() != nil {
			t.Fatal("the memory is not taken back")
		}
		runtime.GC() // hands the cleanup to a goroutine of the runtime
		runtime.Gosched()
	}
	if !bytes.Equal(live, make([]byte, n)) {
		t.Error("the memory is taken back but not cleared")
	}
}

// A secret must not be freed while it is in use, even if nobody holds it but who uses it.
func TestSecretInUseIsNotForgotten(t *testing.T) {
	want := counted(1, 32)
	m, err := MaterialFromBytes(want)
	if err != nil {
		t.Fatal(err)
	}
	err = m.Use(insecuresecret.Token{}, func(b []byte) error {
		for range 3 {
			runtime.GC()
			NewMaterial() // would get the memory
		}
		if !bytes.Equal(b, want) {
			t.Error("the bytes changed under their user")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
