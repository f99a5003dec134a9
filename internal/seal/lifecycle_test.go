package seal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// A stage is the flags of a manager at one time of its life.
type stage struct {
	root, previous string
	// rotate asks for a rotation of the sealing key.
	rotate bool
	// stale rotates the key behind the root key.
	stale bool
}

// An installation is a store with its root keys, and what was ever sealed in it.
type installation struct {
	store  *sealtest.Store
	roots  *sealtest.RootKeys
	clock  *clocktesting.FakePassiveClock
	sealed []sealedVersion
}

type sealedVersion struct {
	of     seal.MasterKeyVersion
	id     envelope.MaterialID
	m      envelope.Material
	sealed []byte
}

func newInstallation() *installation {
	return &installation{
		store: &sealtest.Store{}, roots: &sealtest.RootKeys{},
		clock: clocktesting.NewFakePassiveClock(time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)),
	}
}

func (i *installation) config(s stage) seal.Config {
	return seal.Config{
		RootKey: s.root, PreviousRootKey: s.previous, Store: i.store, Clock: i.clock,
		OpenRootKey: i.roots.Open,
	}
}

// start starts a manager with the flags of a stage.
func (i *installation) start(t testing.TB, s stage) *seal.Keyring {
	t.Helper()
	k, err := i.config(s).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

// seal seals something new, that has to open for ever.
func (i *installation) seal(t testing.TB, k *seal.Keyring) {
	t.Helper()
	v := sealedVersion{
		of: seal.MasterKeyVersion{KeyID: envelope.NewKeyID(), Namespace: "team-a", Name: "orders", Version: 1},
		id: envelope.NewMaterialID(), m: envelope.NewMaterial(),
	}
	var err error
	if v.sealed, err = k.Seal(v.of, v.id, v.m); err != nil {
		t.Fatal(err)
	}
	i.sealed = append(i.sealed, v)
}

// opens says whether everything that was ever sealed opens.
func (i *installation) opens(ctx context.Context, k *seal.Keyring) error {
	for _, v := range i.sealed {
		of, id, m, err := k.Unseal(ctx, v.of.KeyID, v.of.Version, v.sealed)
		if err != nil {
			return err
		}
		if of != v.of || id != v.id || !m.Equal(v.m) {
			return errors.New("it opens as something else")
		}
	}
	return nil
}

// failUpdate lets the update with that number fail and all after it, from 1; 0: none.
func (i *installation) failUpdate(at int) {
	updates := 0
	i.store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
		if c.Method == sealtest.Update {
			if updates++; at > 0 && updates >= at {
				return sealtest.Fail
			}
		}
		return sealtest.None
	}
}

// copied is the installation with a store of its own that holds what is durable now.
func (i *installation) copied() *installation {
	c := *i
	c.store = &sealtest.Store{}
	for _, secret := range i.store.Secrets() {
		c.store.Put(secret)
	}
	return &c
}

// life is what a manager does with the flags of a stage, until there is nothing left to do.
func (i *installation) life(ctx context.Context, s stage) (*seal.Keyring, error) {
	k, err := i.config(s).Open(ctx)
	if err != nil {
		return nil, err
	}
	if err := k.Tend(ctx, true); err != nil {
		return nil, err
	}
	if err := k.Rotate(ctx, 0); err != nil {
		return nil, err
	}
	return k, k.CheckStored(ctx)
}

// request asks for a rotation, as somebody with kubectl does.
func (i *installation) request(value string) {
	i.store.Edit(seal.SealingKeysSecret, func(s *seal.Secret) {
		s.Annotations = map[string]string{"datakeys.io/rotate-requested-at": value}
	})
}

// begin does what somebody does before stage n of a story.
func (i *installation) begin(n int, s stage) {
	if s.rotate {
		i.request(fmt.Sprint(n))
	}
	if s.stale {
		i.roots.Rotate(s.root)
		i.clock.SetTime(i.clock.Now().Add(24 * time.Hour))
	}
}

// story is a whole life: every way from one root key to another, with rotations before, in between and after.
func story() []stage {
	return []stage{
		{root: seal.DefaultRootKey},
		{root: seal.DefaultRootKey, rotate: true},
		{root: "fake://kmsv2", previous: seal.DefaultRootKey},
		{root: "fake://kmsv2", previous: seal.DefaultRootKey, rotate: true},
		{root: "fake://kmsv2"},
		{root: "fake://kmsv2", stale: true},
		{root: "fake://awskms", previous: "fake://kmsv2", rotate: true},
		{root: "fake://awskms"},
		{root: "fake://file", previous: "fake://awskms"},
		{root: "fake://file"},
		{root: "fake://file", rotate: true},
		{root: "secret://another-root-key", previous: "fake://file"},
		{root: "secret://another-root-key"},
	}
}

// A process of its own is started again, with the same flags, after each error. Whatever call of the store or of a root key
// fails, or is done and its answer lost, the next start goes on where the last one was.
func TestALifeOfRootKeysSurvivesAFaultAtEveryCall(t *testing.T) {
	stages := story()
	for name, fault := range map[string]sealtest.Fault{
		"the call fails": sealtest.Fail,
		"the call is done and the answer is lost": sealtest.DoAndFail,
	} {
		t.Run(name, func(t *testing.T) {
			faults := 0
			for n := 1; ; n++ {
				if !survivesFaultAt(t, stages, n, fault) {
					break
				}
				faults++
			}
			if faults < 100 {
				t.Errorf("there were only %d calls: the story is not told", faults)
			}
			t.Logf("%d calls", faults)
		})
	}
}

