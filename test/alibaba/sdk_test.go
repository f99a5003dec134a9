// Package alibaba_test lets Alibaba's own SDK call the front door of the sidecar, behind which is the real key service.
package alibaba_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmsgrpc/kmsgrpctest"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
	"github.com/datakeys/datakeys/sidecar/alibaba"
)

var (
	ordersKey = kms.MasterKeyRef{KeyID: "11111111-1111-4111-8111-111111111111", Namespace: "team-a", Name: "orders"}
	theirsKey = kms.MasterKeyRef{KeyID: "33333333-3333-4333-8333-333333333333", Namespace: "team-b", Name: "theirs"}
)

// world is a key service, a sidecar's door and a client with Alibaba's SDK.
type world struct {
	service *kms.Service
	objects *kmstest.MasterKeys
	rbac    *kmstest.Authorizer
	events  *kmstest.Events
	// requests is how many the door has got.
	requests atomic.Int64
	door     atomic.Pointer[alibaba.Door]
	conn     *grpc.ClientConn
	endpoint string // of the door

	stdin  *json.Encoder
	stdout *json.Decoder
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{objects: &kmstest.MasterKeys{}, rbac: &kmstest.Authorizer{}, events: &kmstest.Events{}}
	store, tokens := &sealtest.Store{}, &kmstest.Authenticator{}
	ring, err := sealtest.OpenEmbedded(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	w.service, err = kms.New(kms.Config{
		Seal: ring, Keys: store, MasterKeys: w.objects, Authenticator: tokens, Authorizer: w.rbac, Auditor: &kmstest.Auditor{}, Events: w.events,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []kms.MasterKeyRef{ordersKey, theirsKey} {
		if _, err := w.service.EnsureMasterKey(t.Context(), ref, kms.DeletionTerms{WaitingPeriod: time.Hour}, ""); err != nil {
			t.Fatal(err)
		}
		w.objects.Put(kms.MasterKey{KeyID: ref.KeyID, Namespace: ref.Namespace, Name: ref.Name, Aliases: []string{ref.Name + "-prod"}})
	}
	tokens.Add("app", kmstest.Caller("team-a", "app", "app-1"))
	for _, verb := range []string{
		v1alpha1.VerbGenerateDataKey, v1alpha1.VerbGenerateDataKeyPair, v1alpha1.VerbGenerateDataKeyPairWithoutPlaintext,
		v1alpha1.VerbDecrypt, v1alpha1.VerbGenerateRandom,
	} {
		w.rbac.Grant("system:serviceaccount:team-a:app", kms.Access{Verb: verb, Resource: v1alpha1.ResourceMasterKeys, Namespace: "team-a"})
	}
	w.rbac.Grant("system:serviceaccount:team-a:app", kms.Access{
		Verb: v1alpha1.VerbEncrypt, Resource: v1alpha1.ResourceMasterKeys, Namespace: "team-a", Name: "orders",
	})
	w.conn = kmsgrpctest.Serve(t, w.service, logr.Discard()).Dial(t, grpc.WithPerRPCCredentials(kmsgrpctest.Token("app")))
	w.through(kmsv1.NewKeyServiceClient(w.conn))
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.requests.Add(1)
		w.door.Load().ServeHTTP(rw, r)
	}))
	t.Cleanup(server.Close)
	w.endpoint = server.Listener.Addr().String()
	w.startClient(t)
	return w
}

// through has the door ask that key service from now on.
func (w *world) through(k kmsv1.KeyServiceClient) {
	w.door.Store(alibaba.New(alibaba.Config{KeyService: k, Logger: slog.New(slog.DiscardHandler)}))
}

// startClient builds the client and starts it, with these variables beside those of the test. It ends with the test.
func (w *world) startClient(t *testing.T, variables ...string) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "client")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-C", "client", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), binary, "-endpoint", w.endpoint)
	cmd.Env = append(cmd.Environ(), variables...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr := &bytes.Buffer{}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_, _ = io.Copy(io.Discard, stdout)
		if err := cmd.Wait(); err != nil && !errors.Is(err, context.Canceled) && t.Context().Err() == nil {
			t.Errorf("client: %v\n%s", err, stderr)
		}
	})
	w.stdin, w.stdout = json.NewEncoder(stdin), json.NewDecoder(stdout)
}

// fields are those of a request or response of the SDK, whatever the operation. Bytes are strings here.
type fields map[string]any

// answer is what the SDK's user has of a call.
type answer struct {
	Response fields
	Error    *struct {
		Code, Message, RequestID, Other string
		Status                          int
	}
}

func (w *world) call(t *testing.T, operation string, request fields) answer {
	t.Helper()
	if err := w.stdin.Encode(fields{"operation": operation, "request": request}); err != nil {
		t.Fatal(err)
	}
	var a answer
	if err := w.stdout.Decode(&a); err != nil {
		t.Fatalf("%s: the client is gone: %v", operation, err)
	}
	return a
}

// do is a call that succeeds.
func (w *world) do(t *testing.T, operation string, request fields) fields {
	t.Helper()
	a := w.call(t, operation, request)
	if a.Error != nil {
		t.Fatalf("%s: %+v", operation, *a.Error)
	}
	if id, _ := a.Response["RequestId"].(string); len(id) != 36 {
		t.Errorf("%s: got the request ID %q", operation, id)
	}
	return a.Response
}

// bytes is a field of bytes.
func (f fields) bytes(t *testing.T, name string) []byte {
	t.Helper()
	var b []byte
	text, err := json.Marshal(f[name])
	if err == nil {
		err = json.Unmarshal(text, &b)
	}
	if err != nil || len(b) == 0 {
		t.Fatalf("%s: got %v, %v", name, f[name], err)
	}
	return b
}

// without returns the fields but these.
func (f fields) without(names ...string) fields {
	left := maps.Clone(f)
	for _, name := range names {
		delete(left, name)
	}
	return left
}
