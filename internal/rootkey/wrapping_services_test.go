package rootkey_test

import (
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-logr/logr"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/rootkey"
	"github.com/datakeys/datakeys/internal/rootkey/rootkeytest"
	"github.com/datakeys/datakeys/internal/seal"
)

// nowhere is an address where nothing listens.
const nowhere = "127.0.0.1:1"

// fails makes the test fail unless r neither wraps nor unwraps, by an error that says so and is worth another try.
func fails(t *testing.T, r seal.RootKey, wrapped []byte, says string) {
	t.Helper()
	p := sealingKey(t)
	_, wrapErr := r.Wrap(t.Context(), p, wrappingAD)
	_, unwrapErr := r.Unwrap(t.Context(), wrapped, wrappingAD)
	for doing, err := range map[string]error{"wrapping": wrapErr, "unwrapping": unwrapErr} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want the word %q", doing, err, says)
			continue
		}
		if errors.Is(err, envelope.ErrBroken) || errors.Is(err, seal.ErrOtherRootKey) {
			t.Errorf("%s: %v is final, and should not be", doing, err)
		}
		saysNoSecret(t, err, r.ID(), p)
	}
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestTransitRootHeedsNoOtherVariables(t *testing.T) {
	_, b := transitBackend(t)
	for name, value := range map[string]string{
		"VAULT_ADDR":                    "https://" + nowhere,
		"VAULT_NAMESPACE":               "elsewhere",
		"VAULT_TLS_SERVER_NAME":         "elsewhere.example.com",
		"VAULT_HTTP_PROXY":              "http://" + nowhere,
		"VAULT_PROXY_ADDR":              "http://" + nowhere,
		"VAULT_SRV_LOOKUP":              "true",
		"VAULT_CACERT":                  writeFile(t, string(certificateOf(t))),
		"VAULT_WRAP_TTL":                "1m",
		"TRANSIT_WRAPPER_MOUNT_PATH":    "elsewhere",
		"TRANSIT_WRAPPER_KEY_NAME":      "other",
		"VAULT_TRANSIT_SEAL_MOUNT_PATH": "elsewhere",
		"VAULT_TRANSIT_SEAL_KEY_NAME":   "other",
	} {
		t.Setenv(name, value)
	}
	r, p := openWrapping(t, b.uri), sealingKey(t)
	unwraps(t, r, wrap(t, r, p), p)
	want := []string{"keys/root", "encrypt/root", "decrypt/root"}
	if got := b.service.Calls(); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("asked for %q, want %q", got, want)
	}

	t.Setenv("VAULT_AGENT_ADDR", "https://"+nowhere)
	fails(t, r, wrap2(t, b), "VAULT_AGENT_ADDR")
}

// certificateOf returns a certificate that a fake has.
func certificateOf(t *testing.T) []byte {
	t.Helper()
	s := rootkeytest.NewTransit("")
	defer s.Close()
	return s.Certificate()
}

// wrap2 wraps a key without the variable that sends the client elsewhere.
func wrap2(t *testing.T, b wrappingBackend) []byte {
	t.Helper()
	value := os.Getenv("VAULT_AGENT_ADDR")
	t.Setenv("VAULT_AGENT_ADDR", "")
	defer t.Setenv("VAULT_AGENT_ADDR", value)
	return wrap(t, openWrapping(t, b.uri), sealingKey(t))
}

func TestCloudRootsFollowNoRedirection(t *testing.T) {
	_, aws := awsBackend(t)
	if refusedByFIPS(t, aws) {
		return
	}
	_, alicloud := alicloudBackend(t)
	for _, b := range []wrappingBackend{aws, alicloud} {
		r := openWrapping(t, b.uri)
		wrapped := wrap(t, r, sealingKey(t))
		b.service.Misbehave(rootkeytest.AnyOperation, rootkeytest.Redirect)
		b.service.Calls()
		fails(t, r, wrapped, "see what answers at its address")
		if got, want := strings.Join(b.service.Calls(), " "), "Encrypt Decrypt"; got != want {
			t.Errorf("%s: asked for %q, want %q", b.id, got, want)
		}
	}
}

