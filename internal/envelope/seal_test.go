package envelope

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

func newPlaintext(t testing.TB, n int) Plaintext {
	t.Helper()
	p, err := NewPlaintext(n)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func mustSeal(t testing.TB, m Material, h Header, ad AssociatedData, p Plaintext) []byte {
	t.Helper()
	blob, err := m.Seal(h, ad, p)
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

func mustParse(t testing.TB, blob []byte) *Blob {
	t.Helper()
	b, err := Parse(blob)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEveryKindAndSizeOpensAgain(t *testing.T) {
	m := NewMaterial()
	for _, kind := range allKinds() {
		for _, n := range []int{1, 15, 16, 17, 32, 1024, 4095, 4096} {
			for _, ad := range []AssociatedData{{}, {Context: map[string]string{"tenant": "a"}}, {Raw: []byte("raw")}} {
				h, p := testHeader(kind), newPlaintext(t, n)
				blob := mustSeal(t, m, h, ad, p)
				if got, want := len(blob), n+overhead(h); got != want {
					t.Errorf("%v of %d bytes: blob of %d bytes, want %d", kind, n, got, want)
				}
				b := mustParse(t, blob)
				if b.Header != h || !bytes.Equal(b.Marshal(), blob) {
					t.Errorf("%v of %d bytes: does not parse back", kind, n)
				}
				got, err := m.Open(b, ad)
				if err != nil || !got.Equal(p) || got.Len() != n {
					t.Errorf("%v of %d bytes: does not open to the same bytes: %v", kind, n, err)
				}
			}
		}
	}
}

func TestEveryFlippedBitAndEveryTruncationFails(t *testing.T) {
	m := NewMaterial()
	ad := AssociatedData{Context: map[string]string{"tenant": "a"}}
	for _, kind := range allKinds() {
		t.Run(kind.String(), func(t *testing.T) {
			blob := mustSeal(t, m, testHeader(kind), ad, newPlaintext(t, 32))
			if err := open(t, m, blob, ad); err != nil {
				t.Fatalf("undamaged: %v", err)
			}
			for i := range len(blob) * 8 {
				blob[i/8] ^= 1 << (i % 8)
				want := ErrBroken
				if i/8 < 2 {
					want = ErrNotMine // another format version or algorithm
				}
				if err := open(t, m, blob, ad); err != want {
					t.Errorf("bit %d of byte %d flipped: got %v, want %v", i%8, i/8, err, want)
				}
				blob[i/8] ^= 1 << (i % 8)
			}
			for n := range blob {
				if err := open(t, m, blob[:n], ad); err != ErrBroken {
					t.Errorf("cut to %d bytes: got %v, want ErrBroken", n, err)
				}
			}
			for _, tail := range [][]byte{{0}, blob[:1], blob} {
				if err := open(t, m, append(slices.Clip(blob), tail...), ad); err != ErrBroken {
					t.Errorf("%d bytes too many: got %v, want ErrBroken", len(tail), err)
				}
			}
		})
	}
}

func TestParseRefusesWhatIsTooLong(t *testing.T) {
	blob := mustSeal(t, NewMaterial(), testHeader(KindAWS), AssociatedData{}, newPlaintext(t, MaxPlaintextSize))
	for _, n := range []int{len(blob) + 1, MaxBlobSize, MaxBlobSize + 1, 1 << 20} {
		long := make([]byte, n)
		copy(long, blob)
		if b, err := Parse(long); b != nil || err != ErrBroken {
			t.Errorf("%d bytes: got %v, %v, want ErrBroken", n, b, err)
		}
	}
}

func TestParseKeepsNothingOfItsArgument(t *testing.T) {
	blob := mustSeal(t, NewMaterial(), testHeader(KindDataKey), AssociatedData{}, newPlaintext(t, 32))
	given := bytes.Clone(blob)
	b := mustParse(t, given)
	clear(given)
	clear(b.IV())
	if !bytes.Equal(b.Marshal(), blob) {
		t.Error("the blob changed with the bytes that it was parsed from, or with those of IV")
	}
}

func TestOpensOnlyAsItWasSealed(t *testing.T) {
	sealedContext := AssociatedData{Context: map[string]string{"tenant": "a", "purpose": "orders"}}
	m := NewMaterial()
	p := newPlaintext(t, 32)
	tests := map[string]struct {
		change func(*Header)
		ad     AssociatedData
		sealed AssociatedData
	}{
		"another kind with a scope": {change: func(h *Header) { h.Kind = KindMasterKeyVersion }},
		"a kind without scope":      {change: func(h *Header) { h.Kind, h.Scope = KindAWS, Scope{} }},
		"another key":               {change: func(h *Header) { h.KeyID[0] ^= 1 }},
		"another key version":       {change: func(h *Header) { h.KeyVersion++ }},
		"another material ID":       {change: func(h *Header) { h.MaterialID[15] ^= 1 }},
		"another namespace":         {change: func(h *Header) { h.Scope.Namespace = "team-b" }},
		"another name":              {change: func(h *Header) { h.Scope.Name = "orderz" }},
		"another generation":        {change: func(h *Header) { h.Scope.Generation++ }},
		"namespace and name cut elsewhere": {change: func(h *Header) {
			h.Scope.Namespace, h.Scope.Name = "team-ao", "rders"
		}},
		"no context":                {sealed: sealedContext},
		"a context where none was":  {ad: sealedContext},
		"a value changed":           {sealed: sealedContext, ad: AssociatedData{Context: map[string]string{"tenant": "b", "purpose": "orders"}}},
		"a value in capitals":       {sealed: sealedContext, ad: AssociatedData{Context: map[string]string{"tenant": "A", "purpose": "orders"}}},
		"a key changed":             {sealed: sealedContext, ad: AssociatedData{Context: map[string]string{"tenent": "a", "purpose": "orders"}}},
		"a pair less":               {sealed: sealedContext, ad: AssociatedData{Context: map[string]string{"tenant": "a"}}},
		"a pair more":               {sealed: sealedContext, ad: AssociatedData{Context: map[string]string{"tenant": "a", "purpose": "orders", "": ""}}},
		"values swapped":            {sealed: sealedContext, ad: AssociatedData{Context: map[string]string{"tenant": "orders", "purpose": "a"}}},
		"another raw":               {sealed: AssociatedData{Raw: []byte("a")}, ad: AssociatedData{Raw: []byte("b")}},
		"a longer raw":              {sealed: AssociatedData{Raw: []byte("a")}, ad: AssociatedData{Raw: []byte("a\x00")}},
		"raw for the same context":  {sealed: sealedContext, ad: AssociatedData{Raw: encode(sealedContext)}},
		"a decomposed letter":       {sealed: AssociatedData{Context: map[string]string{"\u00fc": ""}}, ad: AssociatedData{Context: map[string]string{"u\u0308": ""}}},
		"a header made invalid":     {change: func(h *Header) { h.KeyVersion = 0 }},
		"a scope made far too long": {change: func(h *Header) { h.Scope.Name = strings.Repeat("a", 1000) }},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			b := mustParse(t, mustSeal(t, m, testHeader(KindDataKey), test.sealed, p))
			if test.change != nil {
				test.change(&b.Header)
			}
			got, err := m.Open(b, test.ad)
			if err != ErrBroken || !got.IsZero() {
				t.Errorf("got %v, want ErrBroken", err)
			}
		})
	}
	t.Run("other material", func(t *testing.T) {
		b := mustParse(t, mustSeal(t, m, testHeader(KindDataKey), AssociatedData{}, p))
		if _, err := NewMaterial().Open(b, AssociatedData{}); err != ErrBroken {
			t.Errorf("got %v, want ErrBroken", err)
		}
	})
	t.Run("an empty context is none", func(t *testing.T) {
		b := mustParse(t, mustSeal(t, m, testHeader(KindDataKey), AssociatedData{Context: map[string]string{}}, p))
		if _, err := m.Open(b, AssociatedData{Raw: []byte{}}); err != nil {
			t.Error(err)
		}
	})
}

func TestCheckKey(t *testing.T) {
	h := testHeader(KindDataKey)
	b := mustParse(t, mustSeal(t, NewMaterial(), h, AssociatedData{}, newPlaintext(t, 32)))
	tests := map[string]struct {
		id       KeyID
		version  uint32
		material MaterialID
		want     error
	}{
		"its key":              {h.KeyID, h.KeyVersion, h.MaterialID, nil},
		"another key":          {NewKeyID(), h.KeyVersion, h.MaterialID, ErrNotMine},
		"another version":      {h.KeyID, h.KeyVersion + 1, h.MaterialID, ErrNotMine},
		"a version come again": {h.KeyID, h.KeyVersion, NewMaterialID(), ErrNotMine},
		"no key":               {KeyID{}, 0, MaterialID{}, ErrNotMine},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if err := b.CheckKey(test.id, test.version, test.material); err != test.want {
				t.Errorf("got %v, want %v", err, test.want)
			}
		})
	}
}

