package envelope

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

func pairs(n int) map[string]string {
	m := map[string]string{}
	for i := range n {
		m[fmt.Sprint(i)] = ""
	}
	return m
}

func TestAssociatedDataValidation(t *testing.T) {
	tests := map[string]struct {
		ad   AssociatedData
		want string // a part of the error; none: valid
	}{
		"none":                           {AssociatedData{}, ""},
		"an empty context beside raw":    {AssociatedData{Context: map[string]string{}, Raw: []byte("a")}, ""},
		"a context beside empty raw":     {AssociatedData{Context: pairs(1), Raw: []byte{}}, ""},
		"an empty key and value":         {AssociatedData{Context: map[string]string{"": ""}}, ""},
		"the largest raw":                {AssociatedData{Raw: make([]byte, 8192)}, ""},
		"the largest context":            {AssociatedData{Context: map[string]string{"key": strings.Repeat("v", 8189)}}, ""},
		"the most pairs":                 {AssociatedData{Context: pairs(1024)}, ""},
		"both":                           {AssociatedData{Context: pairs(1), Raw: []byte("a")}, "only one of them"},
		"raw of one byte too many":       {AssociatedData{Raw: make([]byte, 8193)}, "raw associated data of 8193 bytes: must be at most 8192"},
		"a context of one byte too many": {AssociatedData{Context: map[string]string{"key": strings.Repeat("v", 8190)}}, "at most 8192 bytes together"},
		"a pair too many":                {AssociatedData{Context: pairs(1025)}, "context of 1025 pairs: must be at most 1024"},
		"a key that is not UTF-8":        {AssociatedData{Context: map[string]string{"\xff": ""}}, "valid UTF-8"},
		"a value that is not UTF-8":      {AssociatedData{Context: map[string]string{"": "\xff"}}, "valid UTF-8"},
	}
	m, p := NewMaterial(), newPlaintext(t, 32)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			blob, err := m.Seal(testHeader(KindAWS), test.ad, p)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if err := open(t, m, blob, test.ad); err != nil {
					t.Errorf("does not open again: %v", err)
				}
				return
			}
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), test.want) || blob != nil {
				t.Errorf("Seal: got %v, want ErrInvalid that says %q", err, test.want)
			}
			if strings.Contains(fmt.Sprint(err), "vvv") {
				t.Error("the error repeats the value")
			}
			if _, err := m.Open(&Blob{}, test.ad); !errors.Is(err, ErrInvalid) {
				t.Errorf("Open: got %v, want ErrInvalid", err)
			}
		})
	}
}

func encode(ad AssociatedData) []byte {
	var w strings.Builder
	pairs, size, err := ad.check(nil)
	if err != nil {
		panic(err)
	}
	ad.write(&w, pairs)
	if w.Len() != size {
		panic("internal error: check and write disagree")
	}
	return []byte(w.String())
}

// decode undoes the encoding. That it can, and finds the end by itself, is what makes the encoding injective, also
// with anything written before or after it.
func decode(b []byte) (ad AssociatedData, rest []byte) {
	next := func() []byte {
		n := binary.BigEndian.Uint32(b)
		field := b[4 : 4+n]
		b = b[4+n:]
		return field
	}
	kind := b[0]
	b = b[1:]
	switch kind {
	case 1:
		count := binary.BigEndian.Uint32(b)
		b = b[4:]
		ad.Context = map[string]string{}
		for range count {
			k := string(next())
			ad.Context[k] = string(next())
		}
	case 2:
		ad.Raw = next()
	}
	return ad, b
}

func sameAssociated(a, b AssociatedData) bool {
	return maps.Equal(a.Context, b.Context) && bytes.Equal(a.Raw, b.Raw)
}

func FuzzAssociatedDataInjective(f *testing.F) {
	f.Add("tenant", "a", "purpose", "orders", []byte(nil))
	f.Add("a", "bc", "ab", "c", []byte(nil))
	f.Add("", "", "\x00", "\x00\x00\x00\x01", []byte("raw"))
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2 string, raw []byte) {
		all := []AssociatedData{
			{},
			{Raw: raw},
			{Raw: []byte(k1)},
			{Raw: []byte(k1 + v1)},
			{Context: map[string]string{k1: v1}},
			{Context: map[string]string{k2: v2}},
			{Context: map[string]string{k1: v1, k2: v2}},
			{Context: map[string]string{k1: v2, k2: v1}},
			{Context: map[string]string{k1 + v1: "", k2: v2}},
			{Context: map[string]string{k1: v1 + k2 + v2}},
		}
		invalid := func(ad AssociatedData) bool { return ad.Validate() != nil }
		all = slices.DeleteFunc(all, invalid)
		for _, ad := range all {
			all = append(all, AssociatedData{Raw: encode(ad)})
		}
		all = slices.DeleteFunc(all, invalid)
		for _, a := range all {
			encoded := encode(a)
			got, rest := decode(append(slices.Clip(encoded), raw...))
			if !sameAssociated(got, a) || !bytes.Equal(rest, raw) {
				t.Fatalf("%+v does not read back from its encoding", a)
			}
			if straight := straightAssociated(vectorAssociated{Context: a.Context, Raw: a.Raw}); !bytes.Equal(encoded, straight) {
				t.Fatalf("%+v: got %x, the straight-line implementation says %x", a, encoded, straight)
			}
			for _, b := range all {
				if bytes.Equal(encoded, encode(b)) != sameAssociated(a, b) {
					t.Fatalf("%+v and %+v: same encoding for different data, or the other way round", a, b)
				}
			}
		}
	})
}
