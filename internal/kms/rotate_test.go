package kms_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// rotate rotates a master key from that version.
func (w *world) rotate(t testing.TB, from int32) kms.MasterKeyInfo {
	t.Helper()
	info, err := w.RotateMasterKey(t.Context(), ordersKey, from, "")
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// writes are the calls that change the store, from the call of that number on.
func (w *world) writes(from int) (writes []sealtest.Call) {
	for _, c := range w.Store.Calls()[from:] {
		if c.Method != sealtest.Get && c.Method != sealtest.List && c.Method != sealtest.Any {
			writes = append(writes, c)
		}
	}
	return writes
}

func TestRotateMasterKeyMakesAVersionAndThenLetsItWrap(t *testing.T) {
	w := settled(t)
	old := w.Sealed(t, orders())
	before := w.Store.Secrets()[ordersKey.KeyID]
	calls, records := len(w.Store.Calls()), len(w.Audit.Records())
	w.Later(time.Hour)
	var between seal.Secret // as the first write left it
	w.Store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
		if c.Method == sealtest.Update {
			between = w.Store.Secrets()[ordersKey.KeyID]
		}
		return sealtest.None
	}
	got, err := w.RotateMasterKey(t.Context(), ordersKey, 1, "on Sunday")
	w.Store.Hook = nil
	if err != nil {
		t.Fatal(err)
	}
	want := kms.MasterKeyInfo{
		ARN:            got.ARN,
		PrimaryVersion: 2,
		PrimarySince:   begin.Add(time.Hour),
		Versions: []kms.MasterKeyVersion{
			{Version: 2, CreatedAt: begin.Add(time.Hour)}, {Version: 1, CreatedAt: begin},
		},
		Created:           true,
		RotateRequestedAt: "on Sunday",
		Terms:             terms,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	update := sealtest.Call{Method: sealtest.Update, Name: ordersKey.KeyID}
	if diff := cmp.Diff([]sealtest.Call{update, update}, w.writes(calls)); diff != "" {
		t.Errorf("writes: %s", diff)
	}
	if len(between.Data["v2"]) == 0 || string(between.Data["record"]) != string(before.Data["record"]) {
		t.Errorf("the first write left %v with the record %s", between, between.Data["record"])
	}
	after := w.Store.Secrets()[ordersKey.KeyID]
	const record = `{"primary":2,"primarySince":"2026-11-21T13:00:00Z","rotateRequestedAt":"on Sunday","waitingPeriod":"720h0m0s"}`
	if got := string(after.Data["record"]); got != record {
		t.Errorf("the record is %s, want %s", got, record)
	}
	for _, entry := range []string{"v1", "v1.createdAt"} {
		if string(before.Data[entry]) != string(after.Data[entry]) {
			t.Errorf("entry %s was changed", entry)
		}
	}
	audited := func(operation string) kms.AuditRecord {
		return kms.AuditRecord{
			Time: begin.Add(time.Hour), Operation: operation, Decision: kms.DecisionAllowed,
			Key: &kms.AuditKey{ID: ordersKey.KeyID, Namespace: "team-a", Name: "orders", Version: 2},
		}
	}
	wantAudit := []kms.AuditRecord{audited(kms.OperationCreateMasterKeyVersion), audited(kms.OperationRotateMasterKey)}
	if diff := cmp.Diff(wantAudit, w.Audit.Records()[records:]); diff != "" {
		t.Errorf("audit: %s", diff)
	}
	for name, value := range map[string]float64{
		"datakeys_kms_operations_total OK CreateMasterKeyVersion": 4, "datakeys_kms_operations_total OK RotateMasterKey": 1,
	} {
		if got := w.values(t)[name]; got != value {
			t.Errorf("metric %s: got %v, want %v", name, got, value)
		}
	}
	made, err := w.GenerateDataKeyWithoutPlaintext(t.Context(), orders())
	if err != nil || made.KeyVersion != 2 {
		t.Errorf("a new data key is of version %d (%v), want 2", made.KeyVersion, err)
	}
	for name, manager := range map[string]*world{"this manager": w, "one that starts": replica(t, w)} {
		for version, blob := range [][]byte{old, made.CiphertextBlob} {
			if _, err := manager.OpenDataKey(t.Context(), orders(), blob); err != nil {
				t.Errorf("%s, version %d: %v", name, version+1, err)
			}
		}
	}
}

func TestARotationThatIsDoneIsNotDoneAgain(t *testing.T) {
	w := settled(t)
	w.rotate(t, 1)
	before := len(w.Store.Calls())
	for _, from := range []int32{1, 3, 0, -1} {
		if info := w.rotate(t, from); info.PrimaryVersion != 2 || info.Created {
			t.Errorf("from version %d: got %+v", from, info)
		}
	}
	if got := w.writes(before); len(got) > 0 {
		t.Errorf("it wrote: %v", got)
	}
}

// Before there were rotations a Secret had one version and no record.
func TestAMasterKeyWithoutARecordIsRotated(t *testing.T) {
	w := settled(t)
	blob := w.Sealed(t, orders())
	w.editEntry("record", func([]byte) []byte { return nil })
	w.Later(time.Hour)
	want := kms.MasterKeyInfo{
		PrimaryVersion: 1, PrimarySince: begin, Terms: kms.DeletionTerms{WaitingPeriod: v1alpha1.DefaultWaitingPeriod},
		Versions: []kms.MasterKeyVersion{{Version: 1, CreatedAt: begin}},
	}
	got, err := w.MasterKey(t.Context(), ordersKey)
	if want.ARN = got.ARN; err != nil || !cmp.Equal(want, got) {
		t.Errorf("%v: %s", err, cmp.Diff(want, got))
	}
	w.Store.Hook = failing(w, sealtest.Update, 2, sealtest.Fail)
	if _, err := w.RotateMasterKey(t.Context(), ordersKey, 1, ""); !errors.Is(err, sealtest.ErrInjected) {
		t.Fatal(err)
	}
	w.Store.Hook = nil
	if info, err := replica(t, w).MasterKey(t.Context(), ordersKey); err != nil || info.PrimaryVersion != 1 || len(info.Versions) != 2 {
		t.Errorf("after the first write: got %+v, %v", info, err)
	}
	if info := replica(t, w).rotate(t, 1); info.PrimaryVersion != 2 || len(info.Versions) != 2 || !info.Created {
		t.Errorf("got %+v", info)
	}
	if _, err := replica(t, w).OpenDataKey(t.Context(), orders(), blob); err != nil {
		t.Error(err)
	}
}

// failing is a hook that lets the nth call of a method from now on end in a fault.
func failing(_ *world, method string, nth int, fault sealtest.Fault) func(int, sealtest.Call) sealtest.Fault {
	n := 0
	return func(_ int, c sealtest.Call) sealtest.Fault {
		if c.Method == method {
			n++
		}
		if c.Method == method && n == nth {
			return fault
		}
		return sealtest.None
	}
}

func TestARotationConvergesAfterACrashAtAnyStoreCall(t *testing.T) {
	for name, fault := range map[string]sealtest.Fault{
		"the call fails": sealtest.Fail,
		"the call is done and the answer is lost": sealtest.DoAndFail,
	} {
		t.Run(name, func(t *testing.T) {
			for n := 1; ; n++ {
				w := settled(t)
				old := w.Sealed(t, orders())
				first := w.Store.Secrets()[ordersKey.KeyID].Data["v1"]
				before := len(w.Store.Calls())
				w.Store.Hook = func(call int, _ sealtest.Call) sealtest.Fault {
					if call == before+n {
						return fault
					}
					return sealtest.None
				}
				_, err := w.RotateMasterKey(t.Context(), ordersKey, 1, "now")
				w.Store.Hook = nil
				if err == nil {
					if n != 10 {
						t.Errorf("RotateMasterKey made %d calls, want 9: read, check the sealing keys and the root key, write, the same again, read", n-1)
					}
					return
				}
				if !errors.Is(err, sealtest.ErrInjected) {
					t.Fatalf("call %d: got %v, want the injected error", n, err)
				}
				durable := w.Store.Secrets()[ordersKey.KeyID].Data["v2"]

				after := replica(t, w) // the manager died
				w.Later(time.Second)
				info, err := after.RotateMasterKey(t.Context(), ordersKey, 1, "now")
				if err != nil {
					t.Fatalf("call %d: it does not converge: %v", n, err)
				}
				if info.PrimaryVersion != 2 || len(info.Versions) != 2 || info.RotateRequestedAt != "now" {
					t.Errorf("call %d: got %+v", n, info)
				}
				now := w.Store.Secrets()[ordersKey.KeyID].Data
				if string(now["v1"]) != string(first) || len(durable) > 0 && string(now["v2"]) != string(durable) {
					t.Errorf("call %d: material that was there was changed", n)
				}
				for version, blob := range [][]byte{old, after.Sealed(t, orders())} {
					if _, err := replica(t, w).OpenDataKey(t.Context(), orders(), blob); err != nil {
						t.Errorf("call %d: a data key of version %d does not open: %v", n, version+1, err)
					}
				}
			}
		})
	}
}

func TestManagersThatRotateAtOnceMakeOneVersion(t *testing.T) {
	w := settled(t)
	managers := []*world{replica(t, w), replica(t, w), replica(t, w)}
	var all sync.WaitGroup
	all.Add(len(managers))
	var mu sync.Mutex
	updates := 0
	w.Store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
		mu.Lock()
		if c.Method == sealtest.Update {
			updates++
		}
		first := c.Method == sealtest.Update && updates <= len(managers)
		mu.Unlock()
		if first { // each has read version 1 alone, and is about to write
			all.Done()
			all.Wait()
		}
		return sealtest.None
	}
	infos, errs := make([]kms.MasterKeyInfo, len(managers)), make([]error, len(managers))
	var done sync.WaitGroup
	for i, m := range managers {
		done.Go(func() { infos[i], errs[i] = m.RotateMasterKey(t.Context(), ordersKey, 1, "") })
	}
	done.Wait()
	w.Store.Hook = nil
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	created := 0
	for i, info := range infos {
		if info.PrimaryVersion != 2 || len(info.Versions) != 2 {
			t.Errorf("manager %d: got %+v", i, info)
		}
		if info.Created {
			created++
		}
	}
	if created != 1 {
		t.Errorf("%d managers say that they made the primary version, want 1", created)
	}
	for i, m := range managers {
		blob := m.Sealed(t, orders())
		if _, err := managers[(i+1)%len(managers)].OpenDataKey(t.Context(), orders(), blob); err != nil {
			t.Errorf("what manager %d made, the next does not open: %v", i, err)
		}
	}
}

