package kms_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
)

func TestUsesOfAnInitialVersionThatRotationDoesNotReach(t *testing.T) {
	p, err := envelope.PlaintextFromBytes([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	operations := map[string]func(*world, kms.Door, bool) error{
		"GenerateDataKey": func(w *world, d kms.Door, dryRun bool) error {
			_, err := w.GenerateDataKey(t.Context(), allKeys, kms.GenerateDataKeyRequest{
				KeyID: "orders", NumberOfBytes: 32, Door: d, DryRun: dryRun,
			})
			return err
		},
		"GenerateDataKeyWithoutPlaintext": func(w *world, d kms.Door, dryRun bool) error {
			_, err := w.GenerateDataKey(t.Context(), allKeys, kms.GenerateDataKeyRequest{
				KeyID: "orders", NumberOfBytes: 32, Door: d, WithoutPlaintext: true, DryRun: dryRun,
			})
			return err
		},
		"GenerateDataKeyPair": func(w *world, d kms.Door, dryRun bool) error {
			_, err := w.GenerateDataKeyPair(t.Context(), allKeys, kms.GenerateDataKeyPairRequest{
				KeyID: "orders", KeyPairSpec: "ECC_NIST_P256", Door: d, DryRun: dryRun,
			})
			return err
		},
		"Encrypt": func(w *world, d kms.Door, dryRun bool) error {
			_, err := w.Encrypt(t.Context(), allKeys, kms.EncryptRequest{KeyID: "orders", Plaintext: p, Door: d, DryRun: dryRun})
			return err
		},
		"ReEncrypt": func(w *world, d kms.Door, dryRun bool) error {
			made, err := w.Encrypt(t.Context(), allKeys, kms.EncryptRequest{KeyID: "other", Plaintext: p, Door: d})
			if err != nil {
				return err
			}
			_, err = w.ReEncrypt(t.Context(), allKeys, kms.ReEncryptRequest{
				CiphertextBlob: made.CiphertextBlob, SourceIV: made.IV, DestinationKeyID: "orders", Door: d, DryRun: dryRun,
			})
			return err
		},
	}
	for name, c := range map[string]struct {
		door    kms.Door
		rotated bool
		dryRun  bool
		told    bool
	}{
		"the primary version, at the Advance operations": {door: kms.DoorAlibabaAdvance, rotated: true},
		"the primary version, of AWS":                    {door: kms.DoorAWS, rotated: true},
		"the initial version, while it is the primary":   {door: kms.DoorAlibaba},
		"the initial version, after a rotation":          {door: kms.DoorAlibaba, rotated: true, told: true},
		"a dry run":                                      {door: kms.DoorAlibaba, rotated: true, dryRun: true},
	} {
		for operation, call := range operations {
			t.Run(name+": "+operation, func(t *testing.T) {
				w := settled(t)
				if c.rotated {
					w.AddVersion(t, ordersKey, 2)
				}
				w = replica(t, w)
				if err := call(w, c.door, c.dryRun); (err != nil) != c.dryRun {
					t.Fatal(err)
				}
				var want []kmstest.InitialUse
				wantCount := 0.0
				if c.told {
					caller := kmstest.Caller("team-a", allKeys, allKeys+"-pod")
					pod := kms.Pod{Namespace: "team-a", Name: caller.PodName, UID: caller.PodUID}
					want = []kmstest.InitialUse{{Key: ordersKey, Pod: pod, Operation: operation}}
					wantCount = 1
				}
				if diff := cmp.Diff(want, w.Events.InitialUses()); diff != "" {
					t.Error(diff)
				}
				if got := initialUses(t, w, operation); got != wantCount {
					t.Errorf("the metric is %v, want %v", got, wantCount)
				}
			})
		}
	}
}

// initialUses is the metric.
func initialUses(t *testing.T, w *world, operation string) (sum float64) {
	t.Helper()
	families, err := w.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() != "datakeys_kms_initial_version_uses_total" {
				continue
			}
			if got := m.GetLabel()[0].GetValue(); got != operation {
				t.Errorf("the metric has the operation %s, want %s", got, operation)
			}
			sum += m.GetCounter().GetValue()
		}
	}
	return sum
}
