package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmsgrpc"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// What the processes leave for each other in the directory of a run.
const (
	fileKeyService = "key-service" // its address
	fileEmpty      = "empty"       // that of floor B's call
	fileRoots      = "roots.pem"
	fileBlob       = "blob" // of the data key
	fileToken      = "token"
	fileAudit      = "audit"
	socketFloor    = "floor"
	socketSidecar  = "sidecar"

	namespace = "team-a"
	keyID     = "11111111-1111-4111-8111-111111111111"
	dataKey   = "orders"
	keySize   = 32
	token     = "pod-token"

	methodEmpty = "/bench.Floor/Empty"
)

// serveKeys is a key service with one master key and one data key. It is the manager's, without a cluster: who calls and what is allowed
// is answered from memory, as it is nearly always, and records are written to a file.
func serveKeys(ctx context.Context, dir string) (err error) {
	store, callers, objects := &sealtest.Store{}, &kmstest.Authenticator{}, &kmstest.MasterKeys{}
	ring, err := sealtest.OpenEmbedded(ctx, store)
	if err != nil {
		return err
	}
	records, err := os.Create(filepath.Join(dir, fileAudit))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, records.Close()) }()
	const plenty = 1_000_000_000
	service, err := kms.New(kms.Config{
		Seal: ring, Keys: store, MasterKeys: objects, Authenticator: callers, Authorizer: kmstest.Allow{}, Auditor: kms.NewJSONAuditor(records),
		Limits: kms.Limits{Calls: plenty, CallsBurst: plenty, Refusals: plenty, RefusalsBurst: plenty},
	})
	if err != nil {
		return err
	}
	key := kms.MasterKeyRef{KeyID: keyID, Namespace: namespace, Name: "key"}
	terms := kms.DeletionTerms{WaitingPeriod: v1alpha1.DefaultWaitingPeriod}
	if _, err := service.EnsureMasterKey(ctx, key, terms, ""); err != nil {
		return err
	}
	objects.Put(kms.MasterKey{KeyID: keyID, Namespace: namespace, Name: "key", CreatedAt: time.Now()})
	callers.Add(token, kmstest.Caller(namespace, "app", "app"))
	made, err := service.GenerateDataKeyWithoutPlaintext(ctx, kms.DataKey{
		MasterKey: key, Namespace: namespace, Name: dataKey, Generation: 1, Length: keySize,
	})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, fileBlob), made.CiphertextBlob, 0o600); err != nil {
		return err
	}

	certified := httptest.NewTLSServer(nil) // for its certificate of 127.0.0.1
	defer certified.Close()
	roots := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certified.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, fileRoots), roots, 0o600); err != nil {
		return err
	}
	config := &tls.Config{Certificates: certified.TLS.Certificates, MinVersion: tls.VersionTLS13}
	floor := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	floor.RegisterService(&grpc.ServiceDesc{ServiceName: "bench.Floor", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "Empty",
		Handler: func(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			return new(emptypb.Empty), decode(new(emptypb.Empty))
		},
	}}}, struct{}{})
	served := make(chan error, 2)
	keys := kmsgrpc.NewServer(service, config, logr.Discard())
	defer floor.Stop()
	defer keys.Stop()
	for name, server := range map[string]*grpc.Server{fileEmpty: floor, fileKeyService: keys} {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		go func() { served <- server.Serve(l) }()
		if err := publish(dir, name, l.Addr().String()); err != nil {
			return err
		}
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-served:
		return err
	}
}

// publish leaves a file, all of it at once.
func publish(dir, name, content string) error {
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// floorAnswer is about as long as the answers that it is the floor of.
const floorAnswer = 400

// serveFloor is a bare handler on a unix socket, and the same with an empty call to make.
func serveFloor(ctx context.Context, dir string) error {
	address, err := os.ReadFile(filepath.Join(dir, fileEmpty))
	if err != nil {
		return err
	}
	roots, err := os.ReadFile(filepath.Join(dir, fileRoots))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots)
	conn, err := grpc.NewClient("passthrough:///"+string(address),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13})))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	body := make([]byte, floorAnswer)
	answer := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/a", answer)
	mux.HandleFunc("/b", func(w http.ResponseWriter, r *http.Request) {
		if err := conn.Invoke(r.Context(), methodEmpty, new(emptypb.Empty), new(emptypb.Empty)); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		answer(w, r)
	})
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", filepath.Join(dir, socketFloor))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
