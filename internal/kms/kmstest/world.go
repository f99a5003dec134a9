package kmstest

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// Begin is when the clock of a world begins.
var Begin = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// WrapAge is for how long a data key is wrapped by what was read of its master key before.
const WrapAge = time.Second

// Master keys of every world.
var (
	OrdersKey = kms.MasterKeyRef{KeyID: "11111111-1111-4111-8111-111111111111", Namespace: "team-a", Name: "orders"}
	OtherKey  = kms.MasterKeyRef{KeyID: "22222222-2222-4222-8222-222222222222", Namespace: "team-a", Name: "other"}
	TheirsKey = kms.MasterKeyRef{KeyID: "33333333-3333-4333-8333-333333333333", Namespace: "team-b", Name: "theirs"}
	GoneID    = "99999999-9999-4999-8999-999999999999" // of no key
)

// Terms are those by which their material is destroyed.
var Terms = kms.DeletionTerms{WaitingPeriod: 720 * time.Hour}

// World is a key service with everything around it in memory. What is changed before Replica holds for the replica.
type World struct {
	*kms.Service
	Store      *sealtest.Store
	MasterKeys *MasterKeys
	Tokens     *Authenticator
	RBAC       *Authorizer
	Audit      *Auditor
	Auditor    kms.Auditor // in place of Audit, unless it is nil
	Events     *Events
	Limits     kms.Limits // zero: the usual ones
	Clock      *clocktesting.FakePassiveClock
	Metrics    *prometheus.Registry
	Log        *Log
}

// Log keeps log lines.
type Log struct {
	mu  sync.Mutex
	all strings.Builder
}

// Logger returns a logger that writes to the log, at every level.
func (l *Log) Logger() logr.Logger {
	return funcr.New(func(prefix, args string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.all.WriteString(prefix + " " + args + "\n")
	}, funcr.Options{Verbosity: 9})
}

// String returns the lines so far.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// NewWorld returns a world with an empty store.
func NewWorld(t testing.TB) *World {
	t.Helper()
	w := &World{
		Store:      &sealtest.Store{},
		MasterKeys: &MasterKeys{},
		Tokens:     &Authenticator{},
		RBAC:       &Authorizer{},
		Audit:      &Auditor{},
		Events:     &Events{},
		Clock:      clocktesting.NewFakePassiveClock(Begin),
		Log:        &Log{},
	}
	w.Service = w.ServiceOver(t, w.Store)
	return w
}

// Replica returns another manager in the same cluster: a key service that knows nothing yet.
func (w *World) Replica(t testing.TB) *World {
	t.Helper()
	other := *w
	other.Service = other.ServiceOver(t, w.Store)
	return &other
}

