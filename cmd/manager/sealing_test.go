package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers/controllerstest"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

const fakeRootKey = "fake://kms"

// often lets a manager look after the seal without a minute in between.
func often(o *options) { o.tendPeriod = 100 * time.Millisecond }

// A rootKeyService is a root key's service that can be down.
type rootKeyService struct {
	sealtest.RootKeys
	down  atomic.Bool
	tries chan struct{} // one for each call while it is down, as far as somebody reads them
}

func newRootKeyService() *rootKeyService {
	s := &rootKeyService{tries: make(chan struct{})}
	s.Hook = func(context.Context, string, string) error {
		if !s.down.Load() {
			return nil
		}
		select {
		case s.tries <- struct{}{}:
		default:
		}
		return sealtest.ErrDown
	}
	return s
}

// ready asks a manager's health check.
func ready(t *testing.T, address, check string) int {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+"/readyz/"+check, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode
}

// The root key's service is down when the manager starts: not ready, nothing made, and more tries. It comes: everything goes on.
// It goes again: everything goes on all the same, new master keys and data keys too, but the manager that starts.
func TestTheServiceOfTheRootKeyIsDown(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	service := newRootKeyService()
	p.seal = seal.Config{RootKey: fakeRootKey, OpenRootKey: service.Open}
	check := *p // sees what is durable while the service is down for the managers
	check.seal.OpenRootKey = service.OpenQuietly
	service.down.Store(true)
	health := freeAddress(t)
	p.start(t, controllerstest.NewFaults(0, 0), often, func(o *options) { o.healthBind = health })
	for _, o := range []client.Object{p.masterKey("key"), p.request("orders", "key")} {
		if err := p.client.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		<-service.tries
	}
	if got := ready(t, health, "unsealed"); got != http.StatusInternalServerError {
		t.Errorf("down at the start: the health check says %d", got)
	}
	var secrets corev1.SecretList
	if err := p.client.List(t.Context(), &secrets, client.InNamespace(p.system), client.MatchingFields{"type": v1alpha1.SecretTypeSealingKeys}); err != nil || len(secrets.Items) > 0 {
		t.Errorf("down at the start: sealing keys were made: %v", err)
	}

	service.down.Store(false)
	check.checkOpens(t, "orders")
	if got := ready(t, health, "unsealed"); got != http.StatusOK {
		t.Errorf("up: the health check says %d", got)
	}

	service.down.Store(true)
	for _, o := range []client.Object{p.masterKey("later"), p.request("later", "later"), p.request("more", "key")} {
		if err := p.client.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"orders", "later", "more"} {
		check.checkOpens(t, name)
	}
	if got := ready(t, health, "unsealed"); got != http.StatusOK {
		t.Errorf("down after the start: the health check says %d", got)
	}
	other := freeAddress(t)
	p.start(t, controllerstest.NewFaults(0, 0), func(o *options) { o.healthBind = other })
	<-service.tries
	if got := ready(t, other, "unsealed"); got != http.StatusInternalServerError {
		t.Errorf("another manager starts while it is down: the health check says %d", got)
	}
}

