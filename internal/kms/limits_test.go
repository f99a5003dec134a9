package kms_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// limited is a world with small limits, and what its pods ask for.
type limited struct {
	*world
	t    testing.TB
	blob []byte
}

func newLimited(t testing.TB, l kms.Limits) *limited {
	t.Helper()
	w := settled(t)
	w.Limits = l
	blob := w.Sealed(t, orders())
	w = replica(t, w)
	return &limited{world: w, t: t, blob: blob}
}

func (l *limited) request() kms.DecryptRequest {
	return kms.DecryptRequest{CiphertextBlob: l.blob, EncryptionContext: orders().EncryptionContext, Door: kms.DoorAWS}
}

func (l *limited) decrypt(token string) error {
	l.t.Helper()
	resp, err := l.Decrypt(l.t.Context(), token, l.request())
	if err == nil {
		resp.Plaintext.Destroy()
	}
	return err
}

// until calls until it is throttled, and returns how often it was not.
func (l *limited) until(call func() error) (calls int) {
	l.t.Helper()
	for ; calls < 100_000; calls++ {
		err := call()
		if kms.CodeOf(err) == kms.CodeThrottled {
			if reason := kms.ReasonOf(err); reason != kmsv1.ReasonThrottled {
				l.t.Errorf("the reason is %s", reason)
			}
			return calls
		}
	}
	l.t.Fatal("nothing was throttled")
	return 0
}

func (l *limited) after(d time.Duration) { l.Clock.SetTime(l.Clock.Now().Add(d)) }

func TestAPodThatIsRefusedTooOftenIsThrottled(t *testing.T) {
	l := newLimited(t, kms.Limits{Calls: 1000, CallsBurst: 1000, Refusals: 2, RefusalsBurst: 10})
	denied := func() error { return l.decrypt(nobody) }
	if got := l.until(denied); got != 10 {
		t.Errorf("%d refusals were answered at once, want 10", got)
	}
	// Throttled, it costs nobody anything: no review of a permission, no read, no record but one a minute.
	asked, records, calls, denials := len(l.RBAC.Asked()), len(l.Audit.Records()), len(l.Store.Calls()), len(l.Events.Denials())
	for range 1000 {
		if err := denied(); kms.CodeOf(err) != kms.CodeThrottled || !strings.Contains(err.Error(), "2 a second are answered") {
			t.Fatalf("got %v, want Throttled", err)
		}
	}
	if len(l.RBAC.Asked()) != asked || len(l.Store.Calls()) != calls || len(l.Audit.Records()) != records || len(l.Events.Denials()) != denials {
		t.Error("a throttled call costs something")
	}
	last := l.Audit.Records()[records-1]
	if last.Operation != kms.OperationThrottle || last.Decision != kms.DecisionRefused || last.Code != "Throttled" || last.Caller == nil || last.Caller.Pod != nobody+"-pod" {
		t.Errorf("the record of it is %+v", last)
	}
	// Nobody else is.
	for _, token := range []string{app, keyUser} {
		if err := l.decrypt(token); err != nil {
			t.Errorf("%s: %v", token, err)
		}
	}
	l.after(time.Second)
	if got := l.until(denied); got != 2 {
		t.Errorf("%d refusals were answered a second later, want 2", got)
	}
	l.after(time.Minute)
	if got := l.until(denied); got != 10 {
		t.Errorf("%d refusals were answered a minute later, want 10", got)
	}
	notes := 0
	for _, r := range l.Audit.Records() {
		if r.Operation == kms.OperationThrottle {
			notes++
		}
	}
	if notes != 2 {
		t.Errorf("%d records say that the pod is throttled, want one a minute", notes)
	}
}

