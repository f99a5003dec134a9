package rootkeytest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// Transit is a fake of the transit engine of Vault and OpenBao, at the mount "transit" of a server: encrypt, decrypt and
// reading a key, with real encryption, versions and the engine's own errors; and the login of the Kubernetes auth method
// at auth/kubernetes.
type Transit struct {
	Service

	token     string
	namespace string // guarded by mu
	keys      map[string]*transitKey
	roles     map[string]string // the service account token that a role lets in; guarded by mu
	sealed    bool              // guarded by mu
}

type transitKey struct {
	serviceKey
	kind       string
	derived    bool
	minVersion int
}

// Paths of operations, as Service.Misbehave takes them, for a key named KEY: "encrypt/KEY", "decrypt/KEY", "keys/KEY".
const (
	TransitEncrypt = "encrypt/"
	TransitDecrypt = "decrypt/"
	TransitRead    = "keys/"
	TransitLogin   = "auth/kubernetes/login"
)

// NewTransit starts a server that lets in whoever has the token. It has no key yet.
func NewTransit(token string) *Transit {
	s := &Transit{token: token, keys: map[string]*transitKey{}, roles: map[string]string{}}
	s.start(func(r *http.Request, _ []byte) string {
		return strings.TrimPrefix(strings.TrimPrefix(r.URL.Path, "/v1/"), "transit/")
	}, `{"data":{"ciphertext":7,"plaintext":[],"type":{},"derived":"no"},"auth":{"client_token":""}}`, s.answer)
	return s
}

// SetNamespace makes the server answer in that namespace alone.
func (s *Transit) SetNamespace(namespace string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.namespace = namespace
}

// CreateKey makes a key of a type such as aes256-gcm96.
func (s *Transit) CreateKey(name, kind string, derived bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[name] = &transitKey{serviceKey: *newServiceKey(), kind: kind, derived: derived, minVersion: 1}
}

// RootKey returns the URI of the key of that name as a root key, and gives this process the token.
func (s *Transit) RootKey(t testing.TB, name string) (uri string) {
	t.Helper()
	t.Setenv("VAULT_TOKEN", s.token)
	return "transit://" + s.Host() + "/transit/" + name + "?ca-file=" + s.certificateFile(t)
}

// RotateKey gives the key a new version.
func (s *Transit) RotateKey(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[name].rotate()
}

// SetMinDecryptionVersion refuses what lower versions of the key encrypted.
func (s *Transit) SetMinDecryptionVersion(name string, version int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[name].minVersion = version
}

// DeleteKey forgets the key.
func (s *Transit) DeleteKey(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.keys, name)
}

// LetIn gives the server's token to whoever logs in by role with that token of a service account.
func (s *Transit) LetIn(role, jwt string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roles[role] = jwt
}

// SetSealed makes the server answer as one that is sealed.
func (s *Transit) SetSealed(sealed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sealed = sealed
}

func (s *Transit) answer(w http.ResponseWriter, r *http.Request, body []byte, m Mischief) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var in struct{ Plaintext, Ciphertext, Role, JWT string }
	if len(body) > 0 && json.Unmarshal(body, &in) != nil {
		transitError(w, http.StatusBadRequest, "failed to parse JSON input")
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	switch {
	case s.sealed:
		transitError(w, http.StatusServiceUnavailable, "Vault is sealed")
		return
	case r.Header.Get("X-Vault-Namespace") != s.namespace:
		transitError(w, http.StatusNotFound, "no handler for route")
		return
	case path == TransitLogin:
		if jwt, ok := s.roles[in.Role]; !ok || jwt != in.JWT {
			transitError(w, http.StatusForbidden, "permission denied")
			return
		}
		transitAnswer(w, map[string]any{"auth": map[string]any{"client_token": s.token}})
		return
	case r.Header.Get("X-Vault-Token") != s.token:
		transitError(w, http.StatusForbidden, "permission denied")
		return
	}
	path, mounted := strings.CutPrefix(path, "transit/")
	operation, name, _ := strings.Cut(path, "/")
	if !mounted {
		transitError(w, http.StatusNotFound, "no handler for route")
		return
	}
	k, ok := s.keys[name]
	switch {
	case !ok && operation == "keys":
		transitError(w, http.StatusNotFound)
	case !ok:
		transitError(w, http.StatusBadRequest, "encryption key not found")
	case operation == "keys" && r.Method == http.MethodGet:
		transitAnswer(w, map[string]any{"data": map[string]any{
			"type": k.kind, "derived": k.derived, "latest_version": len(k.versions), "min_decryption_version": k.minVersion,
		}})
	case operation == "encrypt" && r.Method == http.MethodPut:
		k.encrypt(w, in.Plaintext, m)
	case operation == "decrypt" && r.Method == http.MethodPut:
		k.decrypt(w, in.Ciphertext, m)
	default:
		transitError(w, http.StatusMethodNotAllowed, "unsupported operation")
	}
}

func (k *transitKey) encrypt(w http.ResponseWriter, text string, m Mischief) {
	plaintext, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		transitError(w, http.StatusBadRequest, "error base64-decoding plaintext")
		return
	}
	version, sealed := k.seal(plaintext, nil)
	prefix := fmt.Sprintf("vault:v%d:", version)
	if m == OtherKey {
		prefix = "vault:0:"
	}
	transitAnswer(w, map[string]any{"data": map[string]any{"ciphertext": prefix + base64.StdEncoding.EncodeToString(sealed)}})
}

func (k *transitKey) decrypt(w http.ResponseWriter, text string, m Mischief) {
	rest, ok := strings.CutPrefix(text, "vault:v")
	number, encoded, _ := strings.Cut(rest, ":")
	version, err := strconv.Atoi(number)
	if !ok || err != nil {
		transitError(w, http.StatusBadRequest, "invalid ciphertext: no prefix")
		return
	}
	sealed, err := base64.StdEncoding.DecodeString(encoded)
	switch {
	case err != nil:
		transitError(w, http.StatusBadRequest, "invalid ciphertext: could not decode base64")
		return
	case version > len(k.versions):
		transitError(w, http.StatusBadRequest, "invalid ciphertext: version is too new")
		return
	case version < k.minVersion:
		transitError(w, http.StatusBadRequest, "ciphertext or signature version is disallowed by policy (too old)")
		return
	}
	plaintext, err := k.open(version, sealed, nil)
	if err != nil {
		transitError(w, http.StatusBadRequest, "cipher: message authentication failed")
		return
	}
	if m == WrongPlaintext {
		plaintext = twisted(plaintext)
	}
	transitAnswer(w, map[string]any{"data": map[string]any{"plaintext": base64.StdEncoding.EncodeToString(plaintext)}})
}

func transitAnswer(w http.ResponseWriter, members map[string]any) {
	answerJSON(w, "application/json", http.StatusOK, members)
}

func transitError(w http.ResponseWriter, status int, texts ...string) {
	answerJSON(w, "application/json", status, map[string]any{"errors": append([]string{}, texts...)})
}
