package kms_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// schedule begins the waiting period of a master key, and returns its end.
func (w *world) schedule(t testing.TB, ref kms.MasterKeyRef) time.Time {
	t.Helper()
	info, err := w.RecordDeletion(t.Context(), ref, terms, w.Clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	return info.DeletionTime
}

// destroyed returns a settled world in which ordersKey, of two versions, is destroyed, and a blob of each.
func destroyed(t testing.TB) (*world, [][]byte) {
	t.Helper()
	w := settled(t)
	blobs := [][]byte{w.Sealed(t, orders())}
	w.rotate(t, 1)
	blobs = append(blobs, w.Sealed(t, orders()))
	if err := w.DestroyMasterKey(t.Context(), ordersKey, w.schedule(t, ordersKey)); err != nil {
		t.Fatal(err)
	}
	return w, blobs
}

func TestRecordDeletionKeepsWhenItBeganAndNeverBringsTheEndNearer(t *testing.T) {
	day := 24 * time.Hour
	long, short := kms.DeletionTerms{WaitingPeriod: 60 * day}, kms.DeletionTerms{WaitingPeriod: 7 * day}
	orphan := kms.DeletionTerms{WaitingPeriod: terms.WaitingPeriod, OrphanDataKeys: true}
	for name, c := range map[string]struct {
		began time.Time // before: zero for not begun
		terms kms.DeletionTerms
		at    time.Time
		want  time.Time
		audit string // empty: nothing is written
		why   string
	}{
		"nothing happens":        {terms: terms},
		"the terms change":       {terms: orphan, audit: kms.OperationUpdateDeletionTerms},
		"the period changes":     {terms: short, audit: kms.OperationUpdateDeletionTerms},
		"it begins":              {terms: terms, at: begin, want: begin.Add(30 * day), audit: kms.OperationScheduleMasterKeyDeletion, why: "due at 2026-12-21T12:00:00Z"},
		"it begins with another": {terms: short, at: begin, want: begin.Add(7 * day), audit: kms.OperationScheduleMasterKeyDeletion, why: "due at 2026-11-28T12:00:00Z"},
		"it goes on":             {began: begin, terms: terms, at: begin, want: begin.Add(30 * day)},
		"it goes on, and who asks has forgotten when it began": {
			began: begin, terms: terms, at: begin.Add(9 * day), want: begin.Add(30 * day),
		},
		"it goes on, and the clock was set back":      {began: begin, terms: terms, at: begin.Add(-9 * day), want: begin.Add(30 * day)},
		"it goes on, and the clock was years ahead":   {began: begin, terms: terms, at: begin.AddDate(9, 0, 0), want: begin.Add(30 * day)},
		"a longer period":                             {began: begin, terms: long, at: begin, want: begin.Add(60 * day), audit: kms.OperationScheduleMasterKeyDeletion, why: "due at 2027-01-20T12:00:00Z"},
		"a shorter period":                            {began: begin, terms: short, at: begin, want: begin.Add(30 * day), audit: kms.OperationScheduleMasterKeyDeletion, why: "due at 2026-12-21T12:00:00Z"},
		"data keys may be orphaned":                   {began: begin, terms: orphan, at: begin, want: begin.Add(30 * day), audit: kms.OperationScheduleMasterKeyDeletion, why: "due at 2026-12-21T12:00:00Z"},
		"it is cancelled":                             {began: begin, terms: terms, audit: kms.OperationCancelMasterKeyDeletion},
		"it is cancelled, and the terms change too":   {began: begin, terms: long, audit: kms.OperationCancelMasterKeyDeletion},
		"what began in the middle of a second is cut": {terms: terms, at: begin.Add(300 * time.Millisecond), want: begin.Add(30 * day), audit: kms.OperationScheduleMasterKeyDeletion, why: "due at 2026-12-21T12:00:00Z"},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			w.rotate(t, 1)
			if !c.began.IsZero() {
				w.schedule(t, ordersKey)
			}
			before, calls, records := w.Store.Secrets()[ordersKey.KeyID], len(w.Store.Calls()), len(w.Audit.Records())
			got, err := w.RecordDeletion(t.Context(), ordersKey, c.terms, c.at)
			if err != nil {
				t.Fatal(err)
			}
			if !got.DeletionTime.Equal(c.want) || got.Terms != c.terms || got.PrimaryVersion != 2 {
				t.Errorf("got %+v, want it to be due at %v", got, c.want)
			}
			want, writes := []kms.AuditRecord{}, 0
			if c.audit != "" {
				writes = 1
				want = append(want, kms.AuditRecord{
					Time: begin, Operation: c.audit, Decision: kms.DecisionAllowed, Reason: c.why,
					Key: &kms.AuditKey{ID: ordersKey.KeyID, Namespace: "team-a", Name: "orders"},
				})
			}
			if diff := cmp.Diff(want, w.Audit.Records()[records:]); diff != "" {
				t.Errorf("audit: %s", diff)
			}
			if got := w.writes(calls); len(got) != writes {
				t.Errorf("it wrote %v, want %d writes", got, writes)
			}
			after := w.Store.Secrets()[ordersKey.KeyID]
			for _, entry := range []string{"v1", "v2", "v1.createdAt", "v2.createdAt"} {
				if string(before.Data[entry]) != string(after.Data[entry]) {
					t.Errorf("entry %s was changed", entry)
				}
			}
			again, err := replica(t, w).MasterKey(t.Context(), ordersKey)
			if diff := cmp.Diff(got, again); err != nil || diff != "" {
				t.Errorf("%v: another manager reads %s", err, diff)
			}
		})
	}
}