// What a pod cannot help is not held against it, and neither is what it is told on purpose.
func TestOnlyRefusalsThatAPodBroughtUponItselfCount(t *testing.T) {
	w := settled(t)
	b := w.Blobs(t)
	for name, c := range map[string]struct {
		call   func(w *world) error
		change func(w *world)
		counts bool
	}{
		"denied": {counts: true, call: func(w *world) error {
			_, err := w.Decrypt(t.Context(), nobody, kms.DecryptRequest{CiphertextBlob: b["scoped"], Door: kms.DoorAWS})
			return err
		}},
		"not found": {counts: true, call: func(w *world) error {
			_, err := w.Decrypt(t.Context(), allKeys, kms.DecryptRequest{CiphertextBlob: b["of no key"], Door: kms.DoorAWS})
			return err
		}},
		"the wrong context": {counts: true, call: func(w *world) error {
			_, err := w.Decrypt(t.Context(), app, kms.DecryptRequest{CiphertextBlob: b["scoped"], Door: kms.DoorAWS})
			return err
		}},
		"a key that is Disabled": {
			counts: true,
			change: func(w *world) {
				o := object(ordersKey)
				o.State = kms.KeyStateDisabled
				w.MasterKeys.Put(o)
			},
			call: func(w *world) error {
				_, err := w.Decrypt(t.Context(), app, kms.DecryptRequest{CiphertextBlob: b["scoped"], Door: kms.DoorAWS})
				return err
			},
		},
		"a dry run": {call: func(w *world) error {
			_, err := w.GenerateDataKey(t.Context(), keyUser, kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32, Door: kms.DoorAWS, DryRun: true})
			return err
		}},
		"a malformed request": {counts: true, call: func(w *world) error {
			_, err := w.Decrypt(t.Context(), app, kms.DecryptRequest{Door: kms.DoorAWS})
			return err
		}},
		"a caller who does not wait": {
			counts: true,
			change: func(w *world) {
				// The key is loaded: nothing goes on when the caller is gone.
				if _, err := w.Decrypt(t.Context(), app, kms.DecryptRequest{CiphertextBlob: b["scoped"], EncryptionContext: orders().EncryptionContext, Door: kms.DoorAWS}); err != nil {
					t.Fatal(err)
				}
				w.RBAC.Err = context.Canceled
			},
			call: func(w *world) error {
				caller, err := w.enter(t.Context(), "", app)
				if err != nil {
					return err
				}
				gone, hangUp := context.WithCancel(t.Context())
				hangUp()
				_, err = w.Service.Decrypt(gone, caller, kms.DecryptRequest{CiphertextBlob: b["scoped"], Door: kms.DoorAWS})
				return err
			},
		},
		"permissions that cannot be reviewed": {
			change: func(w *world) { w.RBAC.Err = errors.New("no connection") },
			call: func(w *world) error {
				_, err := w.Decrypt(t.Context(), app, kms.DecryptRequest{CiphertextBlob: b["scoped"], Door: kms.DoorAWS})
				return err
			},
		},
		"a store that does not answer": {
			change: func(w *world) { w.Store.Hook = func(int, sealtest.Call) sealtest.Fault { return sealtest.Fail } },
			call: func(w *world) error {
				_, err := w.Decrypt(t.Context(), app, kms.DecryptRequest{CiphertextBlob: b["scoped"], Door: kms.DoorAWS})
				return err
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := w.clone()
			fresh := settled(t)
			w.MasterKeys, w.RBAC, w.Limits = fresh.MasterKeys, fresh.RBAC, kms.Limits{Calls: 1000, CallsBurst: 1000, Refusals: 1, RefusalsBurst: 5}
			r := replica(t, w)
			if c.change != nil {
				c.change(r)
				defer func() { r.Store.Hook = nil }()
			}
			throttled := false
			for range 10 {
				err := c.call(r)
				if err == nil {
					t.Fatal("the call was not refused")
				}
				throttled = kms.CodeOf(err) == kms.CodeThrottled
			}
			if throttled != c.counts {
				t.Errorf("after 10 calls: throttled is %v, want %v", throttled, c.counts)
			}
		})
	}
}

