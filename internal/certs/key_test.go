package certs

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/go-logr/logr/funcr"
	clocktesting "k8s.io/utils/clock/testing"
)

// TestPrintsNothing prints everything that holds a private key in every way, and searches for the key.
func TestPrintsNothing(t *testing.T) {
	var logged bytes.Buffer
	logger := funcr.New(func(_, args string) { logged.WriteString(args + "\n") }, funcr.Options{Verbosity: 10})
	authority := NewAuthority(&memoryStore{}, clocktesting.NewFakeClock(epoch), logger)
	mustSync(t, authority)
	leavesOf := &leaves{authority: authority, dnsNames: []string{"a"}}
	certificate, err := leavesOf.get(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := authority.known()[0]
	holder := struct {
		unexported privateKey
		Exported   privateKey
		pointer    *privateKey
		Root       root
		roots      []*root
	}{*r.key, *r.key, r.key, *r, authority.known()}

	for _, key := range []*privateKey{r.key, certificate.PrivateKey.(*privateKey)} {
		find := forms(t, key)
		// The search finds a key that is printed.
		if !find(fmt.Sprintf("%v", key.key.D)) { //nolint:staticcheck // a plain way to print the key
			t.Fatal("the search does not find a planted key")
		}
		for name, value := range map[string]any{
			"key": key, "key value": *key, "root": r, "root value": *r, "roots": authority.known(), "holder": holder, "holder pointer": &holder,
			"certificate": certificate, "certificate value": *certificate, "plan": authority.plan(), "leaves": leavesOf,
			"authority": authority, "configuration": authority.ServerTLSConfig("a"),
		} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
				if printed := fmt.Sprintf(verb, value); find(printed) {
					t.Errorf("%s prints the key with %s", name, verb)
				}
			}
			if printed, err := json.Marshal(value); err == nil && find(string(printed)) {
				t.Errorf("%s prints the key as JSON", name)
			}
			var out bytes.Buffer
			slog.New(slog.NewJSONHandler(&out, nil)).Info("", "value", value)
			slog.New(slog.NewTextHandler(&out, nil)).Info("", "value", value)
			logger.Info("", "value", value)
			if find(out.String()) {
				t.Errorf("slog prints the key of %s", name)
			}
		}
		if find(logged.String()) {
			t.Error("the log holds the key")
		}
	}
	if logged.Len() == 0 {
		t.Error("nothing was logged at all")
	}
}

// TestRedacted: where a formatter asks the key itself, it says what it is.
func TestRedacted(t *testing.T) {
	key, err := newPrivateKey()
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]string{
		"fmt": fmt.Sprintf("%#v", key), "JSON": strings.Trim(string(asJSON), `"`), "slog": key.LogValue().String(),
	} {
		if got != redacted {
			t.Errorf("%s prints %q, want %q", name, got, redacted)
		}
	}
}

// forms searches for a key in the forms in which it could be printed.
func forms(t *testing.T, key *privateKey) func(string) bool {
	t.Helper()
	scalar, err := key.key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	list = append(list,
		string(scalar), hex.EncodeToString(scalar), strings.ToUpper(hex.EncodeToString(scalar)),
		base64.StdEncoding.EncodeToString(scalar)[:40], base64.RawURLEncoding.EncodeToString(scalar),
		strings.Trim(fmt.Sprint(scalar), "[]"),
		fmt.Sprint(key.key.D), fmt.Sprintf("%x", key.key.D), //nolint:staticcheck // the forms of a key that is printed
	)
	return func(text string) bool {
		for _, form := range list {
			if strings.Contains(text, form) {
				return true
			}
		}
		return false
	}
}