// A manager that has opened versions which an older backup lacks knows that their numbers are taken.
func TestNoVersionTakesTheNumberOfALostOne(t *testing.T) {
	w := settled(t)
	backup := w.Store.Secrets()[ordersKey.KeyID]
	w.rotate(t, 1)
	blob := w.Sealed(t, orders())
	newest := w.Store.Secrets()[ordersKey.KeyID]
	w.Store.Put(backup)
	before := w.Store.Secrets()[ordersKey.KeyID]

	_, err := w.RotateMasterKey(t.Context(), ordersKey, 1, "")
	for _, says := range []string{ordersKey.KeyID + " lacks version 2", "an older backup", "restore a newer one"} {
		if !errors.Is(err, kms.ErrMaterialBroken) || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want ErrMaterialBroken that says %q", err, says)
		}
	}
	if diff := cmp.Diff(before, w.Store.Secrets()[ordersKey.KeyID]); diff != "" {
		t.Errorf("something was written: %s", diff)
	}
	w.Store.Put(newest)
	if info := w.rotate(t, 2); info.PrimaryVersion != 3 {
		t.Errorf("after the newest backup is back: got %+v", info)
	}
	if _, err := replica(t, w).OpenDataKey(t.Context(), orders(), blob); err != nil {
		t.Error(err)
	}

	// One that starts with the older backup cannot know. What was of the lost version 2 is told from what is of the new one.
	w.Store.Put(backup)
	started := replica(t, w)
	started.rotate(t, 1)
	if _, err := started.OpenDataKey(t.Context(), orders(), blob); !errors.Is(err, kms.ErrKeyVersionMissing) {
		t.Errorf("got %v, want ErrKeyVersionMissing", err)
	}
}