func TestWrappingRootsTrustNobodyUnnamed(t *testing.T) {
	t.Setenv("VAULT_SKIP_VERIFY", "true")
	_, transit := transitBackend(t)
	_, aws := awsBackend(t)
	_, alicloud := alicloudBackend(t)
	for _, b := range []wrappingBackend{transit, aws, alicloud} {
		if b.id != transit.id && refusedByFIPS(t, b) {
			continue
		}
		p := sealingKey(t)
		wrapped := wrap(t, openWrapping(t, b.uri), p)
		before, after, _ := strings.Cut(b.uri, "ca-file=")
		_, others, _ := strings.Cut(after, "&")
		fails(t, openWrapping(t, strings.TrimRight(before+others, "?&")), wrapped, "certificate")
		fails(t, openWrapping(t, before+"ca-file=/nonexistent/ca.pem"), wrapped, "/nonexistent/ca.pem")
		fails(t, openWrapping(t, before+"ca-file="+writeFile(t, "none")), wrapped, "has no certificate in it")
	}
}

// Our image has no file but the manager's own.
func TestThereAreAuthoritiesWhereTheSystemHasNone(t *testing.T) {
	if !rerun(t, "SSL_CERT_FILE=/nonexistent", "SSL_CERT_DIR=/nonexistent") {
		return
	}
	authorities, err := x509.SystemCertPool()
	if err != nil {
		t.Fatal(err)
	}
	if authorities.Equal(x509.NewCertPool()) {
		t.Error("no service can be trusted whose authority no file names")
	}
}

func TestTransitRootAsksInClearAtALoopbackAddressAlone(t *testing.T) {
	t.Setenv("VAULT_TOKEN", "s.test-token")
	var reached atomic.Bool
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached.Store(true) }))
	defer elsewhere.Close()
	_, port, err := net.SplitHostPort(elsewhere.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	// 0.0.0.0 leads here and is no loopback address.
	agent := httptest.NewServer(http.RedirectHandler("http://0.0.0.0:"+port, http.StatusTemporaryRedirect))
	defer agent.Close()
	host := strings.TrimPrefix(agent.URL, "http://")
	_, err = openWrapping(t, "transit://"+host+"/transit/root?tls=off").Wrap(t.Context(), sealingKey(t), wrappingAD)
	if err == nil || !strings.Contains(err.Error(), "without TLS") {
		t.Errorf("%v, want the word that it leads to where there is no TLS", err)
	}
	if reached.Load() {
		t.Error("what is only for the agent went over the network in clear")
	}

	_, err = openWrapping(t, "transit://"+host+"/transit/root").Wrap(t.Context(), sealingKey(t), wrappingAD)
	if err == nil || !strings.Contains(err.Error(), "does not speak TLS") {
		t.Errorf("over TLS: %v, want the word that the service does not speak it", err)
	}
}

func TestTransitRootTakesItsTokenFromAFile(t *testing.T) {
	_, b := transitBackend(t)
	wrapped := wrap(t, openWrapping(t, b.uri), sealingKey(t))

	t.Setenv("VAULT_TOKEN", "")
	fails(t, openWrapping(t, b.uri), wrapped, "set VAULT_TOKEN, or the parameter token-file")

	t.Setenv("VAULT_TOKEN", "s.of-another-server")
	fails(t, openWrapping(t, b.uri), wrapped, "refuses the token")

	t.Setenv("VAULT_TOKEN", "s.test-token\n") // as a Secret made from a file has it
	wrap(t, openWrapping(t, b.uri), sealingKey(t))

	t.Setenv("VAULT_TOKEN", "s.of-another-server")
	name := writeFile(t, "s.old\n")
	r, p := openWrapping(t, b.uri+"&token-file="+name), sealingKey(t)
	fails(t, r, wrapped, "refuses the token")
	if err := os.WriteFile(name, []byte("s.test-token\n"), 0o600); err != nil { // as an agent renews it
		t.Fatal(err)
	}
	unwraps(t, r, wrap(t, r, p), p)
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	fails(t, r, wrapped, name)
}

