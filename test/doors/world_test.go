// Package doors_test has the front doors of the sidecar answered by the key service itself: each alone is tested against a fake of the
// other.
package doors_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// Master keys, both of team-a. ordersKey has the alias main.
var (
	ordersKey = kms.MasterKeyRef{KeyID: "11111111-1111-4111-8111-111111111111", Namespace: "team-a", Name: "orders"}
	otherKey  = kms.MasterKeyRef{KeyID: "22222222-2222-4222-8222-222222222222", Namespace: "team-a", Name: "other"}
)

// world is a key service with everything around it in memory.
type world struct {
	*kms.Service
	objects *kmstest.MasterKeys
	rbac    *kmstest.Authorizer
	address string
	roots   *x509.CertPool
	root    []byte // the one of roots, in PEM
}

// Tokens of pods of team-a: one may do everything with all of its keys, the other nothing.
const (
	app    = "app"
	nobody = "nobody"
)

// newWorld serves a key service on loopback until the test ends.
func newWorld(t *testing.T) *world {
	t.Helper()
	store, tokens := &sealtest.Store{}, &kmstest.Authenticator{}
	w := &world{objects: &kmstest.MasterKeys{}, rbac: &kmstest.Authorizer{}}
	ring, err := sealtest.OpenEmbedded(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	w.Service, err = kms.New(kms.Config{
		Seal: ring, Keys: store, MasterKeys: w.objects, Authenticator: tokens, Authorizer: w.rbac, Auditor: &kmstest.Auditor{},
		Events: &kmstest.Events{}, Registerer: prometheus.NewRegistry(), Logger: logr.Discard(),
		Limits: kms.LimitsOf(1_000_000, 1_000_000), // they are not what is tested
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []kms.MasterKeyRef{ordersKey, otherKey} {
		if _, err := w.EnsureMasterKey(t.Context(), ref, kms.DeletionTerms{WaitingPeriod: 720 * time.Hour}, ""); err != nil {
			t.Fatal(err)
		}
		w.put(ref, kms.KeyStateEnabled)
	}
	tokens.Add(app, kmstest.Caller("team-a", app, app+"-pod"))
	tokens.Add(nobody, kmstest.Caller("team-a", nobody, nobody+"-pod"))
	for _, verb := range []string{
		v1alpha1.VerbGenerateDataKey, v1alpha1.VerbGenerateDataKeyWithoutPlaintext, v1alpha1.VerbGenerateDataKeyPair,
		v1alpha1.VerbGenerateDataKeyPairWithoutPlaintext, v1alpha1.VerbEncrypt, v1alpha1.VerbDecrypt, v1alpha1.VerbReEncryptFrom,
		v1alpha1.VerbReEncryptTo, v1alpha1.VerbGenerateRandom, v1alpha1.VerbDescribeKey, v1alpha1.VerbListKeys, v1alpha1.VerbListAliases,
	} {
		w.rbac.Grant("system:serviceaccount:team-a:"+app, kms.Access{
			Verb: verb, Resource: v1alpha1.ResourceMasterKeys, Namespace: "team-a",
		})
	}
	w.serve(t)
	return w
}

// put makes the MasterKey of a key, or changes its state.
func (w *world) put(ref kms.MasterKeyRef, state kms.KeyState) {
	k := kms.MasterKey{
		KeyID: ref.KeyID, Namespace: ref.Namespace, Name: ref.Name, State: state, Description: "of " + ref.Name,
		CreatedAt: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC),
	}
	if ref == ordersKey {
		k.Aliases = []string{"main"}
	}
	if state == kms.KeyStatePendingDeletion {
		k.DeletionTime = k.CreatedAt.Add(720 * time.Hour)
	}
	w.objects.Put(k)
}

func (w *world) serve(t *testing.T) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	w.roots = x509.NewCertPool()
	w.roots.AddCert(root)
	w.root = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	server := kms.NewGRPCServer(w.Service, &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13,
	}, logr.Discard())
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.address = l.Addr().String()
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
}

// client returns a client that calls as the pod of a token.
func (w *world) client(t *testing.T, token string) kmsv1.KeyServiceClient {
	t.Helper()
	secure := credentials.NewTLS(&tls.Config{RootCAs: w.roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13})
	conn, err := grpc.NewClient("passthrough:///"+w.address, grpc.WithPerRPCCredentials(bearer(token)), grpc.WithTransportCredentials(secure))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return kmsv1.NewKeyServiceClient(conn)
}

// bearer is a token as a sidecar sends its pod's.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }
