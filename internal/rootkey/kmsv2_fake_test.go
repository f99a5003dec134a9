package rootkey

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers the codec that hugeCodec wraps
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	kmsv2 "k8s.io/kms/apis/v2"
)

// fakePlugin is a KMS v2 plugin in memory. It keeps the contract until a field or hook makes it lie.
type fakePlugin struct {
	kmsv2.UnimplementedKeyManagementServiceServer

	mu     sync.Mutex
	answer kmsv2.StatusResponse
	keys   map[string]cipher.AEAD // by key_id

	// The hooks change the answer, or return an error in its place.
	onStatus  func(context.Context, *kmsv2.StatusResponse) error
	onEncrypt func(context.Context, *kmsv2.EncryptRequest, *kmsv2.EncryptResponse) error
	onDecrypt func(context.Context, *kmsv2.DecryptRequest, *kmsv2.DecryptResponse) error
}

func newFakePlugin(t *testing.T) *fakePlugin {
	t.Helper()
	f := &fakePlugin{keys: map[string]cipher.AEAD{}}
	f.answer.Version, f.answer.Healthz = "v2", "ok"
	f.rotate(t, "key-1")
	return f
}

// rotate makes a key and uses it from now on; a key that was there before comes back.
func (f *fakePlugin) rotate(t *testing.T, keyID string) {
	t.Helper()
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer.KeyId = keyID
	if f.keys[keyID] == nil {
		f.keys[keyID] = aead
	}
}

// set changes the plugin while it serves.
func (f *fakePlugin) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// says sets what the plugin says of its health.
func (f *fakePlugin) says(healthz string) { f.set(func() { f.answer.Healthz = healthz }) }

func (f *fakePlugin) Status(ctx context.Context, _ *kmsv2.StatusRequest) (*kmsv2.StatusResponse, error) {
	f.mu.Lock()
	answer := &kmsv2.StatusResponse{Version: f.answer.GetVersion(), Healthz: f.answer.GetHealthz(), KeyId: f.answer.GetKeyId()}
	hook := f.onStatus
	f.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, answer); err != nil {
			return nil, err
		}
	}
	return answer, nil
}

func (f *fakePlugin) Encrypt(ctx context.Context, in *kmsv2.EncryptRequest) (*kmsv2.EncryptResponse, error) {
	f.mu.Lock()
	keyID, hook := f.answer.GetKeyId(), f.onEncrypt
	answer := &kmsv2.EncryptResponse{
		Ciphertext:  f.keys[keyID].Seal(nil, nil, in.GetPlaintext(), nil),
		KeyId:       keyID,
		Annotations: map[string][]byte{"version.fake.datakeys.io": {1}, "a.b": nil},
	}
	f.mu.Unlock()
	if hook != nil {
		if err := hook(ctx, in, answer); err != nil {
			return nil, err
		}
	}
	return answer, nil
}

func (f *fakePlugin) Decrypt(ctx context.Context, in *kmsv2.DecryptRequest) (*kmsv2.DecryptResponse, error) {
	f.mu.Lock()
	key, hook := f.keys[in.GetKeyId()], f.onDecrypt
	f.mu.Unlock()
	if key == nil || string(in.GetAnnotations()["version.fake.datakeys.io"]) != "\x01" {
		return nil, status.Error(codes.InvalidArgument, "another plugin's ciphertext")
	}
	plaintext, err := key.Open(nil, nil, in.GetCiphertext(), nil)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "damaged")
	}
	answer := &kmsv2.DecryptResponse{Plaintext: plaintext}
	if hook != nil {
		if err := hook(ctx, in, answer); err != nil {
			return nil, err
		}
	}
	return answer, nil
}

// socketPath returns a path for a unix socket, short enough for one.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "dk") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "kms.sock")
}

// serve listens on the socket until the test ends or stop is called.
func (f *fakePlugin) serve(t *testing.T, socket string) (stop func()) {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(hugeCodec{encoding.GetCodecV2("proto")}))
	kmsv2.RegisterKeyManagementServiceServer(server, f)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	stop = func() { server.Stop(); <-done }
	t.Cleanup(stop)
	return stop
}

// never is a clock on which no time passes.
func never(time.Duration) <-chan time.Time { return nil }

// openFake opens the root key behind a fake plugin that listens on that socket.
func openFake(t *testing.T, socket string) *kmsv2Root {
	t.Helper()
	r, err := openKMSv2RootBy(t.Context(), socket, logr.Discard(), pluginTimeout, never)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// hugeKeyID marks an answer that hugeCodec makes a gigabyte of.
const hugeKeyID = "huge"

// hugeCodec sends an answer of a gigabyte without having one: it sends the same megabyte again and again.
type hugeCodec struct{ encoding.CodecV2 }

func (c hugeCodec) Marshal(v any) (mem.BufferSlice, error) {
	if answer, ok := v.(*kmsv2.EncryptResponse); !ok || answer.GetKeyId() != hugeKeyID {
		return c.CodecV2.Marshal(v)
	}
	const field1Bytes = 1<<3 | 2
	out := mem.BufferSlice{mem.SliceBuffer(binary.AppendUvarint([]byte{field1Bytes}, 1<<30))}
	megabyte := mem.SliceBuffer(make([]byte, 1<<20))
	for range 1 << 10 {
		out = append(out, megabyte)
	}
	return out, nil
}
