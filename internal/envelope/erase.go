package envelope

import (
	"crypto/sha256"
	"hash"
	"reflect"
	"runtime"
	"sync"
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
	// Once before: a stack that has to grow in the middle of f would be left behind as it was.
	wipeStack()
	defer func() {
		t.erase()
		tracesPool.Put(t)
		wipeStack()
	}()
	return f(t)
}

// wipeStack clears the stack below its caller. The frames of HKDF, SHA-256 and AES-GCM need less.
//
//go:noinline
func wipeStack() {
	var frame [4 << 10]byte
	runtime.KeepAlive(&frame)
}

// memoryOf returns the memory of the object that a value of crypto/cipher or hash points to: a hash's block, a cipher's
// key schedule. There is no other way to clear them. It returns nil for an object with pointers, of which there is
// none in the Go versions that this was tested with; a test tells of another.
func memoryOf(object any) []byte {
	p := reflect.ValueOf(object)
	if p.Kind() == reflect.Struct && p.NumField() == 1 {
		p = p.Field(0) // an AEAD with random IVs is a struct around the pointer to another
	}
	n := wipeable(p.Type())
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*byte)(p.UnsafePointer()), n)
}

var wipeableSizes sync.Map // reflect.Type of a pointer -> int

// wipeable returns the size of what a pointer of this type points to, 0 if it must not be cleared.
func wipeable(pointer reflect.Type) int {
	if n, ok := wipeableSizes.Load(pointer); ok {
		return n.(int)
	}
	n := 0
	if pointer.Kind() == reflect.Pointer && pointerFree(pointer.Elem()) {
		n = int(pointer.Elem().Size()) //nolint:gosec // the size of a type
	}
	wipeableSizes.Store(pointer, n)
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
