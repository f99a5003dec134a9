package sidecar

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// TestStoreUnderReaders publishes while many read. Run with -race, it also shows that no reader sees bytes that are
// being cleared.
func TestStoreUnderReaders(t *testing.T) {
	s := newStore([]string{"orders"})
	plaintext := func(i int) []byte { return bytes.Repeat([]byte{byte(i%255 + 1)}, 64) }
	s.publish([]*dataKey{issuedKey(t, "orders", plaintext(0))})
	var published []*issued
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				k := s.get("orders")
				got := k.issued.plaintext.AppendTo(insecuresecret.Token{}, nil)
				if len(got) != 64 || got[0] == 0 || !bytes.Equal(got, bytes.Repeat(got[:1], 64)) {
					t.Errorf("a reader got %d bytes that are no plaintext", len(got))
				}
				k.issued.release()
			}
		})
	}
	for i := range 2000 {
		k := issuedKey(t, "orders", plaintext(i))
		published = append(published, k.issued)
		s.publish([]*dataKey{k})
	}
	close(stop)
	readers.Wait()
	s.close()
	for i, issued := range published {
		if !issued.plaintext.IsZero() {
			t.Fatalf("plaintext %d of %d is left", i, len(published))
		}
	}
	if k := s.get("orders"); k.State != StatePending || k.Reason != ReasonStopping {
		t.Errorf("after close: got %s %s", k.State, k.Reason)
	}
}

func TestHoldingWhatIsGone(t *testing.T) {
	k := issuedKey(t, "orders", testPlaintext).issued
	k.release()
	if k.hold() {
		t.Error("a plaintext that is destroyed can be held")
	}
}

// TestNothingPrints gives everything that holds a plaintext to everything that prints.
func TestNothingPrints(t *testing.T) {
	key := issuedKey(t, "orders", testPlaintext)
	s := newStore([]string{"orders"})
	s.publish([]*dataKey{key})
	body := secretBody{issued: key.issued}
	for _, holder := range []any{
		key, *key, key.issued, s, s.current.Load(), body, &body,
		secretReader{body},
		kept{dataKey: *key},
		&kept{dataKey: *key},
		Opened{Plaintext: key.issued.plaintext},
		&Opened{Plaintext: key.issued.plaintext},
		[]Opened{{Plaintext: key.issued.plaintext}},
		map[string]*dataKey{"orders": key},
		&api{store: s}, &keeper{store: s, kept: map[string]*kept{"orders": {dataKey: *key}}},
	} {
		what := fmt.Sprintf("%T", holder)
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
			checkHides(t, what+" with "+verb, fmt.Sprintf(verb, holder), testPlaintext)
		}
		encoded, _ := json.Marshal(holder) //nolint:errchkjson // most of these have no JSON
		checkHides(t, what+" as JSON", string(encoded), testPlaintext)
		var out bytes.Buffer
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "holder", holder)
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "holder", holder)
		checkHides(t, what+" in a log", out.String(), testPlaintext)
	}
	for form, planted := range map[string]string{
		"raw": "x" + string(testPlaintext), "hex": fmt.Sprintf("x%x", testPlaintext),
		"base64":                 base64.StdEncoding.EncodeToString(testPlaintext),
		"base64 after one byte":  base64.StdEncoding.EncodeToString(append([]byte("x"), testPlaintext...)),
		"base64 after two bytes": base64.StdEncoding.EncodeToString(append([]byte("xy"), testPlaintext...)),
	} {
		if found(planted, testPlaintext) == "" {
			t.Errorf("the search does not find the plaintext in %s", form)
		}
	}
}