func TestWhatIsWrongWithDeletionTermsIsSaid(t *testing.T) {
	w := settled(t)
	for _, period := range []time.Duration{0, -time.Hour} {
		wrong := kms.DeletionTerms{WaitingPeriod: period}
		_, recorded := w.RecordDeletion(t.Context(), ordersKey, wrong, begin)
		_, ensured := w.EnsureMasterKey(t.Context(), kms.MasterKeyRef{KeyID: goneID, Namespace: "team-a", Name: "gone"}, wrong, "")
		for _, err := range []error{recorded, ensured} {
			if err == nil || !strings.Contains(err.Error(), "waitingPeriod: must be more than 0s") {
				t.Errorf("%v: got %v", period, err)
			}
		}
	}
}

func TestAKeyIsDestroyedWhenItIsDueAndNotBefore(t *testing.T) {
	w := settled(t)
	blobs := [][]byte{w.Sealed(t, orders())}
	w.rotate(t, 1)
	blobs = append(blobs, w.Sealed(t, orders()))
	other := replica(t, w) // has both versions in memory
	for _, blob := range blobs {
		if _, err := other.OpenDataKey(t.Context(), orders(), blob); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.DestroyMasterKey(t.Context(), ordersKey, begin.AddDate(100, 0, 0)); !errors.Is(err, kms.ErrNotDue) || !strings.Contains(err.Error(), "has not begun") {
		t.Errorf("before the waiting period began: got %v", err)
	}
	due := w.schedule(t, ordersKey)
	before := w.Store.Secrets()[ordersKey.KeyID]
	if err := w.DestroyMasterKey(t.Context(), ordersKey, due.Add(-time.Nanosecond)); !errors.Is(err, kms.ErrNotDue) || !strings.Contains(err.Error(), "ends at 2026-12-21T12:00:00Z") {
		t.Errorf("just before its end: got %v", err)
	}
	if err := w.ForgetMasterKey(t.Context(), ordersKey.KeyID); !errors.Is(err, kms.ErrNotDue) {
		t.Errorf("it is forgotten before: got %v", err)
	}
	if diff := cmp.Diff(before, w.Store.Secrets()[ordersKey.KeyID]); diff != "" {
		t.Errorf("something was written: %s", diff)
	}
	w.Audit.Err = errors.New("disk full")
	if err := w.DestroyMasterKey(t.Context(), ordersKey, due); kms.CodeOf(err) != kms.CodeUnavailable {
		t.Errorf("without an audit record: got %v", err)
	}
	w.Audit.Err = nil
	if diff := cmp.Diff(before, w.Store.Secrets()[ordersKey.KeyID]); diff != "" {
		t.Errorf("something was written: %s", diff)
	}

	calls, records := len(w.Store.Calls()), len(w.Audit.Records())
	for range 2 {
		if err := w.DestroyMasterKey(t.Context(), ordersKey, due); err != nil {
			t.Fatal(err)
		}
	}
	if got := w.writes(calls); len(got) != 1 {
		t.Errorf("it wrote %v, want one write", got)
	}
	wantAudit := []kms.AuditRecord{{
		Time: begin, Operation: kms.OperationDestroyMasterKey, Decision: kms.DecisionAllowed, Reason: "2 versions, due at 2026-12-21T12:00:00Z",
		Key: &kms.AuditKey{ID: ordersKey.KeyID, Namespace: "team-a", Name: "orders"},
	}}
	if diff := cmp.Diff(wantAudit, w.Audit.Records()[records:]); diff != "" {
		t.Errorf("audit: %s", diff)
	}
	want := map[string][]byte{"record": []byte(`{"primary":2,"primarySince":"2026-11-21T12:00:00Z","waitingPeriod":"720h0m0s",` +
		`"deletion":{"beganAt":"2026-11-21T12:00:00Z","dueAt":"2026-12-21T12:00:00Z"},` +
		`"destroyed":{"at":"2026-12-21T12:00:00Z","namespace":"team-a","name":"orders","versions":2}}`)}
	after := w.Store.Secrets()[ordersKey.KeyID]
	if diff := cmp.Diff(want, after.Data); diff != "" {
		t.Errorf("what is left: %s", diff)
	}
	if diff := cmp.Diff(before.Labels, after.Labels); diff != "" || after.Type != before.Type {
		t.Errorf("it is of type %s: %s", after.Type, diff)
	}

	if _, err := other.MasterKey(t.Context(), ordersKey); !errors.Is(err, kms.ErrMaterialDestroyed) { // it reads it again
		t.Errorf("another manager: got %v", err)
	}
	for who, w := range map[string]*world{"the manager that did it": w, "another": other, "one that starts": replica(t, w)} {
		for version, blob := range blobs {
			if _, err := w.OpenDataKey(t.Context(), orders(), blob); !errors.Is(err, kms.ErrMaterialDestroyed) {
				t.Errorf("%s opens a data key of version %d: %v", who, version+1, err)
			}
			if _, err := w.RewrapDataKey(t.Context(), orders(), blob); !errors.Is(err, kms.ErrMaterialDestroyed) {
				t.Errorf("%s wraps a data key of version %d anew: %v", who, version+1, err)
			}
			_, err := w.Decrypt(t.Context(), app, kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext})
			if err == nil {
				t.Errorf("%s releases a data key of version %d", who, version+1)
			}
		}
		for call, err := range everyChange(t, w) {
			if call == "DestroyMasterKey" && err == nil {
				continue
			}
			if !errors.Is(err, kms.ErrMaterialDestroyed) || call != "OwnerOf" && !strings.Contains(err.Error(), "2 versions of key "+ordersKey.KeyID) {
				t.Errorf("%s by %s: got %v, want ErrMaterialDestroyed", call, who, err)
			}
		}
		owner, info, _ := w.OwnerOf(t.Context(), ordersKey.KeyID)
		if diff := cmp.Diff(ordersKey, owner); diff != "" || info.PrimaryVersion != 0 {
			t.Errorf("%s: the owner: %s, %+v", who, diff, info)
		}
		theirs := kms.MasterKeyRef{KeyID: ordersKey.KeyID, Namespace: "team-b", Name: "orders"}
		if _, err := w.MasterKey(t.Context(), theirs); !errors.Is(err, kms.ErrMaterialConflict) || errors.Is(err, kms.ErrMaterialDestroyed) {
			t.Errorf("%s: another MasterKey is told %v", who, err)
		}
		if err := w.DestroyMasterKey(t.Context(), theirs, due); !errors.Is(err, kms.ErrMaterialConflict) {
			t.Errorf("%s: another MasterKey destroys it: %v", who, err)
		}
	}
	if diff := cmp.Diff(after, w.Store.Secrets()[ordersKey.KeyID]); diff != "" {
		t.Errorf("what is left was changed: %s", diff)
	}
}

