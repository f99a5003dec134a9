package kms

import (
	"encoding/json"
	"testing"
	"time"
)

// FuzzAuditRecord compares the audit log's own encoding with that of encoding/json.
func FuzzAuditRecord(f *testing.F) {
	f.Add("Decrypt", "a pod", "", uint32(0), 0, false, uint8(0))
	f.Add("", "\"quoted\"\\\n\x00\x7f\u2028<&>é\xff", "x", uint32(1), -1, true, uint8(31))
	f.Add("Encrypt", "", "arn:datakeys:kms:0123456789ab:team-a:key/k", uint32(1<<32-1), 4096, true, uint8(9))
	f.Fuzz(func(t *testing.T, a, b, c string, n uint32, size int, dryRun bool, set uint8) {
		r := AuditRecord{
			Time: time.Unix(int64(n), int64(n)).UTC(), Operation: a, Decision: b, Code: c, Reason: b, Door: c, DryRun: dryRun, Bytes: size,
			RootKey: a, SealingKey: n,
		}
		if set&1 != 0 {
			r.Caller = &AuditCaller{Username: a, Namespace: b, ServiceAccount: c, Pod: b, PodUID: a, Node: c}
		}
		if set&2 != 0 {
			r.Key = &AuditKey{ID: c, Namespace: b, Name: a, Version: n}
		}
		if set&4 != 0 {
			r.SourceKey = &AuditKey{Version: n}
		}
		if set&8 != 0 {
			r.DataKey = &AuditDataKey{Namespace: c, Name: b, Generation: n}
		}
		want, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := r.appendJSON([]byte("before "))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != "before "+string(want) {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

// A field that is added to a record is added to its encoding.
func TestEveryFieldOfAnAuditRecordIsEncoded(t *testing.T) {
	r := AuditRecord{
		Time: time.Unix(0, 0).UTC(), Operation: "o", Decision: "d", Code: "c", Reason: "r", Door: "d", DryRun: true, Bytes: 1, RootKey: "r", SealingKey: 1,
		Caller:    &AuditCaller{"u", "n", "s", "p", "i", "n"},
		Key:       &AuditKey{"i", "n", "n", 1},
		SourceKey: &AuditKey{"i", "n", "n", 1},
		DataKey:   &AuditDataKey{"n", "n", 1},
	}
	want, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(want, &fields); err != nil {
		t.Fatal(err)
	}
	if len(fields) != 14 {
		t.Errorf("the record has %d fields: set the new one above, and give it to FuzzAuditRecord", len(fields))
	}
	got, err := r.appendJSON(nil)
	if err != nil || string(got) != string(want) {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}
