package envelope

import (
	"crypto/sha256"
	"hash"
	"maps"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"
)

// traces is where secrets are while the key of a blob is in use. Go would leave that memory as it is for the garbage
// collector, and then for whoever gets it next. docs/design/memory.md says what is left all the same.
type traces struct {
	hashes  []tracedHash
	used    int
	newHash func() hash.Hash // hands out hashes, which are cleared and used again
	memory  [][]byte
}

type tracedHash struct {
	hash.Hash
	memory []byte // of the hash
}

// add has the bytes cleared in the end.
func (t *traces) add(b []byte) { t.memory = append(t.memory, b) }

func (t *traces) erase() {
	for _, h := range t.hashes[:t.used] {
		clear(h.memory)
	}
	t.used = 0
	for _, b := range t.memory {
		clear(b)
	}
	clear(t.memory)
	t.memory = t.memory[:0]
}

var tracesPool = sync.Pool{New: func() any {
	t := &traces{}
	t.newHash = func() hash.Hash {
		if t.used == len(t.hashes) {
			h := sha256.New()
			t.hashes = append(t.hashes, tracedHash{h, memoryOf(h)})
		}
		h := t.hashes[t.used].Hash
		t.used++
		h.Reset()
		return h
	}
	return t
}}

// erasing calls f and then clears its traces and the stack it worked on.
func erasing(f func(*traces) error) error {
	t := tracesPool.Get().(*traces)
	growStack(false) // a stack that had to grow in the middle of f would be left behind as it was
	defer func() {
		t.erase()
		tracesPool.Put(t)
		wipeStack()
	}()
	return f(t)
}

// stackSize is how much stack is cleared. With Go 1.26, sealing and opening use 3 KiB, and 4 KiB in FIPS mode, which has a
// random generator of its own.
const stackSize = 6 << 10

// wipeStack clears the stack below its caller.
//
//go:noinline
func wipeStack() {
	var frame [stackSize]byte
	runtime.KeepAlive(&frame)
}

// growStack makes sure that wipeStack will find the stack large enough, and spares the clearing: a function asks for its
// whole frame when it is called, whether it comes to use it or not.
//
//go:noinline
func growStack(use bool) {
	if use {
		var frame [stackSize]byte
		runtime.KeepAlive(&frame)
	}
}

// memoryOf returns the memory of the object that a value of crypto/cipher or hash points to: a hash's block, a cipher's
// key schedule. There is no other way to clear them. It returns nil for an object with pointers, of which there is
// none in the Go versions that this was tested with; a test tells of another.
func memoryOf(object any) []byte {
	p := reflect.ValueOf(object)
	if p.Kind() == reflect.Struct && p.NumField() == 1 {
		p = p.Field(0) // an AEAD with random IVs is a struct around the pointer to another
	}
	if n := sizeBehind(p.Type()); n > 0 {
		return unsafe.Slice((*byte)(p.UnsafePointer()), n) //nolint:gosec // n is the size of the object, which p keeps alive
	}
	return nil
}

// sizesBehind remembers the answers of sizeBehind: there are three types to ask about.
var sizesBehind atomic.Pointer[map[reflect.Type]int]

// sizeBehind returns the size of what a pointer of this type points to, 0 if it must not be cleared.
func sizeBehind(pointer reflect.Type) int {
	known := sizesBehind.Load()
	if known != nil {
		if n, ok := (*known)[pointer]; ok {
			return n
		}
	}
	n := 0
	if pointer.Kind() == reflect.Pointer && pointerFree(pointer.Elem()) {
		n = int(pointer.Elem().Size())
	}
	more := map[reflect.Type]int{pointer: n}
	if known != nil {
		maps.Copy(more, *known)
	}
	sizesBehind.CompareAndSwap(known, &more) // lost to another, it is asked again
	return n
}

func pointerFree(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Array:
		return pointerFree(t.Elem())
	case reflect.Struct:
		for f := range t.Fields() {
			if !pointerFree(f.Type) {
				return false
			}
		}
		return true
	default:
		return t.Kind() >= reflect.Bool && t.Kind() <= reflect.Complex128
	}
}
