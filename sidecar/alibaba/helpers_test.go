package alibaba

import (
	"bytes"
	"context"
	"encoding/hex"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/alibaba/internal/dkms"
)

// fakeKeyService answers every call with the same, and keeps what it was asked and the plaintexts that it gave away.
type fakeKeyService struct {
	kmsv1.KeyServiceClient // for the calls that no door makes

	arn      string // of the key; empty: testARN
	material []byte
	refuse   error
	wait     bool   // until the caller's patience is at its end
	forget   bool   // what it was asked and gave away
	lacks    string // the field that no answer has

	mu    sync.Mutex
	asked []proto.Message
	given [][]byte
}

const (
	testKeyID = "1b4e28ba-2fa1-41d2-883f-0016d3cca427"
	testARN   = "arn:datakeys:kms:test:team-a:key/" + testKeyID
)

var (
	testMaterial  = bytes.Repeat([]byte{0xab}, 16)
	testIV        = []byte("twelve bytes")
	testPlaintext = "the plaintext that nobody may keep"
)

// ask keeps the request, and returns the refusal.
func (f *fakeKeyService) ask(ctx context.Context, in proto.Message) error {
	if !f.forget {
		f.mu.Lock()
		f.asked = append(f.asked, proto.Clone(in))
		f.mu.Unlock()
	}
	if f.wait {
		<-ctx.Done()
		return ctx.Err()
	}
	return f.refuse
}

// give returns a plaintext that it keeps its eyes on.
func (f *fakeKeyService) give() []byte {
	b := []byte(testPlaintext)
	if !f.forget {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.given = append(f.given, b)
	}
	return b
}

func (f *fakeKeyService) GenerateDataKey(
	ctx context.Context, in *kmsv1.GenerateDataKeyRequest, _ ...grpc.CallOption,
) (*kmsv1.GenerateDataKeyResponse, error) {
	if err := f.ask(ctx, in); err != nil {
		return nil, err
	}
	return without(f.lacks, &kmsv1.GenerateDataKeyResponse{
		KeyId: f.arn, KeyVersion: 2, CiphertextBlob: []byte("blob"), Plaintext: f.give(), Iv: testIV, MaterialId: f.material,
	}), nil
}

func (f *fakeKeyService) GenerateDataKeyPair(
	ctx context.Context, in *kmsv1.GenerateDataKeyPairRequest, _ ...grpc.CallOption,
) (*kmsv1.GenerateDataKeyPairResponse, error) {
	if err := f.ask(ctx, in); err != nil {
		return nil, err
	}
	return without(f.lacks, &kmsv1.GenerateDataKeyPairResponse{
		KeyId: f.arn, KeyVersion: 2, KeyPairSpec: in.GetKeyPairSpec(), PublicKey: []byte("public"),
		PrivateKeyCiphertextBlob: []byte("blob"), PrivateKeyPlaintext: f.give(), Iv: testIV, MaterialId: f.material,
	}), nil
}

func (f *fakeKeyService) GenerateDataKeyPairWithoutPlaintext(
	ctx context.Context, in *kmsv1.GenerateDataKeyPairWithoutPlaintextRequest, _ ...grpc.CallOption,
) (*kmsv1.GenerateDataKeyPairWithoutPlaintextResponse, error) {
	if err := f.ask(ctx, in); err != nil {
		return nil, err
	}
	return without(f.lacks, &kmsv1.GenerateDataKeyPairWithoutPlaintextResponse{
		KeyId: f.arn, KeyVersion: 2, KeyPairSpec: in.GetKeyPairSpec(), PublicKey: []byte("public"),
		PrivateKeyCiphertextBlob: []byte("blob"), Iv: testIV, MaterialId: f.material,
	}), nil
}

