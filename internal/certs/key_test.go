package certs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/go-logr/logr/funcr"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/datakeys/datakeys/internal/secrettest"
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
		scalar, err := key.key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		secrets, number := map[string][]byte{"private key": scalar}, key.key.D.String() //nolint:staticcheck // how the key is printed
		for name, value := range map[string]any{
			"key": key, "key value": *key, "root": r, "root value": *r, "roots": authority.known(), "holder": holder, "holder pointer": &holder,
			"certificate": certificate, "certificate value": *certificate, "plan": authority.plan(), "leaves": leavesOf,
			"authority": authority, "configuration": authority.ServerTLSConfig("a"),
		} {
			secrettest.CheckPrints(t, name, value, secrets)
			for how, text := range secrettest.Prints(value) {
				if strings.Contains(text, number) {
					t.Errorf("%s prints the key by %s as a number", name, how)
				}
			}
			logger.Info("", "value", value)
		}
		secrettest.CheckText(t, "the log", logged.String(), secrets)
		if strings.Contains(logged.String(), number) {
			t.Error("the log holds the key as a number")
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
