package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers/controllerstest"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/porttest"
	"github.com/datakeys/datakeys/internal/rootkey"
	"github.com/datakeys/datakeys/internal/rootkey/rootkeytest"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// awsKey and awsKeyToLose are keys of AWS KMS.
const (
	awsKey       = "11111111-2222-4333-8444-555555555555"
	awsKeyToLose = "99999999-8888-4777-8666-555555555555"
)

// One installation goes from the embedded root key to a KMS v2 plugin with SoftHSM, to AWS KMS and to a file, with whole managers
// on a real API server and the providers that they have in production, while a pod asks for its data keys. At the end of each
// change, and after it, every data key that there ever was opens as what it was first.
func TestARootKeyIsChangedAgainAndAgain(t *testing.T) {
	hsm, aws := rootkeytest.NewSoftHSM(t), rootkeytest.NewAWSKMS("eu-west-1")
	t.Cleanup(aws.Close)
	aws.CreateKey(awsKey)
	arn := aws.CreateKey(awsKeyToLose)
	toLose, toKeep := aws.RootKey(t, awsKeyToLose), aws.RootKey(t, awsKey)

	// Each root key is destroyed when it has been left.
	t.Run("without a fault", func(t *testing.T) {
		j := newJourney(t, hsm.RootKey(), toLose)
		j.left = []func(){
			func() {
				secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: j.system, Name: strings.TrimPrefix(seal.DefaultRootKey, "secret://")}}
				if err := j.client.Delete(t.Context(), secret); err != nil {
					t.Error(err)
				}
			},
			func() { hsm.Kill(t) },
			func() { aws.DeleteKey(arn) },
		}
		j.travel(t)
		hsm.Start(t)
	})
	var points atomic.Int32
	// count takes how many writes of each change met a fault, and fails the test where they are fewer than least.
	count := func(t *testing.T, met []int, least int) {
		t.Helper()
		for i, n := range met {
			points.Add(int32(n))
			if n < least {
				t.Errorf("only %d writes of change %d met a fault: the story is not told", n, i+1)
			}
		}
		t.Logf("writes of each change that met a fault: %v", met)
	}
	t.Run("with faults", func(t *testing.T) {
		// Every other write meets the fault: where it has to be made again that is every one, and where not, two journeys are all.
		for name, c := range map[string]struct {
			first int
			fault controllerstest.Fault
			least int // points in each change
		}{
			"every write fails":                   {1, controllerstest.FailBefore, leastWrites},
			"every write meets a conflict":        {1, controllerstest.Conflict, leastWrites},
			"the answers to odd writes are lost":  {1, controllerstest.FailAfter, leastWrites / 2},
			"the answers to even writes are lost": {2, controllerstest.FailAfter, leastWrites/2 - 1},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				j := newJourney(t, hsm.RootKey(), toKeep)
				j.fate = func(*controllerstest.Faults) *controllerstest.Faults {
					faults := controllerstest.NewFaults(c.first, c.fault)
					faults.Again = 2
					return faults
				}
				count(t, j.travel(t), c.least)
			})
		}
		// After the first write, and then before and after each: a process that always dies before it writes comes to nothing.
		t.Run("killed at every write", func(t *testing.T) {
			t.Parallel()
			j, lives := newJourney(t, hsm.RootKey(), toKeep), 0
			j.fate = func(*controllerstest.Faults) *controllerstest.Faults {
				lives++
				return controllerstest.NewFaults(1, []controllerstest.Fault{controllerstest.DieBefore, controllerstest.DieAfter}[lives%2])
			}
			count(t, j.travel(t), 2*leastWrites-2)
		})
		// The write with that number of each change, and no other, is the last of its process.
		controllerstest.AtEveryWrite(t, controllerstest.Deaths, leastWrites, 40, func(t *testing.T, at int, fault controllerstest.Fault) bool {
			t.Helper()
			j := newJourney(t, hsm.RootKey(), toKeep)
			j.fate = func(rest *controllerstest.Faults) *controllerstest.Faults {
				if rest == nil {
					return controllerstest.NewFaults(at, fault)
				}
				return rest
			}
			met := j.travel(t)
			count(t, met, 0)
			return slices.Max(met) > 0
		})
	})
	t.Logf("%d points", points.Load())
}