// survivesFaultAt tells the story with a fault at one call, and reports whether there were that many calls.
func survivesFaultAt(t *testing.T, stages []stage, at int, fault sealtest.Fault) (reached bool) {
	t.Helper()
	i := newInstallation()
	calls := 0
	now := func() bool { calls++; return calls == at }
	i.store.Hook = func(int, sealtest.Call) sealtest.Fault {
		if now() {
			return fault
		}
		return sealtest.None
	}
	i.roots.Hook = func(context.Context, string, string) error {
		if now() {
			return sealtest.ErrDown
		}
		return nil
	}
	for n, s := range stages {
		i.begin(n, s)
		k, err := i.life(t.Context(), s)
		if err != nil {
			// The process died of it, or waits for its next try: both begin again with what is durable.
			if k, err = i.life(t.Context(), s); err != nil {
				t.Fatalf("call %d, stage %d: the second start: %v", at, n, err)
			}
		}
		if err := i.opens(t.Context(), k); err != nil {
			t.Fatalf("call %d, stage %d: %v", at, n, err)
		}
		i.seal(t, k)
		if got, want := k.Report().Verdict, s.verdict(); got != want {
			t.Fatalf("call %d, stage %d: verdict %s (%s), want %s", at, n, got, k.Report().Advice, want)
		}
		k.Close()
	}
	reached, i.store.Hook, i.roots.Hook = calls >= at, nil, nil
	last := stages[len(stages)-1]
	k := i.start(t, last)
	if err := i.opens(t.Context(), k); err != nil {
		t.Fatalf("call %d: at the end: %v", at, err)
	}
	if got := k.Primary(); got != 5 {
		t.Fatalf("call %d: the primary version is %d in the end, want 5: each request is one rotation", at, got)
	}
	return reached
}

func (s stage) verdict() seal.Verdict {
	if s.previous != "" {
		return seal.VerdictKeepsPrevious
	}
	return seal.VerdictSettled
}

// Whatever was durable at any moment must open everything that was sealed until then: for a manager with the flags of the
// stage, and, until the old root key is dropped, for one that was left behind with those of the stage before and starts again. So does
// every root key that is listed, by itself.
func TestAtEveryMomentTheOldAndTheNewFlagsOpenEverything(t *testing.T) {
	stages := story()
	i := newInstallation()
	moments := 0
	for n, s := range stages {
		i.begin(n, s)
		check := func() {
			then := i.copied()
			behind := []stage{{root: s.root, previous: s.previous}}
			if n > 0 && s.previous != "" {
				behind = append(behind, stages[n-1], stage{root: s.previous})
			}
			report, err := then.config(s).Inspect(t.Context())
			if err != nil {
				t.Error(err)
			}
			for _, root := range report.RootKeys {
				behind = append(behind, stage{root: root.URI})
			}
			for _, b := range behind {
				at := then.copied()
				k, err := at.config(b).Open(t.Context())
				if err == nil {
					err = at.opens(t.Context(), k)
					k.Close()
				}
				if err != nil {
					t.Errorf("stage %d, moment %d: a manager with --root-key=%s --previous-root-key=%s: %v", n, moments, b.root, b.previous, err)
				}
			}
			moments++
		}
		if n > 0 {
			// Each write is looked at before the next call.
			writes := false
			i.store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
				if writes {
					check()
				}
				writes = c.Method == sealtest.Update || c.Method == sealtest.Create
				return sealtest.None
			}
		}
		k, err := i.life(t.Context(), s)
		if err != nil {
			t.Fatalf("stage %d: %v", n, err)
		}
		i.store.Hook = nil
		i.seal(t, k)
		if n > 0 {
			check()
		}
		k.Close()
	}
	if moments < 25 {
		t.Errorf("there were only %d moments: the story is not told", moments)
	}
}

// Where the verdict is Settled, nothing that another root key wrapped is left, and nothing that was to take a place.
func TestASettledRootKeyIsTheOnlyOneThatWrapsAnything(t *testing.T) {
	i := newInstallation()
	for n, s := range story() {
		i.begin(n, s)
		k, err := i.life(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		report := k.Report()
		if report.Verdict != seal.VerdictSettled {
			continue
		}
		want := []string{"index", "installID", "keyID"}
		for v := range report.Primary {
			want = append(want, seal.VersionEntry(v+1)+"."+seal.TagOf(report.Current.ID))
		}
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(i.store.Secrets()[seal.SealingKeysSecret].Data))); diff != "" {
			t.Errorf("stage %d: entries (-want +got):\n%s", n, diff)
		}
	}
}

// Managers with the flags of one stage and of the next run at once, and start again and again, while the sealing key is rotated.
func TestManagersWithOldAndNewFlagsAtOnce(t *testing.T) {
	stages := story()
	i := newInstallation()
	k, err := i.life(t.Context(), stages[0])
	if err != nil {
		t.Fatal(err)
	}
	i.seal(t, k)
	for n, s := range stages[1:] {
		i.request(fmt.Sprint("together ", n))
		flags := []stage{s, s}
		if s.previous != "" {
			flags = append(flags, stage{root: s.previous}, stages[n])
		}
		var all sync.WaitGroup
		for _, f := range flags {
			all.Go(func() {
				for range 3 {
					k, err := i.life(t.Context(), f)
					// The root key that is not there any more, or waits for the other: that is for the others to do.
					if err != nil && !errors.Is(err, seal.ErrRotationWaits) {
						t.Errorf("stage %d, --root-key=%s --previous-root-key=%s: %v", n+1, f.root, f.previous, err)
					}
					if k != nil {
						if err := i.opens(t.Context(), k); err != nil {
							t.Errorf("stage %d: %v", n+1, err)
						}
					}
				}
			})
		}
		all.Wait()
		k, err := i.life(t.Context(), s)
		if err != nil {
			t.Fatalf("stage %d: %v", n+1, err)
		}
		if got, want := k.Report().Verdict, s.verdict(); got != want {
			t.Errorf("stage %d: verdict %s (%s), want %s", n+1, got, k.Report().Advice, want)
		}
		if err := i.opens(t.Context(), k); err != nil {
			t.Errorf("stage %d: %v", n+1, err)
		}
		i.seal(t, k)
	}
}

