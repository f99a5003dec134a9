package kms_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/seal"
)

func TestDescribeKey(t *testing.T) {
	due := begin.Add(30 * 24 * time.Hour)
	for name, c := range map[string]struct {
		token, keyID string
		change       func(*world)
		want         kms.Code
		says         string
		// metadata is what is not as of orders.
		metadata func(*kms.KeyMetadata)
		event    bool
	}{
		"by its name":            {token: describer, keyID: "orders"},
		"by its key ID":          {token: describer, keyID: ordersKey.KeyID},
		"by its ARN":             {token: describer, keyID: "ARN team-a:key/" + ordersKey.KeyID},
		"by its alias":           {token: describer, keyID: "alias/orders-prod"},
		"by its alias's ARN":     {token: describer, keyID: "ARN team-a:alias/orders-prod"},
		"with permission on all": {token: lister, keyID: "orders"},
		"with the wrong verb":    {token: keyUser, keyID: "orders", want: kms.CodeDenied, says: "needs the verb describekey", event: true},
		"another key":            {token: describer, keyID: "other", want: kms.CodeDenied, says: "needs the verb describekey", event: true},
		"an alias that another has": {
			token: describer, keyID: "alias/both", want: kms.CodeDenied, says: "needs the verb describekey", event: true,
		},
		"no key":                         {token: describer, keyID: goneID, want: kms.CodeDenied, says: "needs the verb describekey", event: true},
		"no key, with permission on all": {token: lister, keyID: goneID, want: kms.CodeNotFound, says: "there is no key"},
		"no alias, with permission":      {token: lister, keyID: "alias/x", want: kms.CodeNotFound, says: "there is no key"},
		"another namespace's key":        {token: lister, keyID: theirsKey.KeyID, want: kms.CodeNotFound, says: "there is no key"},
		"another namespace's name":       {token: lister, keyID: "theirs", want: kms.CodeNotFound, says: "there is no key"},
		"another namespace's alias":      {token: lister, keyID: "alias/theirs", want: kms.CodeNotFound, says: "there is no key"},
		"an alias's ARN elsewhere":       {token: lister, keyID: "ARN team-b:alias/a-first", want: kms.CodeNotFound, says: "there is no key"},
		"nothing":                        {token: lister, keyID: "", want: kms.CodeInvalidArgument, says: "key_id: must name a key"},
		"no token":                       {token: "", keyID: "orders", want: kms.CodeUnauthenticated},
		"the audit log is full": {
			token: describer, keyID: "orders", change: func(w *world) { w.Audit.Err = errors.New("disk full") }, want: kms.CodeUnavailable,
		},
		"Disabled": {
			token: describer, keyID: "orders",
			change: func(w *world) {
				w.MasterKeys.Edit("team-a", "orders", func(k *kms.MasterKey) { k.State = kms.KeyStateDisabled })
			},
			metadata: func(m *kms.KeyMetadata) { m.State = "Disabled" },
		},
		"PendingDeletion": {
			token: describer, keyID: "orders",
			change: func(w *world) {
				w.MasterKeys.Edit("team-a", "orders", func(k *kms.MasterKey) { k.State, k.DeletionTime = kms.KeyStatePendingDeletion, due })
			},
			metadata: func(m *kms.KeyMetadata) { m.State, m.DeletionTime = "PendingDeletion", due },
		},
		"the material is missing": {
			token: describer, keyID: "orders",
			change: func(w *world) { w.Store.Delete(ordersKey.KeyID); w.Clock.SetTime(begin.Add(11 * time.Second)) },
			metadata: func(m *kms.KeyMetadata) {
				m.State, m.PrimaryVersion, m.MaterialID = "Unavailable", 0, envelope.MaterialID{}
			},
		},
		"the material is missing and the key Disabled": {
			token: describer, keyID: "orders",
			change: func(w *world) {
				w.MasterKeys.Edit("team-a", "orders", func(k *kms.MasterKey) { k.State = kms.KeyStateDisabled })
				w.Store.Delete(ordersKey.KeyID)
				w.Clock.SetTime(begin.Add(11 * time.Second))
			},
			metadata: func(m *kms.KeyMetadata) {
				m.State, m.PrimaryVersion, m.MaterialID = "Disabled", 0, envelope.MaterialID{}
			},
		},
		"the material does not open": {
			token: describer, keyID: "orders",
			change: func(w *world) {
				w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) { s.Data["v1"][70] ^= 1 })
				w.Clock.SetTime(begin.Add(11 * time.Second))
			},
			metadata: func(m *kms.KeyMetadata) {
				m.State, m.PrimaryVersion, m.MaterialID = "Unavailable", 0, envelope.MaterialID{}
			},
		},
		"the primary version does not open": {
			token: describer, keyID: "orders",
			change: func(w *world) {
				w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) { s.Data["v2"], s.Data["record"] = s.Data["v1"], recordOf(2) })
				w.Clock.SetTime(begin.Add(11 * time.Second))
			},
			metadata: func(m *kms.KeyMetadata) {
				m.State, m.PrimaryVersion, m.MaterialID = "Unavailable", 0, envelope.MaterialID{}
			},
		},
		"the key ID is none": {
			token: describer, keyID: "orders",
			change: func(w *world) { w.MasterKeys.Edit("team-a", "orders", func(k *kms.MasterKey) { k.KeyID = "odd" }) },
			want:   kms.CodeFailedPrecondition,
		},
		"the MasterKey was made later than the material": {
			token: describer, keyID: "orders",
			change: func(w *world) {
				w.MasterKeys.Edit("team-a", "orders", func(k *kms.MasterKey) { k.CreatedAt = begin.Add(time.Hour) })
			},
		},
		"the store does not answer": {
			token: describer, keyID: "orders",
			change: func(w *world) {
				w.MasterKeys.Err = errors.New("no connection")
			},
			want: kms.CodeUnavailable,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := listed(t)
			arn := w.ARN(t)
			materialID, _ := w.Material(t, ordersKey)
			if c.change != nil {
				c.change(w)
			}
			if rest, ok := strings.CutPrefix(c.keyID, "ARN "); ok {
				c.keyID = arn + rest
			}
			before := len(w.Audit.Records())
			got, err := w.DescribeKey(t.Context(), c.token, c.keyID)
			if kms.CodeOf(err) != c.want || c.want != 0 && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want code %v that says %q", err, c.want, c.says)
			}
			if got := len(w.Events.Denials()) > 0; got != c.event {
				t.Errorf("an event: got %v, want %v", got, c.event)
			}
			want := kms.KeyMetadata{}
			if c.want == 0 {
				want = kms.KeyMetadata{
					KeyID: ordersKey.KeyID, ARN: arn + "team-a:key/" + ordersKey.KeyID, Namespace: "team-a", Name: "orders",
					Description: "for orders", State: "Enabled", KeySpec: "AES_256", CreatedAt: begin, PrimaryVersion: 1, MaterialID: materialID,
				}
				if c.metadata != nil {
					c.metadata(&want)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if c.want == kms.CodeUnauthenticated || c.want == kms.CodeInvalidArgument || w.Audit.Err != nil {
				return
			}
			records := w.Audit.Records()[before:]
			if len(records) != 1 || records[0].Operation != kms.OperationDescribeKey || (records[0].Decision == kms.DecisionAllowed) != (c.want == 0) {
				t.Fatalf("got records %+v, want one", records)
			}
			if key := records[0].Key; c.want == 0 && (key == nil || *key != kms.AuditKey{ID: ordersKey.KeyID, Namespace: "team-a", Name: "orders"}) {
				t.Errorf("the record is about %+v", key)
			}
		})
	}
}

