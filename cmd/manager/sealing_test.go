package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers/controllerstest"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/rootkey"
	"github.com/datakeys/datakeys/internal/seal"
)

// often lets a manager look after the seal without a minute in between.
func often(o *options) { o.tendPeriod = 250 * time.Millisecond }

// sealedBy is the version of the sealing key that the material of every master key in a place is sealed by; 0 if not all by one.
func (p *place) sealedBy(ctx context.Context, t *testing.T) uint32 {
	t.Helper()
	var secrets corev1.SecretList
	if err := p.client.List(ctx, &secrets, client.InNamespace(p.system), client.MatchingFields{"type": v1alpha1.SecretTypeMasterKey}); err != nil {
		t.Fatal(err)
	}
	var by uint32
	for i := range secrets.Items {
		version := sealedBy(&secrets.Items[i])
		if i > 0 && version != by {
			return 0
		}
		by = version
	}
	return by
}

// sealedBy is the version of the sealing key that the first version of a master key is sealed by, 0 if it is by none.
func sealedBy(material *corev1.Secret) uint32 {
	b, err := envelope.Parse(material.Data[seal.VersionEntry(1)])
	if err != nil {
		return 0
	}
	return b.Header.KeyVersion
}

// index is what the index of the Secret with the sealing keys says.
type index struct {
	Primary  uint32                     `json:"primary"`
	Settled  string                     `json:"settledOn"`
	RootKeys map[string]json.RawMessage `json:"rootKeys"`
}

func indexOf(t *testing.T, s *corev1.Secret) index {
	t.Helper()
	var i index
	if s == nil {
		return i
	}
	if err := json.Unmarshal(s.Data["index"], &i); err != nil {
		t.Fatal(err)
	}
	return i
}

func (p *place) waitForSealingKeys(t *testing.T, what string, done func(index) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	controllerstest.WaitFor(ctx, t, p.client, &corev1.SecretList{}, &corev1.Secret{},
		client.ObjectKey{Namespace: p.system, Name: seal.SealingKeysSecret}, what,
		func(s *corev1.Secret) bool { return s != nil && done(indexOf(t, s)) })
}

// waitForMaterial waits until the material of a MasterKey is sealed by a version.
func (p *place) waitForMaterial(t *testing.T, masterKey string, version uint32) {
	t.Helper()
	var key v1alpha1.MasterKey
	if err := p.client.Get(t.Context(), client.ObjectKey{Namespace: p.tenant, Name: masterKey}, &key); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	controllerstest.WaitFor(ctx, t, p.client, &corev1.SecretList{}, &corev1.Secret{},
		client.ObjectKey{Namespace: p.system, Name: key.KeyID()}, "the material is sealed by version "+strconv.Itoa(int(version)),
		func(s *corev1.Secret) bool {
			return s != nil && sealedBy(s) == version
		})
}

func (p *place) rotate(t *testing.T, value string) {
	t.Helper()
	s := &corev1.Secret{}
	s.Namespace, s.Name = p.system, seal.SealingKeysSecret
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"annotations":{"`+v1alpha1.AnnotationRotateRequestedAt+`":"`+value+`"}}}`))
	if err := p.client.Patch(t.Context(), s, patch); err != nil {
		t.Fatal(err)
	}
}

// blob is the blob in the Secret of a DataKeyRequest.
func (p *place) blob(t *testing.T, name string) []byte {
	t.Helper()
	var s corev1.Secret
	if err := p.client.Get(t.Context(), client.ObjectKey{Namespace: p.tenant, Name: name}, &s); err != nil {
		t.Fatal(err)
	}
	return s.Data[v1alpha1.SecretKeyCiphertextBlob]
}

// waitForVerdict waits until what is durable says so to a manager with these flags.
func (p *place) waitForVerdict(t *testing.T, config seal.Config, verdict seal.Verdict) seal.Report {
	t.Helper()
	config.Store, config.OpenRootKey = secretStore{reader: p.client, writer: p.client, namespace: p.system}, rootkey.Open
	var report seal.Report
	p.waitForSealingKeys(t, "the verdict is "+string(verdict), func(index) bool {
		var err error
		if report, err = config.Inspect(t.Context()); err != nil {
			t.Error(err)
		}
		return report.Verdict == verdict
	})
	return report
}

// A rotation on demand by two managers that both believe to lead: one new version, whatever was asked of the root key's service.
func TestTwoLeadersRotateOnce(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	for range 2 {
		p.start(t, controllerstest.NewFaults(0, 0), often)
	}
	p.create(t, p.masterKey("key"), p.request("orders", "key"))
	p.checkOpens(t, "orders")
	for n := uint32(2); n <= 4; n++ {
		p.rotate(t, "number "+strconv.Itoa(int(n)))
		p.waitForSealingKeys(t, "there is version "+strconv.Itoa(int(n)), func(i index) bool { return i.Primary == n })
		p.waitForMaterial(t, "key", n)
		p.checkOpens(t, "orders")
	}
	p.create(t, p.masterKey("later"), p.request("later", "later"))
	p.checkOpens(t, "later")
	if got := p.sealedBy(t.Context(), t); got != 4 {
		t.Errorf("the material is sealed by version %d, want 4", got)
	}
}

func TestTheStatusOfTheRootKey(t *testing.T) {
	since := time.Date(2026, 11, 22, 1, 2, 3, 0, time.UTC)
	for name, c := range map[string]struct {
		report seal.Report
		want   string
	}{
		"settled": {
			seal.Report{
				InstallID: "0123456789ab", Primary: 2, Newest: 2, PrimarySince: since,
				RootKeys: []seal.ListedRootKey{{ID: "awskms://eu-1/key", Settled: true, Wraps: []uint32{1, 2}}},
				Current:  seal.ConfiguredRootKey{URI: "awskms://eu-1/key", Opens: []uint32{1, 2}},
				Verdict:  seal.VerdictSettled, Advice: "nothing to do",
			},
			`installation  0123456789ab
