package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"path"
)

// An image of one static binary and nothing else: what a pod's pause container needs.
type image struct {
	reference    string // NAME:TAG
	architecture string // as GOARCH has it
	binary       []byte // becomes /NAME
	name         string
}

// Media types and annotations of the OCI image specification, version 1.1.
const (
	mediaTypeIndex    = "application/vnd.oci.image.index.v1+json"
	mediaTypeManifest = "application/vnd.oci.image.manifest.v1+json"
	mediaTypeConfig   = "application/vnd.oci.image.config.v1+json"
	mediaTypeLayer    = "application/vnd.oci.image.layer.v1.tar"
	annotationRefName = "org.opencontainers.image.ref.name"
)

// unprivileged is the user that a container of the image runs as unless its pod says otherwise.
const unprivileged = "65532:65532"

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// archive writes the image as a tar of the OCI image layout. The same image gives the same bytes.
func (i image) archive(w io.Writer) error {
	var layer bytes.Buffer
	if err := writeTar(&layer, []tarFile{{i.name, 0o755, i.binary}}); err != nil {
		return err
	}
	files := []tarFile{{"oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)}}
	blob := func(mediaType string, content []byte) descriptor {
		sum := sha256.Sum256(content)
		digest := hex.EncodeToString(sum[:])
		files = append(files, tarFile{path.Join("blobs", "sha256", digest), 0o644, content})
		return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: len(content)}
	}

	layerBlob := blob(mediaTypeLayer, layer.Bytes())
	config, err := json.Marshal(map[string]any{
		"architecture": i.architecture,
		"os":           "linux",
		"config":       map[string]any{"Entrypoint": []string{"/" + i.name}, "User": unprivileged},
		// The layer is not compressed, so its content's digest is its own.
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layerBlob.Digest}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     mediaTypeManifest,
		"config":        blob(mediaTypeConfig, config),
		"layers":        []descriptor{layerBlob},
	})
	if err != nil {
		return err
	}
	named := blob(mediaTypeManifest, manifest)
	named.Annotations = map[string]string{annotationRefName: i.reference}
	index, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     mediaTypeIndex,
		"manifests":     []descriptor{named},
	})
	if err != nil {
		return err
	}
	return writeTar(w, append(files, tarFile{"index.json", 0o644, index}))
}

type tarFile struct {
	name    string
	mode    int64
	content []byte
}

func writeTar(w io.Writer, files []tarFile) error {
	t := tar.NewWriter(w)
	for _, f := range files {
		header := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content)), Format: tar.FormatUSTAR}
		if err := t.WriteHeader(header); err != nil {
			return err
		}
		if _, err := t.Write(f.content); err != nil {
			return err
		}
	}
	return t.Close()
}