// leastWrites is how often a change writes at least: two to settle on the new root key, two for a data key, three to rotate the
// sealing key, one to drop the old root key.
const leastWrites = 8

// A keptKey is a data key as it was first.
type keptKey struct {
	name      string
	blob, aad []byte
	plaintext envelope.Plaintext
}

// is reports whether the bytes are the data key.
func (k keptKey) is(plaintext []byte) bool {
	p, err := envelope.PlaintextFromBytes(plaintext)
	if err != nil {
		return false
	}
	defer p.Destroy()
	return k.plaintext.Equal(p)
}

// A journey is one installation on its way from root key to root key.
type journey struct {
	*place
	roots []string
	// fate returns the Faults of the next manager that makes a change. rest are what the one before hands over, nil for the
	// first of a change. Nil: no manager meets any.
	fate func(rest *controllerstest.Faults) *controllerstest.Faults
	// left destroy each root key once it has been left. Nil: it stays, for other journeys too.
	left []func()
	pod  *pod
	// notResealed tells that the material of the master key could not be written.
	notResealed <-chan struct{}
	// states is how many states were opened, each by every root key that was listed in it.
	states int

	mu      sync.Mutex // held while the pod asks
	kept    []keptKey
	serving string                    // the address of the manager that the pod asks
	faults  []*controllerstest.Faults // of all managers that have made the change so far
}

// newJourney is an installation that goes from the embedded root key to others, and at last to a file.
func newJourney(t *testing.T, others ...string) *journey {
	t.Helper()
	j := &journey{place: newPlace(t), roots: slices.Concat([]string{seal.DefaultRootKey}, others, []string{newFileRoot(t)})}
	j.log, j.notResealed = logFor("Master key material is not sealed anew")
	return j
}

// readOnly is for those who only look: they must not go on with a change that the managers under test have to make.
type readOnly struct{ seal.Store }

var errReadOnly = errors.New("a look changes nothing")

func (readOnly) Create(context.Context, seal.Secret) error { return errReadOnly }
func (readOnly) Update(context.Context, seal.Secret) error { return errReadOnly }

// look gives a configuration to somebody who only looks.
func (p *place) look(config seal.Config) seal.Config {
	config.Store = readOnly{secretStore{reader: p.client, writer: p.client, namespace: p.system}}
	config.OpenRootKey = rootkey.Open
	return config
}

// travel makes all changes, and returns how many writes of each of them met a fault.
func (j *journey) travel(t *testing.T) (met []int) {
	t.Helper()
	installed := seal.Config{RootKey: j.roots[0]}
	stop := j.start(t, controllerstest.NewFaults(0, 0), with(installed))
	j.create(t, j.masterKey("key"), j.request("before", "key"), j.keyPair("signing", "key"))
	j.keep(t, installed, "before", "signing")
	stop()
	j.pod = j.newPod(t)
	j.letNobodyLead(t)
	j.listen(t)

	address := porttest.Reserve(t).String()
	stop = j.start(t, controllerstest.NewFaults(0, 0), with(installed), follows, at(address))
	j.ask(t, address)
	for i := range j.roots[1:] {
		j.faults = nil
		stop = j.change(t, i, stop)
		n := 0
		for _, faults := range j.faults {
			n += faults.Met()
		}
		met = append(met, n)
	}
	stop()

	counts := j.end(t, j.checkState(t))
	// Each change has two to settle on the new root key, two to rotate the sealing key, and one without the old root key.
	if least := 5 * len(j.roots[1:]); j.left == nil && j.states < least {
		t.Errorf("only %d states were opened: the story is not told", j.states)
	}
	for _, kind := range []string{v1alpha1.SecretTypeDataKey, "status"} {
		if counts[kind] != len(j.kept) {
			t.Errorf("there were %d data keys in %s, ever; want %d", counts[kind], kind, len(j.kept))
		}
	}
	return met
}

// Options of a manager.
func with(config seal.Config) func(*options) {
	return func(o *options) { o.rootKey, o.previousRootKey = config.RootKey, config.PreviousRootKey }
}

func at(address string) func(*options) { return func(o *options) { o.keyServiceBind = address } }

