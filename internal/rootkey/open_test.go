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

		"the key itself":                           {"aGlkZGVuhiddenaGlkZGVuaGlkZGVuaGlkZGVuaGlkZGU=", "must be a URI"},
		"an unknown scheme with credentials":       {"vault://me:hidden@vault:8200/root", "root key vault://vault:8200/root: the scheme"},
		"an unknown scheme and a token":            {"https://vault:8200/transit/root?token=hidden", "root key https://vault:8200/transit/root: the scheme"},
		"an unknown scheme and a broken host":      {"aws://AKID:hidden/root", "root key aws://...: the scheme"},
		"a file with a password":                   {"file://me:hidden@host/root-key", "root key file://host/root-key: must be an absolute path: write file:///PATH"},
		"a KMS plugin with a password":             {"kmsv2://me:hidden@host/kms.sock", "root key kmsv2://host/kms.sock: must be an absolute path: write kmsv2:///PATH"},
		"a file with a parameter":                  {"file:///etc/root-key?mode=hidden", "root key file:///etc/root-key: takes no parameters"},
		"a KMS plugin with a parameter":            {"kmsv2:///run/kms.sock?timeout=hidden", "root key kmsv2:///run/kms.sock: takes no parameters"},
		"a KMS plugin with a credential behind it": {"kmsv2:///run/kms.sock?token=hidden", `parameter "token": has credentials in it`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rootkey.Open(t.Context(), c.uri, logr.Discard())
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want one that says %q", err, c.says)
			}
			if err != nil && strings.Contains(err.Error(), "hidden") {
				t.Errorf("the error shows the credential: %v", err)
			}
		})
	}
}