// ServiceOver returns a key service in the world, with a store of its own.
func (w *World) ServiceOver(t testing.TB, store kms.KeyStore) *kms.Service {
	t.Helper()
	w.Metrics = prometheus.NewRegistry()
	auditor := w.Auditor
	if auditor == nil {
		auditor = w.Audit
	}
	service, err := kms.New(kms.Config{
		Seal:          w.ring(t),
		Keys:          store,
		MasterKeys:    w.MasterKeys,
		Authenticator: w.Tokens,
		Authorizer:    w.RBAC,
		Auditor:       auditor,
		Events:        w.Events,
		Registerer:    w.Metrics,
		Limits:        w.Limits,
		Clock:         w.Clock,
		Logger:        w.Log.Logger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return service
}

// ring opens the sealing keys of the world.
func (w *World) ring(t testing.TB) *seal.Keyring {
	t.Helper()
	ring, err := sealtest.OpenEmbedded(t.Context(), w.Store)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// Unlimited returns a key service in the world that denies no access and lets pods call as often as they like.
func (w *World) Unlimited(t testing.TB, auditor kms.Auditor, c clock.PassiveClock) *kms.Service {
	t.Helper()
	s, err := kms.New(kms.Config{
		Seal: w.ring(t), Keys: w.Store, MasterKeys: w.MasterKeys, Authenticator: w.Tokens, Authorizer: Allow{}, Auditor: auditor,
		Clock: c, Limits: kms.Limits{Calls: 1e9, CallsBurst: 1e9, Refusals: 1e9, RefusalsBurst: 1e9},
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Callers of a settled world, each by a token of the same name.
const (
	App      = "app"      // team-a: decrypt on datakeyrequests/orders
	KeyUser  = "key-user" // team-a: decrypt and generatedatakey on masterkeys/orders
	AllKeys  = "all-keys" // team-a: every cryptographic operation on all masterkeys, decrypt on datakeyrequests/orders
	Reader   = "reader"   // team-a: decrypt and reencryptfrom on all masterkeys
	Nobody   = "nobody"   // team-a: nothing
	Stranger = "stranger" // team-b: decrypt on team-a's datakeyrequests/orders and masterkeys/orders
)

// Settled returns a world with three master keys, their objects, and callers.
func Settled(t testing.TB) *World {
	t.Helper()
	w := NewWorld(t)
	for _, ref := range []kms.MasterKeyRef{OrdersKey, OtherKey, TheirsKey} {
		if _, err := w.EnsureMasterKey(t.Context(), ref, Terms, ""); err != nil {
			t.Fatal(err)
		}
		w.MasterKeys.Put(Object(ref))
	}
	for token, namespace := range map[string]string{
		App: "team-a", KeyUser: "team-a", AllKeys: "team-a", Reader: "team-a", Nobody: "team-a", Stranger: "team-b",
	} {
		w.Tokens.Add(token, Caller(namespace, token, token+"-pod"))
	}
	grant := func(who, namespace, verb, resource, name string) {
		w.RBAC.Grant("system:serviceaccount:"+namespace+":"+who,
			kms.Access{Verb: verb, Resource: resource, Namespace: "team-a", Name: name})
	}
	grant(App, "team-a", v1alpha1.VerbDecrypt, v1alpha1.ResourceDataKeyRequests, "orders")
	grant(KeyUser, "team-a", v1alpha1.VerbDecrypt, v1alpha1.ResourceMasterKeys, "orders")
	grant(KeyUser, "team-a", v1alpha1.VerbGenerateDataKey, v1alpha1.ResourceMasterKeys, "orders")
	grant(AllKeys, "team-a", v1alpha1.VerbDecrypt, v1alpha1.ResourceMasterKeys, "")
	for _, verb := range []string{
		v1alpha1.VerbGenerateDataKey, v1alpha1.VerbGenerateDataKeyWithoutPlaintext, v1alpha1.VerbGenerateDataKeyPair,
		v1alpha1.VerbGenerateDataKeyPairWithoutPlaintext, v1alpha1.VerbEncrypt, v1alpha1.VerbReEncryptFrom, v1alpha1.VerbReEncryptTo,
	} {
		grant(AllKeys, "team-a", verb, v1alpha1.ResourceMasterKeys, "")
	}
	grant(AllKeys, "team-a", v1alpha1.VerbDecrypt, v1alpha1.ResourceDataKeyRequests, "orders")
	grant(Reader, "team-a", v1alpha1.VerbDecrypt, v1alpha1.ResourceMasterKeys, "")
	grant(Reader, "team-a", v1alpha1.VerbReEncryptFrom, v1alpha1.ResourceMasterKeys, "")
	grant(Stranger, "team-b", v1alpha1.VerbDecrypt, v1alpha1.ResourceDataKeyRequests, "orders")
	grant(Stranger, "team-b", v1alpha1.VerbDecrypt, v1alpha1.ResourceMasterKeys, "orders")
	grant(Stranger, "team-b", v1alpha1.VerbGenerateDataKey, v1alpha1.ResourceMasterKeys, "orders")
	return w
}

// Callers of a listed world, each by a token of the same name.
const (
	Lister    = "lister"    // team-a: listkeys, listaliases and describekey on all masterkeys, generaterandom
	Describer = "describer" // team-a: describekey on masterkeys/orders
)

// Listed returns a settled world whose keys have aliases and whose pods may list.
func Listed(t testing.TB) *World {
	t.Helper()
	w := Settled(t)
	for ref, aliases := range map[kms.MasterKeyRef][]string{
		OrdersKey: {"orders-prod", "z/last"}, OtherKey: {"both", "a-first"}, TheirsKey: {"theirs", "a-first"},
	} {
		o := Object(ref)
		o.Description, o.Aliases = "for "+ref.Name, aliases
		if ref == OtherKey {
			o.CreatedAt = Begin.Add(-time.Hour)
		}
		w.MasterKeys.Put(o)
	}
	for _, token := range []string{Lister, Describer} {
		w.Tokens.Add(token, Caller("team-a", token, token+"-pod"))
	}
	here := func(verb, name string) kms.Access {
		return kms.Access{Verb: verb, Resource: v1alpha1.ResourceMasterKeys, Namespace: "team-a", Name: name}
	}
	for _, verb := range []string{v1alpha1.VerbListKeys, v1alpha1.VerbListAliases, v1alpha1.VerbDescribeKey, v1alpha1.VerbGenerateRandom} {
		w.RBAC.Grant("system:serviceaccount:team-a:"+Lister, here(verb, ""))
	}
	w.RBAC.Grant("system:serviceaccount:team-a:"+Describer, here(v1alpha1.VerbDescribeKey, "orders"))
	return w
}

// Object is the MasterKey that a ref names.
func Object(ref kms.MasterKeyRef) kms.MasterKey {
	return kms.MasterKey{KeyID: ref.KeyID, Namespace: ref.Namespace, Name: ref.Name, CreatedAt: Begin}
}

// Orders is the data key of the DataKeyRequest orders of team-a.
func Orders() kms.DataKey {
	return kms.DataKey{
		MasterKey:         OrdersKey,
		Namespace:         "team-a",
		Name:              "orders",
		Generation:        1,
		Length:            32,
		EncryptionContext: map[string]string{"tenant": "a"},
	}
}

// Sealed makes a data key and returns its blob.
func (w *World) Sealed(t testing.TB, d kms.DataKey) []byte {
	t.Helper()
	made, err := w.GenerateDataKeyWithoutPlaintext(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return made.CiphertextBlob
}

// Material returns version 1 of a master key as it lies in the store, unsealed.
func (w *World) Material(t testing.TB, ref kms.MasterKeyRef) (envelope.MaterialID, envelope.Material) {
	t.Helper()
	_, materialID, m, err := w.ring(t).Unseal(t.Context(), KeyID(t, ref.KeyID), 1, w.Store.Secrets()[ref.KeyID].Data["v1"])
	if err != nil {
		t.Fatal(err)
	}
	return materialID, m
}

// AddVersion adds a version to a master key, as a rotation by another manager does.
func (w *World) AddVersion(t testing.TB, ref kms.MasterKeyRef, version uint32) {
	t.Helper()
	sealed, err := w.ring(t).Seal(seal.MasterKeyVersion{KeyID: KeyID(t, ref.KeyID), Namespace: ref.Namespace, Name: ref.Name, Version: version},
		envelope.NewMaterialID(), envelope.NewMaterial())
	if err != nil {
		t.Fatal(err)
	}
	w.Store.Edit(ref.KeyID, func(s *seal.Secret) {
		s.Data[seal.VersionEntry(version)] = sealed
		s.Data[seal.VersionEntry(version)+".createdAt"] = []byte(Begin.Format(time.RFC3339))
		s.Data["record"] = RecordOf(version)
	})
}

// ARN returns the beginning of every ARN of the world.
func (w *World) ARN(t testing.TB) string {
	t.Helper()
	info, err := w.MasterKey(t.Context(), OrdersKey)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(info.ARN, "team-a:key/"+OrdersKey.KeyID)
}

// Blobs returns blobs of a settled world, by what they are.
func (w *World) Blobs(t testing.TB) map[string][]byte {
	t.Helper()
	materialID, material := w.Material(t, OrdersKey)
	theirsID, theirs := w.Material(t, TheirsKey)
	scope := envelope.Scope{Namespace: "team-a", Name: "orders", Generation: 1}
	h := envelope.Header{Kind: envelope.KindAWS, KeyID: KeyID(t, OrdersKey.KeyID), KeyVersion: 1, MaterialID: materialID}
	with := func(change func(*envelope.Header)) envelope.Header {
		h := h
		change(&h)
		return h
	}
	scoped := with(func(h *envelope.Header) { h.Kind, h.Scope = envelope.KindDataKey, scope })
	return map[string][]byte{
		"scoped":   w.Sealed(t, Orders()),
		"unscoped": Forged(t, h, material),
		"payments": w.Sealed(t, kms.DataKey{MasterKey: OrdersKey, Namespace: "team-a", Name: "payments", Generation: 1, Length: 32}),
		"scoped to team-b": Forged(t, with(func(h *envelope.Header) {
			h.Kind, h.Scope = envelope.KindDataKey, envelope.Scope{Namespace: "team-b", Name: "orders", Generation: 1}
		}), material),
		"of no key": Forged(t, with(func(h *envelope.Header) { h.KeyID = KeyID(t, GoneID) }), material),
		"scoped, of no key": Forged(t, with(func(h *envelope.Header) {
			h.Kind, h.Scope, h.KeyID = envelope.KindDataKey, scope, KeyID(t, GoneID)
		}), material),
		"of no version":   Forged(t, with(func(h *envelope.Header) { h.KeyVersion = 2 }), material),
		"of no material":  Forged(t, with(func(h *envelope.Header) { h.MaterialID = envelope.NewMaterialID() }), material),
		"of made-up keys": Forged(t, scoped, envelope.NewMaterial()),
		"of team-b's key": Forged(t, with(func(h *envelope.Header) { h.KeyID, h.MaterialID = KeyID(t, TheirsKey.KeyID), theirsID }), theirs),
		"scoped, of team-b's key": Forged(t, with(func(h *envelope.Header) {
			h.Kind, h.Scope, h.KeyID, h.MaterialID = envelope.KindDataKey, scope, KeyID(t, TheirsKey.KeyID), theirsID
		}), theirs),
		"Alibaba":           Forged(t, with(func(h *envelope.Header) { h.Kind = envelope.KindAlibabaInitial }), material),
		"a sealed version":  w.Store.Secrets()[OrdersKey.KeyID].Data["v1"],
		"a sealing key":     w.Store.WrappedSealingKey(),
		"without its start": w.Sealed(t, Orders())[1:],
		"nothing":           nil,
		"too large":         make([]byte, 6145),
	}
}

// RenewOf is what a sidecar asks of the data key in a blob.
func RenewOf(t testing.TB, blob []byte) kms.RenewRequest {
	t.Helper()
	b, err := envelope.Parse(blob)
	if err != nil {
		t.Fatal(err)
	}
	h := b.Header
	return kms.RenewRequest{KeyID: h.KeyID.String(), KeyVersion: int32(h.KeyVersion), MaterialID: h.MaterialID[:], Name: h.Scope.Name}
}

// Later lets time pass.
func (w *World) Later(d time.Duration) { w.Clock.SetTime(w.Clock.Now().Add(d)) }

// RecordOf is the record of a key with that primary version.
func RecordOf(primary uint32) []byte {
	return fmt.Appendf(nil, `{"primary":%d,"primarySince":"2026-11-21T12:00:00Z","waitingPeriod":"720h0m0s"}`, primary)
}

// Forged makes a blob with any header under any material.
func Forged(t testing.TB, h envelope.Header, m envelope.Material) []byte {
	t.Helper()
	return ForgedWith(t, h, m, envelope.AssociatedData{})
}

// ForgedWith is Forged with associated data.
func ForgedWith(t testing.TB, h envelope.Header, m envelope.Material, ad envelope.AssociatedData) []byte {
	t.Helper()
	p, err := envelope.NewPlaintext(32)
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.Seal(h, ad, p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// KeyID parses a key ID.
func KeyID(t testing.TB, s string) envelope.KeyID {
	t.Helper()
	id, err := envelope.ParseKeyID(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Raw returns the bytes of a plaintext.
func Raw(p envelope.Plaintext) []byte { return p.AppendTo(insecuresecret.Token{}, nil) }
