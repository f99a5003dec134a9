package seal_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// Who is told that a change is done destroys the old root key: it is told once every sealing key that has sealed opens by the new one,
// and nothing is left of any other.
func TestAChangeIsNotSaidToBeDoneTooEarly(t *testing.T) {
	const oldKey, newKey = "fake://old", "fake://new"
	both := stage{root: newKey, previous: oldKey}
	entry := func(version uint32, root string) string { return seal.VersionEntry(version) + "." + seal.TagOf(root) }
	damage := func(version uint32, root string) func(*testing.T, *installation) {
		return func(_ *testing.T, i *installation) {
			i.store.Edit(seal.SealingKeysSecret, func(s *seal.Secret) { s.Data[entry(version, root)][90] ^= 1 })
		}
	}
	down := func(root string) func(*testing.T, *installation) {
		return func(_ *testing.T, i *installation) {
			i.roots.Hook = func(_ context.Context, _, uri string) error {
				if uri == root {
					return sealtest.ErrDown
				}
				return nil
			}
		}
	}
	// made lets a rotation make a sealing key and no more.
	made := func(flags stage) func(*testing.T, *installation) {
		return func(t *testing.T, i *installation) {
			k := i.start(t, flags)
			i.request("once more")
			i.failUpdate(2)
			if err := k.Rotate(t.Context(), 0); !errors.Is(err, sealtest.ErrInjected) {
				t.Fatalf("got %v", err)
			}
			i.store.Hook = nil
		}
	}
	for name, c := range map[string]struct {
		lives  []stage // the sealing key is rotated in the first
		then   []func(*testing.T, *installation)
		flags  stage
		want   seal.Verdict
		opens  []uint32 // by the root key
		before []uint32 // by the previous one
	}{
		"one root key": {
			lives: []stage{{root: newKey}}, flags: stage{root: newKey}, want: seal.VerdictSettled, opens: []uint32{1, 2},
		},
		"one root key, and it lacks the first sealing key": {
			lives: []stage{{root: newKey}}, then: []func(*testing.T, *installation){damage(1, newKey)},
			flags: stage{root: newKey}, want: seal.VerdictSealed, opens: []uint32{2},
		},
		"one root key, and it lacks the last sealing key": {
			lives: []stage{{root: newKey}}, then: []func(*testing.T, *installation){damage(2, newKey)},
			flags: stage{root: newKey}, want: seal.VerdictSealed, opens: []uint32{1},
		},
		"a sealing key that has not sealed yet": {
			lives: []stage{{root: newKey}}, then: []func(*testing.T, *installation){made(stage{root: newKey})},
			flags: stage{root: newKey}, want: seal.VerdictSettled, opens: []uint32{1, 2, 3},
		},
		"a sealing key that has not sealed yet does not open": {
			lives: []stage{{root: newKey}}, then: []func(*testing.T, *installation){made(stage{root: newKey}), damage(3, newKey)},
			flags: stage{root: newKey}, want: seal.VerdictSettled, opens: []uint32{1, 2},
		},
		"a sealing key that has not sealed yet opens in the place of one that has": {
			lives: []stage{{root: newKey}}, then: []func(*testing.T, *installation){made(stage{root: newKey}), damage(1, newKey)},
			flags: stage{root: newKey}, want: seal.VerdictSealed, opens: []uint32{2, 3},
		},
		"both root keys": {
			lives: []stage{{root: oldKey}, both}, flags: both, want: seal.VerdictKeepsPrevious, opens: []uint32{1, 2}, before: []uint32{1, 2},
		},
		"both root keys, and the flags of afterwards": {
			lives: []stage{{root: oldKey}, both}, flags: stage{root: newKey}, want: seal.VerdictChanging, opens: []uint32{1, 2},
		},
		"both root keys, and the flags of before": {
			lives: []stage{{root: oldKey}, both}, flags: stage{root: oldKey}, want: seal.VerdictElsewhere, opens: []uint32{1, 2},
		},
		"both root keys, and the new one lacks a sealing key": {
			lives: []stage{{root: oldKey}, both}, then: []func(*testing.T, *installation){damage(1, newKey)},
			flags: both, want: seal.VerdictChanging, opens: []uint32{2}, before: []uint32{1, 2},
		},
		"both root keys, and the new one is down": {
			lives: []stage{{root: oldKey}, both}, then: []func(*testing.T, *installation){down(newKey)},
			flags: both, want: seal.VerdictChanging, before: []uint32{1, 2},
		},
		"both root keys, and the previous one is down": {
			lives: []stage{{root: oldKey}, both}, then: []func(*testing.T, *installation){down(oldKey)},
			flags: both, want: seal.VerdictKeepsPrevious, opens: []uint32{1, 2},
		},
		"both root keys, and each lacks a sealing key": {
			lives: []stage{{root: oldKey}, both}, then: []func(*testing.T, *installation){damage(1, newKey), damage(2, oldKey)},
			flags: both, want: seal.VerdictSealed, opens: []uint32{2}, before: []uint32{1},
		},
		"the new root key was dropped by managers with newer flags": {
			lives: []stage{{root: oldKey}, both, {root: newKey}}, flags: stage{root: oldKey}, want: seal.VerdictSealed,
		},
	} {
		t.Run(name, func(t *testing.T) {
			i := newInstallation()
			i.seal(t, i.start(t, c.lives[0]))
			i.request("now")
			for _, s := range c.lives {
				k, err := i.life(t.Context(), s)
				if err != nil {
					t.Fatal(err)
				}
				k.Close()
			}
			for _, then := range c.then {
				then(t, i)
			}
			report, err := i.config(c.flags).Inspect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if report.Verdict != c.want {
				t.Errorf("verdict %s (%s), want %s", report.Verdict, report.Advice, c.want)
			}
			if diff := cmp.Diff([][]uint32{c.opens, c.before}, [][]uint32{report.Current.Opens, report.Previous.Opens}); diff != "" {
				t.Errorf("opens (-want +got):\n%s", diff)
			}
		})
	}
}