func TestAPodThatCallsTooOftenIsThrottled(t *testing.T) {
	l := newLimited(t, kms.Limits{Calls: 10, CallsBurst: 200, Refusals: 1000, RefusalsBurst: 1000})
	good := func() error { return l.decrypt(app) }
	if got := l.until(good); got != 200 {
		t.Errorf("%d calls were answered at once, want 200", got)
	}
	if err := l.decrypt(keyUser); err != nil {
		t.Errorf("another pod: %v", err)
	}
	l.after(time.Second)
	if got := l.until(good); got != 10 {
		t.Errorf("%d calls were answered a second later, want 10", got)
	}

	// Each request of a batch counts, and a batch is answered whole or not at all.
	l.after(time.Hour)
	batch := make([]kms.DecryptRequest, 100)
	for i := range batch {
		batch[i] = l.request()
	}
	whole := func() error {
		results, err := l.BatchDecrypt(t.Context(), app, batch)
		for i, r := range results {
			if r.Err != nil {
				t.Fatalf("request %d: %v", i, r.Err)
			}
			r.Response.Plaintext.Destroy()
		}
		return err
	}
	if got := l.until(whole); got != 2 {
		t.Errorf("%d batches of 100 were answered, want 2", got)
	}

	// So does what takes the processor long. It is owed, and paid within a minute.
	l.after(time.Hour)
	pair := func() error {
		resp, err := l.GenerateDataKeyPair(t.Context(), allKeys, kms.GenerateDataKeyPairRequest{KeyID: "orders", KeyPairSpec: "RSA_2048", Door: kms.DoorAWS})
		resp.PrivateKey.Destroy()
		return err
	}
	if err := pair(); err != nil {
		t.Fatal(err)
	}
	if err := pair(); kms.CodeOf(err) != kms.CodeThrottled {
		t.Errorf("an RSA key pair costs too little: got %v", err)
	}
	l.after(time.Minute + time.Second)
	if err := l.decrypt(allKeys); err != nil {
		t.Errorf("a minute later: %v", err)
	}
}

// The usual limits are for those who do harm: nothing that an honest pod does comes near.
func TestHonestPodsAreNotThrottled(t *testing.T) {
	l := newLimited(t, kms.Limits{})
	var batch, denied []kms.DecryptRequest
	for i := range 100 {
		batch = append(batch, l.request())
		d := orders()
		d.Name = fmt.Sprintf("denied-%d", i)
		denied = append(denied, kms.DecryptRequest{CiphertextBlob: l.Sealed(t, d), EncryptionContext: d.EncryptionContext, Door: kms.DoorAWS})
	}
	open := func(reqs []kms.DecryptRequest, want kms.Code) {
		t.Helper()
		results, err := l.BatchDecrypt(t.Context(), app, reqs)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results {
			if kms.CodeOf(r.Err) != want {
				t.Fatalf("got %v, want %v", r.Err, want)
			}
			r.Response.Plaintext.Destroy()
		}
	}
	// A sidecar with a hundred data keys, none of which it may have, for ten minutes.
	for range 60 {
		open(denied, kms.CodeDenied)
		l.after(10 * time.Second)
	}
	// The same sidecar, started anew five times in a row.
	l.after(time.Minute)
	for range 5 {
		open(denied, kms.CodeDenied)
		l.after(200 * time.Millisecond)
	}
	// An application that opens five thousand blobs a second, in any form.
	for range 5 {
		for range 40 {
			open(batch, 0)
		}
		for range 1000 {
			l.after(time.Millisecond)
			if err := l.decrypt(keyUser); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Key pairs that were asked for at once are paid for one by one.
func TestDearCallsAtOnceAreNotAllLetIn(t *testing.T) {
	l := newLimited(t, kms.Limits{Calls: 1000, CallsBurst: 2000, Refusals: 1000, RefusalsBurst: 1000})
	var caller kms.Caller
	for range 3 {
		var err error
		if caller, err = l.enter(t.Context(), "", allKeys); err != nil {
			t.Fatal(err)
		}
	}
	pair := func(spec string) error {
		_, err := l.Service.GenerateDataKeyPair(t.Context(), caller, kms.GenerateDataKeyPairRequest{
			KeyID: "orders", KeyPairSpec: spec, Door: kms.DoorAWS, WithoutPlaintext: true,
		})
		return err
	}
	if err := pair("RSA_2048"); err != nil { // costs 2,500 of 2,000
		t.Fatal(err)
	}
	if err := pair("RSA_2048"); kms.CodeOf(err) != kms.CodeThrottled {
		t.Errorf("the second of two at once: got %v, want Throttled", err)
	}
	if err := pair("ECC_NIST_P256"); err != nil {
		t.Errorf("one that costs no more than the call: %v", err)
	}
}