// A manager that was there before a change leaves the new root key alone, although it is not settled on yet: else the two would
// undo each other's work. One that starts with the old flags when the change was given up drops it.
func TestAManagerWithOldFlagsDoesNotUndoAChange(t *testing.T) {
	const oldKey, newKey = "fake://old", "fake://new"
	i := newInstallation()
	behind := i.start(t, stage{root: oldKey})
	i.failUpdate(2) // the new root key is added, and not settled on
	i.start(t, stage{root: newKey, previous: oldKey})
	i.store.Hook = nil
	wrappedBy := func(want ...string) {
		t.Helper()
		var got []string
		report, err := i.config(stage{root: oldKey}).Inspect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, root := range report.RootKeys {
			got = append(got, root.URI)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the sealing keys are wrapped by (-want +got):\n%s", diff)
		}
	}
	wrappedBy(oldKey, newKey)
	if err := behind.Tend(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	wrappedBy(oldKey, newKey)
	i.start(t, stage{root: oldKey})
	wrappedBy(oldKey)
}

// Two managers that have the root keys the other way round, as when a change is taken back and the older one stays: the one that
// started last has its way, and the other says why it does not go on, instead of both writing with every look.
func TestManagersWithOppositeFlagsDoNotUndoEachOthersWork(t *testing.T) {
	const oldKey, newKey = "fake://old", "fake://new"
	i := newInstallation()
	i.seal(t, i.start(t, stage{root: oldKey}))
	older := i.start(t, stage{root: newKey, previous: oldKey})
	newer := i.start(t, stage{root: oldKey, previous: newKey})
	if got := newer.Report().Verdict; got != seal.VerdictKeepsPrevious {
		t.Fatalf("the newer one: verdict %s", got)
	}
	writes := 0
	i.store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
		if c.Method == sealtest.Update {
			writes++
		}
		return sealtest.None
	}
	for range 59 {
		if err := older.Tend(t.Context(), true); err == nil || !strings.Contains(err.Error(), "give all managers the same") {
			t.Fatalf("the older one: got %v", err)
		}
		if err := newer.Tend(t.Context(), true); err != nil {
			t.Fatalf("the newer one: %v", err)
		}
		i.clock.SetTime(i.clock.Now().Add(time.Minute))
	}
	if writes > 0 {
		t.Errorf("%d writes", writes)
	}
	// After an older backup, say, nobody else stands in the way.
	i.clock.SetTime(i.clock.Now().Add(time.Hour))
	if err := older.Tend(t.Context(), true); err != nil || older.Report().Verdict != seal.VerdictKeepsPrevious {
		t.Errorf("the older one an hour later: verdict %s, %v", older.Report().Verdict, err)
	}
}

