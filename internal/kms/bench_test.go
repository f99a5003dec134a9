package kms_test

import (
	"testing"

	"k8s.io/utils/clock"

	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
)

// BenchmarkDecrypt is the same without gRPC and TLS.
func BenchmarkDecrypt(b *testing.B) {
	w := settled(b)
	blob := w.Sealed(b, orders())
	w.Service = w.Unlimited(b, kmstest.Discard{}, clock.RealClock{})
	req := kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext}
	b.ReportAllocs()
	for b.Loop() {
		resp, err := w.Decrypt(b.Context(), app, req)
		if err != nil {
			b.Fatal(err)
		}
		resp.Plaintext.Destroy()
	}
}