func TestAMasterKeyHasAtMostAThousandVersions(t *testing.T) {
	w := settled(t)
	ring, err := sealtest.OpenEmbedded(t.Context(), w.Store)
	if err != nil {
		t.Fatal(err)
	}
	add := func(data map[string][]byte, version uint32) {
		sealed, err := ring.Seal(seal.MasterKeyVersion{
			KeyID: keyID(t, ordersKey.KeyID), Namespace: ordersKey.Namespace, Name: ordersKey.Name, Version: version,
		}, envelope.NewMaterialID(), envelope.NewMaterial())
		if err != nil {
			t.Fatal(err)
		}
		data[seal.VersionEntry(version)], data[seal.VersionEntry(version)+".createdAt"] = sealed, []byte("2026-11-21T12:00:00Z")
	}
	w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) {
		for version := range uint32(998) {
			add(s.Data, version+2)
		}
		s.Data["record"] = recordOf(999)
	})
	if info := w.rotate(t, 999); info.PrimaryVersion != 1000 || len(info.Versions) != 1000 {
		t.Errorf("got %d of %d", info.PrimaryVersion, len(info.Versions))
	}
	before := len(w.Store.Calls())
	if _, err := w.RotateMasterKey(t.Context(), ordersKey, 1000, ""); !errors.Is(err, kms.ErrTooManyVersions) {
		t.Errorf("got %v, want ErrTooManyVersions", err)
	}
	if got := w.writes(before); len(got) > 0 {
		t.Errorf("it wrote: %v", got)
	}
	w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) { s.Data["record"] = recordOf(999) })
	if info := w.rotate(t, 999); info.PrimaryVersion != 1000 { // made already: it is to be promoted
		t.Errorf("got %d", info.PrimaryVersion)
	}
}