// follows has a manager ask for the leadership, which it does not get.
func follows(o *options) { o.leaderElect = true }

// letNobodyLead has somebody hold the leader's Lease who does not run. A manager that is to lead does not ask for it.
func (j *journey) letNobodyLead(t *testing.T) {
	t.Helper()
	now := metav1.NowMicro()
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: j.system, Name: leaseName},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: new("nobody"), LeaseDurationSeconds: new(int32(86_400)), RenewTime: &now},
	}
	if err := j.client.Create(t.Context(), lease); err != nil {
		t.Fatal(err)
	}
}

// run runs a manager that makes a change, and after its death others. settle returns when one runs that meets no fault any more;
// stop ends it then.
func (j *journey) run(t *testing.T, rest *controllerstest.Faults, change ...func(*options)) (settle func() *controllerstest.Faults, stop func()) {
	t.Helper()
	var stopLast func()
	next := func(rest *controllerstest.Faults) *controllerstest.Faults {
		faults := controllerstest.NewFaults(0, 0)
		if j.fate != nil {
			faults = j.fate(rest)
		}
		j.mu.Lock()
		j.faults = append(j.faults, faults)
		j.mu.Unlock()
		stopLast = j.start(t, faults, append(change, often)...)
		return faults
	}
	settle = next(rest).Restart(t, func(rest *controllerstest.Faults) *controllerstest.Faults {
		stopLast()
		return next(rest)
	})
	return settle, func() { stopLast() }
}

// change goes from one root key to the next, as docs/operations.md has it. stop ends the manager with the old flags, which the pod
// asks until one with the new flags answers. It returns what ends the one that the pod asks at last.
func (j *journey) change(t *testing.T, i int, stop func()) (stopLast func()) {
	t.Helper()
	before, after := seal.Config{RootKey: j.roots[i]}, seal.Config{RootKey: j.roots[i+1]}
	both := seal.Config{RootKey: after.RootKey, PreviousRootKey: before.RootKey}
	if j.left != nil { // once is enough: nothing has happened yet
		j.checkVerdict(t, before, seal.VerdictSettled)
		j.checkVerdict(t, after, seal.VerdictSealed)
		j.checkVerdict(t, both, seal.VerdictChanging)
	}

	// With both root keys, a manager settles on the new one. It leads: it makes a data key, and rotates the sealing key.
	leader := porttest.Reserve(t).String()
	settle, stopLeader := j.run(t, nil, with(both), at(leader))
	j.waitForVerdict(t, both, seal.VerdictKeepsPrevious)
	name := "made-in-change-" + strconv.Itoa(i+1)
	j.create(t, j.request(name, "key"))
	j.keep(t, both, name)
	rotated := uint32(i + 2)
	select {
	case <-j.notResealed: // of a change before
	default:
	}
	j.rotate(t, strconv.Itoa(i))
	j.waitForSealingKeys(t, "the sealing key is rotated", func(x index) bool { return x.Primary == rotated })
	j.waitForReseal(t, rotated)
	rest := settle()
	j.ask(t, leader)
	stop()
	j.checkVerdict(t, both, seal.VerdictKeepsPrevious)
	j.checkVerdict(t, before, seal.VerdictElsewhere)
	for _, config := range []seal.Config{both, before} { // those with the old flags may restart
		j.checkKept(t, config)
	}
	left := j.leaving(t)

	// With the new root key alone, another one drops what the old one had wrapped.
	follower := porttest.Reserve(t).String()
	settle, stopFollower := j.run(t, rest, with(after), follows, at(follower))
	j.waitForVerdict(t, after, seal.VerdictSettled)
	settle()
	j.ask(t, follower)
	stopLeader()
	j.checkVerdict(t, before, seal.VerdictSealed)
	j.checkKept(t, after)
	j.checkLeft(t, left)
	if j.left != nil {
		j.left[i]()
		j.ask(t, follower)
		j.checkKept(t, after)
	}
	return stopFollower
}

