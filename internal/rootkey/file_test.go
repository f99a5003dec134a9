package rootkey

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
)

// fileKey is a key for tests, with bytes of every kind.
var fileKey = func() []byte {
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(i*37 + 250)
	}
	return key
}()

// keyFile writes a file with that content, as the kubelet would, and returns its path.
func keyFile(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root-key")
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// sealingKey returns what a root key wraps: the ID and the bytes of a sealing key.
func newSealingKey(t *testing.T) envelope.Plaintext {
	t.Helper()
	p, err := envelope.PlaintextOfMaterial(envelope.NewMaterialID(), envelope.NewMaterial())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAFileHoldsAKeyInOneOfThreeForms(t *testing.T) {
	b64, digits := base64.StdEncoding.EncodeToString(fileKey), hex.EncodeToString(fileKey)
	zero := make([]byte, 32)
	const otherSize = "neither 32 nor 32 in one line"
	for name, c := range map[string]struct {
		content []byte
		want    string // in the error; empty where it opens
	}{
		"32 bytes":                            {fileKey, ""},
		"base64":                              {[]byte(b64), ""},
		"base64 and a line end":               {[]byte(b64 + "\n"), ""},
		"base64 and a line end of two bytes":  {[]byte(b64 + "\r\n"), ""},
		"hexadecimal":                         {[]byte(digits), ""},
		"hexadecimal in upper case":           {[]byte(strings.ToUpper(digits)), ""},
		"hexadecimal and a line end":          {[]byte(digits + "\n"), ""},
		"nothing":                             {nil, otherSize},
		"31 bytes":                            {fileKey[:31], otherSize},
		"33 bytes":                            {append(bytes.Clone(fileKey), 1), otherSize},
		"32 bytes and a line end":             {append(bytes.Clone(fileKey), '\n'), otherSize},
		"two lines":                           {[]byte(b64 + "\n\n"), otherSize},
		"a space before the line end":         {[]byte(b64 + " \n"), otherSize},
		"base64 without its padding":          {[]byte(strings.TrimRight(b64, "=")), otherSize},
		"more than any form":                  {bytes.Repeat([]byte("0"), 1<<20), "holds more than 66 bytes"},
		"one byte more than any form":         {bytes.Repeat([]byte("0"), 67), "holds more than 66 bytes"},
		"base64 of the URL alphabet":          {[]byte(base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 32))), "not 32 bytes in base64"},
		"base64 of 33 bytes":                  {[]byte(base64.StdEncoding.EncodeToString(append(bytes.Clone(fileKey), 1))), "not 32 bytes in base64"},
		"base64 with bits that are not used":  {[]byte(b64[:42] + "F="), "not 32 bytes in base64"},
		"base64 with a line end inside":       {[]byte(b64[:20] + "\n" + b64[20:43]), "not 32 bytes in base64"},
		"hexadecimal with a letter too far":   {[]byte("g" + digits[1:]), "not 32 bytes in hexadecimal"},
		"32 characters of text":               {[]byte("correct horse battery staple !!!"), "which are no 32 random bytes: it must hold 32 random bytes, as"},
		"16 bytes in hexadecimal":             {[]byte(digits[:32]), "32 characters of text"},
		"32 zero bytes":                       {zero, "32 zero bytes"},
		"32 zero bytes in base64":             {[]byte(base64.StdEncoding.EncodeToString(zero)), "32 zero bytes"},
		"32 zero bytes in hexadecimal":        {bytes.Repeat([]byte("0"), 64), "32 zero bytes"},
		"64 bytes that are no text":           {bytes.Repeat([]byte{0xfe}, 64), "not 32 bytes in hexadecimal"},
		"a key in PEM, as another tool might": {[]byte("-----BEGIN AES KEY-----\n" + b64 + "\n-----END AES KEY-----\n"), "holds more than"},
	} {
		t.Run(name, func(t *testing.T) {
			path := keyFile(t, c.content)
			root, err := openFileRoot(path)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
					t.Fatalf("got %v, want an error that names the file and says %q", err, c.want)
				}
				if len(c.content) > 0 && len(c.content) < 100 && strings.Contains(err.Error(), string(c.content)) {
					t.Errorf("the error tells what is in the file: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			// The form is nothing to the key: each opens what the raw form wrapped.
			raw, err := openFileRoot(keyFile(t, fileKey))
			if err != nil {
				t.Fatal(err)
			}
			p := newSealingKey(t)
			wrapped, err := raw.Wrap(t.Context(), p, []byte("ad"))
			if err != nil {
				t.Fatal(err)
			}
			got, err := root.Unwrap(t.Context(), wrapped, []byte("ad"))
			if err != nil || !got.Equal(p) {
				t.Errorf("what the key in its raw form wrapped does not open: %v", err)
			}
		})
	}
}

func TestARootKeyInAFileIsReadFromAFileOnly(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(in("private"), fileKey, 0o400))
	must(os.WriteFile(in("shared"), fileKey, 0o644))
	must(os.WriteFile(in("open"), fileKey, 0o644))
	must(os.Chmod(in("open"), 0o666)) // whatever the umask
	must(os.Mkdir(in("..2026"), 0o755))
	must(os.WriteFile(in("..2026/key"), fileKey, 0o644))
	must(os.Symlink("..2026", in("..data")))
	must(os.Symlink("..data/key", in("mounted"))) // as the kubelet lays out a Secret
	must(os.Symlink("loop-b", in("loop-a")))
	must(os.Symlink("loop-a", in("loop-b")))
	must(os.Symlink("nothing", in("dangling")))
	must(syscall.Mkfifo(in("pipe"), 0o644))
	for name, c := range map[string]struct {
		path string
		want string // in the error; empty where it opens
		is   error
	}{
		"a file that its owner reads":           {in("private"), "", nil},
		"a file that everybody reads":           {in("shared"), "", nil},
		"a Secret as the kubelet mounts it":     {in("mounted"), "", nil},
		"a file that everybody writes":          {in("open"), "may be written by everybody (mode 0666): take that permission away", nil},
		"a directory":                           {dir, "is no regular file: name the file with the key", nil},
		"a pipe that nobody writes to":          {in("pipe"), "is no regular file", nil},
		"a device that never ends":              {"/dev/zero", "is no regular file", nil},
		"a loop of symbolic links":              {in("loop-a"), "too many levels of symbolic links", syscall.ELOOP},
		"a symbolic link to nothing":            {in("dangling"), "no such file", os.ErrNotExist},
		"no file":                               {in("absent"), "no such file or directory: see that the file is mounted", os.ErrNotExist},
		"a relative path":                       {"root-key", "must be an absolute path", nil},
		"no path":                               {"", "must be an absolute path", nil},
		"a path that goes up and down":          {dir + "/../" + filepath.Base(dir) + "/shared", "must be an absolute path", nil},
		"a path with a byte that ends a string": {dir + "/a\x00b", "invalid argument", syscall.EINVAL},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := openFileRoot(c.path)
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want an error that says %q", err, c.want)
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("got %v, want one that is %v", err, c.is)
			}
		})
	}
}

