package secrettest

import (
	"bytes"
	"encoding/base64"
	"testing"
)

func TestASecretIsFoundHoweverItIsPrinted(t *testing.T) {
	// Bytes that differ in every way to write them, half of them ASCII.
	secret := []byte("\xf1\xe2\xd3\xc4\xb5\xa6\x97\x88 a secret of 24 bytes!\x00\n")
	for how, text := range Prints(&struct{ Key []byte }{secret}) {
		if Find(text, secret) == "" {
			t.Errorf("not found in %s: %q", how, text)
		}
	}
}

func TestAPartOfASecretIsFoundInsideOfBase64(t *testing.T) {
	secret := []byte("0123456789abcdef")
	for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.RawURLEncoding} {
		for before := range 4 {
			text := encoding.EncodeToString(append(bytes.Repeat([]byte{0xff}, before), append(secret[3:11:11], "rest"...)...))
			if Find(text, secret) == "" {
				t.Errorf("not found after %d bytes: %s", before, text)
			}
		}
	}
}

func TestWhatIsNotThereIsNotFound(t *testing.T) {
	secret := []byte("0123456789abcdef")
	for _, text := range []string{"", "0123456", "[redacted]", base64.StdEncoding.EncodeToString([]byte("01234567")[:7])} {
		if form := Find(text, secret); form != "" {
			t.Errorf("found in %q as %s", text, form)
		}
	}
	if form := Find("anything", nil); form != "" {
		t.Errorf("nothing was found as %s", form)
	}
}
