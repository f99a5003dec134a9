// Package doors_test has the front doors of the sidecar answered by the key service itself: each alone is tested against a fake of the
// other.
package doors_test

import (
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmsgrpc/kmsgrpctest"
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
	server  *kmsgrpctest.Server
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
	w.server = kmsgrpctest.Serve(t, w.Service, logr.Discard())
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

// client returns a client that calls as the pod of a token.
func (w *world) client(t *testing.T, token string) kmsv1.KeyServiceClient {
	t.Helper()
	return kmsv1.NewKeyServiceClient(w.server.Dial(t, grpc.WithPerRPCCredentials(kmsgrpctest.Token(token))))
}
