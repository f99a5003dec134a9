package kms_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
	"k8s.io/utils/clock"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/seal"
)

// BenchmarkDecryptOverTLS compares a Decrypt, its reviews answered from memory and its audit record written to a file,
// with an empty call to the same server. The two take turns, so that whatever else the machine does slows down both, and the
// ratio is that of the medians.
func BenchmarkDecryptOverTLS(b *testing.B) {
	w := settled(b)
	file, err := os.Create(filepath.Join(b.TempDir(), "audit.log"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	blob := w.sealed(b, orders())
	w.Service = benchService(b, w, kms.NewJSONAuditor(file), clock.RealClock{})
	conn := serve(b, w, registerEmpty)
	client := kmsv1.NewKeyServiceClient(conn)
	ctx := metadata.AppendToOutgoingContext(b.Context(), "authorization", "Bearer "+app)
	req := &kmsv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext}
	empty := func() error { return conn.Invoke(ctx, "/test.Empty/Call", &emptypb.Empty{}, &emptypb.Empty{}) }
	decrypt := func() error { _, err := client.Decrypt(ctx, req); return err }
	same := func() error { // what the messages of a Decrypt cost on their way
		return conn.Invoke(ctx, "/test.Empty/Messages", req, &kmsv1.DecryptResponse{})
	}
	timed := func(call func() error) time.Duration {
		start := time.Now()
		if err := call(); err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
	b.Run("in turn", func(b *testing.B) {
		var empties, messages, decrypts []time.Duration
		for b.Loop() {
			empties = append(empties, timed(empty))
			messages = append(messages, timed(same))
			decrypts = append(decrypts, timed(decrypt))
		}
		b.ReportMetric(float64(median(decrypts))/float64(median(empties)), "decrypt/empty")
		b.ReportMetric(float64(median(empties).Nanoseconds()), "ns/empty")
		b.ReportMetric(float64(median(messages).Nanoseconds()), "ns/messages")
		b.ReportMetric(float64(median(decrypts).Nanoseconds()), "ns/decrypt")
	})
	for name, call := range map[string]func() error{"empty": empty, "decrypt": decrypt} {
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

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkDecrypt is the same without gRPC and TLS.
func BenchmarkDecrypt(b *testing.B) {
	w := settled(b)
	blob := w.sealed(b, orders())
	w.Service = benchService(b, w, discard{}, clock.RealClock{})
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

// benchService is a key service in a world that keeps nothing, and lets one pod do as much as it can.
func benchService(b testing.TB, w *world, auditor kms.Auditor, c clock.PassiveClock) *kms.Service {
	b.Helper()
	ring, err := seal.Open(b.Context(), seal.DefaultRootKey, w.store)
	if err != nil {
		b.Fatal(err)
	}
	s, err := kms.New(kms.Config{
		Seal: ring, Keys: w.store, MasterKeys: w.objects, Authenticator: w.tokens, Authorizer: allowed{}, Auditor: auditor,
		Clock: c, Limits: kms.Limits{Calls: 1e9, CallsBurst: 1e9, Refusals: 1e9, RefusalsBurst: 1e9},
	})
	if err != nil {
		b.Fatal(err)
	}
	return s
}