func TestARotationThatMustNotBe(t *testing.T) {
	record := func(text string) func(*testing.T, *world) {
		return func(_ *testing.T, w *world) { w.editEntry("record", func([]byte) []byte { return []byte(text) }) }
	}
	for name, c := range map[string]struct {
		ref     kms.MasterKeyRef
		from    int32
		request string
		before  func(*testing.T, *world)
		want    error
		says    string
	}{
		"the sealing keys are gone": {
			ref: ordersKey, from: 1,
			before: func(_ *testing.T, w *world) { w.Store.Delete(seal.SealingKeysSecret) }, says: seal.SealingKeysSecret,
		},
		"the root key is gone": {
			ref: ordersKey, from: 1,
			before: func(_ *testing.T, w *world) { w.Store.Delete("datakeys-root-key") }, says: "datakeys-root-key",
		},
		"it cannot be audited": {
			ref: ordersKey, from: 1,
			before: func(_ *testing.T, w *world) { w.Audit.Err = errors.New("disk full") }, says: "the audit record could not be written",
		},
		"a version is waiting and cannot be audited": {
			ref: ordersKey, from: 1, before: func(t *testing.T, w *world) {
				w.AddVersion(t, ordersKey, 2)
				w.editEntry("record", func([]byte) []byte { return recordOf(1) })
				w.Audit.Err = errors.New("disk full")
			}, says: "the audit record could not be written",
		},
		"the version that is waiting does not open": {
			ref: ordersKey, from: 1, before: func(t *testing.T, w *world) {
				w.AddVersion(t, ordersKey, 2)
				w.editEntry("record", func([]byte) []byte { return recordOf(1) })
				w.editEntry("v2", func(b []byte) []byte { b[80] ^= 1; return b })
			}, want: kms.ErrMaterialBroken, says: "has an entry v2 that does not open",
		},
		"the record names no primary version": {
			ref: ordersKey, from: 1, before: record(string(recordOf(0))),
			want: kms.ErrMaterialBroken, says: "has an entry record that names no primary version of 1 to 1000: restore it from a backup",
		},
		"from no version, where the record names none": {
			ref: ordersKey, from: 0, before: record(string(recordOf(0))), want: kms.ErrMaterialBroken,
		},
		"the material is gone": {
			ref: ordersKey, from: 1, before: func(_ *testing.T, w *world) { w.Store.Delete(ordersKey.KeyID) }, want: kms.ErrMaterialMissing,
		},
		"it is another's":               {ref: kms.MasterKeyRef{KeyID: ordersKey.KeyID, Namespace: "team-a", Name: "payments"}, from: 1, want: kms.ErrMaterialConflict},
		"the key ID is none":            {ref: kms.MasterKeyRef{KeyID: "orders"}, from: 1, want: kms.ErrInvalidKeyID},
		"the request is too long":       {ref: ordersKey, from: 1, request: strings.Repeat("x", 257), says: "at most 256 bytes"},
		"the request is not whole text": {ref: ordersKey, from: 1, request: "\xc3", says: "UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			if c.before != nil {
				c.before(t, w)
			}
			before := w.Store.Secrets()
			_, err := w.RotateMasterKey(t.Context(), c.ref, c.from, c.request)
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v that says %q", err, c.want, c.says)
			}
			if diff := cmp.Diff(before, w.Store.Secrets()); diff != "" {
				t.Errorf("Secrets were changed: %s", diff)
			}
		})
	}
}