func (f *fakeKeyService) Encrypt(ctx context.Context, in *kmsv1.EncryptRequest, _ ...grpc.CallOption) (*kmsv1.EncryptResponse, error) {
	f.mu.Lock()
	f.given = append(f.given, in.GetPlaintext())
	f.mu.Unlock()
	if err := f.ask(ctx, in); err != nil {
		return nil, err
	}
	return without(f.lacks, &kmsv1.EncryptResponse{
		KeyId: f.arn, KeyVersion: 2, CiphertextBlob: []byte("blob"), Iv: testIV, MaterialId: f.material,
	}), nil
}

func (f *fakeKeyService) Decrypt(ctx context.Context, in *kmsv1.DecryptRequest, _ ...grpc.CallOption) (*kmsv1.DecryptResponse, error) {
	if err := f.ask(ctx, in); err != nil {
		return nil, err
	}
	return without(f.lacks, &kmsv1.DecryptResponse{KeyId: f.arn, KeyVersion: 2, Plaintext: f.give(), MaterialId: f.material}), nil
}

func (f *fakeKeyService) GenerateRandom(
	ctx context.Context, in *kmsv1.GenerateRandomRequest, _ ...grpc.CallOption,
) (*kmsv1.GenerateRandomResponse, error) {
	if err := f.ask(ctx, in); err != nil {
		return nil, err
	}
	return without(f.lacks, &kmsv1.GenerateRandomResponse{Plaintext: f.give()}), nil
}

// without returns the answer less a field, if it has that.
func without[M proto.Message](field string, answer M) M {
	m := answer.ProtoReflect()
	if f := m.Descriptor().Fields().ByName(protoreflect.Name(field)); f != nil {
		m.Clear(f)
	}
	return answer
}

// newFake returns a key service with one key, whose version 2 does everything.
func newFake() *fakeKeyService { return &fakeKeyService{arn: testARN, material: testMaterial} }

// newDoor returns a door whose requests are all named rid.
func newDoor(f *fakeKeyService) *Door {
	d := New(Config{KeyService: f, Logger: slog.New(slog.DiscardHandler)})
	d.newID = func() string { return "rid" }
	return d
}

// request is what the SDK sends.
func request(name string, body []byte) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
	for header, value := range map[string]string{
		"accept": mediaProtobuf, "content-type": mediaProtobuf, "x-kms-apiversion": apiVersion, "x-kms-apiname": name,
		"x-kms-signaturemethod": signatureMethod, "x-kms-acccesskeyid": "KAAP.test", "authorization": "Bearer c2lnbmF0dXJl",
		"date": "Sat, 21 Nov 2026 12:00:00 GMT",
	} {
		r.Header.Set(header, value)
	}
	return r
}

// answer is what a client reads.
type answer struct {
	Status int
	Body   []byte
}

func do(t testing.TB, d *Door, r *http.Request) answer {
	t.Helper()
	w := httptest.NewRecorder()
	d.ServeHTTP(w, r)
	if got := w.Header().Get("Content-Type"); got != mediaProtobuf {
		t.Errorf("got the content-type %q, want %q", got, mediaProtobuf)
	}
	if got := w.Header().Get("Cache-Control"); got != "no-store" {
		t.Errorf("got cache-control %q, want no-store", got)
	}
	return answer{w.Code, w.Body.Bytes()}
}

// failed reads the error of an answer that is not 200, whose status has to stand in it too.
func failed(t testing.TB, a answer) *dkms.Error {
	t.Helper()
	var e dkms.Error
	if err := proto.Unmarshal(a.Body, &e); err != nil {
		t.Fatalf("the body of status %d is no protobuf: %v", a.Status, err)
	}
	if a.Status < 400 || int(e.GetStatusCode()) != a.Status || e.GetErrorCode() == "" || e.GetErrorMessage() == "" || e.GetRequestId() == "" {
		t.Errorf("status %d with the error %v", a.Status, &e)
	}
	return &e
}

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// endless is a body that does not end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// broken is a body that is cut off.
type broken struct{ io.Reader }

func (b broken) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}