func TestGenerateRandom(t *testing.T) {
	for name, c := range map[string]struct {
		token  string
		n      int
		change func(*world)
		want   kms.Code
		says   string
	}{
		"one byte":                       {token: lister, n: 1},
		"1024 bytes":                     {token: lister, n: 1024},
		"no byte":                        {token: lister, n: 0, want: kms.CodeInvalidArgument, says: "number_of_bytes: must be 1 to 1024"},
		"1025 bytes":                     {token: lister, n: 1025, want: kms.CodeInvalidArgument, says: "number_of_bytes: must be 1 to 1024"},
		"less than nothing":              {token: lister, n: -1, want: kms.CodeInvalidArgument, says: "number_of_bytes: must be 1 to 1024"},
		"no permission":                  {token: nobody, n: 32, want: kms.CodeDenied, says: "needs the verb generaterandom on masterkeys in namespace team-a"},
		"permission on a key":            {token: describer, n: 32, want: kms.CodeDenied, says: "needs the verb generaterandom"},
		"no token":                       {token: "", n: 32, want: kms.CodeUnauthenticated},
		"permissions cannot be reviewed": {token: lister, n: 32, change: func(w *world) { w.RBAC.Err = errors.New("x") }, want: kms.CodeUnavailable},
		"the audit log is full":          {token: lister, n: 32, change: func(w *world) { w.Audit.Err = errors.New("x") }, want: kms.CodeUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			w := listed(t)
			if c.change != nil {
				c.change(w)
			}
			before := len(w.Audit.Records())
			got, err := w.GenerateRandom(t.Context(), c.token, c.n)
			if kms.CodeOf(err) != c.want || c.want != 0 && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want code %v that says %q", err, c.want, c.says)
			}
			records := w.Audit.Records()[before:]
			if c.want != 0 {
				if !got.IsZero() {
					t.Error("bytes came beside the error")
				}
				if refused := c.want == kms.CodeDenied || c.want == kms.CodeUnavailable && w.Audit.Err == nil; (len(records) == 1) != refused {
					t.Errorf("got records %+v", records)
				}
				return
			}
			again, err := w.GenerateRandom(t.Context(), c.token, c.n)
			if err != nil || got.Len() != c.n || again.Len() != c.n {
				t.Errorf("got %d bytes and %d, %v, want %d", got.Len(), again.Len(), err, c.n)
			}
			if c.n > 8 && again.Equal(got) {
				t.Error("the same bytes came twice")
			}
			if r := records[0]; r.Operation != kms.OperationGenerateRandom || r.Decision != kms.DecisionAllowed || r.Bytes != c.n || r.Key != nil {
				t.Errorf("got the record %+v", r)
			}
		})
	}
}