// A backup undoes even that.
func TestADestroyedKeyComesBackWithABackup(t *testing.T) {
	w := settled(t)
	blob := w.Sealed(t, orders())
	backup := w.Store.Secrets()[ordersKey.KeyID]
	w.rotate(t, 1) // which the backup lacks, and nobody needs any more
	if err := w.DestroyMasterKey(t.Context(), ordersKey, w.schedule(t, ordersKey)); err != nil {
		t.Fatal(err)
	}
	w.Store.Put(backup)
	if _, err := w.OpenDataKey(t.Context(), orders(), blob); err != nil {
		t.Error(err)
	}
	if info := w.rotate(t, 1); info.PrimaryVersion != 2 {
		t.Errorf("got %+v", info)
	}
}

func TestADestructionThatIsCancelledMeanwhileIsNone(t *testing.T) {
	w := settled(t)
	blob := w.Sealed(t, orders())
	due := w.schedule(t, ordersKey)
	other, cancelled := replica(t, w), false
	w.Store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
		if c.Method == sealtest.Update && !cancelled {
			cancelled = true
			if _, err := other.RecordDeletion(t.Context(), ordersKey, terms, time.Time{}); err != nil {
				t.Error(err)
			}
		}
		return sealtest.None
	}
	if err := w.DestroyMasterKey(t.Context(), ordersKey, due); !errors.Is(err, kms.ErrNotDue) {
		t.Errorf("got %v, want ErrNotDue", err)
	}
	w.Store.Hook = nil
	if _, err := replica(t, w).OpenDataKey(t.Context(), orders(), blob); err != nil {
		t.Error(err)
	}
}

