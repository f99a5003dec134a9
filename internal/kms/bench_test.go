package kms_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
	"k8s.io/utils/clock"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/seal"
)

// BenchmarkDecryptOverTLS compares a Decrypt, its reviews answered from memory and its audit record written to a file,
// with an empty call to the same server.
func BenchmarkDecryptOverTLS(b *testing.B) {
	w := settled(b)
	file, err := os.Create(filepath.Join(b.TempDir(), "audit.log"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	blob := w.sealed(b, orders())
	w.Service = benchService(b, w, kms.NewJSONAuditor(file))
	conn := serve(b, w, registerEmpty)
	client := kmsv1.NewKeyServiceClient(conn)
	ctx := metadata.AppendToOutgoingContext(b.Context(), "authorization", "Bearer "+app)
	req := &kmsv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext}
	calls := map[string]func() error{
		"empty":   func() error { return conn.Invoke(ctx, "/test.Empty/Call", &emptypb.Empty{}, &emptypb.Empty{}) },
		"decrypt": func() error { _, err := client.Decrypt(ctx, req); return err },
	}
	for _, name := range []string{"empty", "decrypt"} {
		call := calls[name]
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := call(); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/parallel", func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := call(); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// BenchmarkDecrypt is the same without gRPC and TLS.
func BenchmarkDecrypt(b *testing.B) {
	w := settled(b)
	blob := w.sealed(b, orders())
	w.Service = benchService(b, w, discard{})
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

type discard struct{}

func (discard) Record(context.Context, kms.AuditRecord) error { return nil }

type allowed struct{}

func (allowed) Authorize(context.Context, kms.Caller, kms.Access) (bool, error) { return true, nil }

func benchService(b *testing.B, w *world, auditor kms.Auditor) *kms.Service {
	b.Helper()
	ring, err := seal.Open(b.Context(), seal.DefaultRootKey, w.store)
	if err != nil {
		b.Fatal(err)
	}
	s, err := kms.New(kms.Config{
		Seal: ring, Keys: w.store, MasterKeys: w.objects, Authenticator: w.tokens, Authorizer: allowed{}, Auditor: auditor,
		Clock: clock.RealClock{},
	})
	if err != nil {
		b.Fatal(err)
	}
	return s
}
