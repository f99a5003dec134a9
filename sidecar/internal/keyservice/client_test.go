package keyservice

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

func writeToken(t testing.TB, file, token string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
}

var testPlaintext = []byte("0123456789abcdef0123456789ABCDEF")

// passOn intercepts nothing.
func passOn(
	ctx context.Context, method string, request, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	return invoke(ctx, method, request, reply, cc, options...)
}

func newTestClient(t testing.TB, address string, roots []byte, token string) *Client {
	t.Helper()
	client, err := New(address, roots, token, passOn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func TestClientOpensEachForItself(t *testing.T) {
	service := sidecartest.NewKeyService(t)
	token := filepath.Join(t.TempDir(), "token")
	writeToken(t, token, "first\n")
	client := newTestClient(t, service.Address, service.Roots, token)

	bound := map[string]string{"tenant": "a"}
	sealed := []Sealed{
		{CiphertextBlob: service.Seal(t, "orders", 1, testPlaintext, bound), EncryptionContext: bound},
		{CiphertextBlob: service.Seal(t, "orders", 1, testPlaintext, bound), EncryptionContext: map[string]string{"tenant": "b"}},
		{CiphertextBlob: service.Seal(t, "denied", 1, testPlaintext, nil)},
		{CiphertextBlob: service.Seal(t, "odd", 1, testPlaintext, nil)},
	}
	service.Refuse("denied", codes.PermissionDenied, "may not decrypt datakeyrequests/denied")
	opened, err := client.Open(t.Context(), sealed)
	if err != nil {
		t.Fatal(err)
	}
	if p := opened[0].Plaintext.AppendTo(insecuresecret.Token{}, nil); !bytes.Equal(p, testPlaintext) ||
		opened[0].KeyARN != sidecartest.ARN || opened[0].KeyVersion != 1 {
		t.Errorf("got %d bytes of version %d of %s", len(p), opened[0].KeyVersion, opened[0].KeyARN)
	}
	var got []string
	for _, o := range opened {
		got = append(got, status.Code(o.Err).String())
	}
	if diff := cmp.Diff([]string{"OK", "InvalidArgument", "PermissionDenied", "OK"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if m := status.Convert(opened[2].Err).Message(); m != "may not decrypt datakeyrequests/denied" {
		t.Errorf("message: got %q", m)
	}

	writeToken(t, token, "second")
	service.Fail(status.Error(codes.Unauthenticated, "expired"))
	if _, err := client.Open(t.Context(), sealed); status.Code(err) != codes.Unauthenticated {
		t.Errorf("got %v, want the refusal of the call", err)
	}
	if diff := cmp.Diff([]string{"Bearer first", "Bearer second"}, service.Tokens()); diff != "" {
		t.Errorf("the token is read for every call (-want +got):\n%s", diff)
	}
}

// What the key service takes in one request is limited. Whoever has much to open asks several times, and gets one answer each.
func TestClientAsksInBatches(t *testing.T) {
	service := sidecartest.NewKeyService(t)
	token := filepath.Join(t.TempDir(), "token")
	writeToken(t, token, "token")
	client := newTestClient(t, service.Address, service.Roots, token)
	context := map[string]string{}
	for i := range 1000 {
		context[strconv.Itoa(i)] = "four"
	}
	large := Sealed{CiphertextBlob: service.Seal(t, "large", 1, testPlaintext, context), EncryptionContext: context}
	small := Sealed{CiphertextBlob: service.Seal(t, "small", 1, []byte("another plaintext"), nil)}

	for name, c := range map[string]struct {
		sealed  []Sealed
		batches int
	}{
		"one":                     {[]Sealed{small}, 1},
		"as many as there may be": {slices.Repeat([]Sealed{small}, kmsv1.MaxBatch), 1},
		"a large one":             {[]Sealed{small, large}, 1},
		"many large ones":         {append(slices.Repeat([]Sealed{large}, 9), small), 2},
		"as many large ones":      {slices.Repeat([]Sealed{large}, kmsv1.MaxBatch), 20},
	} {
		t.Run(name, func(t *testing.T) {
			asked := len(service.Tokens())
			opened, err := client.Open(t.Context(), c.sealed)
			if err != nil || len(opened) != len(c.sealed) {
				t.Fatalf("got %d answers to %d and %v", len(opened), len(c.sealed), err)
			}
			for i, o := range opened {
				want := len(testPlaintext)
				if len(c.sealed[i].EncryptionContext) == 0 {
					want = len("another plaintext")
				}
				if o.Err != nil || o.Plaintext.Len() != want {
					t.Errorf("answer %d: got %d bytes and %v, want %d", i, o.Plaintext.Len(), o.Err, want)
				}
			}
			if got := len(service.Tokens()) - asked; got != c.batches {
				t.Errorf("got %d batches, want %d", got, c.batches)
			}
			for _, batch := range batches(c.sealed) {
				if n := proto.Size(batch); n > kmsv1.MaxRequestSize {
					t.Errorf("a batch has %d bytes", n)
				}
			}
		})
	}
}

func TestClientTrustsItsRootsAlone(t *testing.T) {
	t.Parallel()
	service, other := sidecartest.NewKeyService(t), sidecartest.NewKeyService(t)
	token := filepath.Join(t.TempDir(), "token")
	writeToken(t, token, "secret-token")
	_, port, err := net.SplitHostPort(service.Address)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		address string
		roots   []byte
		want    string
	}{
		"a certificate of another root":    {service.Address, other.Roots, "certificate signed by unknown authority"},
		"a certificate for another server": {"localhost:" + port, service.Roots, "but wanted to match localhost"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := newTestClient(t, test.address, test.roots, token)
			_, err := client.Open(t.Context(), []Sealed{{}})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
			if code := status.Code(err); code != codes.Unavailable && code != codes.DeadlineExceeded {
				t.Errorf("got %v: who is not known refuses nothing", err)
			}
		})
	}
	t.Cleanup(func() {
		if tokens := append(service.Tokens(), other.Tokens()...); len(tokens) > 0 {
			t.Errorf("a token was sent to a server that is not trusted")
		}
	})
}

func TestClientNeedsAToken(t *testing.T) {
	service := sidecartest.NewKeyService(t)
	dir := t.TempDir()
	writeToken(t, filepath.Join(dir, "empty"), " \n")
	writeToken(t, filepath.Join(dir, "huge"), strings.Repeat("x", maxTokenSize+1))
	for name, want := range map[string]string{
		"missing": "no such file", "empty": "1 to 16384 bytes", "huge": "1 to 16384 bytes",
	} {
		t.Run(name, func(t *testing.T) {
			client := newTestClient(t, service.Address, service.Roots, filepath.Join(dir, name))
			_, err := client.Open(t.Context(), []Sealed{{}})
			if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want an outage with %q", err, want)
			}
		})
	}
	if tokens := service.Tokens(); len(tokens) > 0 {
		t.Errorf("got %d calls, want none", len(tokens))
	}
}

// TestClientSendsTheTokenThatIsThere: the kubelet puts another file in its place, as here, or something writes into it.
func TestClientSendsTheTokenThatIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	writeToken(t, path, "first")
	credentials := &tokenFile{path: path}
	wants := func(token string) {
		t.Helper()
		got, err := credentials.GetRequestMetadata(t.Context())
		if want := map[string]string{"authorization": "Bearer " + token}; err != nil || !maps.Equal(got, want) {
			t.Errorf("got %d bytes and %v, want the token %q", len(got["authorization"]), err, token)
		}
	}
	wants("first")
	was, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	writeToken(t, path+".new", "other") // as long, and as old
	if err := errors.Join(os.Chtimes(path+".new", was.ModTime(), was.ModTime()), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
	wants("other")
	writeToken(t, path, "longer than that")
	if err := os.Chtimes(path, was.ModTime(), was.ModTime()); err != nil {
		t.Fatal(err)
	}
	wants("longer than that")
	writeToken(t, path, "as long as that.")
	if err := os.Chtimes(path, was.ModTime(), was.ModTime().Add(time.Nanosecond)); err != nil {
		t.Fatal(err)
	}
	wants("as long as that.")
	read := credentials.read.Load()
	wants("as long as that.")
	if credentials.read.Load() != read {
		t.Error("a file that is the same is read again")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got, err := credentials.GetRequestMetadata(t.Context()); status.Code(err) != codes.Unavailable || got != nil {
		t.Errorf("got a token and %v from a file that is gone", err)
	}
}

// oddService answers as no key service should.
type oddService struct {
	kmsv1.KeyServiceClient
	response *kmsv1.BatchDecryptResponse
}

func (s oddService) BatchDecrypt(
	context.Context, *kmsv1.BatchDecryptRequest, ...grpc.CallOption,
) (*kmsv1.BatchDecryptResponse, error) {
	return s.response, nil
}

func TestClientAndOddAnswers(t *testing.T) {
	for name, result := range map[string]*kmsv1.BatchDecryptResult{
		"neither answer nor refusal": {},
		"no plaintext": {Result: &kmsv1.BatchDecryptResult_Response{
			Response: &kmsv1.DecryptResponse{KeyId: sidecartest.ARN},
		}},
		"a huge plaintext": {Result: &kmsv1.BatchDecryptResult_Response{
			Response: &kmsv1.DecryptResponse{Plaintext: make([]byte, 4097)},
		}},
		"a refusal with the code OK": {Result: &kmsv1.BatchDecryptResult_Refusal{Refusal: &kmsv1.Refusal{}}},
	} {
		t.Run(name, func(t *testing.T) {
			client := &Client{kms: oddService{response: &kmsv1.BatchDecryptResponse{
				Results: []*kmsv1.BatchDecryptResult{result},
			}}}
			opened, err := client.Open(t.Context(), []Sealed{{}})
			if err != nil || status.Code(opened[0].Err) != codes.Internal {
				t.Errorf("got %v, %v; want Internal", opened, err)
			}
			if _, err := client.Open(t.Context(), []Sealed{{}, {}}); status.Code(err) != codes.Internal {
				t.Errorf("one answer to two requests: got %v, want Internal", err)
			}
		})
	}
}

// TestClientWipesWhatGRPCDecoded keeps the answer and looks at it afterwards.
func TestClientWipesWhatGRPCDecoded(t *testing.T) {
	decoded := bytes.Clone(testPlaintext)
	client := &Client{kms: oddService{response: &kmsv1.BatchDecryptResponse{Results: []*kmsv1.BatchDecryptResult{{
		Result: &kmsv1.BatchDecryptResult_Response{Response: &kmsv1.DecryptResponse{Plaintext: decoded}},
	}}}}}
	opened, err := client.Open(t.Context(), []Sealed{{}})
	if err != nil || !bytes.Equal(opened[0].Plaintext.AppendTo(insecuresecret.Token{}, nil), testPlaintext) {
		t.Fatalf("got %v, %v", opened, err)
	}
	if !bytes.Equal(decoded, make([]byte, len(decoded))) {
		t.Error("the decoded plaintext is left in memory")
	}
}

// TestAConnectionThatHangsLeavesTimeForAnother: whoever connects to a replica that has just gone may hear nothing, and the next try leads
// to another.
func TestAConnectionThatHangsLeavesTimeForAnother(t *testing.T) {
	service := sidecartest.NewKeyService(t)
	front, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var held []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := front.Accept()
			if err != nil {
				return
			}
			if held = append(held, c); len(held) == 1 {
				continue // silent
			}
			behind, err := new(net.Dialer).DialContext(t.Context(), "tcp", service.Address)
			if err != nil {
				t.Error(err)
				return
			}
			held = append(held, behind)
			go func() { _, _ = io.Copy(behind, c) }()
			go func() { _, _ = io.Copy(c, behind) }()
		}
	}()
	t.Cleanup(func() {
		_ = front.Close()
		<-done
		for _, c := range held {
			_ = c.Close()
		}
	})
	token := filepath.Join(t.TempDir(), "token")
	writeToken(t, token, "first")
	_, port, err := net.SplitHostPort(front.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	host, _, err := net.SplitHostPort(service.Address)
	if err != nil {
		t.Fatal(err)
	}
	client := newTestClient(t, net.JoinHostPort(host, port), service.Roots, token)
	blob := service.Seal(t, "orders", 1, testPlaintext, nil)
	opened, err := client.Open(t.Context(), []Sealed{{CiphertextBlob: blob}})
	if err != nil || opened[0].Err != nil {
		t.Fatalf("got %v, %v", opened, err)
	}
	opened[0].Plaintext.Destroy()
}
