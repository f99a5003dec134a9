package kms_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

var begin = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// wrapAge is for how long a data key is wrapped by what was read of its master key before.
const wrapAge = time.Second

// Master keys of every world.
var (
	ordersKey = kms.MasterKeyRef{KeyID: "11111111-1111-4111-8111-111111111111", Namespace: "team-a", Name: "orders"}
	otherKey  = kms.MasterKeyRef{KeyID: "22222222-2222-4222-8222-222222222222", Namespace: "team-a", Name: "other"}
	theirsKey = kms.MasterKeyRef{KeyID: "33333333-3333-4333-8333-333333333333", Namespace: "team-b", Name: "theirs"}
	goneID    = "99999999-9999-4999-8999-999999999999" // of no key
)

// terms are those by which their material is destroyed.
var terms = kms.DeletionTerms{WaitingPeriod: 720 * time.Hour}

// world is a key service with everything around it in memory.
type world struct {
	*kms.Service
	store   *sealtest.Store
	objects *kmstest.MasterKeys
	tokens  *kmstest.Authenticator
	rbac    *kmstest.Authorizer
	audit   *kmstest.Auditor
	auditor kms.Auditor // in place of audit, unless it is nil
	events  *kmstest.Events
	limits  kms.Limits // zero: the usual ones
	clock   *clocktesting.FakePassiveClock
	metrics *prometheus.Registry
	log     *lines
}

// lines keeps log lines.
type lines struct {
	mu  sync.Mutex
	all strings.Builder
}

func (l *lines) logger() logr.Logger {
	return funcr.New(func(prefix, args string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.all.WriteString(prefix + " " + args + "\n")
	}, funcr.Options{Verbosity: 9})
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.String()
}

// newWorld returns a world with an empty store.
func newWorld(t testing.TB) *world {
	t.Helper()
	return replica(t, &world{
		store:   &sealtest.Store{},
		objects: &kmstest.MasterKeys{},
		tokens:  &kmstest.Authenticator{},
		rbac:    &kmstest.Authorizer{},
		audit:   &kmstest.Auditor{},
		events:  &kmstest.Events{},
		clock:   clocktesting.NewFakePassiveClock(begin),
		log:     &lines{},
	})
}

// replica returns another manager in the same cluster: a key service that knows nothing yet.
func replica(t testing.TB, of *world) *world {
	t.Helper()
	w := *of
	w.Service = serviceOver(t, &w, w.store)
	return &w
}

