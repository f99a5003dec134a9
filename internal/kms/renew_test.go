package kms_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// renew asks of one data key.
func (w *world) renew(t testing.TB, token string, req kms.RenewRequest) error {
	t.Helper()
	refusals, err := w.Renew(t.Context(), token, []kms.RenewRequest{req})
	if err != nil {
		return err
	}
	if len(refusals) != 1 {
		t.Fatalf("got %d answers", len(refusals))
	}
	return refusals[0]
}

// What Decrypt answers, Renew answers, whoever asks, in whatever state the world is.
func TestRenewDecidesAsDecryptDoes(t *testing.T) {
	scoped := []string{"scoped", "payments", "scoped, of no key", "scoped, of team-b's key", "scoped, of no version", "scoped, of no material"}
	for name, change := range map[string]func(*world){
		"all is well":                    nil,
		"a permission is taken back":     func(w *world) { w.RBAC.Revoke("system:serviceaccount:team-a:app") },
		"the MasterKey is deleted":       func(w *world) { w.MasterKeys.Delete("team-a", "orders") },
		"the MasterKey is made anew":     func(w *world) { w.MasterKeys.Put(kms.MasterKey{KeyID: goneID, Namespace: "team-a", Name: "orders"}) },
		"Disabled":                       func(w *world) { w.MasterKeys.Put(inState(ordersKey, kms.KeyStateDisabled)) },
		"PendingDeletion":                func(w *world) { w.MasterKeys.Put(inState(ordersKey, kms.KeyStatePendingDeletion)) },
		"Destroyed":                      func(w *world) { w.MasterKeys.Put(inState(ordersKey, kms.KeyStateDestroyed)) },
		"a state of the future":          func(w *world) { w.MasterKeys.Put(inState(ordersKey, "Strange")) },
		"the MasterKeys cannot be read":  func(w *world) { w.MasterKeys.Err = errors.New("no connection") },
		"tokens cannot be reviewed":      func(w *world) { w.Tokens.Err = errors.New("no connection") },
		"permissions cannot be reviewed": func(w *world) { w.RBAC.Err = errors.New("no connection") },
		"the material is damaged":        func(w *world) { w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) { s.Data["v1"][70] ^= 1 }) },
		"the material is gone":           func(w *world) { w.Store.Delete(ordersKey.KeyID) },
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			b := w.Blobs(t)
			materialID, material := w.Material(t, ordersKey)
			h := envelope.Header{
				Kind: envelope.KindDataKey, KeyID: keyID(t, ordersKey.KeyID), KeyVersion: 2, MaterialID: materialID,
				Scope: envelope.Scope{Namespace: "team-a", Name: "orders", Generation: 1},
			}
			b["scoped, of no version"] = forged(t, h, material)
			h.KeyVersion, h.MaterialID = 1, envelope.NewMaterialID()
			b["scoped, of no material"] = forged(t, h, material)
			if change != nil {
				change(w)
			}
			for _, w := range []*world{w, replica(t, w)} { // the key known already, and not
				for _, token := range []string{app, keyUser, allKeys, reader, nobody, "stolen", ""} {
					for _, blob := range scoped {
						req := kms.DecryptRequest{CiphertextBlob: b[blob]}
						if blob == "scoped" {
							req.EncryptionContext = orders().EncryptionContext
						}
						_, want := w.Decrypt(t.Context(), token, req)
						w.Later(3 * time.Second) // what was not found is looked for again
						got := w.renew(t, token, renewOf(t, b[blob]))
						w.Later(3 * time.Second)
						if text(got) != text(want) || kms.ReasonOf(got) != kms.ReasonOf(want) {
							t.Errorf("%q, %s: Renew says %v, Decrypt %v", token, blob, got, want)
						}
					}
				}
			}
		})
	}
}

func text(err error) string {
	if e, ok := errors.AsType[*kms.Error](err); ok {
		return e.Code.String() + ": " + e.Message
	}
	return ""
}

// A data key's blob may be of another context, or damaged: it is not opened, and who asked has it already.
func TestRenewOpensNothing(t *testing.T) {
	w := settled(t)
	if err := w.renew(t, app, renewOf(t, w.Blobs(t)["of made-up keys"])); err != nil {
		t.Errorf("got %v", err)
	}
}

// The namespace is never the caller's to say: what a pod of another one asks for is a data key of its own.
func TestRenewIsOfTheCallersNamespace(t *testing.T) {
	w := settled(t)
	err := w.renew(t, stranger, renewOf(t, w.Sealed(t, orders())))
	// It may decrypt under the master key of team-a: that is what the key's owner allowed. The request is asked about at home.
	if err != nil {
		t.Errorf("got %v", err)
	}
	for _, a := range w.RBAC.Asked() {
		if a.Resource == "datakeyrequests" && a.Namespace != "team-b" {
			t.Errorf("RBAC was asked %+v", a)
		}
	}
	w.RBAC.Revoke("system:serviceaccount:team-b:stranger")
	w.Later(11 * time.Second)
	if err := w.renew(t, stranger, renewOf(t, w.Sealed(t, orders()))); kms.CodeOf(err) != kms.CodeDenied || !strings.Contains(err.Error(), "in namespace team-b") {
		t.Errorf("without a permission: got %v", err)
	}
}

