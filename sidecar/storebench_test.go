package sidecar

import "testing"

// BenchmarkStoreGet is what every answer with a plaintext begins and ends with.
func BenchmarkStoreGet(b *testing.B) {
	s := newStore(nil)
	s.publish([]*dataKey{issuedKey(b, "orders", testPlaintext)})
	b.ReportAllocs()
	for b.Loop() {
		_, g := s.get("orders", 0)
		g.issued.release()
	}
}