func TestADestructionConvergesAfterACrashAtAnyStoreCall(t *testing.T) {
	for name, fault := range map[string]sealtest.Fault{
		"the call fails": sealtest.Fail,
		"the call is done and the answer is lost": sealtest.DoAndFail,
	} {
		t.Run(name, func(t *testing.T) {
			whole := func(w *world, due time.Time) error {
				if err := w.DestroyMasterKey(t.Context(), ordersKey, due); err != nil {
					return err
				}
				return w.ForgetMasterKey(t.Context(), ordersKey.KeyID)
			}
			for n := 1; ; n++ {
				w := settled(t)
				due := w.schedule(t, ordersKey)
				before := len(w.Store.Calls())
				w.Store.Hook = func(call int, _ sealtest.Call) sealtest.Fault {
					if call == before+n {
						return fault
					}
					return sealtest.None
				}
				err := whole(w, due)
				w.Store.Hook = nil
				if err == nil {
					if n != 6 {
						t.Errorf("it made %d calls, want 5: read, write, read; read, remove", n-1)
					}
					return
				}
				if !errors.Is(err, sealtest.ErrInjected) {
					t.Fatalf("call %d: got %v, want the injected error", n, err)
				}
				secret, there := w.Store.Secrets()[ordersKey.KeyID]
				if _, versions := secret.Data["v1"]; there && !versions && !strings.Contains(string(secret.Data["record"]), "destroyed") {
					t.Errorf("call %d: the versions are gone, and nothing says why", n)
				}
				err = whole(replica(t, w), due) // the manager died
				if _, still := w.Store.Secrets()[ordersKey.KeyID]; still || err != nil && (there || !errors.Is(err, kms.ErrMaterialMissing)) {
					t.Errorf("call %d: it does not converge: %v", n, err)
				}
			}
		})
	}
}

func TestWhatIsLeftOfADestroyedKeyIsForgotten(t *testing.T) {
	w, blobs := destroyed(t)
	records := len(w.Audit.Records())
	for range 2 {
		if err := w.ForgetMasterKey(t.Context(), ordersKey.KeyID); err != nil {
			t.Fatal(err)
		}
	}
	if _, still := w.Store.Secrets()[ordersKey.KeyID]; still {
		t.Error("the Secret is still there")
	}
	want := []kms.AuditRecord{{
		Time: begin, Operation: kms.OperationForgetMasterKey, Decision: kms.DecisionAllowed,
		Key: &kms.AuditKey{ID: ordersKey.KeyID, Namespace: "team-a", Name: "orders"},
	}}
	if diff := cmp.Diff(want, w.Audit.Records()[records:]); diff != "" {
		t.Errorf("audit: %s", diff)
	}
	if _, err := w.OpenDataKey(t.Context(), orders(), blobs[0]); !errors.Is(err, kms.ErrMaterialMissing) {
		t.Errorf("got %v, want ErrMaterialMissing", err)
	}
	if err := w.ForgetMasterKey(t.Context(), "orders"); !errors.Is(err, kms.ErrInvalidKeyID) {
		t.Errorf("got %v, want ErrInvalidKeyID", err)
	}
}

func TestNothingIsForgottenThatSomebodyRestoredMeanwhile(t *testing.T) {
	for name, put := range map[string]func(w *world, backup seal.Secret){
		"into what was left": func(w *world, backup seal.Secret) { w.Store.Put(backup) },
		"after somebody removed that": func(w *world, backup seal.Secret) {
			w.Store.Delete(backup.Name)
			w.Store.Put(backup)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			blob := w.Sealed(t, orders())
			backup := w.Store.Secrets()[ordersKey.KeyID]
			if err := w.DestroyMasterKey(t.Context(), ordersKey, w.schedule(t, ordersKey)); err != nil {
				t.Fatal(err)
			}
			restored := false
			w.Store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
				if c.Method == sealtest.Remove && !restored {
					restored = true
					put(w, backup)
				}
				return sealtest.None
			}
			if err := w.ForgetMasterKey(t.Context(), ordersKey.KeyID); !errors.Is(err, kms.ErrNotDue) {
				t.Errorf("got %v, want ErrNotDue", err)
			}
			w.Store.Hook = nil
			if _, err := replica(t, w).OpenDataKey(t.Context(), orders(), blob); err != nil {
				t.Error(err)
			}
		})
	}
}
