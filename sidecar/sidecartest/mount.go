package sidecartest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/datakeys/datakeys/internal/envelope"
)

// Mount is a directory with one mounted Secret a name, written as the kubelet does: every file is a link into ..data,
// which is a link to the directory with the present version and is renamed over at once.
type Mount struct {
	// Dir holds a directory for each Secret.
	Dir      string
	versions int
}

// NewMount returns a mount without Secrets, which is removed with the test.
func NewMount(t testing.TB) *Mount {
	t.Helper()
	return &Mount{Dir: t.TempDir()}
}

// Put mounts a Secret, or changes it. No entries are what the kubelet mounts for an optional Secret that is not there.
func (m *Mount) Put(t testing.TB, name string, entries map[string][]byte) {
	t.Helper()
	dir := filepath.Join(m.Dir, name)
	m.versions++
	version := fmt.Sprintf("..version_%d", m.versions)
	must(t, os.MkdirAll(filepath.Join(dir, version), 0o755)) //nolint:gosec // as the kubelet does
	for entry, content := range entries {
		must(t, os.WriteFile(filepath.Join(dir, version, entry), content, 0o644)) //nolint:gosec // as the kubelet does
	}
	old, _ := os.Readlink(filepath.Join(dir, "..data"))
	must(t, os.Symlink(version, filepath.Join(dir, "..data_tmp")))
	must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	for entry := range entries {
		if _, err := os.Lstat(filepath.Join(dir, entry)); err != nil {
			must(t, os.Symlink(filepath.Join("..data", entry), filepath.Join(dir, entry)))
		}
	}
	if old != "" {
		must(t, os.RemoveAll(filepath.Join(dir, old)))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Blob makes a blob that can be parsed and that nobody can open.
func Blob(t testing.TB, h envelope.Header) []byte {
	t.Helper()
	h.KeyID, h.KeyVersion, h.MaterialID = envelope.NewKeyID(), 1, envelope.NewMaterialID()
	p, err := envelope.NewPlaintext(32)
	must(t, err)
	blob, err := envelope.NewMaterial().Seal(h, envelope.AssociatedData{}, p)
	must(t, err)
	return blob
}

// DataKeyBlob is Blob of a data key of team-a.
func DataKeyBlob(t testing.TB, name string, generation uint32) []byte {
	t.Helper()
	return Blob(t, envelope.Header{
		Kind: envelope.KindDataKey, Scope: envelope.Scope{Namespace: "team-a", Name: name, Generation: generation},
	})
}