// Whatever becomes of a record, what was wrapped opens, and nothing new is wrapped by a guess.
func TestARecordThatWasEditedByHandTakesNoDataKeyAway(t *testing.T) {
	for name, c := range map[string]struct {
		record string // empty: none
		says   string
	}{
		"no record beside three versions": {"", "has an entry record that is missing"},
		"a record that is empty":          {" ", "is not JSON of a record"},
		"no JSON":                         {"primary: 2", "is not JSON of a record"},
		"half of it":                      {string(recordOf(2)[:20]), "is not JSON of a record"},
		"primary version 0":               {string(recordOf(0)), "names no primary version"},
		"a primary version in the future": {
			string(recordOf(7)), "names the primary version 7, but the newest version is 3",
		},
		"a primary version long ago": {
			string(recordOf(1)), "names the primary version 1, but the newest version is 3",
		},
		"a negative primary version": {
			`{"primary":-1,"primarySince":"2026-11-21T12:00:00Z","waitingPeriod":"720h0m0s"}`, "is not JSON of a record",
		},
		"a primary version that is text": {
			`{"primary":"2","primarySince":"2026-11-21T12:00:00Z","waitingPeriod":"720h0m0s"}`, "is not JSON of a record",
		},
		"an unknown field": {
			`{"primary":2,"primarySince":"2026-11-21T12:00:00Z","waitingPeriod":"720h0m0s","color":"red"}`, "and must say just that",
		},
		"a field twice": {
			`{"primary":1,"primary":2,"primarySince":"2026-11-21T12:00:00Z","waitingPeriod":"720h0m0s"}`, "and must say just that",
		},
		"two records":       {string(recordOf(2)) + string(recordOf(1)), "is not JSON of a record"},
		"no waiting period": {`{"primary":2,"primarySince":"2026-11-21T12:00:00Z","waitingPeriod":"0s"}`, "has no waitingPeriod"},
		"a deletion that is due before it began": {
			`{"primary":2,"primarySince":"2026-11-21T12:00:00Z","waitingPeriod":"720h0m0s",` +
				`"deletion":{"beganAt":"2026-11-21T12:00:00Z","dueAt":"2026-11-20T12:00:00Z"}}`, "a dueAt before it",
		},
		"a destroyed key that has its versions": {
			`{"primary":2,"primarySince":"2026-11-21T12:00:00Z","waitingPeriod":"720h0m0s",` +
				`"destroyed":{"at":"2026-11-21T12:00:00Z","namespace":"team-a","name":"orders","versions":2}}`,
			"says that the versions were destroyed, which are there",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := settled(t)
			blobs := [][]byte{w.Sealed(t, orders())}
			for from := range int32(2) {
				w.rotate(t, from+1)
				blobs = append(blobs, w.Sealed(t, orders()))
			}
			w.editEntry("record", func([]byte) []byte {
				if c.record == "" {
					return nil
				}
				return []byte(c.record)
			})
			before := w.Store.Secrets()
			w.Later(11 * time.Second)
			for who, w := range map[string]*world{"a manager that knew it": w, "one that starts": replica(t, w)} {
				for call, err := range everyChange(t, w) {
					if !errors.Is(err, kms.ErrMaterialBroken) || !strings.Contains(err.Error(), c.says) {
						t.Errorf("%s by %s: got %v, want ErrMaterialBroken that says %q", call, who, err, c.says)
					}
				}
				if err := w.ForgetMasterKey(t.Context(), ordersKey.KeyID); err == nil {
					t.Errorf("%s forgets it", who)
				}
				_, err := w.GenerateDataKey(t.Context(), keyUser, kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32, Door: kms.DoorAWS})
				if got := kms.CodeOf(err); got != kms.CodeFailedPrecondition {
					t.Errorf("%s makes a data key for a pod: %v", who, err)
				}
				for version, blob := range blobs {
					if _, err := w.Decrypt(t.Context(), app, kms.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext}); err != nil {
						t.Errorf("%s does not release version %d: %v", who, version+1, err)
					}
					if _, err := w.OpenDataKey(t.Context(), orders(), blob); err != nil {
						t.Errorf("%s does not open version %d: %v", who, version+1, err)
					}
				}
			}
			if diff := cmp.Diff(before, w.Store.Secrets()); diff != "" {
				t.Errorf("Secrets were changed: %s", diff)
			}
		})
	}
}

// everyChange does to ordersKey whatever makes or changes something, and returns the errors.
func everyChange(t *testing.T, w *world) map[string]error {
	t.Helper()
	_, ensured := w.EnsureMasterKey(t.Context(), ordersKey, terms, "")
	_, read := w.MasterKey(t.Context(), ordersKey)
	_, _, owned := w.OwnerOf(t.Context(), ordersKey.KeyID)
	_, rotated := w.RotateMasterKey(t.Context(), ordersKey, 2, "")
	_, again := w.RotateMasterKey(t.Context(), ordersKey, 1, "")
	_, recorded := w.RecordDeletion(t.Context(), ordersKey, terms, begin)
	_, made := w.GenerateDataKeyWithoutPlaintext(t.Context(), orders())
	return map[string]error{
		"EnsureMasterKey": ensured, "MasterKey": read, "OwnerOf": owned, "RotateMasterKey": rotated, "RotateMasterKey from 1": again,
		"RecordDeletion": recorded, "DestroyMasterKey": w.DestroyMasterKey(t.Context(), ordersKey, begin.AddDate(100, 0, 0)),
		"GenerateDataKeyWithoutPlaintext": made,
	}
}
