package keystore_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"testing"

	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/secrettest"
	"github.com/datakeys/datakeys/sidecar/internal/keystore"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

var plaintext = []byte("0123456789abcdef0123456789ABCDEF")

// TestStoreUnderReaders publishes while many read. Run with -race, it also shows that no reader sees bytes that are
// being cleared.
func TestStoreUnderReaders(t *testing.T) {
	s := keystore.New([]string{"orders"})
	bytesOf := func(i int) []byte { return bytes.Repeat([]byte{byte(i%255 + 1)}, 64) }
	var published []*keystore.Issued
	publish := func(i int) {
		k := sidecartest.KeyOf(sidecartest.IssuedGeneration(t, "orders", 3, bytesOf(i)), sidecartest.IssuedGeneration(t, "orders", 1, bytesOf(i+7)))
		published = slices.AppendSeq(published, k.Plaintexts())
		s.Publish([]*keystore.DataKey{k})
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
				_, g := s.Get("orders", number)
				got := g.Issued.Plaintext.AppendTo(insecuresecret.Token{}, nil)
				if len(got) != 64 || got[0] == 0 || !bytes.Equal(got, bytes.Repeat(got[:1], 64)) {
					t.Errorf("a reader got %d bytes that are no plaintext", len(got))
				}
				g.Issued.Release()
			}
		})
	}
	for i := range 2000 {
		publish(i)
	}
	close(stop)
	readers.Wait()
	s.Close()
	for i, issued := range published {
		if !issued.Plaintext.IsZero() {
			t.Fatalf("plaintext %d of %d is left", i, len(published))
		}
	}
	for _, number := range []uint32{0, 3} {
		if _, g := s.Get("orders", number); g.State != keystore.StatePending || g.Reason != keystore.ReasonStopping {
			t.Errorf("after close: got %s %s", g.State, g.Reason)
		}
	}
}

func TestHoldingWhatIsGone(t *testing.T) {
	k := sidecartest.IssuedKey(t, "orders", plaintext).Issued
	k.Release()
	if k.Hold() {
		t.Error("a plaintext that is destroyed can be held")
	}
}

// TestTheAlgorithmIsTheAPIs: the sidecar repeats it, so as not to link what api/v1alpha1 imports.
func TestTheAlgorithmIsTheAPIs(t *testing.T) {
	declared, err := os.ReadFile(filepath.Join("..", "..", "..", "api", "v1alpha1", "labels.go"))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`AlgorithmAESGCM\s+= "` + keystore.AlgorithmAESGCM + `"`).Match(declared) {
		t.Errorf("AlgorithmAESGCM is not declared as %q", keystore.AlgorithmAESGCM)
	}
}

// TestNothingPrints gives everything that holds a plaintext to everything that prints.
func TestNothingPrints(t *testing.T) {
	key := sidecartest.IssuedKey(t, "orders", plaintext)
	s := keystore.New([]string{"orders"})
	s.Publish([]*keystore.DataKey{key})
	for name, holder := range map[string]any{
		"a data key": key, "a data key itself": *key, "a generation": key.Generation, "a generation itself": *key.Generation,
		"what is issued": key.Issued, "a store": s, "a snapshot": s.Now(), "an answer": keystore.JSON{Issued: key.Issued},
		"an answer in bytes": keystore.Bytes{Issued: key.Issued}, "a map": map[string]*keystore.DataKey{"orders": key},
	} {
		secrettest.CheckPrints(t, name, holder, map[string][]byte{"plaintext": plaintext})
	}
}

// BenchmarkStoreGet is what every answer with a plaintext begins and ends with.
func BenchmarkStoreGet(b *testing.B) {
	s := keystore.New(nil)
	s.Publish([]*keystore.DataKey{sidecartest.IssuedKey(b, "orders", plaintext)})
	b.ReportAllocs()
	for b.Loop() {
		_, g := s.Get("orders", 0)
		g.Issued.Release()
	}
}