// A manager that runs says it as well, whatever it has opened before.
func TestAManagerTakesBackThatAChangeIsDone(t *testing.T) {
	const oldKey, newKey = "fake://old", "fake://new"
	i := newInstallation()
	i.seal(t, i.start(t, stage{root: oldKey}))
	k := i.start(t, stage{root: newKey, previous: oldKey})
	if got := k.Report().Verdict; got != seal.VerdictKeepsPrevious {
		t.Fatalf("verdict %s", got)
	}
	i.store.Edit(seal.SealingKeysSecret, func(s *seal.Secret) { s.Data["v1."+seal.TagOf(newKey)][90] ^= 1 })
	_, isSecretError := errors.AsType[*seal.SecretError](k.Tend(t.Context(), true))
	if r := k.Report(); !isSecretError || r.Verdict != seal.VerdictChanging || len(r.Current.Opens) > 0 {
		t.Errorf("the new root key opens %v, and the verdict is %s (%s)", r.Current.Opens, r.Verdict, r.Advice)
	}
}

// One whose root key was dropped before it looked again runs by what it knows, and says that it could not start.
func TestAManagerThatRunsSaysThatItCouldNotStart(t *testing.T) {
	const oldKey, newKey = "fake://old", "fake://new"
	i := newInstallation()
	k := i.start(t, stage{root: oldKey})
	i.seal(t, k)
	i.start(t, stage{root: newKey, previous: oldKey})
	i.start(t, stage{root: newKey})
	if _, isSecretError := errors.AsType[*seal.SecretError](k.Tend(t.Context(), true)); !isSecretError {
		t.Error("nothing is said to be wrong")
	}
	if r := k.Report(); r.Verdict != seal.VerdictSealed || !strings.Contains(r.Advice, "set --root-key="+newKey) {
		t.Errorf("verdict %s (%s)", r.Verdict, r.Advice)
	}
	if err := i.opens(t.Context(), k); err != nil {
		t.Error(err)
	}
}

// Once the new root key opens everything, the old one is not asked for: it may be gone for ever.
func TestThePreviousRootKeyIsNotAskedOnceTheNewOneOpensEverything(t *testing.T) {
	const oldKey, newKey = "fake://old", "fake://new"
	both := stage{root: newKey, previous: oldKey}
	for name, updates := range map[string]int{"the change is done": 0, "the new root key is not relied upon yet": 2} {
		t.Run(name, func(t *testing.T) {
			i := newInstallation()
			i.seal(t, i.start(t, stage{root: oldKey}))
			i.failUpdate(updates)
			i.start(t, both)
			i.store.Hook = nil
			var asked []string
			i.roots.Hook = func(_ context.Context, method, uri string) error {
				if uri == oldKey {
					asked = append(asked, method)
					return sealtest.ErrDown
				}
				return nil
			}
			k := i.start(t, both)
			if err := errors.Join(k.Tend(t.Context(), true), k.CheckStored(t.Context()), i.opens(t.Context(), k)); err != nil {
				t.Error(err)
			}
			if got := k.Report().Verdict; got != seal.VerdictKeepsPrevious || len(asked) > 0 {
				t.Errorf("verdict %s, and the old root key was asked to %q", got, slices.Compact(asked))
			}
		})
	}
}
