package seal_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// Whoever has lost the root key acts on the advice: it must not have him set the flag that is set.
func TestTheAdviceOfSealedFitsWhatIsWrong(t *testing.T) {
	const root = "fake://root"
	down := func(method string) func(*installation) {
		return func(i *installation) {
			i.roots.Hook = func(_ context.Context, called, _ string) error {
				if called == method {
					return sealtest.ErrDown
				}
				return nil
			}
		}
	}
	for name, c := range map[string]struct {
		installed string
		change    func(*installation)
		flags     stage
		advice    string
		found     string // in the ID of the root key
	}{
		"the flag names another root key": {
			installed: root, flags: stage{root: "fake://other"},
			advice: "the sealing keys are wrapped by root key fake://root: set --root-key=fake://root;", found: "fake://other",
		},
		"the root key cannot be reached": {
			installed: root, change: down(sealtest.Open), flags: stage{root: root},
			advice: "root key fake://root is the right one, and cannot be opened: bring it back;",
		},
		"the root key does not answer": {
			installed: root, change: down(sealtest.Unwrap), flags: stage{root: root},
			advice: "root key fake://root is the right one by its name, and does not open all of them: see its problem;", found: root,
		},
		"another key stands behind its name": {
			installed: root, change: func(i *installation) { i.roots.Lose(root) }, flags: stage{root: root},
			advice: "root key fake://root is the right one by its name, and does not open all of them: see its problem;", found: root,
		},
		"the embedded root key is gone": {
			installed: seal.DefaultRootKey, change: func(i *installation) { i.store.Delete(rootSecret) }, flags: stage{root: seal.DefaultRootKey},
			advice: "is the right one, and cannot be opened: bring it back;",
		},
		"another key is in its place": {
			installed: seal.DefaultRootKey, flags: stage{root: seal.DefaultRootKey},
			change: func(i *installation) {
				other := &sealtest.Store{}
				open(t, other)
				i.store.Put(other.Secrets()[rootSecret])
			},
			advice: "another key is in secret://datakeys-root-key: the sealing keys are wrapped by secret://datakeys-root-key#",
			found:  "secret://datakeys-root-key#",
		},
		"the previous root key is the right one": {
			installed: root, change: down(sealtest.Open), flags: stage{root: "fake://other", previous: root},
			advice: "root key fake://root is the right one, and cannot be opened: bring it back;",
		},
	} {
		t.Run(name, func(t *testing.T) {
			i := newInstallation()
			i.start(t, stage{root: c.installed})
			if c.change != nil {
				c.change(i)
			}
			report, err := i.config(c.flags).Inspect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if report.Verdict != seal.VerdictSealed || !strings.Contains(report.Advice, c.advice) {
				t.Errorf("got %s: %s; want %s: %s", report.Verdict, report.Advice, seal.VerdictSealed, c.advice)
			}
			if got := report.Current.ID; !strings.HasPrefix(got, c.found) || c.found == "" && got != "" {
				t.Errorf("found root key %q, want %q", got, c.found)
			}
			if !strings.HasSuffix(report.Advice, "; managers that run keep serving, and none that starts becomes ready") {
				t.Errorf("does not say what goes on: %s", report.Advice)
			}
		})
	}
}

// What nobody has refused yet may be credentials.
func TestNoURIOfARootKeyThatCannotBeOpenedIsShownWhole(t *testing.T) {
	for name, c := range map[string]struct{ uri, shown string }{
		"a user":                {"transit://me:hidden@vault:8200/transit/root", "transit://vault:8200/transit/root"},
		"a parameter":           {"transit://vault/transit/root?token=hidden", "transit://vault/transit/root"},
		"a fragment":            {"transit://vault/transit/root#hidden", "transit://vault/transit/root"},
		"a user without a host": {"awskms://AKID:hidden/key", "awskms://..."},
		"a user in the path":    {"awskms:///AKID:hidden@region/key", "awskms://..."},
		"an embedded root key":  {"secret://root-key?token=hidden", "secret://root-key"},
		"the key itself":        {"aGlkZGVuhiddenaGlkZGVuaGlkZGVuaGlkZGVuaGlkZGU=", "without a scheme"},
	} {
		t.Run(name, func(t *testing.T) {
			i := newInstallation()
			i.start(t, stage{root: "fake://root"})
			config := i.config(stage{root: c.uri})
			config.OpenRootKey = func(context.Context, string, logr.Logger) (seal.RootKey, error) { return nil, errors.New("refused") }
			_, err := config.Open(t.Context())
			if err == nil || !strings.Contains(err.Error(), "and not by "+c.shown+":") || strings.Contains(err.Error(), "hidden") {
				t.Errorf("got %v, want an error that shows %s", err, c.shown)
			}
			report, err := config.Inspect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got := report.Current.Name(); got != c.shown {
				t.Errorf("the report shows %s, want %s", got, c.shown)
			}
			if strings.Contains(report.Advice, "hidden") {
				t.Errorf("the advice shows the credential: %s", report.Advice)
			}
		})
	}
}

func TestAReportTellsTheKeysOfTheService(t *testing.T) {
	const root = "fake://root"
	i := newInstallation()
	k := i.start(t, stage{root: root})
	i.roots.Rotate(root)
	i.request("now")
	if err := k.Rotate(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	look := func(keys map[uint32]string, stale []uint32) {
		t.Helper()
		report, err := i.config(stage{root: root}).Inspect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := seal.ConfiguredRootKey{URI: root, ID: root, Opens: []uint32{1, 2}, Keys: keys, Stale: stale}
		if diff := cmp.Diff(want, report.Current); diff != "" {
			t.Errorf("the root key (-want +got):\n%s", diff)
		}
	}
	look(map[uint32]string{1: `"version 1"`, 2: `"version 2"`}, []uint32{1})
	if err := k.Tend(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	look(map[uint32]string{1: `"version 2"`, 2: `"version 2"`}, nil)
}
