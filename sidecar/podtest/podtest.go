// Package podtest runs a whole sidecar, with what surrounds it in a pod, for the tests of its clients.
package podtest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/sidecar"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

// Pod is a pod of namespace team-a. Its sidecar issues what Put has mounted.
type Pod struct {
	Socket  string
	Service *sidecartest.KeyService

	config sidecar.Config
	mount  *sidecartest.Mount
	stop   func()
}

// New returns a pod with data keys of those names, which are not there yet. Its sidecar does not run yet.
func New(t testing.TB, names ...string) *Pod {
	t.Helper()
	dir, err := os.MkdirTemp("", "dk") //nolint:usetesting // a path of a test's own leaves no room for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte("pod-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &Pod{Socket: filepath.Join(dir, "s"), Service: sidecartest.NewKeyService(t), mount: sidecartest.NewMount(t)}
	p.config = sidecar.Config{
		DataKeys: names, KeysDir: p.mount.Dir, TokenFile: token, Socket: p.Socket, KeyService: p.Service.Address, Roots: p.Service.Roots,
		Leases: sidecar.Leases{Lease: sidecar.DefaultLease, Coast: sidecar.DefaultCoast}, Logger: slog.New(slog.DiscardHandler),
	}
	for _, name := range names {
		p.mount.Put(t, name, nil)
	}
	return p
}

// Put mounts the generations of a data key, the first one first, or changes them. The sidecar looks once a second.
func (p *Pod) Put(t testing.TB, name string, generations ...[]byte) {
	t.Helper()
	entries := map[string][]byte{"encryptionContext": []byte(`{"tenant":"a"}`)}
	for i, plaintext := range generations {
		entry := "ciphertextBlob"
		if i+1 < len(generations) {
			entry = fmt.Sprint(entry, ".", i+1)
		}
		entries[entry] = p.Service.SealWith(t, name, uint32(i+1), plaintext, envelope.AssociatedData{Context: map[string]string{"tenant": "a"}})
	}
	p.mount.Put(t, name, entries)
}

// Start starts the sidecar, which stops with the test, and waits until it issues every data key.
func (p *Pod) Start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- sidecar.Run(ctx, p.config) }()
	p.stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(p.Stop)
	waiting, cancelWait := context.WithTimeout(t.Context(), time.Minute) // only a failure takes so long
	defer cancelWait()
	if err := sidecar.Wait(waiting, p.Socket); err != nil {
		t.Fatal(err)
	}
}

// Stop stops the sidecar. Start starts another one.
func (p *Pod) Stop() {
	if p.stop != nil {
		p.stop()
		p.stop = nil
	}
}