// The first rule that a data key breaks is told; once it is kept, the next.
func TestTheOrderOfChecksOfRenew(t *testing.T) {
	w := settled(t)
	good := renewOf(t, w.Sealed(t, orders()))
	q, token := kms.RenewRequest{KeyID: "orders", KeyVersion: -1, MaterialID: []byte("short"), Name: "No name!"}, ""
	w.MasterKeys.Put(inState(ordersKey, kms.KeyStateDisabled))
	for i, rule := range []rule{
		{"UNAUTHENTICATED", "carries no token", func() { token = nobody }},
		{"INVALID", "key_id: must be a key ID, as in the blob", func() { q.KeyID = "arn:datakeys:kms:0123456789ab:team-a:key/" + goneID }},
		{"INVALID", "key_id: ", func() { q.KeyID = goneID }},
		{"INVALID", "key_version: must be 1 or more", func() { q.KeyVersion = 0 }},
		{"INVALID", "key_version: must be 1 or more", func() { q.KeyVersion = 7 }},
		{"INVALID", "material_id: must be 16 bytes", func() { q.MaterialID = make([]byte, 17) }},
		{"INVALID", "material_id: must be 16 bytes", func() { q.MaterialID = make([]byte, 16) }},
		{"INVALID", "name: must be the name of a DataKeyRequest", func() { q.Name = "" }},
		{"INVALID", "name: must be the name of a DataKeyRequest", func() { q.Name = "orders" }},
		{"DENIED", "needs the verb decrypt on datakeyrequests/orders in namespace team-a, or on its MasterKey", func() { token = app }},
		{"KEY_NOT_FOUND", "ciphertext_blob: the key or key version that made it is not known here", func() { q.KeyID = good.KeyID }},
		{"KEY_DISABLED", "is Disabled", func() { w.MasterKeys.Put(inState(ordersKey, kms.KeyStatePendingDeletion)) }},
		{"KEY_PENDING_DELETION", "is PendingDeletion", func() { w.MasterKeys.Put(inState(ordersKey, kms.KeyStateEnabled)) }},
		{"KEY_NOT_FOUND", "ciphertext_blob: the key or key version that made it is not known here", func() { q.KeyVersion = 1 }},
		{"KEY_NOT_FOUND", "ciphertext_blob: the key or key version that made it is not known here", func() { q.MaterialID = good.MaterialID }},
	} {
		before := len(w.Audit.Records())
		err := w.renew(t, token, q)
		if kms.ReasonOf(err) != rule.reason || !strings.Contains(err.Error(), rule.says) {
			t.Fatalf("rule %d: got %v (%s), want %s that says %q", i, err, kms.ReasonOf(err), rule.reason, rule.says)
		}
		wellFormed := rule.reason != "UNAUTHENTICATED" && rule.reason != "INVALID"
		if got := len(w.Audit.Records()) - before; (got == 1) != wellFormed {
			t.Errorf("rule %d: got %d audit records", i, got)
		}
		rule.mend()
	}
	if err := w.renew(t, token, q); err != nil {
		t.Errorf("with every rule kept: %v", err)
	}
}

// Sidecars renew all the time: the audit log has what is refused, and nothing else.
func TestOnlyRefusedRenewalsAreRecorded(t *testing.T) {
	w := settled(t)
	good := renewOf(t, w.Sealed(t, orders()))
	before, asked := len(w.Audit.Records()), len(w.RBAC.Asked())
	refusals, err := w.Renew(t.Context(), app, slices.Repeat([]kms.RenewRequest{good}, 100))
	if err != nil || slices.ContainsFunc(refusals, func(err error) bool { return err != nil }) {
		t.Fatalf("got %v, %v", refusals, err)
	}
	if got := len(w.Audit.Records()) - before; got != 0 {
		t.Errorf("got %d audit records, want none", got)
	}
	if got := len(w.RBAC.Asked()) - asked; got != 2 { // the key, the request
		t.Errorf("RBAC was asked %d times, want once about the same access", got)
	}
	// What cannot be recorded is not released: but nothing is.
	w.Audit.Err = errors.New("disk full")
	if err := w.renew(t, app, good); err != nil {
		t.Errorf("while the audit log is full: %v", err)
	}
	w.Audit.Err = nil

	if err := w.renew(t, nobody, good); kms.CodeOf(err) != kms.CodeDenied {
		t.Fatalf("got %v", err)
	}
	records := w.Audit.Records()[before:]
	if len(records) != 1 {
		t.Fatalf("got %d audit records, want 1", len(records))
	}
	r := records[0]
	if r.Operation != "RenewDataKey" || r.Decision != kms.DecisionRefused || r.Code != "Denied" || r.Caller.Pod != "nobody-pod" || r.Bytes != 0 ||
		!cmp.Equal(*r.Key, kms.AuditKey{ID: ordersKey.KeyID, Namespace: "team-a", Name: "orders", Version: 1}) ||
		!cmp.Equal(*r.DataKey, kms.AuditDataKey{Namespace: "team-a", Name: "orders"}) {
		t.Errorf("got %+v of %+v, %+v", r, r.Key, r.DataKey)
	}
	if events := w.Events.Denials(); len(events) != 1 || events[0].DataKeyRequest != "orders" {
		t.Errorf("got the events %+v", events)
	}
}