// waitForReseal waits until the material of the master key is sealed by a version of the sealing key, or could not be written: then
// that is done ten minutes later, or by the next manager that leads.
func (j *journey) waitForReseal(t *testing.T, version uint32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	w, err := j.client.Watch(ctx, &corev1.SecretList{}, client.InNamespace(j.system), client.MatchingFields{"type": v1alpha1.SecretTypeMasterKey})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for {
		select {
		case e := <-w.ResultChan():
			if secret, ok := e.Object.(*corev1.Secret); ok && sealedBy(secret) == version {
				return
			}
		case <-j.notResealed:
			return
		case <-ctx.Done():
			t.Fatalf("waited in vain until the material is sealed by version %d", version)
		}
	}
}

// ask has the pod ask the manager at an address from now on, once it answers.
func (j *journey) ask(t *testing.T, address string) {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.serving = address
	if err := j.pod.opens(t.Context(), address, j.kept); err != nil {
		t.Error(err)
	}
}

// listen has the pod ask for all its data keys whenever the sealing keys have changed, until the test ends.
func (j *journey) listen(t *testing.T) {
	t.Helper()
	w, err := j.client.Watch(t.Context(), &corev1.SecretList{}, client.InNamespace(j.system), client.MatchingFields{"metadata.name": seal.SealingKeysSecret})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range w.ResultChan() {
			j.mu.Lock()
			if j.serving != "" {
				if err := j.pod.opens(t.Context(), j.serving, j.kept); err != nil && t.Context().Err() == nil {
					t.Errorf("while the root key is changed: %v", err)
				}
			}
			j.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		w.Stop()
		<-done
	})
}

// keep waits for data keys, and keeps what they are first.
func (j *journey) keep(t *testing.T, config seal.Config, names ...string) {
	t.Helper()
	var kept []keptKey
	for _, name := range names {
		kept = append(kept, keptKey{name: name, aad: j.waitForRequest(t, name).Spec.AAD, blob: j.blob(t, name)})
	}
	looked := *j.place // managers may start meanwhile, by what is in j
	looked.seal = j.look(config)
	service, done := j.durable(t, looked.seal)
	defer done()
	for _, k := range kept {
		looked.checkOpens(t, k.name)
		opened, err := service.Decrypt(t.Context(), j.caller(), kms.DecryptRequest{CiphertextBlob: k.blob, AAD: k.aad})
		if err != nil {
			t.Fatal(err)
		}
		k.plaintext = opened.Plaintext
		j.mu.Lock()
		j.kept = append(j.kept, k)
		j.mu.Unlock()
	}
}

// checkKept opens all data keys with what is durable and these flags.
func (j *journey) checkKept(t *testing.T, config seal.Config) {
	t.Helper()
	for _, k := range j.kept {
		if !bytes.Equal(k.blob, j.blob(t, k.name)) {
			t.Errorf("the Secret of %s holds another blob than before", k.name)
		}
	}
	j.checkOpensAll(t, j.look(config))
}

// checkOpensAll opens all data keys, as they were first, with nothing but the store and the flags of config.
func (j *journey) checkOpensAll(t *testing.T, config seal.Config) {
	t.Helper()
	service, done := j.durable(t, config)
	defer done()
	for _, k := range j.kept {
		opened, err := service.Decrypt(t.Context(), j.caller(), kms.DecryptRequest{CiphertextBlob: k.blob, AAD: k.aad})
		if err != nil || !opened.Plaintext.Equal(k.plaintext) {
			t.Errorf("with %s: %s does not open as what it was first: %v", config.RootKey, k.name, err)
		}
		opened.Plaintext.Destroy()
	}
}

// checkState returns what looks at every state that the Secrets of the managers were ever in, one after the other. It says that a
// manager that finds that state opens all data keys, with any one of the root keys that are listed in it, the one that is relied
// upon among them. Data keys that were made later open too: what opens them was there before the first. Where root keys were
// destroyed nobody can say that any more.
func (j *journey) checkState(t *testing.T) (see func(client.Object)) {
	state := &sealtest.Store{}
	return func(object client.Object) {
		secret, ok := object.(*corev1.Secret)
		if !ok || secret.Namespace != j.system || j.left != nil {
			return
		}
		before := state.Secrets()
		state.Put(seal.Secret{Name: secret.Name, Type: string(secret.Type), Data: secret.Data})
		if maps.EqualFunc(before[secret.Name].Data, secret.Data, bytes.Equal) {
			return
		}
		if used, err := state.Any(t.Context(), v1alpha1.SecretTypeMasterKey); !used || err != nil {
			return // nothing is to be opened yet
		}
		for _, listed := range indexOf(t, &corev1.Secret{Data: state.Secrets()[seal.SealingKeysSecret].Data}).RootKeys {
			j.checkOpensAll(t, seal.Config{RootKey: uriOf(t, listed), Store: readOnly{state}})
		}
		j.states++
	}
}

