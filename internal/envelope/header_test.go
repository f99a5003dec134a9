package envelope

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// testHeader returns a valid header of the kind.
func testHeader(kind Kind) Header {
	h := Header{
		Kind:       kind,
		KeyID:      KeyID(counted(0x10, 16)),
		KeyVersion: 3,
		MaterialID: MaterialID(counted(0x20, 16)),
	}
	if kind.Scoped() {
		h.Scope = Scope{Namespace: "team-a", Name: "orders", Generation: 2}
	}
	return h
}

func allKinds() []Kind {
	return []Kind{KindDataKey, KindAWS, KindAlibabaInitial, KindAlibabaAdvance, KindMasterKeyVersion, KindSealingKey}
}

func TestHeaderValidation(t *testing.T) {
	scoped, unscoped := testHeader(KindDataKey), testHeader(KindAWS)
	tests := map[string]struct {
		header Header
		change func(*Header)
		want   string // a part of the error; none: valid
	}{
		"a scoped kind with its scope":             {scoped, func(*Header) {}, ""},
		"an unscoped kind without":                 {unscoped, func(*Header) {}, ""},
		"the longest namespace and name":           {scoped, func(h *Header) { h.Scope.Namespace, h.Scope.Name = strings.Repeat("a", 63), strings.Repeat("a", 253) }, ""},
		"a name with dots and digits":              {scoped, func(h *Header) { h.Scope.Name = "0.a-1.b" }, ""},
		"the zero kind":                            {scoped, func(h *Header) { h.Kind = 0 }, "header kind 0"},
		"a kind past the last":                     {scoped, func(h *Header) { h.Kind = 7 }, "header kind 7"},
		"no key ID":                                {scoped, func(h *Header) { h.KeyID = KeyID{} }, "header key ID"},
		"no key version":                           {scoped, func(h *Header) { h.KeyVersion = 0 }, "header key version"},
		"no material ID":                           {scoped, func(h *Header) { h.MaterialID = MaterialID{} }, "header material ID"},
		"a scoped kind without scope":              {scoped, func(h *Header) { h.Scope = Scope{} }, "header scope namespace"},
		"a scope without namespace":                {scoped, func(h *Header) { h.Scope.Namespace = "" }, "header scope namespace"},
		"a namespace of 64 bytes":                  {scoped, func(h *Header) { h.Scope.Namespace = strings.Repeat("a", 64) }, "at most 63 bytes"},
		"a namespace with a dot":                   {scoped, func(h *Header) { h.Scope.Namespace = "a.b" }, "header scope namespace"},
		"a namespace with a capital letter":        {scoped, func(h *Header) { h.Scope.Namespace = "A" }, "header scope namespace"},
		"a scope without name":                     {scoped, func(h *Header) { h.Scope.Name = "" }, "header scope name"},
		"a name of 254 bytes":                      {scoped, func(h *Header) { h.Scope.Name = strings.Repeat("a", 254) }, "at most 253 bytes"},
		"a name that starts with a dot":            {scoped, func(h *Header) { h.Scope.Name = ".a" }, "header scope name"},
		"a name with a zero byte":                  {scoped, func(h *Header) { h.Scope.Name = "a\x00" }, "header scope name"},
		"a scope without generation":               {scoped, func(h *Header) { h.Scope.Generation = 0 }, "header scope generation"},
		"an unscoped kind with a whole scope":      {unscoped, func(h *Header) { h.Scope = scoped.Scope }, "header scope: must be absent"},
		"an unscoped kind with a generation alone": {unscoped, func(h *Header) { h.Scope.Generation = 1 }, "header scope: must be absent"},
	}
	m, p := NewMaterial(), newPlaintext(t, 32)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			h := test.header
			test.change(&h)
			err := h.Validate()
			blob, sealErr := m.Seal(h, AssociatedData{}, p)
			if test.want == "" {
				if err != nil || sealErr != nil {
					t.Fatalf("got %v and %v from Seal, want none", err, sealErr)
				}
				return
			}
			for _, err := range []error{err, sealErr} {
				if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want ErrInvalid that says %q", err, test.want)
				}
			}
			if blob != nil {
				t.Error("Seal returns a blob beside an error")
			}
			// The same rule must hold when reading: such a header, written without the check, is not parsed.
			if len(h.Scope.Namespace) < 256 && len(h.Scope.Name) < 256 {
				written := append(h.append(nil), make([]byte, saltSize+commitmentSize+IVSize+1+tagSize)...)
				if b, err := Parse(written); b != nil || err != ErrBroken {
					t.Errorf("Parse: got %v, %v, want ErrBroken", b, err)
				}
			}
		})
	}
}

func TestKindsHaveNamesAndKnowTheirScope(t *testing.T) {
	for _, kind := range allKinds() {
		if !kind.Valid() || strings.Contains(kind.String(), "(") {
			t.Errorf("%v is not valid", kind)
		}
	}
	for _, kind := range []Kind{0, 7, 255} {
		if kind.Valid() || kind.Scoped() {
			t.Errorf("%v is valid", kind)
		}
	}
	var scoped []Kind
	for kind := range Kind(255) {
		if kind.Scoped() {
			scoped = append(scoped, kind)
		}
	}
	if want := []Kind{KindDataKey, KindMasterKeyVersion}; !slices.Equal(scoped, want) {
		t.Errorf("scoped kinds: got %v, want %v", scoped, want)
	}
}

func TestParseKeyID(t *testing.T) {
	const canonical = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
	id, err := ParseKeyID(canonical)
	if err != nil || id.String() != canonical {
		t.Fatalf("got %v, %v, want %s", id, err, canonical)
	}
	for name, s := range map[string]string{
		"empty":                "",
		"upper case":           strings.ToUpper(canonical),
		"without hyphens":      strings.ReplaceAll(canonical, "-", ""),
		"in braces":            "{" + canonical + "}",
		"as a URN":             "urn:uuid:" + canonical,
		"one digit short":      canonical[:35],
		"one digit long":       canonical + "0",
		"a letter past f":      "g" + canonical[1:],
		"a hyphen moved":       "6ba7b81-09dad-41d1-80b4-00c04fd430c8",
		"a colon for a hyphen": "6ba7b810:9dad-41d1-80b4-00c04fd430c8",
		"a hyphen for a digit": "6ba7b81--9dad-41d1-80b4-00c04fd430c8",
		"the nil UUID":         "00000000-0000-0000-0000-000000000000",
	} {
		if id, err := ParseKeyID(s); !errors.Is(err, ErrInvalid) || !id.IsZero() {
			t.Errorf("%s: got %v, %v, want ErrInvalid", name, id, err)
		}
	}
}

func TestNewIDsAreFreshAndWellFormed(t *testing.T) {
	id := NewKeyID()
	if again, err := ParseKeyID(id.String()); err != nil || again != id {
		t.Errorf("%v does not parse back: %v, %v", id, again, err)
	}
	if s := id.String(); s[14] != '4' || !strings.ContainsRune("89ab", rune(s[19])) {
		t.Errorf("%s is not a UUID of version 4", s)
	}
	if id == NewKeyID() || NewMaterialID() == NewMaterialID() {
		t.Error("two new IDs are the same")
	}
}
