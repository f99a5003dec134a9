package kms_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

const never = time.Duration(0)

// requestRotation asks for a rotation of the sealing key, as somebody with kubectl does.
func (w *world) requestRotation(value string) {
	w.Store.Edit(seal.SealingKeysSecret, func(s *seal.Secret) {
		s.Annotations = map[string]string{"datakeys.io/rotate-requested-at": value}
	})
}

// sealedBy returns which sealing keys seal the material in the store, by the names of the Secrets and entries.
func (w *world) sealedBy(t testing.TB) map[string]uint32 {
	t.Helper()
	by := map[string]uint32{}
	for name, secret := range w.Store.Secrets() {
		for entry, sealed := range secret.Data {
			if _, ok := seal.ParseVersionEntry(entry); !ok || secret.Type != "datakeys.io/master-key" {
				continue
			}
			b, err := envelope.Parse(sealed)
			if err != nil {
				t.Fatal(err)
			}
			by[name+" "+entry] = b.Header.KeyVersion
		}
	}
	return by
}

func TestAfterARotationEverythingIsSealedAnewAndOpens(t *testing.T) {
	w := settled(t)
	w.AddVersion(t, ordersKey, 2)
	blob := w.Sealed(t, orders())
	_, before := w.Material(t, ordersKey)
	old := w.Store.Secrets()
	w.requestRotation("now")
	other := replica(t, w)

	if err := other.TendSeal(t.Context(), false, never); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(old[ordersKey.KeyID], w.Store.Secrets()[ordersKey.KeyID]); diff != "" {
		t.Errorf("a replica that does not lead wrote: %s", diff)
	}
	if err := w.TendSeal(t.Context(), true, never); err != nil {
		t.Fatal(err)
	}
	want := map[string]uint32{ordersKey.KeyID + " v1": 2, ordersKey.KeyID + " v2": 2, otherKey.KeyID + " v1": 2, theirsKey.KeyID + " v1": 2}
	if diff := cmp.Diff(want, w.sealedBy(t)); diff != "" {
		t.Errorf("sealed by: %s", diff)
	}
	if _, after := w.Material(t, ordersKey); !after.Equal(before) {
		t.Error("the material is another one")
	}
	for name, manager := range map[string]*world{"the leader": w, "another replica": other, "one that starts": replica(t, w)} {
		if _, err := manager.OpenDataKey(t.Context(), orders(), blob); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := manager.MasterKey(t.Context(), theirsKey); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, entry := range []string{"v1.createdAt", "v2.createdAt"} {
		if !bytes.Equal(old[ordersKey.KeyID].Data[entry], w.Store.Secrets()[ordersKey.KeyID].Data[entry]) {
			t.Errorf("entry %s was changed", entry)
		}
	}

	// What was backed up before opens too: old versions of the sealing key stay.
	w.Store.Put(old[ordersKey.KeyID])
	if _, err := replica(t, w).OpenDataKey(t.Context(), orders(), blob); err != nil {
		t.Errorf("a backup from before: %v", err)
	}
}

func TestResealingLeavesTheRecordAlone(t *testing.T) {
	w, blobs := destroyed(t)
	left := w.Store.Secrets()[ordersKey.KeyID]
	other := orders()
	other.MasterKey = otherKey
	blob := w.Sealed(t, other)
	w.AddVersion(t, otherKey, 2)
	pending := []byte(`{"primary":1,"primarySince":"2026-11-21T12:00:00Z","rotateRequestedAt":"then","waitingPeriod":"168h0m0s",` +
		`"deletion":{"beganAt":"2026-11-21T12:00:00Z","dueAt":"2026-12-21T12:00:00Z"}}`)
	w.Store.Edit(otherKey.KeyID, func(s *seal.Secret) { s.Data["record"] = pending })
	before := w.Store.Secrets()[otherKey.KeyID]

	w.requestRotation("now")
	if err := w.TendSeal(t.Context(), true, never); err != nil {
		t.Fatal(err)
	}
	want := map[string]uint32{otherKey.KeyID + " v1": 2, otherKey.KeyID + " v2": 2, theirsKey.KeyID + " v1": 2}
	if diff := cmp.Diff(want, w.sealedBy(t)); diff != "" {
		t.Errorf("sealed by: %s", diff)
	}
	if diff := cmp.Diff(left, w.Store.Secrets()[ordersKey.KeyID]); diff != "" {
		t.Errorf("what is left of a destroyed key was changed: %s", diff)
	}
	after := w.Store.Secrets()[otherKey.KeyID]
	for _, entry := range []string{"record", "v1.createdAt", "v2.createdAt"} {
		if !bytes.Equal(before.Data[entry], after.Data[entry]) {
			t.Errorf("entry %s was changed", entry)
		}
	}
	started := replica(t, w)
	info, err := started.MasterKey(t.Context(), otherKey)
	if err != nil || info.PrimaryVersion != 1 || len(info.Versions) != 2 || info.RotateRequestedAt != "then" || info.DeletionTime.IsZero() {
		t.Errorf("got %+v, %v", info, err)
	}
	if _, err := started.OpenDataKey(t.Context(), other, blob); err != nil {
		t.Error(err)
	}
	if info, err := started.RotateMasterKey(t.Context(), otherKey, 1, ""); err != nil || info.PrimaryVersion != 2 || len(info.Versions) != 2 {
		t.Errorf("the rotation that waited: got %+v, %v", info, err)
	}
	if _, err := started.OpenDataKey(t.Context(), orders(), blobs[0]); !errors.Is(err, kms.ErrMaterialDestroyed) {
		t.Errorf("got %v, want ErrMaterialDestroyed", err)
	}
}

func TestResealingIsIdleOnceItIsDone(t *testing.T) {
	w := settled(t)
	w.requestRotation("now")
	if err := w.TendSeal(t.Context(), true, never); err != nil {
		t.Fatal(err)
	}
	count := func() (calls, writes int) {
		before := len(w.Store.Calls())
		if err := w.TendSeal(t.Context(), true, never); err != nil {
			t.Fatal(err)
		}
		for _, c := range w.Store.Calls()[before:] {
			calls++
			if c.Method == sealtest.Update || c.Method == sealtest.Create {
				writes++
			}
		}
		return calls, writes
	}
	if calls, writes := count(); calls > 2 || writes > 0 {
		t.Errorf("a minute later: %d calls and %d writes", calls, writes)
	}
	w.Clock.SetTime(w.Clock.Now().Add(25 * time.Hour))
	if calls, writes := count(); calls < 3 || writes > 0 {
		t.Errorf("a day later: %d calls and %d writes: it must look again, and write nothing", calls, writes)
	}
	// A newer leader looks once, and writes nothing either.
	newer := replica(t, w)
	before := w.Store.Secrets()
	if err := newer.TendSeal(t.Context(), true, never); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, w.Store.Secrets()); diff != "" {
		t.Errorf("a newer leader wrote: %s", diff)
	}
}