func TestABlobThatWasNotParsedIsRefused(t *testing.T) {
	literal := &Blob{Header: testHeader(KindDataKey)}
	var none *Blob
	for name, b := range map[string]*Blob{"a literal": literal, "nil": none} {
		if b.Marshal() != nil || b.IV() != nil {
			t.Errorf("%s: Marshal or IV return bytes", name)
		}
		if _, err := NewMaterial().Open(b, AssociatedData{}); err != ErrBroken {
			t.Errorf("%s: got %v, want ErrBroken", name, err)
		}
	}
}

func TestSealingTwiceSharesNothing(t *testing.T) {
	m, h, p := NewMaterial(), testHeader(KindAWS), newPlaintext(t, 32)
	a := mustParse(t, mustSeal(t, m, h, AssociatedData{}, p))
	b := mustParse(t, mustSeal(t, m, h, AssociatedData{}, p))
	if a.salt == b.salt || a.commitment == b.commitment || bytes.Equal(a.IV(), b.IV()) ||
		bytes.Equal(a.sealed[IVSize:], b.sealed[IVSize:]) {
		t.Error("two blobs of the same plaintext have something but their header in common")
	}
}

func TestNothingIsSealedOrOpenedWithoutItsSecret(t *testing.T) {
	m, h, p := NewMaterial(), testHeader(KindAWS), newPlaintext(t, 32)
	b := mustParse(t, mustSeal(t, m, h, AssociatedData{}, p))
	destroyed, gone := NewMaterial(), newPlaintext(t, 32)
	shared := destroyed
	destroyed.Destroy()
	destroyed.Destroy()
	gone.Destroy()
	for name, m := range map[string]Material{"zero": {}, "destroyed": destroyed, "copy of a destroyed one": shared} {
		if blob, err := m.Seal(h, AssociatedData{}, p); !errors.Is(err, ErrDestroyed) || blob != nil {
			t.Errorf("%s material, Seal: got %v, want ErrDestroyed", name, err)
		}
		if got, err := m.Open(b, AssociatedData{}); !errors.Is(err, ErrDestroyed) || !got.IsZero() {
			t.Errorf("%s material, Open: got %v, want ErrDestroyed", name, err)
		}
		if got, err := PlaintextOfMaterial(NewMaterialID(), m); !errors.Is(err, ErrDestroyed) || !got.IsZero() {
			t.Errorf("%s material, PlaintextOfMaterial: got %v, want ErrDestroyed", name, err)
		}
		if !m.IsZero() || m.AppendTo(insecuresecret.Token{}, nil) != nil || m.Equal(m) || m.Equal(NewMaterial()) {
			t.Errorf("%s material: not zero, has bytes, or equals something", name)
		}
	}
	for name, p := range map[string]Plaintext{"zero": {}, "destroyed": gone} {
		if blob, err := m.Seal(h, AssociatedData{}, p); !errors.Is(err, ErrDestroyed) || blob != nil {
			t.Errorf("%s plaintext, Seal: got %v, want ErrDestroyed", name, err)
		}
		if _, got, err := p.Material(); !errors.Is(err, ErrDestroyed) || !got.IsZero() {
			t.Errorf("%s plaintext, Material: got %v, want ErrDestroyed", name, err)
		}
		if !p.IsZero() || p.Len() != 0 || p.AppendTo(insecuresecret.Token{}, nil) != nil || p.Equal(p) {
			t.Errorf("%s plaintext: not zero, has bytes, or equals something", name)
		}
	}
}

