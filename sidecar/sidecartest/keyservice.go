// Package sidecartest stands in for what surrounds a sidecar: the key service, and the kubelet that mounts Secrets.
package sidecartest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/porttest"
)

// ARN is the key that a KeyService answers with.
const ARN = "arn:datakeys:kms:test:team-a:key/1b4e28ba-2fa1-41d2-883f-0016d3cca427"

// maxBatch is how many blobs one BatchDecrypt takes (kms.proto).
const maxBatch = 100

// KeyService is a key service with one master key, of namespace team-a, on loopback, over gRPC and TLS. It opens what
// it sealed.
type KeyService struct {
	kmsv1.UnimplementedKeyServiceServer

	// Address is host:port, Roots the PEM of what signed its certificate, for 127.0.0.1 alone.
	Address string
	Roots   []byte

	header   envelope.Header
	material envelope.Material
	config   *tls.Config
	server   *grpc.Server

	mu       sync.Mutex
	refusals map[string]*status.Status
	outage   error
	tokens   []string
	renewed  int
	held     chan struct{} // nil: calls do not wait
	release  chan struct{}
}

// NewKeyService starts a key service that stops with the test.
func NewKeyService(t testing.TB) *KeyService {
	t.Helper()
	k := &KeyService{
		header: envelope.Header{
			Kind: envelope.KindDataKey, KeyID: envelope.NewKeyID(), KeyVersion: 1, MaterialID: envelope.NewMaterialID(),
		},
		material: envelope.NewMaterial(),
		refusals: map[string]*status.Status{},
	}
	k.certify(t)
	k.Address = porttest.Reserve(t).String()
	k.Start(t)
	t.Cleanup(func() { k.server.Stop() })
	return k
}

// Stop ends the key service; Start starts it again at the same address.
func (k *KeyService) Stop() { k.server.Stop() }

// Start starts the key service again after Stop.
func (k *KeyService) Start(t testing.TB) {
	t.Helper()
	l, err := net.Listen("tcp", k.Address) //nolint:noctx // it ends with the server
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(k.config)), grpc.MaxRecvMsgSize(kmsv1.MaxRequestSize))
	kmsv1.RegisterKeyServiceServer(server, k)
	k.server = server
	go func() { _ = server.Serve(l) }()
}

// Seal returns a blob of the DataKeyRequest of that name, in namespace team-a.
func (k *KeyService) Seal(t testing.TB, name string, generation uint32, plaintext []byte, context map[string]string) []byte {
	t.Helper()
	return k.SealWith(t, name, generation, plaintext, envelope.AssociatedData{Context: context})
}

// SealWith is Seal with any associated data.
func (k *KeyService) SealWith(t testing.TB, name string, generation uint32, plaintext []byte, ad envelope.AssociatedData) []byte {
	t.Helper()
	h := k.header
	h.Scope = envelope.Scope{Namespace: "team-a", Name: name, Generation: generation}
	p, err := envelope.PlaintextFromBytes(plaintext)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := k.material.Seal(h, ad, p)
	if err != nil {
		t.Fatal(err)
	}
	return blob
}

// Refuse makes every later request for blobs of that name fail, to open or to renew; codes.OK takes it back.
func (k *KeyService) Refuse(name string, code codes.Code, message string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.refusals[name] = status.New(code, message)
}

// Fail makes every later call fail as a whole; nil takes it back.
func (k *KeyService) Fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.outage = err
}

// Hold makes every later call for plaintexts wait until release is called, or its caller is gone. Of each that waits held tells.
func (k *KeyService) Hold() (held <-chan struct{}, release func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	told, open := make(chan struct{}, 1000), make(chan struct{})
	k.held, k.release = told, open
	return told, sync.OnceFunc(func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.held = nil
		close(open)
	})
}

// Tokens returns what the calls carried as "authorization", in order.
func (k *KeyService) Tokens() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.tokens)
}

// Decrypt implements kmsv1.KeyServiceServer.
func (k *KeyService) Decrypt(ctx context.Context, r *kmsv1.DecryptRequest) (*kmsv1.DecryptResponse, error) {
	if err := k.called(ctx); err != nil {
		return nil, err
	}
	return k.open(r)
}

// Renewed returns how many calls to renew were answered.
func (k *KeyService) Renewed() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.renewed
}

