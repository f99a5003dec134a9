package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestImageArchive(t *testing.T) {
	i := image{reference: "localhost/datakeys/pause:1", architecture: "arm64", name: "pause", binary: []byte("\x7fELF program")}
	var first, second bytes.Buffer
	for _, w := range []io.Writer{&first, &second} {
		if err := i.archive(w); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same image gave two archives")
	}

	files := readTar(t, first.Bytes())
	if diff := cmp.Diff(`{"imageLayoutVersion":"1.0.0"}`, string(files["oci-layout"].content)); diff != "" {
		t.Errorf("oci-layout (-want +got):\n%s", diff)
	}
	for name, f := range files {
		if digest, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
			if sum := sha256.Sum256(f.content); hex.EncodeToString(sum[:]) != digest {
				t.Errorf("%s has another digest than its name says", name)
			}
		}
	}
	blob := func(d descriptor) []byte {
		t.Helper()
		f, ok := files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
		if !ok || len(f.content) != d.Size {
			t.Fatalf("no blob of %d bytes for %+v", d.Size, d)
		}
		return f.content
	}

	var index struct{ Manifests []descriptor }
	decode(t, files["index.json"].content, &index)
	if len(index.Manifests) != 1 {
		t.Fatalf("%d manifests, want 1", len(index.Manifests))
	}
	if diff := cmp.Diff(map[string]string{annotationRefName: i.reference}, index.Manifests[0].Annotations); diff != "" {
		t.Errorf("annotations (-want +got):\n%s", diff)
	}
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	decode(t, blob(index.Manifests[0]), &manifest)
	if len(manifest.Layers) != 1 {
		t.Fatalf("%d layers, want 1", len(manifest.Layers))
	}
	type config struct {
		Architecture, OS string
		Config           struct {
			Entrypoint []string
			User       string
		}
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	want := config{Architecture: "arm64", OS: "linux"}
	want.Config.Entrypoint, want.Config.User = []string{"/pause"}, "65532:65532"
	want.RootFS.DiffIDs = []string{manifest.Layers[0].Digest}
	var got config
	decode(t, blob(manifest.Config), &got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}

	layer := readTar(t, blob(manifest.Layers[0]))
	if program := layer["pause"]; program.mode != 0o755 || !bytes.Equal(program.content, i.binary) {
		t.Errorf("the layer's program has mode %o and %d bytes, want 755 and %d", program.mode, len(program.content), len(i.binary))
	}
	if len(layer) != 1 {
		t.Errorf("the layer has %d files, want the program alone", len(layer))
	}
}

func readTar(t *testing.T, archive []byte) map[string]tarFile {
	t.Helper()
	files := map[string]tarFile{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = tarFile{header.Name, header.Mode, content}
	}
}

func decode(t *testing.T, content []byte, out any) {
	t.Helper()
	if err := json.Unmarshal(content, out); err != nil {
		t.Fatalf("%v in %s", err, content)
	}
}
