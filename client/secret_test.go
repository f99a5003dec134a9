package client

import (
	"encoding/json"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/secrettest"
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
		secrettest.CheckPrints(t, name, v, map[string][]byte{"data key": []byte(first)})
	}
	for _, v := range []any{s, *k, k} {
		for how, text := range secrettest.Prints(v) {
			if how == "fmt %w" { // it asks no method
				continue
			}
			// What prints a pointer in a struct prints an address.
			if _, ok := v.(*DataKey); ok && how != "json" && how != "fmt %v" {
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
					if form := secrettest.Find(string(b), []byte(test.plaintext)[:len(first)]); form != "" {
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