func TestAKeyThatWasMadeDuringTheRotationIsSealedAnewLater(t *testing.T) {
	w := settled(t)
	late := replica(t, w)
	made := kms.MasterKeyRef{KeyID: "44444444-4444-4444-8444-444444444444", Namespace: "team-a", Name: "late"}
	// The other manager has checked the sealing keys, and the rotation comes before it writes.
	rotated := false
	w.Store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
		if c.Method == sealtest.Create && c.Name == made.KeyID && !rotated {
			rotated = true
			w.requestRotation("now")
			if err := w.TendSeal(t.Context(), true, never); err != nil {
				t.Error(err)
			}
		}
		return sealtest.None
	}
	if _, err := late.EnsureMasterKey(t.Context(), made, terms, ""); err != nil {
		t.Fatal(err)
	}
	if got := w.sealedBy(t)[made.KeyID+" v1"]; got != 1 {
		t.Fatalf("it was sealed by version %d: the story is not told", got)
	}
	w.Clock.SetTime(w.Clock.Now().Add(25 * time.Hour))
	if err := w.TendSeal(t.Context(), true, never); err != nil {
		t.Fatal(err)
	}
	if got := w.sealedBy(t)[made.KeyID+" v1"]; got != 2 {
		t.Errorf("a day later it is sealed by version %d", got)
	}
	w.Store.Hook = nil
	if _, err := late.MasterKey(t.Context(), made); err != nil {
		t.Error(err)
	}
}

