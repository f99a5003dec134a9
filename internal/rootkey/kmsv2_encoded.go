package rootkey

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"unicode"
)

// plainForm says how answer holds secret without encryption: "in clear", "in base64" or "in hexadecimal", in either alphabet or
// case, broken into lines or not, and whatever stands around it; empty: in none of these.
//
// A plugin that encrypts nothing must not bring a key into the cluster, and there are such plugins: the mock in the tests of
// Kubernetes, which is copied to begin with, answers in base64. That is all that can be told by looking. Of a cipher that is worth
// nothing, or a plugin that means harm, an answer shows nothing.
func plainForm(answer, secret []byte) string {
	if bytes.Contains(answer, secret) {
		return "in clear"
	}
	text := bytes.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return -1
		case r == '-':
			return '+'
		case r == '_':
			return '/'
		}
		return r
	}, answer)
	lower := bytes.ToLower(text)
	encoded := make([]byte, hex.EncodedLen(len(secret))) // base64 is shorter
	defer func() {
		clear(text)
		clear(lower)
		clear(encoded)
	}()
	hex.Encode(encoded, secret)
	if bytes.Contains(lower, encoded) {
		return "in hexadecimal"
	}
	// Four digits stand for three bytes, and what stands in front says which of the three the secret begins with. The digits that
	// it shares with its neighbours are left out.
	for skip := range 3 {
		inner := secret[skip:]
		inner = inner[:len(inner)/3*3]
		digits := encoded[:base64.StdEncoding.EncodedLen(len(inner))]
		base64.StdEncoding.Encode(digits, inner)
		if bytes.Contains(text, digits) {
			return "in base64"
		}
	}
	return ""
}
