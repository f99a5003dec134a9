package seal_test

import (
	"errors"
	"testing"

	"github.com/go-logr/logr"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// TestARootKeyInSoftHSM wraps sealing keys by a key that is in a token behind PKCS#11, over a plugin that is a process of its
// own: nothing of it is a fake.
func TestARootKeyInSoftHSM(t *testing.T) {
	hsm := sealtest.NewSoftHSM(t)
	openRoot := func() seal.RootKey {
		t.Helper()
		root, err := seal.OpenKMSv2Root(t.Context(), hsm.Socket, logr.Discard())
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
		if got := root.(interface{ Stale([]byte) bool }).Stale(wrapped); got != want {
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
	unwraps(root, first)
	unwraps(root, second)

	// A death, with the socket left behind; then a rotation while nobody serves.
	hsm.Kill(t)
	if _, err := root.Unwrap(t.Context(), second, ad); !errors.Is(err, seal.ErrPluginFailed) {
		t.Errorf("from a dead plugin: got %v, want %v", err, seal.ErrPluginFailed)
	}
	if _, err := seal.OpenKMSv2Root(t.Context(), hsm.Socket, logr.Discard()); !errors.Is(err, seal.ErrPluginFailed) {
		t.Errorf("opening a dead plugin: got %v, want %v", err, seal.ErrPluginFailed)
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
