package envelope

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"testing"
)

// The bare benchmarks do on the same bytes what no implementation of the format can do without: AES-GCM alone, and
// AES-GCM with a key of its own by HKDF. The distance to them is the price of this package.

var benchSizes = []int{32, 1024}

func forSizes(b *testing.B, run func(b *testing.B, n int)) {
	for _, n := range benchSizes {
		b.Run(fmt.Sprintf("%dB", n), func(b *testing.B) {
			b.SetBytes(int64(n))
			b.ReportAllocs()
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

func BenchmarkSeal(b *testing.B) {
	forSizes(b, func(b *testing.B, n int) {
		m, h, ad, p := NewMaterial(), testHeader(KindDataKey), benchAssociated(), newPlaintext(b, n)
		for b.Loop() {
			if _, err := m.Seal(h, ad, p); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkBareHKDFAndAESGCMSeal(b *testing.B) {
	forSizes(b, func(b *testing.B, n int) {
		material, salt, plaintext, info := make([]byte, 32), make([]byte, 32), make([]byte, n), benchInfo()
		for b.Loop() {
			rand.Read(salt)
			okm, err := hkdf.Key(sha256.New, material, salt, info, 64)
			if err != nil {
				b.Fatal(err)
			}
			bareGCM(b, okm[:32]).Seal(nil, nil, plaintext, nil)
		}
	})
}

func BenchmarkBareAESGCMSeal(b *testing.B) {
	forSizes(b, func(b *testing.B, n int) {
		aead, plaintext := bareGCM(b, make([]byte, 32)), make([]byte, n)
		for b.Loop() {
			aead.Seal(nil, nil, plaintext, nil)
		}
	})
}

// BenchmarkOpen parses and opens, as every caller does.
func BenchmarkOpen(b *testing.B) {
	forSizes(b, func(b *testing.B, n int) {
		m, ad := NewMaterial(), benchAssociated()
		blob := mustSeal(b, m, testHeader(KindDataKey), ad, newPlaintext(b, n))
		for b.Loop() {
			parsed, err := Parse(blob)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := m.Open(parsed, ad); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkBareHKDFAndAESGCMOpen(b *testing.B) {
	forSizes(b, func(b *testing.B, n int) {
		material, salt, info := make([]byte, 32), make([]byte, 32), benchInfo()
		okm, err := hkdf.Key(sha256.New, material, salt, info, 64)
		if err != nil {
			b.Fatal(err)
		}
		sealed := bareGCM(b, okm[:32]).Seal(nil, nil, make([]byte, n), nil)
		for b.Loop() {
			okm, err := hkdf.Key(sha256.New, material, salt, info, 64)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := bareGCM(b, okm[:32]).Open(nil, nil, sealed, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkBareAESGCMOpen(b *testing.B) {
	forSizes(b, func(b *testing.B, n int) {
		aead := bareGCM(b, make([]byte, 32))
		sealed := aead.Seal(nil, nil, make([]byte, n), nil)
		for b.Loop() {
			if _, err := aead.Open(nil, nil, sealed, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}
