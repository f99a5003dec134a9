package kms_test

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"testing"

	"k8s.io/utils/clock"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
)

// A key service holds 10,000 master keys in at most 100 MB above an empty one.
func TestTenThousandMasterKeysFitInto100MB(t *testing.T) {
	const keys, most = 10_000, 100 << 20
	w := newWorld(t)
	refs := make([]kms.MasterKeyRef, keys)
	for i := range refs {
		refs[i] = kms.MasterKeyRef{KeyID: envelope.NewKeyID().String(), Namespace: fmt.Sprintf("team-%d", i%100), Name: fmt.Sprintf("key-%d", i)}
		if _, err := w.EnsureMasterKey(t.Context(), refs[i], terms, ""); err != nil {
			t.Fatal(err)
		}
	}
	empty := replica(t, w)
	w.Service = nil // what made the keys goes
	heap, resident := memory(t)
	for _, ref := range refs {
		if _, err := empty.MasterKey(t.Context(), ref); err != nil {
			t.Fatal(err)
		}
	}
	heapAfter, residentAfter := memory(t)
	t.Logf("10,000 master keys: %d KiB of heap, %d KiB resident", (heapAfter-heap)>>10, (residentAfter-resident)>>10)
	if took := max(heapAfter-heap, residentAfter-resident); took > most {
		t.Errorf("10,000 master keys take %d bytes, want at most %d", took, most)
	}
	runtime.KeepAlive(empty)
}

// memory returns what of the heap is in use, and what of the process is in memory: keys lie outside the heap. The latter is 0 where
// the system does not say.
func memory(t *testing.T) (heap, resident int64) {
	t.Helper()
	runtime.GC()
	runtime.GC() // the first may only have found what has a clean-up
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if status, err := os.ReadFile("/proc/self/status"); err == nil {
		if found := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(status); found != nil {
			kib, err := strconv.ParseInt(string(found[1]), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			resident = kib << 10
		}
	}
	return int64(m.HeapInuse), resident
}

// BenchmarkVersions does the same with a key of 1 and of 1,000 versions: the same time.
func BenchmarkVersions(b *testing.B) {
	for _, versions := range []uint32{1, 1000} {
		w := settled(b)
		blob := w.Sealed(b, orders())
		for v := uint32(2); v <= versions; v++ {
			w.AddVersion(b, ordersKey, v)
		}
		w.Service = w.Unlimited(b, kmstest.Discard{}, clock.RealClock{})
		p, err := envelope.NewPlaintext(32)
		if err != nil {
			b.Fatal(err)
		}
		// A key is loaded anew every 10 seconds before it encrypts, so that every replica uses the newest version soon.
		for name, call := range map[string]func() error{
			"Decrypt": func() error {
				_, err := w.Decrypt(b.Context(), app, kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext})
				return err
			},
			"Encrypt": func() error {
				_, err := w.Encrypt(b.Context(), allKeys, kms.EncryptRequest{KeyID: "orders", Plaintext: p, Door: kms.DoorAWS})
				return err
			},
		} {
			if err := call(); err != nil {
				b.Fatal(err)
			}
			b.Run(fmt.Sprintf("%s/%d", name, versions), func(b *testing.B) {
				for b.Loop() {
					if err := call(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