// Whatever call of the store fails, or is done and its answer lost: everything opens at every moment, and the next leader ends it.
func TestResealingSurvivesAFaultAtEveryCall(t *testing.T) {
	for name, fault := range map[string]sealtest.Fault{
		"the call fails": sealtest.Fail,
		"the call is done and the answer is lost": sealtest.DoAndFail,
	} {
		t.Run(name, func(t *testing.T) {
			for n := 1; ; n++ {
				w := settled(t)
				blob := w.Sealed(t, orders())
				w.requestRotation("now")
				calls, writes := 0, 0
				w.Store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
					if c.Method == sealtest.Update {
						writes++
					}
					if calls++; calls == n {
						return fault
					}
					return sealtest.None
				}
				err := w.TendSeal(t.Context(), true, never)
				w.Store.Hook = nil
				if calls < n {
					if n < 15 || writes != 5 {
						t.Errorf("only %d calls and %d writes: the story is not told", calls, writes)
					}
					return
				}
				if err != nil && !errors.Is(err, sealtest.ErrInjected) {
					t.Errorf("call %d: %v", n, err)
				}
				next := replica(t, w)
				if _, err := next.OpenDataKey(t.Context(), orders(), blob); err != nil {
					t.Errorf("call %d: %v", n, err)
				}
				if err := next.TendSeal(t.Context(), true, never); err != nil {
					t.Errorf("call %d: the next leader: %v", n, err)
				}
				for what, by := range w.sealedBy(t) {
					if by != 2 {
						t.Errorf("call %d: %s is sealed by version %d", n, what, by)
					}
				}
				for _, manager := range []*world{w, next, replica(t, w)} {
					if _, err := manager.OpenDataKey(t.Context(), orders(), blob); err != nil {
						t.Errorf("call %d: %v", n, err)
					}
				}
			}
		})
	}
}

func TestTwoLeadersThatResealAtOnce(t *testing.T) {
	w := settled(t)
	blob := w.Sealed(t, orders())
	leaders := []*world{w, replica(t, w)}
	w.requestRotation("now")
	var both sync.WaitGroup
	for _, leader := range leaders {
		both.Go(func() {
			if err := leader.TendSeal(t.Context(), true, never); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	for what, by := range w.sealedBy(t) {
		if by != 2 {
			t.Errorf("%s is sealed by version %d", what, by)
		}
	}
	for _, manager := range append(leaders, replica(t, w)) {
		if _, err := manager.OpenDataKey(t.Context(), orders(), blob); err != nil {
			t.Error(err)
		}
	}
}

// Somebody else writes to the Secret of a master key while it is sealed anew: what they wrote stays.
func TestResealingOverwritesNothingThatItHasNotRead(t *testing.T) {
	for name, call := range map[string]sealtest.Call{
		"another version is made as the Secret is written":          {Method: sealtest.Update, Name: ordersKey.KeyID},
		"another version is made between the reading and the write": {Method: sealtest.Get, Name: seal.SealingKeysSecret},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			w.requestRotation("now")
			reads, added := 0, false
			w.Store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
				if c == (sealtest.Call{Method: sealtest.Get, Name: ordersKey.KeyID}) {
					reads++ // once before the rotation, once after it
				}
				if c == call && reads == 2 && !added {
					added = true
					w.AddVersion(t, ordersKey, 2)
				}
				return sealtest.None
			}
			if err := w.TendSeal(t.Context(), true, never); err != nil {
				t.Fatal(err)
			}
			w.Store.Hook = nil
			by := w.sealedBy(t)
			if by[ordersKey.KeyID+" v1"] != 2 || by[ordersKey.KeyID+" v2"] != 2 {
				t.Errorf("sealed by %v", by)
			}
			info, err := replica(t, w).MasterKey(t.Context(), ordersKey)
			if err != nil || info.PrimaryVersion != 2 {
				t.Errorf("got %+v, %v", info, err)
			}
		})
	}
}