func TestTransitRootLogsInByItsServiceAccount(t *testing.T) {
	s, b := transitBackend(t)
	t.Setenv("VAULT_TOKEN", "s.of-another-server")
	s.LetIn("datakeys", "jwt of the manager")
	jwt := writeFile(t, "jwt of the manager\n")
	r, p := openWrapping(t, b.uri+"&kubernetes-role=datakeys&token-file="+jwt), sealingKey(t)
	wrapped := wrap(t, r, p)
	unwraps(t, r, wrapped, p)

	fails(t, openWrapping(t, b.uri+"&kubernetes-role=another&token-file="+jwt), wrapped, "lets nobody in by role another")
	fails(t, openWrapping(t, b.uri+"&kubernetes-role=datakeys"), wrapped, "/var/run/secrets/kubernetes.io/serviceaccount/token")
	s.Misbehave(rootkeytest.TransitLogin, rootkeytest.WrongMembers)
	fails(t, r, wrapped, "not what it was asked for")
}

func TestTransitRootRefusesKeysThatProveNothing(t *testing.T) {
	s, b := transitBackend(t)
	for name, test := range map[string]struct {
		kind    string
		derived bool
		says    string
	}{
		"a public key encrypts":         {kind: "rsa-4096", says: `of type "rsa-4096"`},
		"another key for every context": {kind: "aes256-gcm96", derived: true, says: "derived true"},
		"no key for encryption":         {kind: "hmac", says: `of type "hmac"`},
	} {
		t.Run(name, func(t *testing.T) {
			s.CreateKey("root", test.kind, test.derived)
			_, err := openWrapping(t, b.uri).Wrap(t.Context(), sealingKey(t), wrappingAD)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%v, want the word %q", err, test.says)
			}
		})
	}
}

func TestTransitRootSaysWhatTheServiceLacks(t *testing.T) {
	s, b := transitBackend(t)
	r, p := openWrapping(t, b.uri), sealingKey(t)
	wrapped := wrap(t, r, p)

	s.SetSealed(true)
	fails(t, r, wrapped, "unseal it")
	s.SetSealed(false)
	unwraps(t, r, wrapped, p)

	s.SetNamespace("team/a")
	fails(t, r, wrapped, "at mount transit")
	inside := openWrapping(t, b.uri+"&namespace=team/a")
	unwraps(t, inside, wrap(t, inside, p), p)
	s.SetNamespace("")

	s.RotateKey("root")
	s.SetMinDecryptionVersion("root", 2)
	_, err := r.Unwrap(t.Context(), wrapped, wrappingAD)
	if err == nil || !strings.Contains(err.Error(), "min_decryption_version") || errors.Is(err, envelope.ErrBroken) {
		t.Errorf("%v, want the word of min_decryption_version", err)
	}
	second := wrap(t, r, p)

	s.CreateKey("root", "aes256-gcm96", false) // another of the same name
	if _, err := r.Unwrap(t.Context(), wrapped, wrappingAD); !errors.Is(err, envelope.ErrBroken) {
		t.Errorf("by a new key of the same name: %v, want ErrBroken", err)
	}
	if _, err := r.Unwrap(t.Context(), second, wrappingAD); err == nil || !strings.Contains(err.Error(), "lacks the version") {
		t.Errorf("by a key that is too old: %v, want the word that it lacks the version", err)
	}
}

func TestAWSRootHeedsNoOtherVariables(t *testing.T) {
	s, b := awsBackend(t)
	if refusedByFIPS(t, b) {
		return
	}
	for name, value := range map[string]string{
		"AWS_REGION":               "us-east-2",
		"AWS_DEFAULT_REGION":       "us-east-2",
		"AWS_KMS_ENDPOINT":         "https://" + nowhere,
		"AWS_ENDPOINT_URL":         "https://" + nowhere,
		"AWS_ENDPOINT_URL_KMS":     "https://" + nowhere,
		"AWSKMS_WRAPPER_KEY_ID":    keyTwo,
		"VAULT_AWSKMS_SEAL_KEY_ID": keyTwo,
		"AWS_CA_BUNDLE":            writeFile(t, string(s.Certificate())),
	} {
		t.Setenv(name, value)
	}
	r, p := openWrapping(t, b.uri), sealingKey(t)
	unwraps(t, r, wrap(t, r, p), p)
	if s.Credential() != "AKIDEXAMPLE" {
		t.Errorf("signed by %q, want the access key of the environment", s.Credential())
	}
}