sealing key   version 2, since 2026-11-22T01:02:03Z
wrapped by    awskms://eu-1/key: all 2 versions, the installation relies on it
--root-key    awskms://eu-1/key opens all 2 versions
verdict       Settled: nothing to do
`,
		},
		"in the middle of everything": {
			seal.Report{
				InstallID: "0123456789ab", Primary: 2, Newest: 3, PrimarySince: since,
				RootKeys: []seal.ListedRootKey{
					{ID: "secret://old#id", Settled: true, Wraps: []uint32{1, 2, 3}}, {ID: "file:///new#id", Wraps: []uint32{1, 3}},
				},
				Current:  seal.ConfiguredRootKey{URI: "file:///new", Problem: "no such file"},
				Previous: seal.ConfiguredRootKey{URI: "secret://old", ID: "secret://old#id", Opens: []uint32{1, 2, 3}},
				Verdict:  seal.VerdictChanging, Advice: "wait",
			},
			`installation         0123456789ab
sealing key          version 2, since 2026-11-22T01:02:03Z
                     version 3 is made and seals nothing yet
wrapped by           secret://old#id: all 3 versions, the installation relies on it
wrapped by           file:///new#id: v1, v3
--root-key           file:///new opens no version: no such file
--previous-root-key  secret://old#id opens all 3 versions
verdict              Changing: wait
`,
		},
		"a key that was rotated behind its name": {
			seal.Report{
				InstallID: "0123456789ab", Primary: 3, Newest: 3, PrimarySince: since,
				RootKeys: []seal.ListedRootKey{{ID: "kmsv2:///s", Settled: true, Wraps: []uint32{1, 2, 3}}},
				Current: seal.ConfiguredRootKey{
					URI: "kmsv2:///s", ID: "kmsv2:///s", Opens: []uint32{1, 2, 3},
					Keys: map[uint32]string{1: `"kek-1"`, 2: `"kek-2"`, 3: `"kek-1"`}, Stale: []uint32{1, 3},
				},
				Verdict: seal.VerdictSettled, Advice: "nothing to do",
			},
			`installation  0123456789ab
sealing key   version 3, since 2026-11-22T01:02:03Z
wrapped by    kmsv2:///s: all 3 versions, the installation relies on it
--root-key    kmsv2:///s opens all 3 versions
              v1, v3 by its key "kek-1", which it needs until the leader has wrapped anew by the newer one
              v2 by its key "kek-2"
verdict       Settled: nothing to do
`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			if err := writeReport(&out, c.report); err != nil || out.String() != c.want {
				t.Errorf("got %v and\n%swant\n%s", err, out.String(), c.want)
			}
		})
	}
}

func TestTheStatusOfTheRootKeyTakesTheManagersEnvironment(t *testing.T) {
	env := map[string]string{rootKeyEnv: "file:///new", previousRootKeyEnv: "secret://old", namespaceEnv: "n"}
	o, err := parseOptions([]string{"--sidecar-image=i", "--kubeconfig=/does/not/exist"}, func(name string) string { return env[name] }, io.Discard)
	if o == nil || o.rootKey != "file:///new" || o.previousRootKey != "secret://old" {
		t.Errorf("got %+v (%v)", o, err)
	}
	var out strings.Builder
	err = rootKeyStatus(t.Context(), nil, func(string) string { return "" }, &out, &out)
	if !errors.Is(err, errEmptyNamespace) {
		t.Errorf("got %v without a namespace", err)
	}
	if err := rootKeyStatus(t.Context(), []string{"--namespace=n", "now"}, func(string) string { return "" }, &out, &out); err == nil || !strings.Contains(err.Error(), `"now"`) {
		t.Errorf("got %v for a word that is no flag", err)
	}
}