func TestWhatDoesNotOpenStaysAsItIs(t *testing.T) {
	w := settled(t)
	w.AddVersion(t, ordersKey, 2)
	w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) { s.Data["v1"][90] ^= 1 })
	damaged := w.Store.Secrets()[ordersKey.KeyID].Data["v1"]
	w.requestRotation("now")
	if err := w.TendSeal(t.Context(), true, never); err != nil {
		t.Fatal(err)
	}
	if got := w.Store.Secrets()[ordersKey.KeyID].Data["v1"]; !bytes.Equal(got, damaged) {
		t.Error("the damaged entry was changed")
	}
	by := w.sealedBy(t)
	if by[ordersKey.KeyID+" v2"] != 2 || by[otherKey.KeyID+" v1"] != 2 {
		t.Errorf("the others are sealed by %v", by)
	}
	if !strings.Contains(w.Log.String(), "is not sealed anew") {
		t.Error("the log does not tell")
	}
	want := map[string]float64{
		"datakeys_reseal_secrets done": 2, "datakeys_reseal_secrets failed": 1, "datakeys_reseal_secrets waiting": 0,
		"datakeys_resealed_secrets_total": 3, "datakeys_sealing_key_version": 2, "datakeys_root_keys": 1,
		"datakeys_root_key_verdict Settled": 1, "datakeys_root_key_verdict Elsewhere": 0, "datakeys_root_key_embedded": 1,
	}
	got := w.values(t)
	for name, value := range want {
		if v, ok := got[name]; !ok || v != value {
			t.Errorf("metric %s: got %v %v, want %v", name, v, ok, value)
		}
	}
}

// values are the counters and gauges, by their names and labels.
func (w *world) values(t testing.TB) map[string]float64 {
	t.Helper()
	families, err := w.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			name := family.GetName()
			for _, label := range m.GetLabel() {
				name += " " + label.GetValue()
			}
			values[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return values
}

// After an old backup of the sealing keys was restored there is material that no manager that starts can open. A rotation would give
// the number of the lost sealing key to another one.
func TestNothingIsRotatedWhileASealingKeyIsMissing(t *testing.T) {
	w := settled(t)
	backup := w.Store.Secrets()[seal.SealingKeysSecret]
	w.requestRotation("now")
	if err := w.TendSeal(t.Context(), true, never); err != nil {
		t.Fatal(err)
	}
	newer := w.Store.Secrets()[seal.SealingKeysSecret]
	w.Store.Put(backup)
	w.requestRotation("again")
	started := replica(t, w)
	for range 2 {
		err := started.TendSeal(t.Context(), true, never)
		if err == nil || !strings.Contains(err.Error(), "made after the last rotation") {
			t.Errorf("got %v", err)
		}
	}
	if _, err := started.MasterKey(t.Context(), ordersKey); !errors.Is(err, kms.ErrMaterialBroken) {
		t.Errorf("its material: got %v", err)
	}
	w.Store.Put(newer)
	w.Clock.SetTime(w.Clock.Now().Add(time.Hour))
	last := replica(t, w)
	if err := last.TendSeal(t.Context(), true, never); err != nil {
		t.Errorf("after the newer backup is back: %v", err)
	}
	if _, err := last.MasterKey(t.Context(), ordersKey); err != nil {
		t.Error(err)
	}
}

// An old backup of the whole namespace is restored while the managers run: what is in it opens by what is in it, and must not be
// sealed by the newer sealing key, which only running managers still have.
func TestNothingIsSealedAnewByASealingKeyThatIsNotStored(t *testing.T) {
	w := settled(t)
	blob := w.Sealed(t, orders())
	backup := w.Store.Secrets()
	second := replica(t, w)
	w.requestRotation("now")
	if err := w.TendSeal(t.Context(), true, never); err != nil {
		t.Fatal(err)
	}
	if err := second.TendSeal(t.Context(), false, never); err != nil {
		t.Fatal(err)
	}
	newer := w.Store.Secrets()
	for _, secret := range backup {
		w.Store.Put(secret)
	}
	restored := w.sealedBy(t)

	w.Clock.SetTime(w.Clock.Now().Add(25 * time.Hour))
	for name, leader := range map[string]*world{"the leader, a day later": w, "another one, at once": second} {
		err := leader.TendSeal(t.Context(), true, never)
		if secretError, ok := errors.AsType[*seal.SecretError](err); !ok || secretError.Secret != seal.SealingKeysSecret {
			t.Errorf("%s: got %v", name, err)
		}
		if diff := cmp.Diff(restored, w.sealedBy(t)); diff != "" {
			t.Errorf("%s: sealed by: %s", name, diff)
		}
	}
	if _, err := replica(t, w).OpenDataKey(t.Context(), orders(), blob); err != nil {
		t.Errorf("a manager that starts: %v", err)
	}

	// Once the newer sealing keys are back, it goes on within a minute.
	w.Store.Put(newer[seal.SealingKeysSecret])
	if err := w.TendSeal(t.Context(), true, never); err != nil {
		t.Error(err)
	}
	if got := w.sealedBy(t)[ordersKey.KeyID+" v1"]; got != 2 {
		t.Errorf("it is sealed by version %d", got)
	}
}

// A Secret that cannot be read may be sealed by a sealing key that is missing.
func TestNothingIsRotatedWhileASecretCannotBeRead(t *testing.T) {
	w := settled(t)
	w.requestRotation("now")
	w.Store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
		if c.Method == sealtest.Get && c.Name == otherKey.KeyID {
			return sealtest.Fail
		}
		return sealtest.None
	}
	for range 2 {
		if err := w.TendSeal(t.Context(), true, never); !errors.Is(err, sealtest.ErrInjected) {
			t.Errorf("got %v", err)
		}
	}
	w.Store.Hook = nil
	if got := w.values(t)["datakeys_sealing_key_version"]; got != 1 {
		t.Errorf("sealing key %v seals", got)
	}
	w.Clock.SetTime(w.Clock.Now().Add(time.Hour))
	if err := w.TendSeal(t.Context(), true, never); err != nil {
		t.Error(err)
	}
	if got := w.sealedBy(t)[otherKey.KeyID+" v1"]; got != 2 {
		t.Errorf("an hour later it is sealed by version %d", got)
	}
}

