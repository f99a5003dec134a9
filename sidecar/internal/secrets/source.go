package secrets

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/sidecar/internal/keyservice"
)

// maxContextFile is the most bytes read of an encryption context in JSON: 8192 characters may be escaped to six bytes
// each, with room for the punctuation of 64 pairs.
const maxContextFile = 64 << 10

// namesAtOnce is how many names of a directory are read at once. How many there are is up to who may edit the Secret.
const namesAtOnce = 256

// dataLink is the link by which the kubelet swaps all files of a Secret volume at once: it makes a new directory and
// renames a new link over this one.
const dataLink = "..data"

// Source reads sealed data keys from mounted Secrets, one directory a name.
type Source struct {
	dir string
	// seen is where dataLink led when a name was last read. The kubelet never changes a directory that it has linked.
	seen map[string]seen
}

type seen struct {
	target string
	secret *Secret
	err    error
}

// NewSource returns a source of the Secrets that are mounted under dir.
func NewSource(dir string) *Source {
	return &Source{dir: dir, seen: map[string]seen{}}
}

// Read returns the Secret of that name as it is now, the same one as the last time where the kubelet has changed nothing
// since. Then it costs one readlink. So reading often stands in for inotify, whose instances are few on a node and shared by
// every process of a UID, while the kubelet itself takes a minute to bring a change.
//
// An error is about all generations; what is wrong with one is in its Entry.
//
// Read is not safe for concurrent use.
func (s *Source) Read(name string) (*Secret, error) {
	target := s.target(name)
	if last, ok := s.seen[name]; ok && target != "" && last.target == target {
		return last.secret, last.err
	}
	secret, err := s.read(name, target)
	// The kubelet removes a version after it was replaced, and so while it is read: what is missing may not have been.
	for range 10 {
		now := s.target(name)
		if now == target {
			break
		}
		target = now
		secret, err = s.read(name, target)
	}
	if stands(err) && (secret == nil || secret.stands()) {
		s.seen[name] = seen{target: target, secret: secret, err: err}
	} else {
		delete(s.seen, name)
	}
	return secret, err
}

// stands reports whether an error, or none, is what the same files would give again.
func stands(err error) bool { return err == nil || errors.Is(err, ErrInvalid) }

func (s *Secret) stands() bool {
	for _, older := range s.Older {
		if !stands(older.Err) {
			return false
		}
	}
	return stands(s.Newest.Err)
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
func (s *Source) read(name, target string) (*Secret, error) {
	path := filepath.Join(s.dir, name)
	if target != "" {
		path = filepath.Join(path, dataLink)
	}
	root, err := os.OpenRoot(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the Secret %q is %w: %w", name, ErrMissing, err)
	case err != nil:
		return nil, fmt.Errorf("the Secret %q: %w", name, err)
	}
	defer func() { _ = root.Close() }()

	bound, err := readBound(root, name)
	if err != nil {
		return nil, err
	}
	newest, err := readEntry(root, name, ciphertextBlobFile, 0, bound)
	if errors.Is(err, fs.ErrNotExist) {
		// Whatever older ones there are: without the newest it is no Secret of a DataKeyRequest now.
		return nil, fmt.Errorf("the Secret %q is %w: no entry %s is mounted: check the DataKeyRequest %q",
			name, ErrMissing, ciphertextBlobFile, name)
	}
	secret := &Secret{Newest: Entry{Sealed: newest, Err: err}}

	found, err := readNames(root)
	if err != nil {
		return nil, fmt.Errorf("the Secret %q: %w", name, err)
	}
	var older []uint32
	older, secret.Ignored = found.pick(newest.Generation)
	for _, n := range older {
		sealed, err := readEntry(root, name, olderFile(n), n, bound)
		switch {
		case errors.Is(err, fs.ErrNotExist): // gone since the names were read
			continue
		case err != nil:
			sealed = keyservice.Sealed{Generation: n}
		}
		secret.Older = append(secret.Older, Entry{Sealed: sealed, Err: err})
	}
	return secret, nil
}

// readBound reads what the blobs of all generations are bound to.
func readBound(root *os.Root, name string) (bound keyservice.Sealed, err error) {
	if bound.AAD, err = readOptional(root, aadFile, envelope.MaxRawSize); err != nil {
		return keyservice.Sealed{}, fmt.Errorf("the Secret %q: %w", name, err)
	}
	context, err := readOptional(root, encryptionContextFile, maxContextFile)
	switch {
	case err != nil:
		return keyservice.Sealed{}, fmt.Errorf("the Secret %q: %w", name, err)
	case context == nil:
		return bound, nil
	case len(bound.AAD) > 0:
		return keyservice.Sealed{}, invalid(name, "entries %s and %s: must not both be there", encryptionContextFile, aadFile)
	}
	if err := json.Unmarshal(context, &bound.EncryptionContext); err != nil {
		return keyservice.Sealed{}, invalid(name, "entry %s: must be a JSON object of strings", encryptionContextFile)
	}
	return bound, nil
}

// readEntry reads the blob in an entry, which must be of that generation, of any one for 0.
func readEntry(root *os.Root, name, file string, generation uint32, bound keyservice.Sealed) (keyservice.Sealed, error) {
	blob, err := readFile(root, file, envelope.MaxBlobSize)
	if err != nil {
		return keyservice.Sealed{}, fmt.Errorf("the Secret %q: %w", name, err)
	}
	sealed, err := parseEntry(name, file, blob, generation)
	if err != nil {
		return keyservice.Sealed{}, err
	}
	sealed.EncryptionContext, sealed.AAD = bound.EncryptionContext, bound.AAD
	return sealed, nil
}

// readNames reads which generations there are entries of.
func readNames(root *os.Root) (found candidates, err error) {
	dir, err := root.Open(".")
	if err != nil {
		return candidates{}, err
	}
	defer func() { _ = dir.Close() }()
	for {
		names, err := dir.Readdirnames(namesAtOnce)
		for _, name := range names {
			found.add(name)
		}
		switch {
		case errors.Is(err, io.EOF):
			return found, nil
		case err != nil:
			return candidates{}, err
		}
	}
}

// readOptional is readFile, with nil for a file that is not there.
func readOptional(root *os.Root, name string, limit int) ([]byte, error) {
	b, err := readFile(root, name, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// readFile reads at most limit bytes; a longer file is ErrInvalid.
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
		return nil, fmt.Errorf("%w: entry %s: must be at most %d bytes", ErrInvalid, name, limit)
	}
	return b, nil
}