// A destruction in the middle of uses must let each of them either succeed whole or fail, and nothing may be sealed
// with cleared bytes. Run with -race.
func TestDestroyWhileInUse(t *testing.T) {
	key := counted(1, MaterialSize)
	m, err := MaterialFromBytes(key)
	if err != nil {
		t.Fatal(err)
	}
	same, err := MaterialFromBytes(key)
	if err != nil {
		t.Fatal(err)
	}
	p := newPlaintext(t, 32)
	started, destroyed := make(chan struct{}), make(chan struct{})
	var first sync.Once
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for last := false; ; {
				select {
				case <-destroyed:
					last = true
				default:
				}
				blob, err := m.Seal(testHeader(KindAWS), AssociatedData{}, p)
				first.Do(func() { close(started) })
				if err != nil {
					if !errors.Is(err, ErrDestroyed) {
						t.Error(err)
					}
					return
				}
				if last {
					t.Error("sealed after Destroy")
					return
				}
				if err := open(t, same, blob, AssociatedData{}); err != nil {
					t.Errorf("sealed with something else than the material: %v", err)
				}
				m.Equal(same)
				same.Equal(m)
			}
		})
	}
	<-started
	m.Destroy()
	close(destroyed)
	all.Wait()
}

func TestFingerprint(t *testing.T) {
	m, err := MaterialFromBytes(counted(1, MaterialSize))
	if err != nil {
		t.Fatal(err)
	}
	want, err := hkdf.Key(sha256.New, counted(1, MaterialSize), nil, "name", 16)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := m.Fingerprint("name", 16); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %x, %v, want %x", got, err, want)
	}
	if got, err := (Material{}).Fingerprint("name", 16); got != nil || !errors.Is(err, ErrDestroyed) {
		t.Errorf("no material: got %x, %v, want ErrDestroyed", got, err)
	}
}

