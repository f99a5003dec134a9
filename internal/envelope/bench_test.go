package envelope

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"
)

// The bare primitives do on the same bytes what no implementation of the format can do without: AES-GCM with a key of its
// own by HKDF. The distance to them is the price of this package.

var benchSizes = []int{32, 1024}

func forSizes(b *testing.B, run func(b *testing.B, n int)) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprintf("%dB", n), func(b *testing.B) {
			run(b, n)
		})
	}
}

func benchAssociated() AssociatedData {
	return AssociatedData{Context: map[string]string{"tenant": "a", "purpose": "orders"}}
}

// benchInfo is the info of a blob with testHeader and benchAssociated.
func benchInfo() string {
	return label + string(testHeader(KindDataKey).append(nil)) + string(encode(benchAssociated()))
}

func bareGCM(b *testing.B, key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		b.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		b.Fatal(err)
	}
	return aead
}

// against runs two things by turns, so that what else the machine does meets both alike, and reports the median time of
// each and of the first by the second.
func against(b *testing.B, ours, bare func()) {
	var times [2][]float64
	for b.Loop() {
		for i, f := range []func(){ours, bare} {
			start := time.Now()
			f()
			times[i] = append(times[i], float64(time.Since(start)))
		}
	}
	var medians [2]float64
	for i := range times {
		slices.Sort(times[i])
		medians[i] = times[i][len(times[i])/2]
	}
	b.ReportMetric(medians[0], "ours-ns")
	b.ReportMetric(medians[1], "bare-ns")
	b.ReportMetric(medians[0]/medians[1], "times-bare")
	b.ReportMetric(testing.AllocsPerRun(100, ours)-testing.AllocsPerRun(100, bare), "allocs-above-bare")
	b.ReportMetric(0, "ns/op") // of both together: of no use
}

func BenchmarkSealAgainstBare(b *testing.B) {
	forSizes(b, func(b *testing.B, n int) {
		m, h, ad, p := NewMaterial(), testHeader(KindDataKey), benchAssociated(), newPlaintext(b, n)
		against(b, func() {
			if _, err := m.Seal(h, ad, p); err != nil {
				b.Fatal(err)
			}
		}, bareSeal(b, n))
	})
}

// BenchmarkOpenAgainstBare parses, opens and destroys, as every caller does.
func BenchmarkOpenAgainstBare(b *testing.B) {
	forSizes(b, func(b *testing.B, n int) {
		m, ad := NewMaterial(), benchAssociated()
		blob := mustSeal(b, m, testHeader(KindDataKey), ad, newPlaintext(b, n))
		against(b, func() {
			parsed, err := Parse(blob)
			if err != nil {
				b.Fatal(err)
			}
			p, err := m.Open(parsed, ad)
			if err != nil {
				b.Fatal(err)
			}
			p.Destroy()
		}, bareOpen(b, n))
	})
}

// BenchmarkParallelSealAndOpen shows what threads that use one material and the same memory cost each other.
func BenchmarkParallelSealAndOpen(b *testing.B) {
	m, h, ad := NewMaterial(), testHeader(KindDataKey), benchAssociated()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			p, err := NewPlaintext(32)
			if err != nil {
				b.Error(err)
				return
			}
			blob := mustSeal(b, m, h, ad, p)
			p.Destroy()
			opened, err := m.Open(mustParse(b, blob), ad)
			if err != nil {
				b.Error(err)
				return
			}
			opened.Destroy()
		}
	})
}

// BenchmarkMemoryPerKey reports what one of many materials costs beside its locked memory.
func BenchmarkMemoryPerKey(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				all := make([]Material, n)
				before := allocated()
				for i := range all {
					all[i] = NewMaterial()
				}
				b.ReportMetric(float64(allocated()-before)/float64(n), "B/key")
				for _, m := range all {
					m.Destroy()
				}
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// allocated is what Go holds for live objects, and to know of their cleanups.
func allocated() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc + stats.OtherSys
}

func bareSeal(b *testing.B, n int) func() {
	material, salt, plaintext, info := make([]byte, 32), make([]byte, 32), make([]byte, n), benchInfo()
	return func() {
		rand.Read(salt)
		okm, err := hkdf.Key(sha256.New, material, salt, info, 64)
		if err != nil {
			b.Fatal(err)
		}
		bareGCM(b, okm[:32]).Seal(nil, nil, plaintext, nil)
	}
}

func bareOpen(b *testing.B, n int) func() {
	material, salt, info := make([]byte, 32), make([]byte, 32), benchInfo()
	okm, err := hkdf.Key(sha256.New, material, salt, info, 64)
	if err != nil {
		b.Fatal(err)
	}
	sealed := bareGCM(b, okm[:32]).Seal(nil, nil, make([]byte, n), nil)
	return func() {
		okm, err := hkdf.Key(sha256.New, material, salt, info, 64)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := bareGCM(b, okm[:32]).Open(nil, nil, sealed, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBareAESGCM is what is left where a key may be used again.
func BenchmarkBareAESGCM(b *testing.B) {
	forSizes(b, func(b *testing.B, n int) {
		aead, plaintext := bareGCM(b, make([]byte, 32)), make([]byte, n)
		for b.Loop() {
			aead.Seal(nil, nil, plaintext, nil)
		}
	})
}