func TestARenewalOfTheWrongSizeIsRefusedWhole(t *testing.T) {
	w := settled(t)
	good := renewOf(t, w.Sealed(t, orders()))
	for n, want := range map[int]kms.Code{0: kms.CodeInvalidArgument, 1: 0, 100: 0, 101: kms.CodeInvalidArgument} {
		refusals, err := w.Renew(t.Context(), app, slices.Repeat([]kms.RenewRequest{good}, n))
		if kms.CodeOf(err) != want || err == nil && len(refusals) != n || err != nil && !strings.Contains(err.Error(), "data_keys: must be 1 to 100") {
			t.Errorf("%d data keys: got %d answers and %v", n, len(refusals), err)
		}
	}
}

// Renewals cost a pod what opening does, and refused ones what refused ones do.
func TestRenewalsCountAgainstTheLimitsOfAPod(t *testing.T) {
	l := newLimited(t, kms.Limits{Calls: 10, CallsBurst: 200, Refusals: 1, RefusalsBurst: 50})
	good := renewOf(t, l.Sealed(t, orders()))
	batch := func(token string, want kms.Code) func() error {
		return func() error {
			refusals, err := l.Renew(t.Context(), token, slices.Repeat([]kms.RenewRequest{good}, 50))
			for _, err := range refusals {
				if kms.CodeOf(err) != want {
					t.Fatalf("got %v, want %v", err, want)
				}
			}
			return err
		}
	}
	if got := l.until(batch(app, 0)); got != 4 {
		t.Errorf("%d batches of 50 were answered, want 4", got)
	}
	if got := l.until(batch(nobody, kms.CodeDenied)); got != 1 {
		t.Errorf("%d refused batches of 50 were answered, want 1", got)
	}
}

// TestAnItemOfABatchThatHangsLeavesTheOthers: a data key that is revoked is not issued on because another one's material cannot be
// read now, which a sidecar would take for an outage; nor does a Decrypt fail with another one.
func TestAnItemOfABatchThatHangsLeavesTheOthers(t *testing.T) {
	w := settled(t)
	hanging := orders()
	hanging.MasterKey = otherKey
	blob, other := w.Sealed(t, orders()), w.Sealed(t, hanging)
	w.Limits = kms.Limits{Calls: 100, CallsBurst: 100, Refusals: 1, RefusalsBurst: 2}
	w = replica(t, w)
	release := make(chan struct{})
	defer close(release)
	w.Store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
		if c.Name == otherKey.KeyID {
			<-release
		}
		return sealtest.None
	}
	disabled := object(ordersKey)
	disabled.State = kms.KeyStateDisabled
	w.MasterKeys.Put(disabled)
	caller := kmstest.Caller("team-a", app, app+"-pod")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	want := []kms.Code{kms.CodeFailedPrecondition, kms.CodeUnavailable}

	refusals, err := w.Service.Renew(ctx, caller, []kms.RenewRequest{renewOf(t, blob), renewOf(t, other)})
	if err != nil || ctx.Err() != nil {
		t.Fatalf("got %v, %v", err, ctx.Err())
	}
	for i, err := range refusals {
		if kms.CodeOf(err) != want[i] {
			t.Errorf("renewal %d: got %v, want %v", i, err, want[i])
		}
	}
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	results, err := w.Service.BatchDecrypt(ctx, caller, []kms.DecryptRequest{
		{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext},
		{CiphertextBlob: other, EncryptionContext: orders().EncryptionContext},
	})
	if err != nil || ctx.Err() != nil {
		t.Fatalf("got %v, %v", err, ctx.Err())
	}
	for i, r := range results {
		if kms.CodeOf(r.Err) != want[i] {
			t.Errorf("blob %d: got %v, want %v", i, r.Err, want[i])
		}
	}
	for _, operation := range []string{kms.OperationRenew, kms.OperationDecrypt} {
		if _, err := w.enter(t.Context(), operation, app); err != nil {
			t.Errorf("what took too long counts as refused: %v", err)
		}
	}
}
