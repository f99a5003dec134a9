package kmsgrpc_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"
	"k8s.io/utils/clock"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmsgrpc"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
)

// BenchmarkDecryptOverTLS compares a Decrypt, its reviews answered from memory and its audit record written to a file,
// with an empty call to the same server, and with what it cannot do without. They take turns, so that whatever else the machine does slows down all, and the
// ratios are those of the medians.
func BenchmarkDecryptOverTLS(b *testing.B) {
	w := kmstest.Settled(b)
	file, err := os.Create(filepath.Join(b.TempDir(), "audit.log"))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	blob := w.Sealed(b, orders())
	w.Service = w.Unlimited(b, kms.NewJSONAuditor(file), clock.RealClock{})
	conn := serve(b, w, registerFloor(b, w))
	client := kmsv1.NewKeyServiceClient(conn)
	req := &kmsv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext}
	empty := func(ctx context.Context) error {
		return conn.Invoke(ctx, "/test.Floor/Empty", &emptypb.Empty{}, &emptypb.Empty{})
	}
	decrypt := func(ctx context.Context) error { _, err := client.Decrypt(ctx, req); return err }
	bare := func(ctx context.Context) error {
		return conn.Invoke(ctx, "/test.Bare/Empty", &emptypb.Empty{}, &emptypb.Empty{})
	}
	messages := func(ctx context.Context) error {
		return conn.Invoke(ctx, "/test.Floor/Messages", req, &kmsv1.DecryptResponse{})
	}
	primitives := func(ctx context.Context) error {
		return conn.Invoke(ctx, "/test.Floor/Primitives", req, &kmsv1.DecryptResponse{})
	}
	ctx := metadata.AppendToOutgoingContext(b.Context(), "authorization", "Bearer "+app)
	timed := func(call func(context.Context) error) time.Duration {
		start := time.Now()
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second) // as a sidecar does
		defer cancel()
		if err := call(ctx); err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
	b.Run("in turn", func(b *testing.B) {
		took := map[string][]time.Duration{}
		for b.Loop() {
			for name, call := range map[string]func(context.Context) error{"bare": bare, "empty": empty, "messages": messages, "primitives": primitives, "decrypt": decrypt} {
				took[name] = append(took[name], timed(call))
			}
		}
		for name, d := range took {
			b.ReportMetric(float64(median(d).Nanoseconds()), "ns/"+name)
		}
		for _, name := range []string{"decrypt", "primitives", "messages", "bare"} {
			b.ReportMetric(float64(median(took[name]))/float64(median(took["empty"])), name+"/empty")
		}
	})
	for name, call := range map[string]func(context.Context) error{"empty": empty, "decrypt": decrypt} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := call(ctx); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/parallel", func(b *testing.B) {
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := call(ctx); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// registerFloor adds what a Decrypt cannot do without: Empty is a call of a caller who is known, Messages has its request and response, and
// Primitives moreover writes an audit record to a file, derives the key of a blob and opens it, with nothing around it. Bare/Empty is a
// call past the gate: nobody asks who calls.
func registerFloor(b *testing.B, w *kmstest.World) func(*grpc.Server) {
	b.Helper()
	file, err := os.Create(filepath.Join(b.TempDir(), "floor.log"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = file.Close() })
	line, material, salt, info := bytes.Repeat([]byte("x"), 450), make([]byte, 32), make([]byte, 32), string(make([]byte, 120))
	derive := func() (cipher.AEAD, error) {
		okm, err := hkdf.Key(sha256.New, material, salt, info, 64)
		if err != nil {
			return nil, err
		}
		block, err := aes.NewCipher(okm[:32])
		if err != nil {
			return nil, err
		}
		return cipher.NewGCMWithRandomNonce(block)
	}
	aead, err := derive()
	if err != nil {
		b.Fatal(err)
	}
	sealed := aead.Seal(nil, nil, make([]byte, 32), nil)
	decrypt := func(name string, do func() ([]byte, error)) grpc.MethodDesc {
		return method(name, func() any { return new(kmsv1.DecryptRequest) }, func() (any, error) {
			p, err := do()
			return &kmsv1.DecryptResponse{
				KeyId: "arn:datakeys:kms:0123456789ab:team-a:key/" + ordersKey.KeyID, KeyVersion: 1, Plaintext: p, MaterialId: make([]byte, 16),
			}, err
		})
	}
	return func(s *grpc.Server) {
		empty := method("Empty", func() any { return new(emptypb.Empty) }, func() (any, error) { return new(emptypb.Empty), nil })
		s.RegisterService(&grpc.ServiceDesc{ServiceName: "test.Bare", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{empty}}, struct{}{})
		s.RegisterService(kmsgrpc.Guarded(w.Service, &grpc.ServiceDesc{ServiceName: "test.Floor", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{
			empty,
			decrypt("Messages", func() ([]byte, error) { return make([]byte, 32), nil }),
			decrypt("Primitives", func() ([]byte, error) {
				aead, err := derive()
				if err != nil {
					return nil, err
				}
				p, err := aead.Open(nil, nil, sealed, nil)
				if err != nil {
					return nil, err
				}
				_, err = file.Write(line)
				return p, err
			}),
		}}), struct{}{})
	}
}

func method(name string, request func() any, do func() (any, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		if err := decode(request()); err != nil {
			return nil, err
		}
		return do()
	}}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
