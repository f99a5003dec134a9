package rootkey

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
)

const schemeFile = "file"

const (
	// maxFileRootSize is the size of the longest form of a key: 64 hexadecimal digits and a line end of two bytes.
	maxFileRootSize = 2*envelope.MaterialSize + len("\r\n")

	fileRootForms = "it must hold 32 random bytes, as `head -c 32 /dev/urandom` or `openssl rand -base64 32` print"

	// fileRootLabel keeps the key ID of a root key in a file apart from anything else that is derived from its bytes.
	fileRootLabel = "datakeys.io/root-key-file/id/v1\x00"
)

// fileRoot is a root key that somebody else put into a file of the manager's container: a Secret of another origin, a CSI
// driver, an agent, a host path. It wraps as the embedded root key does and differs from it in where the key lies.
type fileRoot struct {
	seal.HeldKey
	name string
}

// openFileRoot reads the root key in the file of that absolute path: 32 random bytes as they are, or one line of text with
// them in standard base64 (RFC 4648, section 4) or in hexadecimal.
//
// That others may read the file is no reason to refuse it or to warn: the kubelet mounts Secrets with mode 0644 unless the
// pod says otherwise, and inside a container with one process of one user the mode keeps nobody out. That everybody may
// write it is: no mount of a key is made like that.
func openFileRoot(path string) (seal.RootKey, error) {
	fail := func(problem string) error {
		return fmt.Errorf("root key %s://%s: %s", schemeFile, path, problem)
	}
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return nil, fail("must be an absolute path in its shortest form: write file:///etc/datakeys/root-key or the like")
	}
	m, problem, err := readKeyFile(path)
	if err != nil {
		return nil, fmt.Errorf("root key %s://%s: %w: see that the file is mounted there, and that the manager may read it", schemeFile, path, err)
	}
	if problem != "" {
		return nil, fail(problem)
	}
	id, err := fileRootID(m)
	if err != nil {
		m.Destroy()
		return nil, fmt.Errorf("root key %s://%s: %w", schemeFile, path, err)
	}
	return &fileRoot{
		HeldKey: seal.NewHeldKey(id, m),
		// Eight digits tell keys apart for a human reader. What was wrapped carries the whole ID.
		name: fmt.Sprintf("%s://%s#%s", schemeFile, path, id.String()[:8]),
	}, nil
}

func (r *fileRoot) ID() string { return r.name }

// readKeyFile returns the key in a file, or the problem with what the file is or holds, and what to do.
func readKeyFile(path string) (m envelope.Material, problem string, err error) {
	// O_NONBLOCK: opening a named pipe would wait for somebody to write to it. Symbolic links are followed, because the
	// kubelet makes Secrets of them; the kernel ends a loop with an error.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) //nolint:gosec // the operator names the file
	if err != nil {
		return m, "", err
	}
	defer func() { _ = f.Close() }() // nothing was written
	info, err := f.Stat()
	if err != nil {
		return m, "", err
	}
	if !info.Mode().IsRegular() {
		return m, "is no regular file: name the file with the key", nil
	}
	if info.Mode().Perm()&0o002 != 0 {
		return m, fmt.Sprintf("may be written by everybody (mode %#o): take that permission away, as chmod o-w does", info.Mode().Perm()), nil
	}
	var buf [maxFileRootSize + 1]byte // one more, to see that there is more
	defer clear(buf[:])
	n, err := io.ReadFull(f, buf[:])
	switch err { //nolint:errorlint // io.ReadFull returns these two as they are
	case io.EOF, io.ErrUnexpectedEOF:
	case nil:
		return m, fmt.Sprintf("holds more than %d bytes: %s", maxFileRootSize, fileRootForms), nil
	default:
		return m, "", err
	}
	if m, problem = parseKeyFile(buf[:n]); problem != "" {
		problem += ": " + fileRootForms
	}
	return m, problem, nil
}

// parseKeyFile reads the forms of a key, which no two have a size in common.
func parseKeyFile(b []byte) (m envelope.Material, problem string) {
	var key [envelope.MaterialSize]byte
	defer clear(key[:])
	line := bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
	switch {
	case len(b) == envelope.MaterialSize:
		// Random bytes are all printable once in 10^13 keys; a passphrase, or a key of half the size in hexadecimal, always.
		if printable(b) {
			return m, "holds 32 characters of text, which are no 32 random bytes"
		}
		copy(key[:], b)
	case len(line) == base64.StdEncoding.EncodedLen(envelope.MaterialSize):
		var decoded [envelope.MaterialSize + 1]byte // the decoder reckons with the longest that so many digits can hold
		defer clear(decoded[:])
		if n, err := base64.StdEncoding.Strict().Decode(decoded[:], line); err != nil || n != envelope.MaterialSize {
			return m, fmt.Sprintf("holds %d characters that are not 32 bytes in base64", len(line))
		}
		copy(key[:], decoded[:])
	case len(line) == hex.EncodedLen(envelope.MaterialSize):
		if _, err := hex.Decode(key[:], line); err != nil {
			return m, fmt.Sprintf("holds %d characters that are not 32 bytes in hexadecimal", len(line))
		}
	default:
		return m, fmt.Sprintf("holds %d bytes, neither 32 nor 32 in one line of base64 or hexadecimal", len(b))
	}
	m, err := envelope.MaterialFromBytes(key[:])
	if err != nil { // the size is right
		return m, "holds 32 zero bytes, which are no key"
	}
	return m, ""
}

func printable(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// fileRootID derives the ID of a key from its bytes, so that a file with another key is known as another root key. Back from
// the ID there is no way but to guess all of a random key.
func fileRootID(m envelope.Material) (id envelope.KeyID, err error) {
	b, err := m.Fingerprint(fileRootLabel, len(id))
	if err != nil {
		return envelope.KeyID{}, err
	}
	id = envelope.KeyID(b)
	id[6] = id[6]&0x0f | 0x80 // a UUID of version 8, whose bits are the maker's own (RFC 9562, section 5.8)
	id[8] = id[8]&0x3f | 0x80
	return id, nil
}
