package kms_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

func TestListKeys(t *testing.T) {
	w := listed(t)
	w.MasterKeys.Put(kms.MasterKey{KeyID: "odd", Namespace: "team-a", Name: "no-key-id"})
	arn := w.ARN(t)
	keys, next, err := w.ListKeys(t.Context(), lister, 0, "")
	want := []kms.KeyEntry{
		{KeyID: ordersKey.KeyID, ARN: arn + "team-a:key/" + ordersKey.KeyID, Name: "orders"},
		{KeyID: otherKey.KeyID, ARN: arn + "team-a:key/" + otherKey.KeyID, Name: "other"},
	}
	if diff := cmp.Diff(want, keys); err != nil || next != "" || diff != "" {
		t.Errorf("got marker %q, error %v and (-want +got)\n%s", next, err, diff)
	}
}

func TestListAliases(t *testing.T) {
	w := listed(t)
	arn := w.ARN(t)
	entry := func(alias string, of kms.MasterKeyRef) kms.AliasEntry {
		return kms.AliasEntry{Name: "alias/" + alias, ARN: arn + "team-a:alias/" + alias, TargetKeyID: of.KeyID}
	}
	all := []kms.AliasEntry{entry("a-first", otherKey), entry("both", otherKey), entry("orders-prod", ordersKey), entry("z/last", ordersKey)}
	for name, c := range map[string]struct {
		keyID string
		want  []kms.AliasEntry
		says  string
	}{
		"all":                             {keyID: "", want: all},
		"of a name":                       {keyID: "orders", want: all[2:]},
		"of a key ID":                     {keyID: ordersKey.KeyID, want: all[2:]},
		"of an ARN":                       {keyID: arn + "team-a:key/" + ordersKey.KeyID, want: all[2:]},
		"of an alias":                     {keyID: "alias/z/last", want: all[2:]},
		"of an alias's ARN":               {keyID: arn + "team-a:alias/z/last", want: all[2:]},
		"of an alias of another key":      {keyID: "alias/both", want: all[:2]},
		"of no name":                      {keyID: "nothing", says: `key_id: there is no key "nothing"`},
		"of no alias":                     {keyID: "alias/nothing", says: `key_id: there is no key "alias/nothing"`},
		"of no key ID":                    {keyID: goneID, says: "key_id: there is no key"},
		"of another namespace's key ID":   {keyID: theirsKey.KeyID, says: "key_id: there is no key"},
		"of another namespace's ARN":      {keyID: arn + "team-b:key/" + theirsKey.KeyID, says: "key_id: there is no key"},
		"of another namespace's alias":    {keyID: "alias/theirs", says: "key_id: there is no key"},
		"of an alias's ARN elsewhere":     {keyID: arn + "team-b:alias/a-first", says: "key_id: there is no key"},
		"of a key ID elsewhere by an ARN": {keyID: arn + "team-b:key/" + ordersKey.KeyID, says: "key_id: there is no key"},
		"of another installation's ARN":   {keyID: "arn:datakeys:kms:0123456789ab:team-a:key/" + ordersKey.KeyID, says: "key_id: there is no key"},
	} {
		t.Run(name, func(t *testing.T) {
			aliases, next, err := w.ListAliases(t.Context(), lister, c.keyID, 0, "")
			if diff := cmp.Diff(c.want, aliases); next != "" || diff != "" {
				t.Errorf("got marker %q and (-want +got)\n%s", next, diff)
			}
			if c.says == "" && err != nil || c.says != "" && (kms.CodeOf(err) != kms.CodeNotFound || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("got %v, want %q", err, c.says)
			}
		})
	}
}

func TestListsAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		token, keyID, marker string
		limit                int
		change               func(*world)
		want                 kms.Code
		reason, says         string
		unheard              bool // the call leaves no audit record
	}{
		"no permission":                  {token: nobody, want: kms.CodeDenied, says: "on masterkeys in namespace team-a"},
		"permission on one key":          {token: describer, want: kms.CodeDenied, says: "on masterkeys in namespace team-a"},
		"another namespace's pod":        {token: stranger, want: kms.CodeDenied, says: "on masterkeys in namespace team-b"},
		"no token":                       {token: "", want: kms.CodeUnauthenticated, unheard: true},
		"a limit too high":               {token: lister, limit: 1001, want: kms.CodeInvalidArgument, says: "limit: must be 1 to 1000", unheard: true},
		"a limit below nothing":          {token: lister, limit: -1, want: kms.CodeInvalidArgument, says: "limit: must be 1 to 1000", unheard: true},
		"a marker that is none":          {token: lister, marker: "orders", want: kms.CodeInvalidArgument, reason: kmsv1.ReasonInvalidMarker, says: "marker: must be the next_marker", unheard: true},
		"a marker of base64":             {token: lister, marker: base64.RawURLEncoding.EncodeToString([]byte("k01234567orders")), want: kms.CodeInvalidArgument, reason: kmsv1.ReasonInvalidMarker, unheard: true},
		"a marker too long":              {token: lister, marker: strings.Repeat("A", 1025), want: kms.CodeInvalidArgument, reason: kmsv1.ReasonInvalidMarker, unheard: true},
		"the MasterKeys cannot be read":  {token: lister, change: func(w *world) { w.MasterKeys.Err = errors.New("no connection") }, want: kms.CodeUnavailable},
		"permissions cannot be reviewed": {token: lister, change: func(w *world) { w.RBAC.Err = errors.New("no connection") }, want: kms.CodeUnavailable},
		"the audit log is full":          {token: lister, change: func(w *world) { w.Audit.Err = errors.New("disk full") }, want: kms.CodeUnavailable, unheard: true},
	} {
		for operation, call := range map[string]func(w *world) (int, string, error){
			kms.OperationListKeys: func(w *world) (int, string, error) {
				got, next, err := w.ListKeys(t.Context(), c.token, c.limit, c.marker)
				return len(got), next, err
			},
			kms.OperationListAliases: func(w *world) (int, string, error) {
				got, next, err := w.ListAliases(t.Context(), c.token, "", c.limit, c.marker)
				return len(got), next, err
			},
		} {
			t.Run(operation+", "+name, func(t *testing.T) {
				w := listed(t)
				if c.change != nil {
					c.change(w)
				}
				before := len(w.Audit.Records())
				n, next, err := call(w)
				if kms.CodeOf(err) != c.want || !strings.Contains(err.Error(), c.says) || c.reason != "" && kms.ReasonOf(err) != c.reason {
					t.Errorf("got %v (%s), want code %v that says %q", err, kms.ReasonOf(err), c.want, c.says)
				}
				if n > 0 || next != "" {
					t.Error("something came beside the error")
				}
				records := w.Audit.Records()[before:]
				if c.unheard {
					if len(records) > 0 {
						t.Errorf("got records %v, want none", records)
					}
					return
				}
				if len(records) != 1 || records[0].Operation != operation || records[0].Decision != kms.DecisionRefused || records[0].Code != c.want.String() {
					t.Errorf("got records %+v, want one of the refusal", records)
				}
			})
		}
	}
}

