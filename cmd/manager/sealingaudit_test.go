package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// The audit log tells when the root of trust was changed, and why.
func TestTheAuditLogTellsOfChangesOfTheRootOfTrust(t *testing.T) {
	var log bytes.Buffer
	now := clocktesting.NewFakePassiveClock(time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC))
	k, err := seal.Config{
		RootKey: seal.DefaultRootKey, Store: &sealtest.Store{}, Clock: now, Record: recordChanges(kms.NewJSONAuditor(&log), now),
	}.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	now.SetTime(now.Now().Add(90 * 24 * time.Hour))
	if err := k.Rotate(t.Context(), 90*24*time.Hour); err != nil {
		t.Fatal(err)
	}
	rootKey := k.Report().RootKeys[0].ID
	record := func(time, operation, reason string, more map[string]any) map[string]any {
		more["time"], more["operation"], more["decision"], more["reason"] = time, operation, "allowed", reason
		return more
	}
	const installed, rotated = "2026-11-22T00:00:00Z", "2027-02-20T00:00:00Z"
	const due = "the one before has sealed since " + installed
	want := []map[string]any{
		record(installed, "CreateRootKey", "there is none of that name", map[string]any{"rootKey": rootKey}),
		record(installed, "CreateSealingKey", "the installation is new", map[string]any{"rootKey": rootKey, "sealingKey": 1.0}),
		record(rotated, "CreateSealingKey", due, map[string]any{"sealingKey": 2.0}),
		record(rotated, "RotateSealingKey", due, map[string]any{"sealingKey": 2.0}),
	}
	var got []map[string]any
	for line := range strings.Lines(log.String()) {
		var r map[string]any
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		got = append(got, r)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}