func TestAWSRootFollowsItsAlias(t *testing.T) {
	s, b := awsBackend(t)
	if refusedByFIPS(t, b) {
		return
	}
	first, second := s.CreateKey(keyOne), s.CreateKey(keyTwo)
	s.PointAlias("alias/root", first)
	r, p := openWrapping(t, strings.Replace(b.uri, keyOne, "alias/root", 1)), sealingKey(t)
	before := wrap(t, r, p)
	s.PointAlias("alias/root", second)
	unwraps(t, r, before, p)
	unwraps(t, r, wrap(t, r, p), p)
	s.DisableKey(first, true)
	_, err := r.Unwrap(t.Context(), before, wrappingAD)
	if err == nil || !strings.Contains(err.Error(), "DisabledException") || !strings.Contains(err.Error(), "enable the key") {
		t.Errorf("%v, want the word that the key is disabled, and what to do", err)
	}
}

func TestAWSRootSaysWhatItLacks(t *testing.T) {
	s, b := awsBackend(t)
	if refusedByFIPS(t, b) {
		return
	}
	r := openWrapping(t, b.uri)
	wrapped := wrap(t, r, sealingKey(t))
	s.DisableKey(arnOne, true)
	fails(t, r, wrapped, "DisabledException: enable the key")
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent/credentials")
	fails(t, r, wrapped, "NoCredentialProviders: give the manager credentials")
}

func TestAlicloudRootHeedsNoOtherVariables(t *testing.T) {
	s, b := alicloudBackend(t)
	if refusedByFIPS(t, b) {
		return
	}
	for name, value := range map[string]string{
		"ALICLOUD_REGION":               "cn-beijing",
		"ALICLOUD_DOMAIN":               nowhere,
		"ALICLOUDKMS_WRAPPER_KEY_ID":    keyTwo,
		"VAULT_ALICLOUDKMS_SEAL_KEY_ID": keyTwo,
	} {
		t.Setenv(name, value)
	}
	r, p := openWrapping(t, b.uri), sealingKey(t)
	unwraps(t, r, wrap(t, r, p), p)
	if s.AccessKey() != "LTAIexample" {
		t.Errorf("signed by %q, want the access key of the environment", s.AccessKey())
	}

	t.Setenv("DEBUG", "other,sdk")
	if _, err := rootkey.Open(t.Context(), b.uri, logr.Discard()); err == nil || !strings.Contains(err.Error(), "DEBUG=sdk") {
		t.Errorf("%v, want the word that the library would print what it encrypts", err)
	}
}

func TestAlicloudRootKeepsThePasswordOfAProxy(t *testing.T) {
	for name, proxies := range map[string]struct{ proxy, except string }{
		"a proxy that asks for a password":       {"http://me:hidden@" + nowhere, "10.0.0.0/8"},
		"a proxy without a scheme":               {nowhere, ""},
		"exceptions that are no regular pattern": {"http://" + nowhere, "*.svc,("},
	} {
		t.Run(name, func(t *testing.T) {
			s, b := alicloudBackend(t)
			if refusedByFIPS(t, b) {
				return
			}
			t.Setenv("HTTPS_PROXY", proxies.proxy)
			t.Setenv("NO_PROXY", proxies.except)
			r, p := openWrapping(t, b.uri), sealingKey(t)
			unwraps(t, r, wrap(t, r, p), p) // at a loopback address, where no proxy stands between
			if got := s.Strayed(); got != "" {
				t.Errorf("the service was sent %q, which is the proxy's", got)
			}
		})
	}
}

func TestAlicloudRootFollowsItsAliasAndSaysWhatItLacks(t *testing.T) {
	s, b := alicloudBackend(t)
	if refusedByFIPS(t, b) {
		return
	}
	s.PointAlias("alias/root", keyOne)
	r, p := openWrapping(t, strings.Replace(b.uri, keyOne, "alias/root", 1)), sealingKey(t)
	before := wrap(t, r, p)
	s.PointAlias("alias/root", keyTwo)
	unwraps(t, r, before, p)
	unwraps(t, r, wrap(t, r, p), p)
	s.DisableKey(keyOne, true)
	fails(t, openWrapping(t, b.uri), wrapOther(t, s, b), "Rejected.Disabled (HTTP status 409): enable the key")
}

// wrapOther wraps a key while its root key works, and leaves that disabled.
func wrapOther(t *testing.T, s *rootkeytest.AlicloudKMS, b wrappingBackend) []byte {
	t.Helper()
	s.DisableKey(keyOne, false)
	defer s.DisableKey(keyOne, true)
	return wrap(t, openWrapping(t, b.uri), sealingKey(t))
}