func TestListsLeaveARecord(t *testing.T) {
	w := listed(t)
	before := len(w.Audit.Records())
	if _, _, err := w.ListKeys(t.Context(), lister, 0, ""); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.ListAliases(t.Context(), lister, "", 0, ""); err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.ListAliases(t.Context(), lister, "alias/orders-prod", 0, ""); err != nil {
		t.Fatal(err)
	}
	type told struct {
		Operation, Decision, Pod string
		Key                      *kms.AuditKey
	}
	var got []told
	for _, r := range w.Audit.Records()[before:] {
		got = append(got, told{r.Operation, r.Decision, r.Caller.Pod, r.Key})
	}
	want := []told{
		{"ListKeys", "allowed", "lister-pod", nil},
		{"ListAliases", "allowed", "lister-pod", nil},
		{"ListAliases", "allowed", "lister-pod", &kms.AuditKey{ID: ordersKey.KeyID, Namespace: "team-a", Name: "orders"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Pages are read while keys come and go: what is there all the time comes once, and what is not there does not matter.
func TestPagesNeitherSkipNorDouble(t *testing.T) {
	for name, c := range map[string]struct {
		change func(w *world, page int)
	}{
		"nothing changes":                      {change: func(*world, int) {}},
		"keys are made in front of the reader": {change: func(w *world, page int) { w.put(fmt.Sprintf("%03d-new", 100+page*9)) }},
		"keys are made behind the reader":      {change: func(w *world, page int) { w.put(fmt.Sprintf("000-new-%d", page)) }},
		"the key of the marker is deleted":     {change: func(w *world, page int) { w.MasterKeys.Delete("team-a", fmt.Sprintf("%03d-gone", page*7)) }},
		"all that was read is deleted": {change: func(w *world, page int) {
			for i := range 100 {
				if i%2 == 1 && i <= page*7 {
					w.MasterKeys.Delete("team-a", fmt.Sprintf("%03d-gone", i))
				}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			w := listed(t)
			for _, k := range []string{"orders", "other"} {
				w.MasterKeys.Delete("team-a", k)
			}
			var stays []string
			for i := range 100 {
				key := fmt.Sprintf("%03d-stays", i)
				if i%7 == 0 {
					key = fmt.Sprintf("%03d-gone", i)
				} else {
					stays = append(stays, key)
				}
				w.put(key)
			}
			check := func(of string, list func(marker string) ([]string, string, error)) {
				t.Helper()
				var got []string
				marker := ""
				for page := 1; ; page++ {
					names, next, err := list(marker)
					if err != nil {
						t.Fatal(err)
					}
					if len(names) > 8 || next != "" && len(names) < 8 {
						t.Errorf("%s: page %d has %d entries of 8, and the marker %q", of, page, len(names), next)
					}
					got = append(got, names...)
					if next == "" {
						break
					}
					marker = next
					c.change(w, page)
				}
				if !slices.IsSorted(got) || len(slices.Compact(slices.Clone(got))) != len(got) {
					t.Errorf("%s: %q is not in order", of, got)
				}
				got = slices.DeleteFunc(got, func(name string) bool { return !strings.HasSuffix(name, "-stays") })
				if diff := cmp.Diff(stays, got); diff != "" {
					t.Errorf("%s: (-want +got)\n%s", of, diff)
				}
			}
			check("keys", func(marker string) (names []string, next string, err error) {
				keys, next, err := w.ListKeys(t.Context(), lister, 8, marker)
				for _, k := range keys {
					names = append(names, k.Name)
				}
				return names, next, err
			})
			check("aliases", func(marker string) (names []string, next string, err error) {
				aliases, next, err := w.ListAliases(t.Context(), lister, "", 8, marker)
				for _, a := range aliases {
					names = append(names, strings.TrimPrefix(a.Name, "alias/"))
				}
				return names, next, err
			})
		})
	}
}

// put makes a MasterKey of team-a whose alias is its name.
func (w *world) put(name string) {
	w.MasterKeys.Put(kms.MasterKey{KeyID: goneID, Namespace: "team-a", Name: name, Aliases: []string{name}, CreatedAt: begin})
}

func TestPagesHaveTheUsualLength(t *testing.T) {
	w := listed(t)
	for i := range 1001 {
		w.put(fmt.Sprintf("%04d", i))
	}
	for limit, want := range map[int][2]int{0: {100, 50}, 1: {1, 1}, 7: {7, 7}, 1000: {1000, 1000}} {
		keys, nextKeys, err := w.ListKeys(t.Context(), lister, limit, "")
		if err != nil {
			t.Fatal(err)
		}
		aliases, nextAliases, err := w.ListAliases(t.Context(), lister, "", limit, "")
		if err != nil {
			t.Fatal(err)
		}
		if got := [2]int{len(keys), len(aliases)}; got != want || nextKeys == "" || nextAliases == "" {
			t.Errorf("limit %d: got %v entries, want %v; markers %q and %q", limit, got, want, nextKeys, nextAliases)
		}
		if len(nextKeys) > 1024 || len(nextAliases) > 1024 {
			t.Error("a marker is longer than a request may have it")
		}
	}
}

// Only the text that a list returned is a marker, and of that kind of list.
func TestMarkersAreStrict(t *testing.T) {
	w := listed(t)
	_, keys, err := w.ListKeys(t.Context(), lister, 1, "")
	if err != nil {
		t.Fatal(err)
	}
	_, aliases, err := w.ListAliases(t.Context(), lister, "", 1, "")
	if err != nil {
		t.Fatal(err)
	}
	if page, _, err := w.ListKeys(t.Context(), lister, 1, keys); err != nil || len(page) != 1 || page[0].Name != "other" {
		t.Fatalf("the marker itself: got %v, %v", page, err)
	}
	bad := []string{aliases, keys + "=", keys + "A", keys + "\n", " " + keys, keys[1:], keys[:len(keys)-1], strings.ToLower(keys)}
	for i := range keys {
		for _, c := range []byte("A_0") {
			if keys[i] != c {
				bad = append(bad, keys[:i]+string(c)+keys[i+1:])
			}
		}
	}
	for _, marker := range bad {
		if _, _, err := w.ListKeys(t.Context(), lister, 1, marker); kms.ReasonOf(err) != kmsv1.ReasonInvalidMarker {
			t.Errorf("marker %q: got %v", marker, err)
		}
	}
	if _, _, err := w.ListAliases(t.Context(), lister, "", 1, keys); kms.ReasonOf(err) != kmsv1.ReasonInvalidMarker {
		t.Errorf("a marker of the other list: got %v", err)
	}
}

// lagging is a cache that has not heard of a MasterKey yet, whose list misses it for a while.
type lagging struct {
	*kmstest.MasterKeys
	name string
}

func (l lagging) List(ctx context.Context, namespace string) ([]kms.MasterKey, error) {
	all, err := l.MasterKeys.List(ctx, namespace)
	return slices.DeleteFunc(all, func(k kms.MasterKey) bool { return k.Name == l.name }), err
}

// Such a key is there, and which aliases it has of those that it claims is not known yet.
func TestAliasesOfAKeyThatTheListHasNotHeardOf(t *testing.T) {
	w := listed(t)
	arn := w.ARN(t)
	ring, err := sealtest.OpenEmbedded(t.Context(), w.Store)
	if err != nil {
		t.Fatal(err)
	}
	w.Service, err = kms.New(kms.Config{
		Seal: ring, Keys: w.Store, MasterKeys: lagging{w.MasterKeys, "orders"}, Authenticator: w.Tokens, Authorizer: w.RBAC, Auditor: w.Audit, Clock: w.Clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"orders", "alias/orders-prod", ordersKey.KeyID, arn + "team-a:key/" + ordersKey.KeyID} {
		aliases, _, err := w.ListAliases(t.Context(), lister, name, 0, "")
		if err != nil || len(aliases) != 0 {
			t.Errorf("%s: got %v, %v, want none and no error", name, aliases, err)
		}
	}
}

// The namespace that counts is the pod's own, whatever it may do elsewhere.
func TestListsAreOfThePodsOwnNamespace(t *testing.T) {
	w := listed(t)
	const guest, owner = "guest", "owner" // pods of team-b: with permissions in team-a, and in team-b
	for token, namespace := range map[string]string{guest: "team-a", owner: "team-b"} {
		w.Tokens.Add(token, kmstest.Caller("team-b", token, token+"-pod"))
		for _, verb := range []string{v1alpha1.VerbListKeys, v1alpha1.VerbListAliases, v1alpha1.VerbGenerateRandom} {
			w.RBAC.Grant("system:serviceaccount:team-b:"+token, kms.Access{Verb: verb, Resource: v1alpha1.ResourceMasterKeys, Namespace: namespace})
		}
	}
	if _, _, err := w.ListKeys(t.Context(), guest, 0, ""); kms.CodeOf(err) != kms.CodeDenied {
		t.Errorf("ListKeys: got %v, want Denied", err)
	}
	if _, _, err := w.ListAliases(t.Context(), guest, "", 0, ""); kms.CodeOf(err) != kms.CodeDenied {
		t.Errorf("ListAliases: got %v, want Denied", err)
	}
	if _, err := w.GenerateRandom(t.Context(), guest, 32); kms.CodeOf(err) != kms.CodeDenied {
		t.Errorf("GenerateRandom: got %v, want Denied", err)
	}
	keys, _, err := w.ListKeys(t.Context(), owner, 0, "")
	if err != nil || len(keys) != 1 || keys[0].Name != "theirs" {
		t.Errorf("ListKeys: got %v, %v, want the key of team-b", keys, err)
	}
	aliases, _, err := w.ListAliases(t.Context(), owner, "", 0, "")
	if err != nil || len(aliases) != 2 || aliases[0].TargetKeyID != theirsKey.KeyID || aliases[1].TargetKeyID != theirsKey.KeyID {
		t.Errorf("ListAliases: got %v, %v, want those of team-b", aliases, err)
	}
}
