package sidecar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/datakeys/datakeys/internal/envelope"
)

// Entries of the Secret of a DataKeyRequest that are read here; api/v1alpha1 declares them. What the other entries say
// stands in the blob's header too, and there it is authenticated.
const (
	ciphertextBlobFile    = "ciphertextBlob"
	encryptionContextFile = "encryptionContext"
	aadFile               = "aad"
)

// maxContextFile is the most bytes read of an encryption context in JSON: 8192 characters may be escaped to six bytes
// each, with room for the punctuation of 64 pairs.
const maxContextFile = 64 << 10

// dataLink is the link by which the kubelet swaps all files of a Secret volume at once: it makes a new directory and
// renames a new link over this one.
const dataLink = "..data"

var (
	// errSecretMissing reports that the Secret is not mounted yet, or has no blob.
	errSecretMissing = errors.New("not there yet")
	// errBlobInvalid reports a Secret that cannot hold this data key. What wraps it says why.
	errBlobInvalid = errors.New("does not hold this data key")
)

// Sealed is one sealed data key as a Secret holds it. Nothing in it is secret.
type Sealed struct {
	CiphertextBlob []byte
	// At most one of EncryptionContext and AAD is set.
	EncryptionContext map[string]string
	AAD               []byte
	// Generation is the generation that the blob's header claims; opening the blob proves it.
	Generation uint32
}

func (s Sealed) equal(other Sealed) bool {
	return bytes.Equal(s.CiphertextBlob, other.CiphertextBlob) && maps.Equal(s.EncryptionContext, other.EncryptionContext) &&
		bytes.Equal(s.AAD, other.AAD)
}

// Source reads sealed data keys from mounted Secrets, one directory a name.
type Source struct {
	dir string
	// seen is where dataLink led when a name was last read. The kubelet never changes a directory that it has linked.
	seen map[string]seen
}

type seen struct {
	target string
	sealed Sealed
	err    error
}

// NewSource returns a source of the Secrets that are mounted under dir.
func NewSource(dir string) *Source {
	return &Source{dir: dir, seen: map[string]seen{}}
}

// Read returns the sealed data key of that name as it is now. It is cheap where the kubelet has changed nothing since:
// one readlink. So reading often stands in for inotify, whose instances are few on a node and shared by every process of
// a UID, while the kubelet itself takes a minute to bring a change.
//
// Read is not safe for concurrent use.
func (s *Source) Read(name string) (Sealed, error) {
	target := s.target(name)
	if last, ok := s.seen[name]; ok && target != "" && last.target == target {
		return last.sealed, last.err
	}
	sealed, err := s.read(name, target)
	// The kubelet removes a version after it was replaced, and so while it is read: what is missing may not have been.
	for range 10 {
		now := s.target(name)
		if now == target {
			break
		}
		target = now
		sealed, err = s.read(name, target)
	}
	if err == nil || errors.Is(err, errBlobInvalid) {
		s.seen[name] = seen{target: target, sealed: sealed, err: err}
	} else {
		delete(s.seen, name)
	}
	return sealed, err
}

// target is where dataLink leads, "" in a plain directory, whose files may change under the same path.
func (s *Source) target(name string) string {
	target, err := os.Readlink(filepath.Join(s.dir, name, dataLink))
	if err != nil {
		return ""
	}
	return target
}

// read opens the directory once, so that all files come from one version of the Secret.
func (s *Source) read(name, target string) (Sealed, error) {
	path := filepath.Join(s.dir, name)
	if target != "" {
		path = filepath.Join(path, dataLink)
	}
	root, err := os.OpenRoot(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Sealed{}, fmt.Errorf("the Secret %q is %w: %w", name, errSecretMissing, err)
	case err != nil:
		return Sealed{}, fmt.Errorf("the Secret %q: %w", name, err)
	}
	defer func() { _ = root.Close() }()

	blob, err := readFile(root, ciphertextBlobFile, envelope.MaxBlobSize)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Sealed{}, fmt.Errorf("the Secret %q is %w: no entry %s is mounted: check the DataKeyRequest %q",
			name, errSecretMissing, ciphertextBlobFile, name)
	case err != nil:
		return Sealed{}, fmt.Errorf("the Secret %q: %w", name, err)
	}
	parsed, err := envelope.Parse(blob)
	if err != nil {
		return Sealed{}, invalid(name, "entry %s: %v", ciphertextBlobFile, err)
	}
	// Whose blob it is decides here already, so that a Secret of another name is not opened under this one.
	if h := parsed.Header; h.Kind != envelope.KindDataKey {
		return Sealed{}, invalid(name, "entry %s: the blob is of kind %v: must be %v", ciphertextBlobFile, h.Kind,
			envelope.KindDataKey)
	} else if h.Scope.Name != name {
		return Sealed{}, invalid(name, "entry %s: the blob belongs to the DataKeyRequest %q", ciphertextBlobFile,
			h.Scope.Name)
	}
	sealed := Sealed{CiphertextBlob: blob, Generation: parsed.Header.Scope.Generation}

	if sealed.AAD, err = readOptional(root, aadFile, envelope.MaxRawSize); err != nil {
		return Sealed{}, fmt.Errorf("the Secret %q: %w", name, err)
	}
	context, err := readOptional(root, encryptionContextFile, maxContextFile)
	switch {
	case err != nil:
		return Sealed{}, fmt.Errorf("the Secret %q: %w", name, err)
	case context == nil:
		return sealed, nil
	case len(sealed.AAD) > 0:
		return Sealed{}, invalid(name, "entries %s and %s: must not both be there", encryptionContextFile, aadFile)
	}
	if err := json.Unmarshal(context, &sealed.EncryptionContext); err != nil {
		return Sealed{}, invalid(name, "entry %s: must be a JSON object of strings", encryptionContextFile)
	}
	return sealed, nil
}

// readOptional is readFile, with nil for a file that is not there.
func readOptional(root *os.Root, name string, limit int) ([]byte, error) {
	b, err := readFile(root, name, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

func invalid(name, format string, args ...any) error {
	return fmt.Errorf("the Secret %q %w: %s", name, errBlobInvalid, fmt.Sprintf(format, args...))
}

// readFile reads at most limit bytes; a longer file is errBlobInvalid.
func readFile(root *os.Root, name string, limit int) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(b) > limit {
		return nil, fmt.Errorf("%w: entry %s: must be at most %d bytes", errBlobInvalid, name, limit)
	}
	return b, nil
}
