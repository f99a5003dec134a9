package envelope

import (
	"bytes"
	"testing"
)

// FuzzParse holds that Marshal undoes Parse, that only what Seal may write is read, and that nothing comes beside an
// error.
func FuzzParse(f *testing.F) {
	seed(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		given := bytes.Clone(data)
		b, err := Parse(data)
		if !bytes.Equal(data, given) {
			t.Fatal("Parse changed its argument")
		}
		if err != nil {
			if b != nil {
				t.Fatal("a blob beside an error")
			}
			if err != ErrBroken && err != ErrNotMine {
				t.Fatalf("got %v, want ErrBroken or ErrNotMine", err)
			}
			return
		}
		if err := b.Header.Validate(); err != nil {
			t.Fatalf("parsed a header that cannot be written: %v", err)
		}
		if !bytes.Equal(b.Marshal(), data) {
			t.Fatal("Marshal does not return what Parse read")
		}
		if n := len(data) - overhead(b.Header); n < 1 || n > MaxPlaintextSize {
			t.Fatalf("parsed a blob of a plaintext of %d bytes", n)
		}
	})
}

// FuzzOpen holds that nothing opens but what was sealed: of all blobs and associated data, the good vectors alone.
func FuzzOpen(f *testing.F) {
	good := readVectors(f).Good
	for _, v := range good {
		if len(v.Blob) < 512 {
			f.Add([]byte(v.Blob), "tenant", "a", "purpose", "orders", []byte(v.Raw))
		}
	}
	m, err := MaterialFromBytes(vectorMaterial)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte, k1, v1, k2, v2 string, raw []byte) {
		for _, ad := range []AssociatedData{{}, {Raw: raw}, {Context: map[string]string{k1: v1, k2: v2}}} {
			if ad.Validate() != nil || open(t, m, data, ad) != nil {
				continue
			}
			known := false
			for _, v := range good {
				known = known || bytes.Equal(v.Blob, data) && sameAssociated(v.data(), ad)
			}
			if !known {
				t.Fatalf("%x opens with %+v and was never sealed", data, ad)
			}
		}
	})
}

func seed(f *testing.F) {
	v := readVectors(f)
	for _, v := range v.Good {
		if len(v.Blob) < 512 {
			f.Add([]byte(v.Blob))
		}
	}
	for _, v := range v.Bad {
		if len(v.Blob) < 512 {
			f.Add([]byte(v.Blob))
		}
	}
}