// A replica that meets material that is sealed by a version it does not know, while the root key's service is down, says "try
// again", and not that the material is broken.
func TestASealingKeyThatCannotBeAskedForIsNoDamage(t *testing.T) {
	roots := &sealtest.RootKeys{}
	w := newWorld(t)
	w.Store = &sealtest.Store{}
	open := func() *world {
		other := w.clone()
		ring, err := seal.Config{RootKey: "fake://kms", Store: w.Store, Clock: w.Clock, OpenRootKey: roots.Open}.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		other.Service, err = kms.New(kms.Config{
			Seal: ring, Keys: w.Store, MasterKeys: w.MasterKeys, Authenticator: w.Tokens, Authorizer: w.RBAC, Auditor: w.Audit, Clock: w.Clock,
		})
		if err != nil {
			t.Fatal(err)
		}
		return other
	}
	leader, behind := open(), open()
	if _, err := leader.EnsureMasterKey(t.Context(), ordersKey, terms, ""); err != nil {
		t.Fatal(err)
	}
	w.requestRotation("now")
	if err := leader.TendSeal(t.Context(), true, never); err != nil {
		t.Fatal(err)
	}
	roots.Hook = func(context.Context, string, string) error { return sealtest.ErrDown }
	if _, err := behind.MasterKey(t.Context(), ordersKey); !errors.Is(err, sealtest.ErrDown) || errors.Is(err, kms.ErrMaterialBroken) {
		t.Errorf("got %v", err)
	}
	if _, err := leader.MasterKey(t.Context(), ordersKey); err != nil {
		t.Errorf("the leader: %v", err)
	}
	roots.Hook = nil
	if _, err := behind.MasterKey(t.Context(), ordersKey); err != nil {
		t.Errorf("once the service is back: %v", err)
	}
}
