package envelope

import (
	"bytes"
	"encoding"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/secrettest"
)

// holder is somebody's struct with secrets in it.
type holder struct {
	Material  Material
	Pointer   *Material
	Plaintext Plaintext
	List      []Plaintext
	Map       map[string]Material
	Any       any

	material  Material
	pointer   *Material
	plaintext Plaintext
	list      []Plaintext
	any       any
}

func TestSecretsPrintNothing(t *testing.T) {
	// Bytes that are found again in every way to write them, of both lengths, and none of them ASCII.
	key := []byte("\xf1\xe2\xd3\xc4\xb5\xa6\x97\x88\xf9\xea\xdb\xcc\xbd\xae\x9f\x80\xe1\xf2\xc3\xd4\xa5\xb6\x87\x98\xe9\xfa\xcb\xdc\xad\xbe\x8f\x90")
	m, err := MaterialFromBytes(key)
	if err != nil {
		t.Fatal(err)
	}
	p, err := PlaintextFromBytes(key)
	if err != nil {
		t.Fatal(err)
	}
	h := holder{
		m, &m, p,
		[]Plaintext{p},
		map[string]Material{"a": m},
		p,
		m, &m, p,
		[]Plaintext{p},
		m,
	}
	values := map[string]any{
		"material": m, "pointer to material": &m, "plaintext": p, "pointer to plaintext": &p,
		"holder": h, "pointer to holder": &h, "list": []any{m, p}, "map": map[string]any{"m": m, "p": &p},
		"what stands behind it": m.s, "its memory": m.s.slot,
		"an error that wraps it": fmt.Errorf("broken: %v", m),
		"blob header beside it":  struct{ h, m any }{testHeader(KindAWS), m},
	}
	for name, v := range values {
		t.Run(name, func(t *testing.T) {
			for how, text := range everyPrint(v) {
				if where := secrettest.Find(text, key); where != "" {
					t.Errorf("%s shows the secret as %s", how, where)
				}
			}
		})
	}
	for how, text := range everyPrint(m) {
		if !slices.Contains([]string{"gob", "reflection", "fmt %w"}, how) && !strings.Contains(text, redacted) {
			t.Errorf("%s does not say %s: %q", how, redacted, text)
		}
	}
}

// everyPrint is how everything prints a value, the printers for debugging too.
func everyPrint(v any) map[string]string {
	out := secrettest.Prints(v)
	out["reflection"] = dump(reflect.ValueOf(v))
	return out
}

func TestDumpShowsAPlantedSecret(t *testing.T) {
	key := counted(0x81, 32)
	if text := dump(reflect.ValueOf(&struct{ key []byte }{key})); secrettest.Find(text, key) == "" {
		t.Errorf("not found in %q", text)
	}
}

// dump prints what the printers for debugging print, which ask no method and follow every pointer.
func dump(v reflect.Value) string {
	var out strings.Builder
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			out.WriteString(dump(v.Elem()))
		}
	case reflect.Struct:
		for _, field := range v.Fields() {
			out.WriteString(dump(field))
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			out.WriteString(dump(v.Index(i)) + " ")
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			out.WriteString(dump(k) + dump(v.MapIndex(k)))
		}
	case reflect.String:
		out.WriteString(v.String())
	default:
		if v.CanUint() {
			fmt.Fprint(&out, v.Uint())
		}
	}
	return out.String()
}

func TestSecretsAreOpaqueTypes(t *testing.T) {
	for _, typ := range []reflect.Type{reflect.TypeFor[Material](), reflect.TypeFor[Plaintext]()} {
		if typ.Comparable() {
			t.Errorf("%v compiles with ==, which is not in constant time", typ)
		}
		for _, unwanted := range []reflect.Type{
			reflect.TypeFor[encoding.BinaryMarshaler](), reflect.TypeFor[encoding.BinaryUnmarshaler](),
			reflect.TypeFor[encoding.TextUnmarshaler](), reflect.TypeFor[json.Unmarshaler](),
			reflect.TypeFor[gob.GobEncoder](), reflect.TypeFor[gob.GobDecoder](),
		} {
			if reflect.PointerTo(typ).Implements(unwanted) {
				t.Errorf("%v implements %v", typ, unwanted)
			}
		}
		for field := range typ.Fields() {
			if field.IsExported() {
				t.Errorf("%v has the exported field %s", typ, field.Name)
			}
		}
	}
	if reflect.TypeFor[struct{}]().AssignableTo(reflect.TypeFor[insecuresecret.Token]()) {
		t.Error("struct{}{} passes for a Token, so the raw bytes can be read without importing its package")
	}
	var m Material
	if err := json.Unmarshal([]byte(`"`+redacted+`"`), &m); err == nil {
		t.Error("JSON reads into a Material")
	}
}

func TestSecretsCopyWhatTheyAreGiven(t *testing.T) {
	key := counted(1, 32)
	m, err := MaterialFromBytes(key)
	if err != nil {
		t.Fatal(err)
	}
	p, err := PlaintextFromBytes(key)
	if err != nil {
		t.Fatal(err)
	}
	clear(key)
	want := counted(1, 32)
	if !bytes.Equal(m.AppendTo(insecuresecret.Token{}, nil), want) || !bytes.Equal(p.AppendTo(insecuresecret.Token{}, nil), want) {
		t.Error("the secret changed with the bytes that it was made from")
	}
	// The live bytes are kept here, which nobody else may do, to see them cleared.
	var live []byte
	if err := p.Use(insecuresecret.Token{}, func(b []byte) error { live = b; return nil }); err != nil {
		t.Fatal(err)
	}
	p.Destroy()
	if !bytes.Equal(live, make([]byte, 32)) {
		t.Error("Destroy does not clear the bytes")
	}
}

func TestSecretSizes(t *testing.T) {
	for n, valid := range map[int]bool{-1: false, 0: false, 1: true, 4096: true, 4097: false} {
		p, err := NewPlaintext(n)
		if valid != (err == nil) || (err != nil && !errors.Is(err, ErrInvalid)) || (valid && p.Len() != n) {
			t.Errorf("NewPlaintext(%d): got %d bytes, %v", n, p.Len(), err)
		}
		if n >= 0 {
			p, err := PlaintextFromBytes(make([]byte, n))
			if valid != (err == nil) || (err != nil && !errors.Is(err, ErrInvalid)) || (valid && p.Len() != n) {
				t.Errorf("PlaintextFromBytes(%d bytes): got %d bytes, %v", n, p.Len(), err)
			}
		}
	}
	for name, b := range map[string][]byte{"none": nil, "31 bytes": counted(1, 31), "33 bytes": counted(1, 33), "zeros": make([]byte, 32)} {
		if m, err := MaterialFromBytes(b); !errors.Is(err, ErrInvalid) || !m.IsZero() {
			t.Errorf("MaterialFromBytes(%s): got %v, want ErrInvalid", name, err)
		}
	}
}

func TestSecretsEqual(t *testing.T) {
	a, b := NewMaterial(), NewMaterial()
	again, err := MaterialFromBytes(a.AppendTo(insecuresecret.Token{}, nil))
	if err != nil {
		t.Fatal(err)
	}
	if !a.Equal(a) || !a.Equal(again) || !again.Equal(a) || a.Equal(b) || a.Equal(Material{}) {
		t.Error("Material.Equal is wrong")
	}
	p, q := newPlaintext(t, 32), newPlaintext(t, 32)
	if !p.Equal(p) || p.Equal(q) || p.Equal(newPlaintext(t, 31)) || p.Equal(Plaintext{}) {
		t.Error("Plaintext.Equal is wrong")
	}
}
