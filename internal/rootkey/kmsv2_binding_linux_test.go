package rootkey_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/rootkey"
)

// TestTheBindingLeavesNothingBehind searches the memory of a process for plaintexts that it has bound: one without preemption, which
// may leave what the registers held (docs/design/memory.md).
func TestTheBindingLeavesNothingBehind(t *testing.T) {
	if !rerun(t, "GODEBUG="+strings.Trim(os.Getenv("GODEBUG")+",asyncpreemptoff=1", ",")) {
		return
	}
	// As much as a wrapped sealing key, and sizes around a block of the hash. The end of it stays in the hash, the whole where it
	// does not fill a block.
	for _, n := range []int{16, envelope.MaterialSize + 16, 63, 64, 65, 200} {
		s := newMaskedSecret(t, n)
		s.use(func(plaintext []byte) {
			var bound sync.WaitGroup
			for size := range 64 { // at every place in a block
				bound.Add(1)
				go func() {
					rootkey.BindingOf(plaintext, make([]byte, size))
					bound.Done()
					<-t.Context().Done() // so that nobody gets the stack
				}()
			}
			bound.Wait()
		})
		if found := s.search(t); len(found) > 0 {
			t.Errorf("%d bytes that were bound are still in memory:\n%s", n, strings.Join(found, "\n"))
		}
		kept := s.copyToKeep()
		if len(s.search(t)) == 0 {
			t.Error("what lies in memory is not found: the search proves nothing")
		}
		clear(kept)
	}
}

// maskedSecret is random bytes that stand nowhere in memory but while they are used.
type maskedSecret struct {
	mask, masked []byte
	// room is memory apart from Go's.
	room []byte
}

func newMaskedSecret(t *testing.T, n int) *maskedSecret {
	t.Helper()
	room, err := syscall.Mmap(-1, 0, os.Getpagesize(), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Munmap(room); err != nil {
			t.Error(err)
		}
	})
	s := &maskedSecret{make([]byte, n), make([]byte, n), room}
	rand.Read(s.mask)
	rand.Read(s.masked)
	for i := range s.mask { // zeros would be found everywhere, and slowly
		if s.mask[i] == s.masked[i] {
			s.mask[i] ^= 1
		}
	}
	return s
}

func (s *maskedSecret) use(f func([]byte)) {
	plaintext := s.room[:len(s.mask)]
	for i := range plaintext {
		plaintext[i] = s.mask[i] ^ s.masked[i]
	}
	f(plaintext)
	clear(plaintext)
}

func (s *maskedSecret) copyToKeep() []byte {
	kept := make([]byte, len(s.mask))
	s.use(func(plaintext []byte) { copy(kept, plaintext) })
	return kept
}

// search looks for 16 bytes of the secret, at the beginning, the middle and the end of it, in all memory that can be written to.
func (s *maskedSecret) search(t *testing.T) (found []string) {
	t.Helper()
	const part = 16
	chunk := make([]byte, 1<<20)
	starts := []int{0, (len(s.mask) - part) / 2, len(s.mask) - part}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		span, rest, _ := strings.Cut(line, " ")
		if !strings.HasPrefix(rest, "rw") { // what cannot be written to holds nothing of ours
			continue
		}
		low, high, _ := strings.Cut(span, "-")
		from, err1 := strconv.ParseInt(low, 16, 64)
		to, err2 := strconv.ParseInt(high, 16, 64)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		if to-from > 1<<30 {
			continue // of the terabytes of shadow the race detector alone makes sense
		}
		for at := from; at < to; at += int64(len(chunk) - part + 1) { // a part may lie across the end of a chunk
			n, err := mem.ReadAt(chunk[:min(int64(len(chunk)), to-at)], at)
			if err != nil {
				break // guard pages
			}
			for _, start := range starts {
				if s.in(chunk[:n], start, part) {
					found = append(found, "byte "+strconv.Itoa(start)+" and on, in "+strings.TrimSpace(line))
				}
			}
		}
	}
	clear(chunk)
	return found
}

// in reports whether a part of the secret is in b. It puts no more than a byte of it together.
func (s *maskedSecret) in(b []byte, start, n int) bool {
	for len(b) >= n {
		i := bytes.IndexByte(b[:len(b)-n+1], s.mask[start]^s.masked[start])
		if i < 0 {
			return false
		}
		b = b[i:]
		same := 0
		for same < n && b[same] == s.mask[start+same]^s.masked[start+same] {
			same++
		}
		if same == n {
			return true
		}
		b = b[1:]
	}
	return false
}
