package kmstest

import (
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
)

func TestTheSearchForSecretsFindsThem(t *testing.T) {
	secret := []byte("0123456789abcdef0123456789abcde\xff")
	for form, text := range map[string]string{
		"raw":             "x" + string(secret) + "x",
		"hex":             "x" + hex.EncodeToString(secret),
		"upper-case hex":  strings.ToUpper(hex.EncodeToString(secret)),
		"base64":          base64.StdEncoding.EncodeToString(secret),
		"base64 inside":   base64.StdEncoding.EncodeToString(append([]byte("{\""), secret...)),
		"base64 for URLs": base64.URLEncoding.EncodeToString(secret),
	} {
		if len(FormsIn(text, secret)) == 0 {
			t.Errorf("%s: not found", form)
		}
	}
	if got := FormsIn(hex.EncodeToString(secret[1:]), secret); len(got) > 0 {
		t.Errorf("found as %v what is not there", got)
	}
}
