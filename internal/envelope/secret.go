package envelope

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"

	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// MaterialSize is the size of wrapping key material in bytes.
const MaterialSize = 32

// secret holds the bytes of a Material or Plaintext in memory of the arena. They stand behind its pointer, and there
// inside a function value. A pointer alone does not hide them: fmt calls no method on an unexported field of somebody's
// struct, and for a verb that does not fit a pointer, such as %s, it follows the pointer and prints what it finds. Into
// a function neither fmt nor any other printer that works by reflection can look.
type secret struct {
	mu        sync.RWMutex // so that destroying waits for uses and no use sees half-cleared bytes
	slot      slot         // none once destroyed
	forgotten runtime.Cleanup
}

// newSecret returns n zero bytes. Until it is given away, its maker alone uses them, and fills them.
func newSecret(n int) *secret {
	s := &secret{slot: keys.alloc(n)}
	// Secrets that are dropped without Destroy are cleared when the garbage collector finds out.
	s.forgotten = runtime.AddCleanup(s, slot.release, s.slot)
	return s
}

// use calls f with the live bytes. They must not be kept.
func (s *secret) use(f func([]byte) error) error {
	if s == nil {
		return ErrDestroyed
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.slot.slab == nil {
		return ErrDestroyed
	}
	return f(s.slot.bytes())
}

func (s *secret) appendTo(dst []byte) []byte {
	_ = s.use(func(b []byte) error { dst = append(dst, b...); return nil })
	return dst
}

func (s *secret) len() (n int) {
	_ = s.use(func(b []byte) error { n = len(b); return nil })
	return n
}

func (s *secret) destroy() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.slot.slab != nil {
		s.forgotten.Stop()
		s.slot.release()
		s.slot = slot{}
	}
}

// equal holds one lock at a time, so that two comparisons and two destructions cannot wait for each other.
func (s *secret) equal(t *secret) bool {
	var copied []byte
	if t.use(func(b []byte) error { copied = bytes.Clone(b); return nil }) != nil {
		return false
	}
	defer clear(copied)
	same := false
	_ = s.use(func(b []byte) error { same = subtle.ConstantTimeCompare(b, copied) == 1; return nil })
	return same
}

// Material is the wrapping key material of one key version: 32 secret bytes. It is made by NewMaterial,
// MaterialFromBytes or Plaintext.Material; the zero Material holds none and does nothing but fail. Copies of a
// Material share the bytes. It is safe for concurrent use.
type Material struct {
	opaque
	s *secret
}

// NewMaterial returns random material.
func NewMaterial() Material {
	s := newSecret(MaterialSize)
	rand.Read(s.slot.bytes())
	return Material{s: s}
}

// MaterialFromBytes returns material that holds a copy of b, which must be 32 bytes and not all zero. Clearing b is
// up to the caller.
func MaterialFromBytes(b []byte) (Material, error) {
	if len(b) != MaterialSize {
		return Material{}, fmt.Errorf("%w: material of %d bytes: must be %d bytes", ErrInvalid, len(b), MaterialSize)
	}
	// A buffer that nobody filled must not become a key.
	if subtle.ConstantTimeCompare(b, make([]byte, MaterialSize)) == 1 {
		return Material{}, fmt.Errorf("%w: material: must not be all zero", ErrInvalid)
	}
	s := newSecret(MaterialSize)
	copy(s.slot.bytes(), b)
	return Material{s: s}, nil
}

// Use calls f with the live bytes and returns its error; it returns ErrDestroyed, without a call, for material that is
// zero or destroyed. Destroy waits for f. The bytes must not be changed, nor kept after f returns: their place may then
// be given to another secret. Inside f, nothing else may be done with m: it could wait for f for ever.
func (m Material) Use(_ insecuresecret.Token, f func([]byte) error) error { return m.s.use(f) }

// AppendTo appends a copy of the bytes to dst, and nothing for material that is zero or destroyed. Clearing the copy
// is up to the caller.
func (m Material) AppendTo(_ insecuresecret.Token, dst []byte) []byte { return m.s.appendTo(dst) }

// Destroy clears the bytes, here and in every copy of m, and makes every later use fail with ErrDestroyed. It waits
// for uses under way, and may be called twice.
//
// Material that is dropped without Destroy is cleared when the garbage collector finds out, in its own time. What
// remains elsewhere in memory after either, docs/design/memory.md says.
func (m Material) Destroy() { m.s.destroy() }

// IsZero reports whether m holds no bytes: it was destroyed or never set.
func (m Material) IsZero() bool { return m.s.len() == 0 }