// Renew implements kmsv1.KeyServiceServer.
func (k *KeyService) Renew(_ context.Context, r *kmsv1.RenewRequest) (*kmsv1.RenewResponse, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.outage != nil {
		return nil, k.outage
	}
	if n := len(r.GetDataKeys()); n < 1 || n > maxBatch {
		return nil, status.Errorf(codes.InvalidArgument, "data_keys: must be 1 to %d, not %d", maxBatch, n)
	}
	k.renewed++
	response := &kmsv1.RenewResponse{}
	for _, d := range r.GetDataKeys() {
		s := k.refusals[d.GetName()]
		if d.GetKeyId() != k.header.KeyID.String() || d.GetKeyVersion() != 1 || !bytes.Equal(d.GetMaterialId(), k.header.MaterialID[:]) {
			s = status.New(codes.NotFound, "the key or key version is not known here")
		}
		result := &kmsv1.RenewResult{Result: &kmsv1.RenewResult_Renewal{Renewal: &kmsv1.Renewal{}}}
		if s.Code() != codes.OK {
			result.Result = &kmsv1.RenewResult_Refusal{Refusal: &kmsv1.Refusal{Code: int32(s.Code()), Message: s.Message()}}
		}
		response.Results = append(response.Results, result)
	}
	return response, nil
}

// BatchDecrypt implements kmsv1.KeyServiceServer.
func (k *KeyService) BatchDecrypt(ctx context.Context, r *kmsv1.BatchDecryptRequest) (*kmsv1.BatchDecryptResponse, error) {
	if err := k.called(ctx); err != nil {
		return nil, err
	}
	if n := len(r.GetRequests()); n < 1 || n > maxBatch {
		return nil, status.Errorf(codes.InvalidArgument, "requests: must be 1 to %d, not %d", maxBatch, n)
	}
	response := &kmsv1.BatchDecryptResponse{}
	for _, request := range r.GetRequests() {
		result := &kmsv1.BatchDecryptResult{}
		if decrypted, err := k.open(request); err != nil {
			s := status.Convert(err)
			result.Result = &kmsv1.BatchDecryptResult_Refusal{Refusal: &kmsv1.Refusal{
				Code: int32(s.Code()), Message: s.Message(),
			}}
		} else {
			result.Result = &kmsv1.BatchDecryptResult_Response{Response: decrypted}
		}
		response.Results = append(response.Results, result)
	}
	return response, nil
}

// called notes a call, lets it wait, and returns the error by which it fails as a whole.
func (k *KeyService) called(ctx context.Context) error {
	k.mu.Lock()
	md, _ := metadata.FromIncomingContext(ctx)
	k.tokens = append(k.tokens, md.Get("authorization")...)
	outage, held, release := k.outage, k.held, k.release
	k.mu.Unlock()
	if held != nil {
		held <- struct{}{}
		select {
		case <-release:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	return outage
}

func (k *KeyService) refusal(name string) *status.Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.refusals[name]
}

func (k *KeyService) open(r *kmsv1.DecryptRequest) (*kmsv1.DecryptResponse, error) {
	blob, err := envelope.Parse(r.GetCiphertextBlob())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "ciphertext_blob: is not a blob")
	}
	if s := k.refusal(blob.Header.Scope.Name); s.Code() != codes.OK {
		return nil, s.Err()
	}
	p, err := k.material.Open(blob, envelope.AssociatedData{Context: r.GetEncryptionContext(), Raw: r.GetAad()})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "ciphertext_blob: does not open")
	}
	defer p.Destroy()
	return &kmsv1.DecryptResponse{
		KeyId: ARN, KeyVersion: 1, Plaintext: p.AppendTo(insecuresecret.Token{}, nil),
	}, nil
}

// certify makes a root and a certificate for 127.0.0.1.
func (k *KeyService) certify(t testing.TB) {
	t.Helper()
	now := time.Now()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, NotBefore: now.Add(-time.Hour),
		NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test key service"}, NotBefore: root.NotBefore,
		NotAfter: root.NotAfter, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	rootKey, leafKey := newKey(t), newKey(t)
	rootDER := sign(t, root, root, rootKey, rootKey)
	leafDER := sign(t, leaf, root, leafKey, rootKey)
	k.Roots = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER})
	k.config = &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{leafDER}, PrivateKey: leafKey}},
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, c, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