func (j *journey) checkVerdict(t *testing.T, config seal.Config, want seal.Verdict) {
	t.Helper()
	if report, err := j.look(config).Inspect(t.Context()); err != nil || report.Verdict != want {
		t.Errorf("with --root-key=%s --previous-root-key=%s the verdict is %s (%v), want %s",
			config.RootKey, config.PreviousRootKey, report.Verdict, err, want)
	}
}

// A leftRoot is a root key that the installation does not rely on any more.
type leftRoot struct {
	uri, tag string
	listed   json.RawMessage // in the index
}

// leaving is the one that is being left.
func (j *journey) leaving(t *testing.T) leftRoot {
	t.Helper()
	var secret corev1.Secret
	if err := j.client.Get(t.Context(), client.ObjectKey{Namespace: j.system, Name: seal.SealingKeysSecret}, &secret); err != nil {
		t.Fatal(err)
	}
	i := indexOf(t, &secret)
	for tag, listed := range i.RootKeys {
		if tag != i.Settled {
			return leftRoot{uri: uriOf(t, listed), tag: tag, listed: listed}
		}
	}
	t.Fatal("no root key is being left")
	return leftRoot{}
}

// uriOf is the URI of a root key that the index lists.
func uriOf(t *testing.T, listed json.RawMessage) string {
	t.Helper()
	var root struct{ URI string }
	if err := json.Unmarshal(listed, &root); err != nil {
		t.Fatal(err)
	}
	return root.URI
}

// checkLeft says that a root key that was left opens nothing of what is durable, not even where the Secret with the sealing keys
// is forged to say that what the new one wrapped is the old one's.
func (j *journey) checkLeft(t *testing.T, left leftRoot) {
	t.Helper()
	config := j.look(seal.Config{RootKey: left.uri})
	if _, err := config.Open(t.Context()); !isSecretError(err) {
		t.Errorf("started with %s, which was left: got %v, want a *SecretError", left.uri, err)
	}
	secret, err := config.Store.Get(t.Context(), seal.SealingKeysSecret)
	if err != nil {
		t.Fatal(err)
	}
	settled := indexOf(t, &corev1.Secret{Data: secret.Data}).Settled
	for entry, wrapped := range maps.Clone(secret.Data) {
		if strings.Contains(entry, left.tag) {
			t.Errorf("entry %s of %s is still there", entry, left.uri)
		}
		if version, found := strings.CutSuffix(entry, "."+settled); found {
			secret.Data[version+"."+left.tag] = wrapped
		}
	}
	var forged map[string]any
	if err := json.Unmarshal(secret.Data["index"], &forged); err != nil {
		t.Fatal(err)
	}
	forged["settledOn"], forged["rootKeys"] = left.tag, map[string]json.RawMessage{left.tag: left.listed}
	if secret.Data["index"], err = json.Marshal(forged); err != nil {
		t.Fatal(err)
	}
	config.Store = forgery{config.Store, secret}
	report, err := config.Inspect(t.Context())
	if err != nil || report.Current.ID == "" || len(report.Current.Opens) > 0 {
		t.Errorf("%s, which was left, opens %v of the new root key's (%v)", left.uri, report.Current.Opens, err)
	}
	if _, err := config.Open(t.Context()); !isSecretError(err) {
		t.Errorf("started with %s and a forged Secret: got %v, want a *SecretError", left.uri, err)
	}
}

func isSecretError(err error) bool {
	_, ok := errors.AsType[*seal.SecretError](err)
	return ok
}

// A forgery is a Store with another Secret of one name.
type forgery struct {
	seal.Store
	secret seal.Secret
}

func (f forgery) Get(ctx context.Context, name string) (seal.Secret, error) {
	if name == f.secret.Name {
		return f.secret, nil
	}
	return f.Store.Get(ctx, name)
}
