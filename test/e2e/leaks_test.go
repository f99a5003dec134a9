//go:build e2e

package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// spellings are the ways in which a secret may stand in a file: raw, hex in both cases, and base64 in both alphabets at each of the
// three places at which it can begin inside longer base64.
func spellings(secret []byte) map[string][]byte {
	s := map[string][]byte{
		"raw":       secret,
		"hex":       []byte(hex.EncodeToString(secret)),
		"upper hex": []byte(strings.ToUpper(hex.EncodeToString(secret))),
	}
	for name, encoding := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "url base64": base64.RawURLEncoding} {
		for offset := range 3 {
			padded := append(make([]byte, offset), secret...)
			text := encoding.EncodeToString(padded)
			first := (offset*8 + 5) / 6 // the characters before it hold bits of what stands in front
			last := len(padded) * 8 / 6 // the characters after it hold bits of what stands behind
			s[fmt.Sprintf("%s at %d", name, offset)] = []byte(text[first:last])
		}
	}
	return s
}

// search returns where in the files under the folders any spelling of a secret stands. A secret is named by its place in the
// list, so that what this returns can be printed.
func search(folders []string, secrets map[string][]byte) (found []string, bytesRead int64, err error) {
	type needle struct {
		name string
		text []byte
	}
	var needles []needle
	for name, secret := range secrets {
		for spelling, text := range spellings(secret) {
			needles = append(needles, needle{name + " (" + spelling + ")", text})
		}
	}
	for _, folder := range folders {
		err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			content, err := os.ReadFile(path)
			if os.IsNotExist(err) {
				return nil // a log that was rotated away
			}
			if err != nil {
				return err
			}
			bytesRead += int64(len(content))
			for _, n := range needles {
				if bytes.Contains(content, n.text) {
					found = append(found, n.name+" in "+path)
				}
			}
			return nil
		})
		if err != nil {
			return nil, 0, err
		}
	}
	return found, bytesRead, nil
}

func TestSearchFindsEverySpelling(t *testing.T) {
	secret := make([]byte, 32)
	if _, err := rand.Read(secret); err != nil {
		t.Fatal(err)
	}
	surround := func(before, after int, encode func([]byte) []byte) []byte {
		plain := append(bytes.Repeat([]byte{0x5a}, before), secret...)
		return encode(append(plain, bytes.Repeat([]byte{0xa5}, after)...))
	}
	encoders := map[string]func([]byte) []byte{
		"raw":        func(b []byte) []byte { return b },
		"hex":        func(b []byte) []byte { return []byte(hex.EncodeToString(b)) },
		"upper hex":  func(b []byte) []byte { return []byte(strings.ToUpper(hex.EncodeToString(b))) },
		"base64":     func(b []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(b)) },
		"url base64": func(b []byte) []byte { return []byte(base64.RawURLEncoding.EncodeToString(b)) },
	}
	for name, encode := range encoders {
		for before := range 5 {
			for after := range 4 {
				folder := t.TempDir()
				if err := os.WriteFile(filepath.Join(folder, "f"), surround(before, after, encode), 0o600); err != nil {
					t.Fatal(err)
				}
				found, _, err := search([]string{folder}, map[string][]byte{"the secret": secret})
				if err != nil || len(found) == 0 {
					t.Errorf("%s with %d bytes before and %d after: found %v, error %v", name, before, after, found, err)
				}
			}
		}
	}
}
