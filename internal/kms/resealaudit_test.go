package kms_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/kms"
)

func TestEachKeyThatIsSealedAnewLeavesARecord(t *testing.T) {
	w := settled(t)
	w.AddVersion(t, ordersKey, 2) // both versions are sealed anew by one write
	w.requestRotation("now")
	before := len(w.Audit.Records())
	if err := w.TendSeal(t.Context(), true, never); err != nil {
		t.Fatal(err)
	}
	got := map[string]kms.AuditRecord{}
	for _, r := range w.Audit.Records()[before:] {
		got[r.Key.ID] = r
	}
	want := map[string]kms.AuditRecord{}
	for _, key := range []kms.MasterKeyRef{ordersKey, otherKey, theirsKey} {
		want[key.KeyID] = kms.AuditRecord{
			Time: begin, Operation: kms.OperationResealMasterKey, Decision: kms.DecisionAllowed, Key: &kms.AuditKey{ID: key.KeyID}, SealingKey: 2,
		}
	}
	if diff := cmp.Diff(want, got); diff != "" || len(w.Audit.Records()) != before+len(want) {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

func TestNothingIsSealedAnewWithoutARecord(t *testing.T) {
	w := settled(t)
	w.requestRotation("now")
	before := w.sealedBy(t)
	w.Audit.Err = errors.New("disk full")
	if err := w.TendSeal(t.Context(), true, never); kms.CodeOf(err) != kms.CodeUnavailable {
		t.Errorf("got %v, want Unavailable", err)
	}
	if diff := cmp.Diff(before, w.sealedBy(t)); diff != "" {
		t.Errorf("something was sealed anew:\n%s", diff)
	}
	w.Audit.Err = nil
	if err := w.TendSeal(t.Context(), true, never); err != nil {
		t.Fatal(err)
	}
	for name, by := range w.sealedBy(t) {
		if by != 2 {
			t.Errorf("%s is sealed by %d, once the records can be written", name, by)
		}
	}
}
