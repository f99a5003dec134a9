package sidecar

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"testing"

	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/sidecar/internal/keyservice"
)

// TestStoreUnderReaders publishes while many read. Run with -race, it also shows that no reader sees bytes that are
// being cleared.
func TestStoreUnderReaders(t *testing.T) {
	s := newStore([]string{"orders"})
	plaintext := func(i int) []byte { return bytes.Repeat([]byte{byte(i%255 + 1)}, 64) }
	var published []*issued
	publish := func(i int) {
		k := keyOf(issuedGeneration(t, "orders", 3, plaintext(i)), issuedGeneration(t, "orders", 1, plaintext(i+7)))
		published = slices.AppendSeq(published, k.plaintexts())
		s.publish([]*dataKey{k})
	}
	publish(0)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for _, number := range []uint32{0, 0, 3, 1} {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				_, g := s.get("orders", number)
				got := g.issued.plaintext.AppendTo(insecuresecret.Token{}, nil)
				if len(got) != 64 || got[0] == 0 || !bytes.Equal(got, bytes.Repeat(got[:1], 64)) {
					t.Errorf("a reader got %d bytes that are no plaintext", len(got))
				}
				g.issued.release()
			}
		})
	}
	for i := range 2000 {
		publish(i)
	}
	close(stop)
	readers.Wait()
	s.close()
	for i, issued := range published {
		if !issued.plaintext.IsZero() {
			t.Fatalf("plaintext %d of %d is left", i, len(published))
		}
	}
	for _, number := range []uint32{0, 3} {
		if _, g := s.get("orders", number); g.State != StatePending || g.Reason != ReasonStopping {
			t.Errorf("after close: got %s %s", g.State, g.Reason)
		}
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
	bodies := []secretBody{
		issuedJSON{key.issued}, issuedBytes{key.issued}, &decrypted{plaintext: hide(testPlaintext)},
		&decrypted{plaintext: hide(testPlaintext), json: true},
	}
	taken := &body{bytes: hide(testPlaintext), decoded: hide(testPlaintext)}
	asked := &keptGeneration{generation: key.generation}
	tended := &keptKey{name: "orders", generations: []*keptGeneration{asked}, newest: asked, current: asked}
	for _, holder := range []any{
		key, *key, key.issued, s, s.now(), bodies, taken, *taken,
		bodies[0], bodies[1], bodies[2], bodies[3], secretReader{bodies[0]}, secretReader{bodies[1]}, secretReader{bodies[2]},
		key.generation, *key.generation, []*generation{key.generation}, asked, *asked, wanted{asked, tended}, []wanted{{asked, tended}},
		tended, *tended,
		keyservice.Opened{Plaintext: key.issued.plaintext},
		&keyservice.Opened{Plaintext: key.issued.plaintext},
		[]keyservice.Opened{{Plaintext: key.issued.plaintext}},
		map[string]*dataKey{"orders": key},
		handler(s), &keeper{store: s, kept: map[string]*keptKey{"orders": tended}},
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

// TestTheAlgorithmIsTheAPIs: the sidecar repeats it, so as not to link what api/v1alpha1 imports.
func TestTheAlgorithmIsTheAPIs(t *testing.T) {
	declared, err := os.ReadFile(filepath.Join("..", "api", "v1alpha1", "labels.go"))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`AlgorithmAESGCM\s+= "` + algorithmAESGCM + `"`).Match(declared) {
		t.Errorf("AlgorithmAESGCM is not declared as %q", algorithmAESGCM)
	}
}