// serviceOver returns a key service in a world, with a store of its own.
func serviceOver(t testing.TB, w *world, store kms.KeyStore) *kms.Service {
	t.Helper()
	ring, err := sealtest.OpenEmbedded(t.Context(), w.store)
	if err != nil {
		t.Fatal(err)
	}
	w.metrics = prometheus.NewRegistry()
	auditor := w.auditor
	if auditor == nil {
		auditor = w.audit
	}
	service, err := kms.New(kms.Config{
		Seal:          ring,
		Keys:          store,
		MasterKeys:    w.objects,
		Authenticator: w.tokens,
		Authorizer:    w.rbac,
		Auditor:       auditor,
		Events:        w.events,
		Registerer:    w.metrics,
		Limits:        w.limits,
		Clock:         w.clock,
		Logger:        w.log.logger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return service
}

// Callers of a settled world, each by a token of the same name.
const (
	app      = "app"      // team-a: decrypt on datakeyrequests/orders
	keyUser  = "key-user" // team-a: decrypt and generatedatakey on masterkeys/orders
	allKeys  = "all-keys" // team-a: every cryptographic operation on all masterkeys, decrypt on datakeyrequests/orders
	reader   = "reader"   // team-a: decrypt and reencryptfrom on all masterkeys
	nobody   = "nobody"   // team-a: nothing
	stranger = "stranger" // team-b: decrypt on team-a's datakeyrequests/orders and masterkeys/orders
)

// settled returns a world with three master keys, their objects, and callers.
func settled(t testing.TB) *world {
	t.Helper()
	w := newWorld(t)
	for _, ref := range []kms.MasterKeyRef{ordersKey, otherKey, theirsKey} {
		if _, err := w.EnsureMasterKey(t.Context(), ref, terms, ""); err != nil {
			t.Fatal(err)
		}
		w.objects.Put(object(ref))
	}
	for token, namespace := range map[string]string{
		app: "team-a", keyUser: "team-a", allKeys: "team-a", reader: "team-a", nobody: "team-a", stranger: "team-b",
	} {
		w.tokens.Add(token, kmstest.Caller(namespace, token, token+"-pod"))
	}
	grant := func(who, namespace, verb, resource, name string) {
		w.rbac.Grant("system:serviceaccount:"+namespace+":"+who,
			kms.Access{Verb: verb, Resource: resource, Namespace: "team-a", Name: name})
	}
	grant(app, "team-a", v1alpha1.VerbDecrypt, v1alpha1.ResourceDataKeyRequests, "orders")
	grant(keyUser, "team-a", v1alpha1.VerbDecrypt, v1alpha1.ResourceMasterKeys, "orders")
	grant(keyUser, "team-a", v1alpha1.VerbGenerateDataKey, v1alpha1.ResourceMasterKeys, "orders")
	grant(allKeys, "team-a", v1alpha1.VerbDecrypt, v1alpha1.ResourceMasterKeys, "")
	for _, verb := range []string{
		v1alpha1.VerbGenerateDataKey, v1alpha1.VerbGenerateDataKeyWithoutPlaintext, v1alpha1.VerbGenerateDataKeyPair,
		v1alpha1.VerbGenerateDataKeyPairWithoutPlaintext, v1alpha1.VerbEncrypt, v1alpha1.VerbReEncryptFrom, v1alpha1.VerbReEncryptTo,
	} {
		grant(allKeys, "team-a", verb, v1alpha1.ResourceMasterKeys, "")
	}
	grant(allKeys, "team-a", v1alpha1.VerbDecrypt, v1alpha1.ResourceDataKeyRequests, "orders")
	grant(reader, "team-a", v1alpha1.VerbDecrypt, v1alpha1.ResourceMasterKeys, "")
	grant(reader, "team-a", v1alpha1.VerbReEncryptFrom, v1alpha1.ResourceMasterKeys, "")
	grant(stranger, "team-b", v1alpha1.VerbDecrypt, v1alpha1.ResourceDataKeyRequests, "orders")
	grant(stranger, "team-b", v1alpha1.VerbDecrypt, v1alpha1.ResourceMasterKeys, "orders")
	grant(stranger, "team-b", v1alpha1.VerbGenerateDataKey, v1alpha1.ResourceMasterKeys, "orders")
	return w
}

// object is the MasterKey that a ref names.
func object(ref kms.MasterKeyRef) kms.MasterKey {
	return kms.MasterKey{KeyID: ref.KeyID, Namespace: ref.Namespace, Name: ref.Name, CreatedAt: begin}
}

// orders is the data key of the DataKeyRequest orders of team-a.
func orders() kms.DataKey {
	return kms.DataKey{
		MasterKey:         ordersKey,
		Namespace:         "team-a",
		Name:              "orders",
		Generation:        1,
		Length:            32,
		EncryptionContext: map[string]string{"tenant": "a"},
	}
}

// sealed makes a data key and returns its blob.
func (w *world) sealed(t testing.TB, d kms.DataKey) []byte {
	t.Helper()
	made, err := w.GenerateDataKeyWithoutPlaintext(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	return made.CiphertextBlob
}

// material returns version 1 of a master key as it lies in the store, unsealed.
func (w *world) material(t testing.TB, ref kms.MasterKeyRef) (envelope.MaterialID, envelope.Material) {
	t.Helper()
	ring, err := sealtest.OpenEmbedded(t.Context(), w.store)
	if err != nil {
		t.Fatal(err)
	}
	id, err := envelope.ParseKeyID(ref.KeyID)
	if err != nil {
		t.Fatal(err)
	}
	_, materialID, m, err := ring.Unseal(t.Context(), id, 1, w.store.Secrets()[ref.KeyID].Data["v1"])
	if err != nil {
		t.Fatal(err)
	}
	return materialID, m
}

// addVersion adds a version to a master key, as a rotation by another manager does.
func (w *world) addVersion(t testing.TB, ref kms.MasterKeyRef, version uint32) {
	t.Helper()
	ring, err := sealtest.OpenEmbedded(t.Context(), w.store)
	if err != nil {
		t.Fatal(err)
	}
	id, err := envelope.ParseKeyID(ref.KeyID)
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := ring.Seal(seal.MasterKeyVersion{KeyID: id, Namespace: ref.Namespace, Name: ref.Name, Version: version},
		envelope.NewMaterialID(), envelope.NewMaterial())
	if err != nil {
		t.Fatal(err)
	}
	w.store.Edit(ref.KeyID, func(s *seal.Secret) {
		s.Data[seal.VersionEntry(version)] = sealed
		s.Data[seal.VersionEntry(version)+".createdAt"] = []byte(begin.Format(time.RFC3339))
		s.Data["record"] = recordOf(version)
	})
}

// later lets time pass.
func (w *world) later(d time.Duration) { w.clock.SetTime(w.clock.Now().Add(d)) }

// recordOf is the record of a key with that primary version.
func recordOf(primary uint32) []byte {
	return fmt.Appendf(nil, `{"primary":%d,"primarySince":"2026-11-21T12:00:00Z","waitingPeriod":"720h0m0s"}`, primary)
}

// forged makes a blob with any header under any material.
func forged(t testing.TB, h envelope.Header, m envelope.Material) []byte {
	t.Helper()
	return forgedWith(t, h, m, envelope.AssociatedData{})
}

// forgedWith is forged with associated data.
func forgedWith(t testing.TB, h envelope.Header, m envelope.Material, ad envelope.AssociatedData) []byte {
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

func keyID(t testing.TB, s string) envelope.KeyID {
	t.Helper()
	id, err := envelope.ParseKeyID(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func raw(p envelope.Plaintext) []byte { return p.AppendTo(insecuresecret.Token{}, nil) }

// mustNotHold fails the test if the text holds any of the secrets, raw or as base64 or hex.
func mustNotHold(t testing.TB, where, text string, secrets map[string][]byte) {
	t.Helper()
	for name, s := range secrets {
		if len(s) < 16 {
			t.Fatalf("%s of %d bytes is too short to search for", name, len(s))
		}
		for _, form := range formsIn(text, s) {
			t.Errorf("%s holds the %s as %s", where, name, form)
		}
	}
}

func formsIn(text string, secret []byte) (forms []string) {
	for form, found := range map[string]bool{
		"raw":    strings.Contains(text, string(secret)),
		"hex":    strings.Contains(strings.ToLower(text), hex.EncodeToString(secret)),
		"base64": containsBase64(text, secret),
	} {
		if found {
			forms = append(forms, form)
		}
	}
	return forms
}

// containsBase64 looks for s at each of the three places in a group of base64 where it may begin.
func containsBase64(text string, s []byte) bool {
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for shift := range 3 {
			whole := enc.EncodeToString(append(bytes.Repeat([]byte{0}, shift), s...))
			if strings.Contains(text, whole[4:len(whole)-4]) {
				return true
			}
		}
	}
	return false
}

func TestTheSearchForSecretsFindsThem(t *testing.T) {
	secret := []byte("0123456789abcdef0123456789abcde\xff")
	for form, text := range map[string]string{
		"raw":             "x" + string(secret) + "x",
		"hex":             "x" + hex.EncodeToString(secret),
		"upper-case hex":  strings.ToUpper(hex.EncodeToString(secret)),
		"base64":          base64.StdEncoding.EncodeToString(secret),
		"base64 inside":   base64.StdEncoding.EncodeToString(append([]byte("{\""), secret...)),
		"base64 for URLs": base64.URLEncoding.EncodeToString(secret),
	} {
		if len(formsIn(text, secret)) == 0 {
			t.Errorf("%s: not found", form)
		}
	}
	if got := formsIn(hex.EncodeToString(secret[1:]), secret); len(got) > 0 {
		t.Errorf("found as %v what is not there", got)
	}
}