func TestMaterialAsPlaintext(t *testing.T) {
	id, m := NewMaterialID(), NewMaterial()
	p, err := PlaintextOfMaterial(id, m)
	if err != nil || p.Len() != 48 {
		t.Fatalf("got %d bytes, %v", p.Len(), err)
	}
	gotID, got, err := p.Material()
	if err != nil || gotID != id || !got.Equal(m) {
		t.Errorf("does not read back: %v, %v", gotID, err)
	}
	p.Destroy()
	if !got.Equal(m) {
		t.Error("the material shares bytes with its plaintext")
	}
	if _, err := PlaintextOfMaterial(MaterialID{}, m); !errors.Is(err, ErrInvalid) {
		t.Errorf("zero ID: got %v, want ErrInvalid", err)
	}
	for name, b := range map[string][]byte{
		"a byte short":  counted(1, 47),
		"a byte long":   counted(1, 49),
		"zero ID":       append(make([]byte, 16), counted(1, 32)...),
		"zero material": append(counted(1, 16), make([]byte, 32)...),
	} {
		p, err := PlaintextFromBytes(b)
		if err != nil {
			t.Fatal(err)
		}
		if id, m, err := p.Material(); !errors.Is(err, ErrInvalid) || !id.IsZero() || !m.IsZero() {
			t.Errorf("%s: got %v, %v, want ErrInvalid", name, id, err)
		}
	}
}

func TestWorksUnderFIPSOnly(t *testing.T) {
	if !fips140.Enforced() {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestWorksUnderFIPSOnly$", "-test.v")
		child.Env = append(os.Environ(), "GODEBUG=fips140=only")
		out, err := child.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("enforced: sealed and opened")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	block, err := aes.NewCipher(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cipher.NewGCM(block); err == nil {
		t.Fatal("AES-GCM with an IV of the caller's is allowed: this does not run under fips140=only")
	}
	for _, kind := range allKinds() {
		m, h, ad := NewMaterial(), testHeader(kind), AssociatedData{Context: map[string]string{"tenant": "a"}}
		p := newPlaintext(t, 32)
		got, err := m.Open(mustParse(t, mustSeal(t, m, h, ad, p)), ad)
		if err != nil || !got.Equal(p) {
			t.Errorf("%v: does not open again: %v", kind, err)
		}
	}
	for _, v := range readVectors(t).Good {
		m, err := MaterialFromBytes(v.Material)
		if err != nil {
			t.Fatal(err)
		}
		if err := open(t, m, v.Blob, v.data()); err != nil {
			t.Errorf("vector %q: %v", v.Name, err)
		}
	}
	t.Log("enforced: sealed and opened")
}
