// Package secrettest looks for secrets where they must not be: in what a value prints, and in logs, errors and answers.
package secrettest

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// CheckPrints fails the test if a value shows any of the secrets, however it is printed.
func CheckPrints(t testing.TB, name string, v any, secrets map[string][]byte) {
	t.Helper()
	for how, text := range Prints(v) {
		CheckText(t, name+" by "+how, text, secrets)
	}
}

// CheckText fails the test if a text holds any eight bytes in a row of any of the secrets.
func CheckText(t testing.TB, name, text string, secrets map[string][]byte) {
	t.Helper()
	for _, secret := range slices.Sorted(maps.Keys(secrets)) {
		if len(secrets[secret]) < window {
			t.Fatalf("%s of %d bytes is too short to search for", secret, len(secrets[secret]))
		}
		if form := Find(text, secrets[secret]); form != "" {
			t.Errorf("%s holds the %s as %s", name, secret, form)
		}
	}
}

// Prints returns a value as it is printed, by what prints it.
func Prints(v any) map[string]string {
	out := map[string]string{"Sprint": fmt.Sprint(v), "Sprintln": fmt.Sprintln(v)}
	for _, verb := range []string{
		"%v", "%+v", "%#v", "%s", "%+s", "%#s", "%q", "%#q", "%x", "%X", "% x", "%#x", "%d", "%t", "%e", "%p", "%w", "%z", "%c", "%U", "%o", "%b",
	} {
		out["fmt "+verb] = fmt.Sprintf(verb, v)
	}
	delete(out, "fmt %p") // an address, whatever it is given; here only for panics
	if b, err := json.Marshal(v); err == nil {
		out["json"] = string(b)
	}
	if b, err := xml.Marshal(v); err == nil {
		out["xml"] = string(b)
	}
	var buf bytes.Buffer
	if err := gob.NewEncoder(&buf).Encode(v); err == nil {
		out["gob"] = buf.String()
	}
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"slog text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"slog json": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var log bytes.Buffer
		slog.New(handler(&log)).Info("message", "value", v, slog.Group("group", "value", v))
		out[name] = log.String()
	}
	return out
}

// window is how many bytes of a secret in a row are a find.
const window = 8

// wrongVerb is what fmt writes for one byte where the verb does not fit.
var wrongVerb = regexp.MustCompile(`%!\w\(uint8=(\d+)\)`)

// Find returns how any eight bytes in a row of the secret are written in the text, "" where none are.
func Find(text string, secret []byte) string {
	text = wrongVerb.ReplaceAllString(text, "$1")
	for i := range len(secret) - window + 1 {
		part := secret[i : i+window]
		decimal := strings.Trim(fmt.Sprintf("%d", part), "[]")
		for form, needle := range map[string]string{
			"raw bytes":         string(part),
			"hex":               hex.EncodeToString(part),
			"upper-case hex":    strings.ToUpper(hex.EncodeToString(part)),
			"hex with spaces":   fmt.Sprintf("% x", part),
			"a decimal list":    decimal,
			"a list by commas":  strings.ReplaceAll(decimal, " ", ","),
			"a Go byte list":    strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%#v", part), "[]byte{"), "}"),
			"a quoted string":   strings.Trim(fmt.Sprintf("%q", part), `"`),
			"characters":        strings.Trim(fmt.Sprintf("%c", part), "[]"),
			"code points":       strings.Trim(fmt.Sprintf("%U", part), "[]"),
			"octal":             strings.Trim(fmt.Sprintf("%o", part), "[]"),
			"binary":            strings.Trim(fmt.Sprintf("%b", part), "[]"),
			"base64 at 0":       Base64Inside(base64.StdEncoding, part, 0),
			"base64 at 1":       Base64Inside(base64.StdEncoding, part, 1),
			"base64 at 2":       Base64Inside(base64.StdEncoding, part, 2),
			"base64 for URLs":   Base64Inside(base64.URLEncoding, part, 0),
			"base64 for URLs 1": Base64Inside(base64.URLEncoding, part, 1),
			"base64 for URLs 2": Base64Inside(base64.URLEncoding, part, 2),
		} {
			if strings.Contains(text, needle) {
				return form
			}
		}
	}
	return ""
}

// Base64Inside returns the characters that stand for part in the base64 of any text that has it at an offset that is
// shift modulo 3.
func Base64Inside(e *base64.Encoding, part []byte, shift int) string {
	s := e.WithPadding(base64.NoPadding).EncodeToString(append(make([]byte, shift), part...))
	return s[(shift*8+5)/6 : (shift+len(part))*8/6]
}