// Equal compares in constant time. Material without bytes equals nothing, not even itself.
func (m Material) Equal(other Material) bool { return m.s.equal(other.s) }

// Plaintext is what a blob protects: 1 to 4096 secret bytes, a data key or a private key. It is made by NewPlaintext,
// PlaintextFromBytes, PlaintextOfMaterial or Material.Open; the zero Plaintext holds none and does nothing but fail.
// Copies of a Plaintext share the bytes. It is safe for concurrent use.
type Plaintext struct {
	opaque
	s *secret
}

// NewPlaintext returns a random data key of n bytes, 1 to 4096.
func NewPlaintext(n int) (Plaintext, error) {
	if err := checkPlaintextSize(n); err != nil {
		return Plaintext{}, err
	}
	s := newSecret(n)
	rand.Read(s.slot.bytes())
	return Plaintext{s: s}, nil
}

// PlaintextFromBytes returns a plaintext that holds a copy of b, which must be 1 to 4096 bytes. Clearing b is up to
// the caller.
func PlaintextFromBytes(b []byte) (Plaintext, error) {
	if err := checkPlaintextSize(len(b)); err != nil {
		return Plaintext{}, err
	}
	s := newSecret(len(b))
	copy(s.slot.bytes(), b)
	return Plaintext{s: s}, nil
}

func checkPlaintextSize(n int) error {
	if n < 1 || n > MaxPlaintextSize {
		return fmt.Errorf("%w: plaintext of %d bytes: must be 1 to %d bytes", ErrInvalid, n, MaxPlaintextSize)
	}
	return nil
}

// PlaintextOfMaterial returns the plaintext of the kinds that protect material, KindMasterKeyVersion and
// KindSealingKey: the 16 bytes of the material's ID, then its 32 bytes.
func PlaintextOfMaterial(id MaterialID, m Material) (Plaintext, error) {
	if id.IsZero() {
		return Plaintext{}, fmt.Errorf("%w: material ID: must be set", ErrInvalid)
	}
	s := newSecret(len(id) + MaterialSize)
	out := s.slot.bytes()
	copy(out, id[:])
	if err := m.s.use(func(b []byte) error { copy(out[len(id):], b); return nil }); err != nil {
		s.destroy()
		return Plaintext{}, err
	}
	return Plaintext{s: s}, nil
}

// Material reads what PlaintextOfMaterial wrote. The plaintext must be destroyed apart.
func (p Plaintext) Material() (id MaterialID, m Material, err error) {
	err = p.s.use(func(b []byte) error {
		if len(b) != len(id)+MaterialSize || MaterialID(b).IsZero() {
			return fmt.Errorf("%w: plaintext: must be a material ID of %d bytes and material of %d bytes",
				ErrInvalid, len(id), MaterialSize)
		}
		m, err = MaterialFromBytes(b[len(id):])
		if err == nil {
			id = MaterialID(b)
		}
		return err
	})
	return id, m, err
}

// Use calls f with the live bytes and returns its error, as Material.Use does.
func (p Plaintext) Use(_ insecuresecret.Token, f func([]byte) error) error { return p.s.use(f) }

// AppendTo appends a copy of the bytes to dst, as Material.AppendTo does.
func (p Plaintext) AppendTo(_ insecuresecret.Token, dst []byte) []byte { return p.s.appendTo(dst) }

// Len returns the number of bytes, 0 for a plaintext that is zero or destroyed.
func (p Plaintext) Len() int { return p.s.len() }

// Destroy clears the bytes, here and in every copy of p, and makes every later use fail with ErrDestroyed. It waits
// for uses under way, and may be called twice. A plaintext that is dropped without it is cleared as Material is.
func (p Plaintext) Destroy() { p.s.destroy() }

// IsZero reports whether p holds no bytes: it was destroyed or never set.
func (p Plaintext) IsZero() bool { return p.s.len() == 0 }

// Equal compares in time that depends on the lengths alone. A plaintext without bytes equals nothing, not even itself.
func (p Plaintext) Equal(other Plaintext) bool { return p.s.equal(other.s) }

const redacted = "[redacted]"

// opaque makes the struct that embeds it incomparable, so that == does not compile, and every usual way to print or
// encode it say "[redacted]".
type opaque struct {
	_ [0]func()
}

// Format implements fmt.Formatter for every verb and flag.
func (opaque) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// String implements fmt.Stringer.
func (opaque) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (opaque) GoString() string { return redacted }

// LogValue implements slog.LogValuer.
func (opaque) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText implements encoding.TextMarshaler. There is no way back from the text.
func (opaque) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON implements json.Marshaler. There is no way back from the JSON.
func (opaque) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
