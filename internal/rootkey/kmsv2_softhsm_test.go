package rootkey_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/rootkey"
	"github.com/datakeys/datakeys/internal/rootkey/rootkeytest"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// TestARootKeyInSoftHSM has the root key in a token behind PKCS#11, and a plugin that is a process of its own: nothing of it is
// a fake.
func TestARootKeyInSoftHSM(t *testing.T) {
	hsm := rootkeytest.NewSoftHSM(t)
	t.Run("wraps sealing keys", func(t *testing.T) { wrapsSealingKeys(t, hsm) })
	t.Run("carries an installation", func(t *testing.T) { carriesAnInstallation(t, hsm) })
}

func wrapsSealingKeys(t *testing.T, hsm *rootkeytest.SoftHSM) {
	t.Helper()
	openRoot := func() seal.RootKey {
		t.Helper()
		root, err := rootkey.Open(t.Context(), hsm.RootKey(), logr.Discard())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = root.Close() })
		return root
	}
	root := openRoot()
	p, err := envelope.PlaintextOfMaterial(envelope.NewMaterialID(), envelope.NewMaterial())
	if err != nil {
		t.Fatal(err)
	}
	ad := []byte("sealing key 1")
	wrap := func() []byte {
		t.Helper()
		wrapped, err := root.Wrap(t.Context(), p, ad)
		if err != nil {
			t.Fatal(err)
		}
		return wrapped
	}
	unwraps := func(root seal.RootKey, wrapped []byte) {
		t.Helper()
		got, err := root.Unwrap(t.Context(), wrapped, ad)
		if err != nil || !got.Equal(p) {
			t.Errorf("what was wrapped does not unwrap: %v", err)
		}
		got.Destroy()
	}
	wantStale := func(wrapped []byte, want bool) {
		t.Helper()
		if got := root.(seal.Staler).Stale(wrapped); got != want {
			t.Errorf("stale: got %t, want %t", got, want)
		}
	}
	first := wrap()
	unwraps(root, first)
	wantStale(first, false)
	if _, err := root.Unwrap(t.Context(), first, []byte("sealing key 2")); !errors.Is(err, envelope.ErrBroken) {
		t.Errorf("other associated data: got %v, want %v", err, envelope.ErrBroken)
	}

	// A restart, as of a node's DaemonSet.
	hsm.Stop(t)
	hsm.Start(t)
	unwraps(root, first)

	// A rotation while it serves.
	hsm.Rotate(t)
	second := wrap() // asks for the Status, and so learns of the new key
	wantStale(first, true)
	wantStale(second, false)
	keyOf := root.(seal.KeyTeller).KeyOf
	if old, newer := keyOf(first), keyOf(second); !strings.HasPrefix(old, `"kek-000001-`) || !strings.HasPrefix(newer, `"kek-000002-`) {
		t.Errorf("got keys %s and %s, want the first and the second of the token", old, newer)
	}
	unwraps(root, first)
	unwraps(root, second)

	// A death, with the socket left behind; then a rotation while nobody serves.
	hsm.Kill(t)
	if _, err := root.Unwrap(t.Context(), second, ad); !errors.Is(err, rootkey.ErrPluginFailed) {
		t.Errorf("from a dead plugin: got %v, want %v", err, rootkey.ErrPluginFailed)
	}
	if _, err := rootkey.Open(t.Context(), hsm.RootKey(), logr.Discard()); !errors.Is(err, rootkey.ErrPluginFailed) {
		t.Errorf("opening a dead plugin: got %v, want %v", err, rootkey.ErrPluginFailed)
	}
	hsm.Rotate(t)
	hsm.Start(t)
	unwraps(root, second)
	third := wrap()
	wantStale(second, true)

	// Another process knows nothing but what is stored.
	again := openRoot()
	for _, wrapped := range [][]byte{first, second, third} {
		unwraps(again, wrapped)
	}
}

func carriesAnInstallation(t *testing.T, hsm *rootkeytest.SoftHSM) {
	t.Helper()
	config := seal.Config{RootKey: hsm.RootKey(), Store: &sealtest.Store{}, OpenRootKey: rootkey.Open}
	start := func() *seal.Keyring {
		t.Helper()
		k, err := config.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(k.Close)
		return k
	}
	first := start()
	if report := first.Report(); report.Verdict != seal.VerdictSettled || report.Embedded {
		t.Errorf("a new installation is %s, embedded %t", report.Verdict, report.Embedded)
	}
	of, id, m := seal.MasterKeyVersion{KeyID: envelope.NewKeyID(), Namespace: "team-a", Name: "orders", Version: 1},
		envelope.NewMaterialID(), envelope.NewMaterial()
	sealed, err := first.Seal(of, id, m)
	if err != nil {
		t.Fatal(err)
	}
	unseals := func(k *seal.Keyring) {
		t.Helper()
		if _, _, got, err := k.Unseal(t.Context(), of.KeyID, of.Version, sealed); err != nil || !got.Equal(m) {
			t.Errorf("what was sealed does not unseal: %v", err)
		}
	}
	unseals(start())

	// The plugin dies: who runs goes on, who starts has to wait, and is told nothing of a restore.
	hsm.Kill(t)
	unseals(first)
	if _, err := first.Seal(of, id, m); err != nil {
		t.Errorf("the loss of the root key stopped a running manager: %v", err)
	}
	_, err = config.Open(t.Context())
	if !errors.Is(err, rootkey.ErrPluginFailed) {
		t.Errorf("a start without the plugin: got %v, want %v", err, rootkey.ErrPluginFailed)
	}
	if lost, ok := errors.AsType[*seal.SecretError](err); ok {
		t.Errorf("a start without the plugin asks for a restore: %v", lost)
	}
	hsm.Start(t)
	unseals(start())

	// The key in the token is rotated: the leader wraps anew what became stale.
	wrapped := func() map[string][]byte { return config.Store.(*sealtest.Store).Secrets()[seal.SealingKeysSecret].Data }
	before := wrapped()
	hsm.Rotate(t)
	k := start()
	unseals(k)
	if err := k.Tend(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if cmp.Equal(before, wrapped()) {
		t.Error("what the old key wrapped was not wrapped anew")
	}
	unseals(start())
}
