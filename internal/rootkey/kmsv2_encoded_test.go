package rootkey

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestThePlaintextIsFoundInItsPlainForms has secrets whose base64 needs both digits in which the alphabets differ, behind 0 to 2
// bytes more than a multiple of three.
func TestThePlaintextIsFoundInItsPlainForms(t *testing.T) {
	secret := bytes.Repeat([]byte{0xfb, 0xef, 0xff, 0x01, 0xc3, 0x28}, 8)
	lines := func(s string, width int, end string) string {
		var b strings.Builder
		for len(s) > width {
			b.WriteString(s[:width] + end)
			s = s[width:]
		}
		return b.String() + s
	}
	forms := map[string]struct {
		want   string
		encode func([]byte) string
	}{
		"as it is":                        {"in clear", func(b []byte) string { return string(b) }},
		"base64":                          {"in base64", base64.StdEncoding.EncodeToString},
		"base64 for URLs":                 {"in base64", base64.URLEncoding.EncodeToString},
		"base64 without padding":          {"in base64", base64.RawStdEncoding.EncodeToString},
		"base64 for URLs without padding": {"in base64", base64.RawURLEncoding.EncodeToString},
		"base64 in lines, as in PEM":      {"in base64", func(b []byte) string { return lines(base64.StdEncoding.EncodeToString(b), 64, "\n") }},
		"base64 in lines, as in mail":     {"in base64", func(b []byte) string { return lines(base64.StdEncoding.EncodeToString(b), 76, "\r\n") }},
		"hexadecimal":                     {"in hexadecimal", hex.EncodeToString},
		"hexadecimal in upper case":       {"in hexadecimal", func(b []byte) string { return fmt.Sprintf("%X", b) }},
		"hexadecimal in groups":           {"in hexadecimal", func(b []byte) string { return fmt.Sprintf("% x", b) }},
		"other bytes":                     {"", func(b []byte) string { return strings.Repeat("x", len(b)) }},
		"a byte missing":                  {"", func(b []byte) string { return string(b[:len(b)-1]) }},
		"in base64, a byte missing":       {"", func(b []byte) string { return base64.StdEncoding.EncodeToString(b[:len(b)-4]) }},
		"turned around": {"", func(b []byte) string {
			b = bytes.Clone(b)
			slices.Reverse(b)
			return string(b)
		}},
	}
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			for front := range 4 {
				for _, around := range []string{"", "vault:v1:", "\xff\xc0"} {
					given := append(bytes.Repeat([]byte{0xa5}, front), secret...)
					answer := []byte(around + form.encode(given) + around)
					before := bytes.Clone(answer)
					if got := plainForm(answer, secret); got != form.want {
						t.Errorf("behind %d bytes and %q: got %q, want %q", front, around, got, form.want)
					}
					if !bytes.Equal(answer, before) {
						t.Fatal("the answer was changed")
					}
				}
			}
		})
	}
}