// sealedBy is the version of the sealing key that the material of every master key in a place is sealed by; 0 if not all by one.
func (p *place) sealedBy(ctx context.Context, t *testing.T) uint32 {
	t.Helper()
	var secrets corev1.SecretList
	if err := p.client.List(ctx, &secrets, client.InNamespace(p.system), client.MatchingFields{"type": v1alpha1.SecretTypeMasterKey}); err != nil {
		t.Fatal(err)
	}
	var by uint32
	for i, secret := range secrets.Items {
		b, err := envelope.Parse(secret.Data[seal.VersionEntry(1)])
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 && b.Header.KeyVersion != by {
			return 0
		}
		by = b.Header.KeyVersion
	}
	return by
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
			if s == nil {
				return false
			}
			b, err := envelope.Parse(s.Data[seal.VersionEntry(1)])
			return err == nil && b.Header.KeyVersion == version
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

// The root key is changed from the embedded one to a file, and the sealing key is rotated in the middle, by whole managers on a
// real API server: two with the new flags, and one that was left behind with the old ones. Whatever becomes of any single write
// of one of them, the installation settles, every master key is sealed by the new sealing key, and the data key that was there
// before is the same and opens, for managers with the new flags and with the old. The story is run for every write and every
// fault, until one ends without having made that many writes.
func TestAChangeOfTheRootKeySurvivesAnyWrite(t *testing.T) {
	controllerstest.AtEveryWrite(t, 4, 40, changeSurvives)
}

func changeSurvives(t *testing.T, at int, fault controllerstest.Fault) (reached bool) {
	p := newPlace(t)
	embedded := p.seal
	stop := p.start(t, controllerstest.NewFaults(0, 0))
	for _, o := range []client.Object{p.masterKey("key"), p.request("orders", "key")} {
		if err := p.client.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	p.checkOpens(t, "orders")
	before := p.blob(t, "orders")
	stop()

	path := filepath.Join(t.TempDir(), "root-key")
	if err := os.WriteFile(path, bytes.Repeat([]byte{0x9c, 0x01}, 16), 0o600); err != nil {
		t.Fatal(err)
	}
	changing := seal.Config{RootKey: "file://" + path, PreviousRootKey: seal.DefaultRootKey}
	p.rotate(t, "now")
	p.seal = changing
	faults := controllerstest.NewFaults(at, fault)
	stop = p.start(t, faults, often)
	p.restartAfter(t, faults, stop, often)
	// The one that is left behind starts when it cannot rotate by itself any more, so that the other makes the same writes each time.
	p.waitForSealingKeys(t, "the sealing keys are wrapped by both root keys", func(i index) bool { return len(i.RootKeys) == 2 })
	p.start(t, controllerstest.NewFaults(0, 0), often, func(o *options) {
		o.rootKey, o.previousRootKey = embedded.RootKey, ""
	})

	p.waitForSealingKeys(t, "the sealing key is rotated", func(i index) bool { return i.Primary == 2 })
	p.waitForMaterial(t, "key", 2)
	report := p.waitForVerdict(t, changing, seal.VerdictKeepsPrevious)
	if len(report.RootKeys) != 2 || !strings.HasPrefix(report.RootKeys[0].ID, "file://") {
		t.Errorf("the installation relies on %+v", report.RootKeys)
	}
	if !bytes.Equal(before, p.blob(t, "orders")) {
		t.Error("the data key is another one")
	}
	done := seal.Config{RootKey: changing.RootKey}
	for _, config := range []seal.Config{changing, embedded, done} { // the last one drops what the embedded root key wrapped
		later := *p
		later.seal = config
		later.checkOpens(t, "orders")
	}
	if r := p.waitForVerdict(t, done, seal.VerdictSettled); r.Embedded {
		t.Error("the embedded root key still opens the sealing keys")
	}
	return faults.Reached()
}

// waitForVerdict waits until what is durable says so to a manager with these flags.
func (p *place) waitForVerdict(t *testing.T, config seal.Config, verdict seal.Verdict) seal.Report {
	t.Helper()
	config.Store = secretStore{reader: p.client, writer: p.client, namespace: p.system}
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
	if err := p.client.Create(t.Context(), p.masterKey("key")); err != nil {
		t.Fatal(err)
	}
	if err := p.client.Create(t.Context(), p.request("orders", "key")); err != nil {
		t.Fatal(err)
	}
	p.checkOpens(t, "orders")
	for n := uint32(2); n <= 4; n++ {
		p.rotate(t, "number "+strconv.Itoa(int(n)))
		p.waitForSealingKeys(t, "there is version "+strconv.Itoa(int(n)), func(i index) bool { return i.Primary == n })
		p.waitForMaterial(t, "key", n)
		p.checkOpens(t, "orders")
	}
	if err := p.client.Create(t.Context(), p.masterKey("later")); err != nil {
		t.Fatal(err)
	}
	if err := p.client.Create(t.Context(), p.request("later", "later")); err != nil {
		t.Fatal(err)
	}
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
				Previous: seal.ConfiguredRootKey{URI: "secret://old", Opens: []uint32{1, 2, 3}},
				Verdict:  seal.VerdictChanging, Advice: "wait",
			},
			`installation         0123456789ab
sealing key          version 2, since 2026-11-22T01:02:03Z
                     version 3 is made and seals nothing yet
wrapped by           secret://old#id: all 3 versions, the installation relies on it
wrapped by           file:///new#id: v1, v3
--root-key           file:///new opens no version: no such file
--previous-root-key  secret://old opens all 3 versions
verdict              Changing: wait
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