func TestTheIDOfARootKeyInAFileTellsKeysApart(t *testing.T) {
	path := keyFile(t, fileKey)
	first, err := openFileRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	// A pinned value: an ID that changes with a release would make every installation look like another's.
	if got, want := first.ID(), "file://"+path+"#"+fileKeyDigits; got != want {
		t.Errorf("got ID %s, want %s", got, want)
	}
	if err := os.WriteFile(path, append(bytes.Clone(fileKey[:31]), 7), 0o600); err != nil {
		t.Fatal(err)
	}
	second, err := openFileRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	if first.ID() == second.ID() {
		t.Errorf("two keys have the ID %s", first.ID())
	}
	for _, printed := range []string{first.ID(), fmt.Sprintf("%v %+v %#v %s", first, first, first, first)} {
		for _, form := range []string{string(fileKey), hex.EncodeToString(fileKey[:8]), base64.StdEncoding.EncodeToString(fileKey[:9]), fmt.Sprint(fileKey[:4])} {
			if strings.Contains(printed, strings.Trim(form, "[]")) {
				t.Errorf("the root key prints its key: %s", printed)
			}
		}
	}
}

const fileKeyDigits = "157c6a7a" // made apart, from RFC 5869 alone

func TestUnwrapByARootKeyInAFile(t *testing.T) {
	root, err := openFileRoot(keyFile(t, fileKey))
	if err != nil {
		t.Fatal(err)
	}
	other, err := openFileRoot(keyFile(t, append(bytes.Clone(fileKey[:31]), 7)))
	if err != nil {
		t.Fatal(err)
	}
	p, ad := newSealingKey(t), []byte("sealing key 1")
	wrap := func(r seal.RootKey) []byte {
		wrapped, err := r.Wrap(t.Context(), p, ad)
		if err != nil {
			t.Fatal(err)
		}
		return wrapped
	}
	good := wrap(root)
	dataKey := func() []byte {
		m, err := envelope.MaterialFromBytes(fileKey)
		if err != nil {
			t.Fatal(err)
		}
		id, err := fileRootID(m)
		if err != nil {
			t.Fatal(err)
		}
		b, err := m.Seal(envelope.Header{
			Kind: envelope.KindAWS, KeyID: id, KeyVersion: 1, MaterialID: envelope.MaterialID(id),
		}, envelope.AssociatedData{Raw: ad}, p)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, c := range map[string]struct {
		wrapped, ad []byte
		want        error
	}{
		"what it wrapped":                       {good, ad, nil},
		"what the key in another file wrapped":  {wrap(other), ad, seal.ErrOtherRootKey},
		"other associated data":                 {good, []byte("sealing key 2"), envelope.ErrBroken},
		"no associated data":                    {good, nil, envelope.ErrBroken},
		"a changed last byte":                   {append(bytes.Clone(good[:len(good)-1]), good[len(good)-1]^1), ad, envelope.ErrBroken},
		"a missing last byte":                   {good[:len(good)-1], ad, envelope.ErrBroken},
		"a blob of another kind under this key": {dataKey(), ad, envelope.ErrBroken},
		"nothing":                               {nil, ad, envelope.ErrBroken},
		"a format of the future":                {append([]byte{2}, good[1:]...), ad, envelope.ErrNotMine},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := root.Unwrap(t.Context(), c.wrapped, c.ad)
			if !errors.Is(err, c.want) || (err != nil) != (c.want != nil) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if err == nil && !got.Equal(p) {
				t.Error("what came back is not what was wrapped")
			}
			if err != nil && !got.IsZero() {
				t.Error("something came back beside an error")
			}
		})
	}
}
