package rootkey_test

import (
	"strings"
	"testing"

	"github.com/go-logr/logr"

	"github.com/datakeys/datakeys/internal/rootkey"
)

func TestOpenRefusesARootKeyThatItDoesNotKnow(t *testing.T) {
	for name, c := range map[string]struct{ uri, says string }{
		"no URI":            {"datakeys-root-key", "must be a URI such as secret://datakeys-root-key"},
		"nothing":           {"", "must be a URI"},
		"an unknown scheme": {"vault://root", `the scheme "vault" is not known: use one of secret://NAME, file:///PATH`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rootkey.Open(t.Context(), c.uri, logr.Discard())
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want one that says %q", err, c.says)
			}
		})
	}
}
