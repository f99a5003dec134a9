package client

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/datakeys/datakeys/internal/envelope"
)

// TestNothingThatHoldsADataKeyPrintsIt. That envelope.Plaintext does not, package envelope tests in more ways.
func TestNothingThatHoldsADataKeyPrintsIt(t *testing.T) {
	p, err := envelope.PlaintextFromBytes([]byte(first))
	if err != nil {
		t.Fatal(err)
	}
	s := Secret{plaintext: p}
	k := &DataKey{Name: "orders", Generation: 1, Plaintext: s}
	h := &held{DataKey: k}
	for name, v := range map[string]any{
		"secret": s, "pointer to secret": &s, "data key": k, "data key itself": *k, "held": h, "flight": &flight{key: h},
		"AEAD": &AEAD{name: "orders", keys: map[uint32]*held{0: h}}, "list": []any{s, *k}, "somebody's struct": struct{ s Secret }{s},
	} {
		for how, text := range printed(v) {
			if form := find(text, []byte(first)); form != "" {
				t.Errorf("%s shows the %s as %s", how, name, form)
			}
		}
	}
	for _, v := range []any{s, *k, k} {
		for how, text := range printed(v) {
			// What prints a pointer in a struct prints an address.
			if _, ok := v.(*DataKey); ok && how != "json" && !strings.HasPrefix(how, "%v") {
				continue
			}
			if !strings.Contains(text, "[redacted]") {
				t.Errorf("%s of a %T says %q", how, v, text)
			}
		}
	}
	if reflect.TypeFor[Secret]().Comparable() {
		t.Error("a Secret compiles with ==, which is not in constant time")
	}
	if err := json.Unmarshal([]byte(`"[redacted]"`), &s); err == nil {
		t.Error("JSON reads into a Secret")
	}
}

func printed(v any) map[string]string {
	out := map[string]string{}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%d", "%c", "%U", "%o", "%b", "%e"} {
		out[verb] = fmt.Sprintf(verb, v)
	}
	if b, err := json.Marshal(v); err == nil {
		out["json"] = string(b)
	}
	var text, object bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Info("message", "value", v)
	slog.New(slog.NewJSONHandler(&object, nil)).Info("message", "value", v)
	out["slog text"], out["slog json"] = text.String(), object.String()
	return out
}

// find says how any eight bytes in a row of the secret are written in the text.
func find(text string, secret []byte) string {
	for i := 0; i+8 <= len(secret); i++ {
		part := secret[i : i+8]
		forms := map[string]string{
			"raw bytes": string(part), "hex": hex.EncodeToString(part), "upper-case hex": strings.ToUpper(hex.EncodeToString(part)),
			"hex with spaces": fmt.Sprintf("% x", part), "a decimal list": strings.Trim(fmt.Sprint(part), "[]"),
			"a Go byte list":  strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", part), "[]byte{"), "}"),
			"a quoted string": strings.Trim(fmt.Sprintf("%q", part), `"`),
		}
		for shift := range 3 {
			encoded := base64.RawStdEncoding.EncodeToString(append(make([]byte, shift), part...))
			forms[fmt.Sprint("base64 at ", shift)] = encoded[(shift*8+5)/6 : (shift+8)*8/6]
		}
		for form, needle := range forms {
			if strings.Contains(text, needle) {
				return form
			}
		}
	}
	return ""
}

// The search that the test above trusts must find what is there.
func TestFindFindsAPlantedSecret(t *testing.T) {
	for how, text := range printed(struct{ Key []byte }{[]byte(first)}) {
		if how == "%c" || how == "%U" || how == "%o" || how == "%b" || how == "%e" {
			continue
		}
		if find(text, []byte(first)) == "" {
			t.Errorf("not found in %s: %q", how, text)
		}
	}
}

// TestNoDataKeyStaysInABuffer looks at all memory that was read into, once the connections wait for the next answer: the buffer of
// net/http, and that of the answer.
func TestNoDataKeyStaysInABuffer(t *testing.T) {
	for name, test := range map[string]struct {
		plaintext string
		aad       []byte
		calls     int // at a time
	}{
		"an answer that fits into the buffer":   {first, nil, 1},
		"one that is longer than the buffer":    {strings.Repeat(second, 128), nil, 1},
		"one whose data key comes past it":      {first, make([]byte, envelope.MaxRawSize), 1},
		"more calls than there are connections": {first, nil, 2 * maxConns},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeSidecar(t, Options{}, test.plaintext)
				f.aad = test.aad
				seen := &seenReads{}
				f.wrap = func(c net.Conn) net.Conn { return seenConn{c, seen} }
				var calls sync.WaitGroup
				for range test.calls {
					calls.Go(func() {
						k, err := f.client.DataKey(t.Context(), "orders")
						if err != nil {
							t.Error(err)
							return
						}
						if got := k.Plaintext.AppendTo(nil); string(got) != test.plaintext {
							t.Error("that is not the key")
						}
						k.Destroy()
					})
				}
				calls.Wait()
				synctest.Wait()
				if len(seen.memory) < 2 {
					t.Fatalf("got %d reads", len(seen.memory))
				}
				for _, b := range seen.memory {
					if form := find(string(b), []byte(test.plaintext)[:len(first)]); form != "" {
						t.Fatalf("a buffer of %d bytes still holds the data key as %s", len(b), form)
					}
				}
			})
		})
	}
}

// seenReads is all memory that was read into.
type seenReads struct {
	mu     sync.Mutex
	memory [][]byte
}

type seenConn struct {
	net.Conn
	seen *seenReads
}

func (c seenConn) Read(p []byte) (int, error) {
	c.seen.mu.Lock()
	c.seen.memory = append(c.seen.memory, p)
	c.seen.mu.Unlock()
	return c.Conn.Read(p)
}