func TestNothingIsWrittenWhereThereIsNothingToDo(t *testing.T) {
	i := newInstallation()
	for n, s := range story() {
		if s.rotate {
			i.request(fmt.Sprint(n))
		}
		k, err := i.life(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		before, asked := i.store.Secrets(), i.roots.Calls()
		for range 3 {
			if err := k.Tend(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			if err := k.Rotate(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(before, i.store.Secrets()); diff != "" {
			t.Errorf("stage %d: Secrets were written: %s", n, diff)
		}
		if got := i.roots.Calls(); got != asked {
			t.Errorf("stage %d: root keys were asked %d times more", n, got-asked)
		}
	}
}

// Flags in a wrong order leave everything as it was, and the verdict says the right ones.
func TestWrongFlagsLoseNothing(t *testing.T) {
	const older, oldKey, newKey = "fake://older", "fake://old", "fake://new"
	begun := func(flags ...stage) func(*testing.T) *installation {
		return func(t *testing.T) *installation {
			i := newInstallation()
			for _, s := range flags {
				k, err := i.life(t.Context(), s)
				if err != nil {
					t.Fatal(err)
				}
				i.seal(t, k)
			}
			return i
		}
	}
	for name, c := range map[string]struct {
		before  func(*testing.T) *installation
		flags   stage
		refused string
		verdict seal.Verdict
		advice  string
	}{
		"the new root key without the previous": {
			begun(stage{root: oldKey}), stage{root: newKey},
			"is wrapped by root key fake://old and not by fake://new: set --root-key=fake://old again", "", "",
		},
		"an embedded root key without the previous": {
			begun(stage{root: oldKey}), stage{root: "secret://new"},
			"is wrapped by root key fake://old and not by secret://new: set --root-key=fake://old again", "", "",
		},
		"the two the other way round, before anything happened": {
			begun(stage{root: oldKey}), stage{root: oldKey, previous: newKey}, "", seal.VerdictSettled, "--previous-root-key is not needed",
		},
		"a previous root key that was never there": {
			begun(stage{root: oldKey}), stage{root: newKey, previous: older}, "is wrapped by root key fake://old and not by", "", "",
		},
		"the old one alone after the change began": {
			begun(stage{root: oldKey}, stage{root: newKey, previous: oldKey}), stage{root: oldKey},
			"", seal.VerdictElsewhere, "set --root-key=fake://new; to change",
		},
		"the old one alone after the change is done": {
			begun(stage{root: oldKey}, stage{root: newKey, previous: oldKey}, stage{root: newKey}), stage{root: oldKey},
			"is wrapped by root key fake://new and not by fake://old", "", "",
		},
		"the two the other way round is the way back": {
			begun(stage{root: oldKey}, stage{root: newKey, previous: oldKey}), stage{root: oldKey, previous: newKey},
			"", seal.VerdictKeepsPrevious, "remove --previous-root-key",
		},
		"a change that was passed over": {
			begun(stage{root: older}, stage{root: oldKey, previous: older}), stage{root: newKey, previous: older},
			"", seal.VerdictElsewhere, "set --root-key=fake://old",
		},
		"the same root key twice": {
			begun(stage{root: oldKey}), stage{root: oldKey, previous: oldKey}, "", seal.VerdictSettled, "remove it",
		},
	} {
		t.Run(name, func(t *testing.T) {
			i := c.before(t)
			before := i.store.Secrets()[seal.SealingKeysSecret].Data
			k, err := i.config(c.flags).Open(t.Context())
			if c.refused != "" {
				if _, ok := errors.AsType[*seal.SecretError](err); !ok || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("got %v, want an error that says %q", err, c.refused)
				}
				if diff := cmp.Diff(before, i.store.Secrets()[seal.SealingKeysSecret].Data); diff != "" {
					t.Errorf("the Secret was changed: %s", diff)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := i.opens(t.Context(), k); err != nil {
				t.Error(err)
			}
			if r := k.Report(); r.Verdict != c.verdict || !strings.Contains(r.Advice, c.advice) {
				t.Errorf("got %s: %s; want %s: %s", r.Verdict, r.Advice, c.verdict, c.advice)
			}
			after := i.store.Secrets()[seal.SealingKeysSecret].Data
			for entry := range before {
				if strings.HasPrefix(entry, "v") && !bytes.Equal(before[entry], after[entry]) {
					t.Errorf("entry %s was changed", entry)
				}
			}
		})
	}
}

func TestARootKeyThatCannotBeReliedUponIsNot(t *testing.T) {
	const oldKey, newKey = "fake://old", "fake://new"
	i := newInstallation()
	k := i.start(t, stage{root: oldKey})
	i.seal(t, k)
	before := i.store.Secrets()

	i.roots.Lie(newKey)
	k = i.start(t, stage{root: newKey, previous: oldKey})
	if err := k.Tend(t.Context(), true); err == nil || !strings.Contains(err.Error(), "does not open what it has just wrapped, so nothing was written") {
		t.Errorf("got %v, want an error that says that the root key lies", err)
	}
	if diff := cmp.Diff(before, i.store.Secrets()); diff != "" {
		t.Errorf("Secrets were changed: %s", diff)
	}
	if err := i.opens(t.Context(), k); err != nil {
		t.Error(err)
	}

	i.roots.Lose(newKey) // and is an honest one now
	if err := k.Tend(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if got := k.Report().Verdict; got != seal.VerdictKeepsPrevious {
		t.Errorf("verdict %s once the root key is honest", got)
	}
}

// A confusedRoot wraps another key than it was given.
type confusedRoot struct{ seal.RootKey }

func (r confusedRoot) Wrap(ctx context.Context, _ envelope.Plaintext, ad []byte) ([]byte, error) {
	other, err := envelope.PlaintextOfMaterial(envelope.NewMaterialID(), envelope.NewMaterial())
	if err != nil {
		return nil, err
	}
	defer other.Destroy()
	return r.RootKey.Wrap(ctx, other, ad)
}

func TestARootKeyThatWrapsAnotherKeyIsNotReliedUpon(t *testing.T) {
	const oldKey, newKey = "fake://old", "fake://new"
	i := newInstallation()
	i.seal(t, i.start(t, stage{root: oldKey}))
	before := i.store.Secrets()
	config := i.config(stage{root: newKey, previous: oldKey})
	config.OpenRootKey = func(ctx context.Context, uri string, log logr.Logger) (seal.RootKey, error) {
		root, err := i.roots.Open(ctx, uri, log)
		if uri == newKey && err == nil {
			root = confusedRoot{root}
		}
		return root, err
	}
	k, err := config.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if err := k.Tend(t.Context(), true); err == nil || !strings.Contains(err.Error(), "opens what it has just wrapped as something else") {
		t.Errorf("got %v, want an error that says that it wraps another key", err)
	}
	if diff := cmp.Diff(before, i.store.Secrets()); diff != "" {
		t.Errorf("Secrets were changed: %s", diff)
	}
	if err := i.opens(t.Context(), k); err != nil {
		t.Error(err)
	}
}

// A root key is replaced by another one of its name after it wrapped the keys and before anybody relied upon it.
func TestARootKeyThatIsLostBeforeItIsReliedUponIsWrappedByAnew(t *testing.T) {
	const oldKey, newKey = "fake://old", "fake://new"
	i := newInstallation()
	k := i.start(t, stage{root: oldKey})
	i.seal(t, k)
	i.failUpdate(2) // it is not settled on the new root key
	i.start(t, stage{root: newKey, previous: oldKey})
	i.store.Hook = nil
	i.roots.Lose(newKey)

	k, err := i.life(t.Context(), stage{root: newKey, previous: oldKey})
	if err != nil {
		t.Fatal(err)
	}
	if got := k.Report(); got.Verdict != seal.VerdictKeepsPrevious {
		t.Errorf("verdict %s: %s", got.Verdict, got.Advice)
	}
	if err := i.opens(t.Context(), i.start(t, stage{root: newKey})); err != nil {
		t.Error(err)
	}
}

// A service that is down at the start and answers later; one that goes down later is not missed.
func TestARunningKeyringDoesNotNeedItsRootKey(t *testing.T) {
	i := newInstallation()
	s := stage{root: "fake://kms"}
	down := func(context.Context, string, string) error { return sealtest.ErrDown }
	i.roots.Hook = down
	if _, err := i.config(s).Open(t.Context()); !errors.Is(err, sealtest.ErrDown) {
		t.Fatalf("got %v from a root key that is down", err)
	}
	if got := i.store.Secrets(); len(got) > 0 {
		t.Fatalf("it made %v", got)
	}
	i.roots.Hook = nil
	k := i.start(t, s)
	i.seal(t, k)

	i.roots.Hook = down
	i.seal(t, k)
	if err := i.opens(t.Context(), k); err != nil {
		t.Error(err)
	}
	if err := k.CheckStored(t.Context()); err != nil {
		t.Errorf("CheckStored: %v", err)
	}
	if err := k.Tend(t.Context(), true); err != nil {
		t.Errorf("Tend: %v", err)
	}
	i.request("now")
	if err := k.Rotate(t.Context(), 0); !errors.Is(err, sealtest.ErrDown) {
		t.Errorf("Rotate: got %v", err)
	}
	if _, err := i.config(s).Open(t.Context()); !errors.Is(err, sealtest.ErrDown) {
		t.Errorf("a manager that starts: got %v", err)
	}
	i.roots.Hook = nil
	if err := k.Rotate(t.Context(), 0); err != nil || k.Primary() != 2 {
		t.Errorf("Rotate: got %v and version %d", err, k.Primary())
	}
}

// The root key of the change is down, and the previous one opens: everything serves, and the change waits.
func TestAChangeWaitsForItsRootKey(t *testing.T) {
	const oldKey, newKey = "fake://old", "fake://new"
	i := newInstallation()
	i.seal(t, i.start(t, stage{root: oldKey}))
	i.roots.Hook = func(_ context.Context, _, uri string) error {
		if uri == newKey {
			return sealtest.ErrDown
		}
		return nil
	}
	k := i.start(t, stage{root: newKey, previous: oldKey})
	if err := i.opens(t.Context(), k); err != nil {
		t.Error(err)
	}
	if got := k.Report().Verdict; got != seal.VerdictChanging {
		t.Errorf("verdict %s", got)
	}
	if err := k.Tend(t.Context(), false); !errors.Is(err, sealtest.ErrDown) {
		t.Errorf("Tend: got %v", err)
	}
	i.roots.Hook = nil
	if err := k.Tend(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if got := k.Report().Verdict; got != seal.VerdictKeepsPrevious {
		t.Errorf("verdict %s", got)
	}
	i.roots.Hook = func(_ context.Context, _, uri string) error {
		if uri == oldKey {
			return sealtest.ErrDown
		}
		return nil
	}
	if err := i.opens(t.Context(), i.start(t, stage{root: newKey, previous: oldKey})); err != nil {
		t.Errorf("the old root key is gone for ever: %v", err)
	}
	k = i.start(t, stage{root: newKey})
	if got := k.Report().Verdict; got != seal.VerdictSettled {
		t.Errorf("verdict %s", got)
	}
}

func TestStaleWrappingsAreReplacedOnceAnHour(t *testing.T) {
	i := newInstallation()
	s := stage{root: "fake://kms"}
	k := i.start(t, s)
	i.seal(t, k)
	entries := func() map[string][]byte {
		data := maps.Clone(i.store.Secrets()[seal.SealingKeysSecret].Data)
		delete(data, "index")
		return data
	}
	changed := func(leads bool) bool {
		t.Helper()
		before := entries()
		if err := k.Tend(t.Context(), leads); err != nil {
			t.Fatal(err)
		}
		after := entries()
		if len(before) != len(after) {
			t.Errorf("entries were %d and are %d", len(before), len(after))
		}
		if err := i.opens(t.Context(), i.start(t, s)); err != nil {
			t.Error(err)
		}
		return !cmp.Equal(before, after)
	}
	i.roots.Rotate(s.root)
	for _, step := range []struct {
		when  string
		after time.Duration
		leads bool
		want  bool
		then  func()
	}{
		{"a replica that does not lead", 0, false, false, nil},
		{"the leader", 0, true, true, nil},
		{"the leader again", 0, true, false, func() { i.roots.Rotate(s.root) }},
		{"the leader within the hour", 59 * time.Minute, true, false, nil},
		{"the leader after the hour", time.Minute, true, true, nil},
		{"the leader a day later", 24 * time.Hour, true, false, nil},
	} {
		i.clock.SetTime(i.clock.Now().Add(step.after))
		if got := changed(step.leads); got != step.want {
			t.Errorf("%s: changed %v, want %v", step.when, got, step.want)
		}
		if step.then != nil {
			step.then()
		}
	}
}

// What was wrapped anew takes the place of the old only where it opens, as the same key: else the old one stays.
func TestWhatWasWrappedAnewDoesNotReplaceTheOldBeforeItWasReadBack(t *testing.T) {
	s := stage{root: "fake://kms"}
	v1 := "v1." + seal.TagOf(s.root)
	for name, damage := range map[string]func(s, another *seal.Secret){
		"it does not open":  func(s, _ *seal.Secret) { s.Data[v1+".next"][90] ^= 1 },
		"it is another key": func(s, another *seal.Secret) { s.Data[v1+".next"] = another.Data[v1] },
		"it is empty":       func(s, _ *seal.Secret) { s.Data[v1+".next"] = nil },
	} {
		t.Run(name, func(t *testing.T) {
			i := newInstallation()
			i.seal(t, i.start(t, s))
			before := i.store.Secrets()[seal.SealingKeysSecret]
			another := i.withAnotherSealingKey(t, s)
			i.roots.Rotate(s.root)
			k := i.start(t, s)
			i.failUpdate(2)
			if err := k.Tend(t.Context(), true); !errors.Is(err, sealtest.ErrInjected) {
				t.Fatalf("got %v", err)
			}
			i.store.Hook = nil
			i.store.Edit(seal.SealingKeysSecret, func(s *seal.Secret) { damage(s, &another) })
			if err := k.Tend(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before.Data, i.store.Secrets()[seal.SealingKeysSecret].Data); diff != "" {
				t.Errorf("the Secret is not as it was: %s", diff)
			}
			if err := i.opens(t.Context(), i.start(t, s)); err != nil {
				t.Error(err)
			}
		})
	}
}

// withAnotherSealingKey returns the Secret of somebody who runs with another first sealing key in this very installation.
func (i *installation) withAnotherSealingKey(t *testing.T, s stage) seal.Secret {
	t.Helper()
	secret := i.store.Secrets()[seal.SealingKeysSecret]
	root, err := i.roots.OpenQuietly(t.Context(), s.root, logr.Discard())
	if err != nil {
		t.Fatal(err)
	}
	id, err := envelope.ParseKeyID(string(secret.Data["keyID"]))
	if err != nil {
		t.Fatal(err)
	}
	v1 := "v1." + seal.TagOf(s.root)
	secret.Data[v1], err = confusedRoot{root}.Wrap(t.Context(), envelope.Plaintext{}, seal.Binding(id, 1, string(secret.Data["installID"])))
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// An embedded root key that wraps sealing keys is not made anew where it was lost.
func TestANewEmbeddedRootKeyThatIsLostIsNotMadeAnew(t *testing.T) {
	flags := stage{root: "secret://new", previous: "fake://old"}
	i := newInstallation()
	i.seal(t, i.start(t, stage{root: flags.previous}))
	i.seal(t, i.start(t, flags))
	i.store.Delete("new")
	before := i.store.Secrets()
	k := i.start(t, flags)
	if err := k.Tend(t.Context(), true); err == nil || !strings.Contains(err.Error(), "no new root key is made") {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff(before, i.store.Secrets()); diff != "" {
		t.Errorf("Secrets were changed: %s", diff)
	}
	if err := i.opens(t.Context(), k); err != nil {
		t.Errorf("the previous root key is there: %v", err)
	}
	if got := k.Report().Verdict; got != seal.VerdictChanging {
		t.Errorf("verdict %s", got)
	}
}

// A process may hold a root key, and what it opened by it, that is nowhere else any more. No other is given up for that.
func TestARootKeyThatIsInTheMemoryOfAManagerAloneIsNotReliedUpon(t *testing.T) {
	const oldKey = "fake://old"
	for _, newKey := range []string{"secret://new", "fake://new"} {
		lose := func(i *installation) {
			i.store.Delete("new")
			i.roots.Lose(newKey)
		}
		both := stage{root: newKey, previous: oldKey}
		for name, c := range map[string]struct {
			begin func(*testing.T, *installation) *seal.Keyring
			says  string
		}{
			"the old one is not dropped": {
				begin: func(t *testing.T, i *installation) *seal.Keyring {
					i.start(t, both)
					i.failUpdate(1)
					return i.start(t, stage{root: newKey})
				},
				says: "what other root keys wrapped is kept",
			},
			"the installation does not rely on it": {
				begin: func(t *testing.T, i *installation) *seal.Keyring {
					i.failUpdate(2)
					return i.start(t, both)
				},
				says: "not relying on root key " + newKey,
			},
		} {
			t.Run(newKey+", "+name, func(t *testing.T) {
				i := newInstallation()
				i.seal(t, i.start(t, stage{root: oldKey}))
				k := c.begin(t, i)
				i.store.Hook = nil
				lose(i)
				before := i.store.Secrets()
				if err := k.Tend(t.Context(), true); err == nil || !strings.Contains(err.Error(), c.says) {
					t.Errorf("got %v, want an error that says %q", err, c.says)
				}
				if diff := cmp.Diff(before, i.store.Secrets()); diff != "" {
					t.Errorf("Secrets were changed: %s", diff)
				}
				if err := i.opens(t.Context(), i.start(t, stage{root: newKey, previous: oldKey})); err != nil {
					t.Errorf("by the old root key: %v", err)
				}
			})
		}
	}
}

func TestTheSealingKeyIsRotatedInTimeAndOnDemand(t *testing.T) {
	const interval = 2160 * time.Hour
	i := newInstallation()
	s := stage{root: "fake://kms"}
	k := i.start(t, s)
	for _, step := range []struct {
		when    string
		do      func()
		version uint32
	}{
		{"at first", nil, 1},
		{"a second before the time", func() { i.clock.SetTime(i.clock.Now().Add(interval - time.Second)) }, 1},
		{"at the time", func() { i.clock.SetTime(i.clock.Now().Add(time.Second)) }, 2},
		{"again", nil, 2},
		{"on demand", func() { i.request("2026-11-22T01:00:00Z") }, 3},
		{"the same demand again", func() { i.request("2026-11-22T01:00:00Z") }, 3},
		{"the demand is taken back", func() { i.request("") }, 3},
		{"another demand, of any length", func() { i.request(strings.Repeat("x", 1000)) }, 4},
		{"the same again", nil, 4},
		{"the clock goes back by an hour", func() { i.clock.SetTime(i.clock.Now().Add(-time.Hour)) }, 4},
		{"the clock was years ahead, and is right again", func() { i.clock.SetTime(i.clock.Now().Add(-87_600 * time.Hour)) }, 5},
		{"and again", nil, 5},
	} {
		if step.do != nil {
			step.do()
		}
		due, err := k.RotationDue(t.Context(), interval)
		if err != nil || due != (k.Primary() != step.version) {
			t.Errorf("%s: due %v (%v)", step.when, due, err)
		}
		i.seal(t, k)
		if err := k.Rotate(t.Context(), interval); err != nil {
			t.Fatal(err)
		}
		if got := k.Primary(); got != step.version {
			t.Errorf("%s: version %d, want %d", step.when, got, step.version)
		}
		for name, opener := range map[string]*seal.Keyring{"this manager": k, "one that starts": i.start(t, s)} {
			if err := i.opens(t.Context(), opener); err != nil {
				t.Errorf("%s: %s: %v", step.when, name, err)
			}
		}
	}
}

// What somebody writes into the annotation is asked for once, whatever it is.
func TestARotationIsAskedForOnce(t *testing.T) {
	for name, value := range map[string]string{
		"a time":                  "2026-11-22T00:00:00Z",
		"long":                    strings.Repeat("x", 1000),
		"cut inside a character":  strings.Repeat("x", 255) + "é",
		"cut inside one of four":  strings.Repeat("x", 253) + "\U0001f511",
		"of such characters only": strings.Repeat("€", 200),
	} {
		t.Run(name, func(t *testing.T) {
			i := newInstallation()
			k := i.start(t, stage{root: "fake://kms"})
			i.request(value)
			for range 3 {
				if err := k.Rotate(t.Context(), 0); err != nil {
					t.Fatal(err)
				}
			}
			if got := k.Primary(); got != 2 {
				t.Errorf("version %d, want 2", got)
			}
		})
	}
}

// A backup from before the last rotation must not lead to another sealing key of the same number while the first is still known.
func TestAnOldBackupIsNotBuiltUpon(t *testing.T) {
	i := newInstallation()
	s := stage{root: "fake://kms"}
	k := i.start(t, s)
	backup := i.store.Secrets()[seal.SealingKeysSecret]
	i.request("now")
	if err := k.Rotate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	i.seal(t, k)
	newer := i.store.Secrets()[seal.SealingKeysSecret]
	i.store.Put(backup)
	i.request("again")
	for name, err := range map[string]error{
		"Rotate": k.Rotate(t.Context(), 0), "CheckStored": k.CheckStored(t.Context()), "Tend": k.Tend(t.Context(), true),
	} {
		if _, ok := errors.AsType[*seal.SecretError](err); !ok || !strings.Contains(err.Error(), "made after the last rotation") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := i.opens(t.Context(), k); err != nil {
		t.Errorf("the manager that runs: %v", err)
	}
	// Another manager knows no better, and makes a version 2 of its own.
	other := i.start(t, s)
	if err := other.Rotate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	err := k.Tend(t.Context(), true)
	if _, ok := errors.AsType[*seal.SecretError](err); !ok || !strings.Contains(err.Error(), "is another sealing key 2") {
		t.Errorf("Tend: got %v", err)
	}
	if err := i.opens(t.Context(), k); err != nil {
		t.Errorf("the manager that runs: %v", err)
	}
	if err := i.opens(t.Context(), other); !errors.Is(err, envelope.ErrNotMine) {
		t.Errorf("the other manager: got %v", err)
	}
	i.store.Put(newer)
	if err := i.opens(t.Context(), i.start(t, s)); err != nil {
		t.Errorf("after the newer backup is back: %v", err)
	}
}

// A backup from the middle of a rotation leads to the sealing key that the rotation made, whatever number of root keys wraps it.
func TestABackupOfARotationIsFinished(t *testing.T) {
	const oldKey, newKey = "fake://old", "fake://new"
	both := stage{root: newKey, previous: oldKey}
	for name, flags := range map[string]stage{"one root key": {root: newKey}, "two root keys": both} {
		t.Run(name, func(t *testing.T) {
			i := newInstallation()
			i.start(t, stage{root: oldKey})
			i.start(t, both)
			leader, follower := i.start(t, flags), i.start(t, flags)
			i.request("now")
			i.failUpdate(2) // it is made, and does not seal yet
			if err := leader.Rotate(t.Context(), 0); !errors.Is(err, sealtest.ErrInjected) {
				t.Fatalf("got %v", err)
			}
			i.store.Hook = nil
			backup := i.store.Secrets()[seal.SealingKeysSecret]
			if err := errors.Join(leader.Rotate(t.Context(), 0), follower.Tend(t.Context(), false)); err != nil {
				t.Fatal(err)
			}
			i.seal(t, leader)
			for who, k := range map[string]*seal.Keyring{"the leader": leader, "another": follower} {
				i.store.Put(backup)
				if err := errors.Join(k.Rotate(t.Context(), 0), k.CheckStored(t.Context())); err != nil {
					t.Errorf("%s: %v", who, err)
				}
				if err := i.opens(t.Context(), i.start(t, flags)); err != nil {
					t.Errorf("one that starts after %s went on: %v", who, err)
				}
			}
		})
	}
}

// While the root key is being changed, whoever lacks one of the two must not rotate: the new sealing key would be wrapped by the
// other alone.
func TestARotationWaitsForEveryRootKey(t *testing.T) {
	const oldKey, newKey = "fake://old", "fake://new"
	both := stage{root: newKey, previous: oldKey}
	for name, c := range map[string]struct {
		flags stage
		down  string
	}{
		"a leader with the old flags":                 {stage{root: oldKey}, ""},
		"the previous root key of the leader is down": {both, oldKey},
		"the root key of the leader is down":          {both, newKey},
	} {
		t.Run(name, func(t *testing.T) {
			i := newInstallation()
			i.seal(t, i.start(t, stage{root: oldKey}))
			i.seal(t, i.start(t, both))
			i.request("now")
			i.roots.Hook = func(_ context.Context, method, uri string) error {
				if uri == c.down && method == sealtest.Open {
					return sealtest.ErrDown
				}
				return nil
			}
			k := i.start(t, c.flags)
			before := i.store.Secrets()
			if err := k.Rotate(t.Context(), 0); !errors.Is(err, seal.ErrRotationWaits) {
				t.Errorf("got %v, want %v", err, seal.ErrRotationWaits)
			}
			if diff := cmp.Diff(before, i.store.Secrets()); diff != "" {
				t.Errorf("Secrets were changed: %s", diff)
			}
			i.roots.Hook = nil
			if err := i.start(t, both).Rotate(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			for _, flags := range []stage{{root: oldKey}, both, {root: newKey}} {
				if got := i.start(t, flags).Primary(); got != 2 {
					t.Errorf("--root-key=%s --previous-root-key=%s: version %d", flags.root, flags.previous, got)
				}
			}
		})
	}
}

// A root key that is down says nothing about what it wrapped.
func TestANewSealingKeyIsNotMadeAnewWhileTheRootKeyIsDown(t *testing.T) {
	i := newInstallation()
	k := i.start(t, stage{root: "fake://kms"})
	i.request("now")
	var made seal.Secret
	i.roots.Hook = func(_ context.Context, method, _ string) error {
		if s := i.store.Secrets()[seal.SealingKeysSecret]; method == sealtest.Unwrap && len(s.Data["v2."+seal.TagOf("fake://kms")]) > 0 && made.Data == nil {
			made = s
			return sealtest.ErrDown
		}
		return nil
	}
	if err := k.Rotate(t.Context(), 0); !errors.Is(err, sealtest.ErrDown) {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff(made.Data, i.store.Secrets()[seal.SealingKeysSecret].Data); diff != "" {
		t.Errorf("the Secret was changed: %s", diff)
	}
	if err := k.Rotate(t.Context(), 0); err != nil || k.Primary() != 2 {
		t.Errorf("once it answers: %v, and version %d seals", err, k.Primary())
	}
}

// What lies in the Secret of a new sealing key that has sealed nothing yet keeps nobody from starting, and does not seal unless it
// opens by every root key as the same key.
func TestANewSealingKeyDoesNotSealBeforeItWasReadBack(t *testing.T) {
	const oldKey, newKey = "fake://old", "fake://new"
	s := stage{root: newKey, previous: oldKey}
	entry := func(version, root string) string { return version + "." + seal.TagOf(root) }
	for name, damage := range map[string]func(s, another *seal.Secret){
		"it does not open by the root key":          func(s, _ *seal.Secret) { s.Data[entry("v2", newKey)][90] ^= 1 },
		"it does not open by the previous root key": func(s, _ *seal.Secret) { s.Data[entry("v2", oldKey)][90] ^= 1 },
		"it is missing under one root key":          func(s, _ *seal.Secret) { delete(s.Data, entry("v2", oldKey)) },
		"it is another version":                     func(s, _ *seal.Secret) { s.Data[entry("v2", oldKey)] = s.Data[entry("v1", oldKey)] },
		"it is another key under each root key":     func(s, another *seal.Secret) { s.Data[entry("v2", oldKey)] = another.Data[entry("v2", oldKey)] },
	} {
		t.Run(name, func(t *testing.T) {
			i := newInstallation()
			i.seal(t, i.start(t, stage{root: oldKey}))
			k := i.start(t, s)
			i.request("now")
			elsewhere := i.copied() // where it was rotated too
			if err := elsewhere.start(t, s).Rotate(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			another := elsewhere.store.Secrets()[seal.SealingKeysSecret]
			updates := 0
			i.store.Hook = func(_ int, c sealtest.Call) sealtest.Fault {
				if c.Method == sealtest.Update {
					updates++
				}
				if c.Method == sealtest.Get && updates == 1 {
					updates++
					i.store.Edit(seal.SealingKeysSecret, func(s *seal.Secret) { damage(s, &another) })
					return sealtest.Fail
				}
				return sealtest.None
			}
			if err := k.Rotate(t.Context(), 0); !errors.Is(err, sealtest.ErrInjected) {
				t.Fatalf("got %v", err)
			}
			i.store.Hook = nil
			started := i.start(t, s)
			if k.Primary() != 1 || started.Primary() != 1 {
				t.Errorf("versions %d and %d seal", k.Primary(), started.Primary())
			}
			if err := i.opens(t.Context(), started); err != nil {
				t.Error(err)
			}
			if err := started.Rotate(t.Context(), 0); err != nil || started.Primary() != 2 {
				t.Errorf("the next leader: got %v, and version %d seals", err, started.Primary())
			}
			i.seal(t, started)
			for _, flags := range []stage{s, {root: oldKey}, {root: newKey}} {
				if err := i.opens(t.Context(), i.start(t, flags)); err != nil {
					t.Errorf("--root-key=%s --previous-root-key=%s: %v", flags.root, flags.previous, err)
				}
			}
		})
	}
}
