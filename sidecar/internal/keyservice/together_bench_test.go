package keyservice

import (
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

// BenchmarkDecrypt has callers decrypt at once, over gRPC and TLS on loopback: each by a call of its own, and together.
//
//	go test -run='^$' -bench=Decrypt ./sidecar/internal/keyservice
func BenchmarkDecrypt(b *testing.B) {
	service := sidecartest.NewKeyService(b)
	token := filepath.Join(b.TempDir(), "token")
	writeToken(b, token, "token")
	client := newTestClient(b, service.Address, service.Roots, token)
	request := &kmsv1.DecryptRequest{CiphertextBlob: service.Seal(b, "orders", 1, testPlaintext, nil)}

	for _, callers := range []int{1, 2, 4, 16, 64} {
		for _, of := range []struct {
			name   string
			client kmsv1.KeyServiceClient
		}{{"unary", client.kms}, {"together", client.Doors()}} {
			b.Run(of.name+"/"+strconv.Itoa(callers), func(b *testing.B) {
				b.ReportAllocs()
				left := make(chan struct{}, b.N)
				for range b.N {
					left <- struct{}{}
				}
				close(left)
				b.ResetTimer()
				var all sync.WaitGroup
				for range callers {
					all.Go(func() {
						for range left {
							if _, err := of.client.Decrypt(b.Context(), request); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				all.Wait()
			})
		}
	}
}
