package rootkeytest

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"testing"
)

// AlicloudKMS is a fake of Alibaba Cloud KMS by its public OpenAPI (RPC style, 2016-01-20): Encrypt, Decrypt and
// DescribeKey on symmetric keys, with real encryption and the service's own errors. It asks for a signature and does not
// check it.
type AlicloudKMS struct {
	Service

	keys      map[string]*serviceKey // by ID; guarded by mu
	aliases   map[string]string      // to IDs; guarded by mu
	accessKey string                 // guarded by mu
	strayed   string                 // guarded by mu
}

// NewAlicloudKMS starts the service. It has no key yet.
func NewAlicloudKMS() *AlicloudKMS {
	s := &AlicloudKMS{keys: map[string]*serviceKey{}, aliases: map[string]string{}}
	s.start(func(r *http.Request, body []byte) string {
		return alicloudParameters(r, body).Get("Action")
	}, `{"CiphertextBlob":7,"Plaintext":[],"KeyId":{},"KeyMetadata":"none","RequestId":9}`, s.answer)
	return s
}

// CreateKey makes a key of that ID.
func (s *AlicloudKMS) CreateKey(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[id] = newServiceKey()
}

// RootKey returns the URI of the key of that ID as a root key, and gives this process credentials that the service takes.
func (s *AlicloudKMS) RootKey(t testing.TB, id string) (uri string) {
	t.Helper()
	t.Setenv("ALICLOUD_ACCESS_KEY", "LTAIexample")
	t.Setenv("ALICLOUD_SECRET_KEY", "secret")
	return "alicloudkms://eu-central-1/" + id + "?domain=" + s.Host() + "&ca-file=" + s.certificateFile(t)
}

// PointAlias points the alias, alias/NAME, to a key.
func (s *AlicloudKMS) PointAlias(alias, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aliases[alias] = id
}

// RotateKey gives the key a new primary version.
func (s *AlicloudKMS) RotateKey(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[id].rotate()
}

// DisableKey disables the key, or enables it again.
func (s *AlicloudKMS) DisableKey(id string, disabled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[id].disabled = disabled
}

// DeleteKey forgets the key.
func (s *AlicloudKMS) DeleteKey(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.keys, id)
}

// AccessKey returns the access key ID of the last request.
func (s *AlicloudKMS) AccessKey() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accessKey
}

// Strayed returns the header Authorization of the last request, which the service has no use for.
func (s *AlicloudKMS) Strayed() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.strayed
}

// alicloudBlob is what a ciphertext of the fake holds; clients take it as it is.
type alicloudBlob struct {
	KeyID   string
	Version int
	Sealed  []byte
}

func alicloudParameters(r *http.Request, body []byte) url.Values {
	values := r.URL.Query()
	form, err := url.ParseQuery(string(body))
	if err == nil {
		for name, v := range form {
			values[name] = append(values[name], v...)
		}
	}
	return values
}

func (s *AlicloudKMS) answer(w http.ResponseWriter, r *http.Request, body []byte, m Mischief) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := alicloudParameters(r, body)
	if in.Get("Signature") == "" || in.Get("AccessKeyId") == "" || in.Get("Version") != "2016-01-20" {
		alicloudError(w, http.StatusBadRequest, "IncompleteSignature")
		return
	}
	s.accessKey, s.strayed = in.Get("AccessKeyId"), r.Header.Get("Authorization")
	switch in.Get("Action") {
	case "Encrypt":
		s.encrypt(w, in, m)
	case "Decrypt":
		s.decrypt(w, in, m)
	case "DescribeKey":
		id := s.resolve(in.Get("KeyId"))
		if _, ok := s.keys[id]; !ok {
			alicloudError(w, http.StatusNotFound, "Forbidden.KeyNotFound")
			return
		}
		alicloudAnswer(w, map[string]any{"KeyMetadata": map[string]any{"KeyId": id, "KeyState": "Enabled"}})
	default:
		alicloudError(w, http.StatusNotFound, "InvalidAction.NotFound")
	}
}

func (s *AlicloudKMS) encrypt(w http.ResponseWriter, in url.Values, m Mischief) {
	id := s.resolve(in.Get("KeyId"))
	k, ok := s.keys[id]
	plaintext, err := base64.StdEncoding.DecodeString(in.Get("Plaintext"))
	switch {
	case err != nil || len(plaintext) == 0:
		alicloudError(w, http.StatusBadRequest, "InvalidParameter")
		return
	case !ok:
		alicloudError(w, http.StatusNotFound, "Forbidden.KeyNotFound")
		return
	case k.disabled:
		alicloudError(w, http.StatusConflict, "Rejected.Disabled")
		return
	}
	version, sealed := k.seal(plaintext, []byte(id+in.Get("EncryptionContext")))
	blob, err := json.Marshal(alicloudBlob{KeyID: id, Version: version, Sealed: sealed})
	if err != nil {
		alicloudError(w, http.StatusInternalServerError, "InternalFailure")
		return
	}
	if m == OtherKey {
		id += "0"
	}
	alicloudAnswer(w, map[string]any{"CiphertextBlob": blob, "KeyId": id})
}

func (s *AlicloudKMS) decrypt(w http.ResponseWriter, in url.Values, m Mischief) {
	var blob alicloudBlob
	text, err := base64.StdEncoding.Strict().DecodeString(in.Get("CiphertextBlob"))
	if err != nil || !readBlob(text, &blob) {
		alicloudError(w, http.StatusBadRequest, "InvalidParameter")
		return
	}
	k, ok := s.keys[blob.KeyID]
	switch {
	case !ok:
		alicloudError(w, http.StatusNotFound, "Forbidden.KeyNotFound")
		return
	case k.disabled:
		alicloudError(w, http.StatusConflict, "Rejected.Disabled")
		return
	}
	plaintext, err := k.open(blob.Version, blob.Sealed, []byte(blob.KeyID+in.Get("EncryptionContext")))
	if err != nil {
		alicloudError(w, http.StatusBadRequest, "InvalidParameter")
		return
	}
	if m == WrongPlaintext {
		plaintext = twisted(plaintext)
	}
	alicloudAnswer(w, map[string]any{"Plaintext": plaintext, "KeyId": blob.KeyID})
}

// resolve returns the key ID that an ID or alias means. mu is held.
func (s *AlicloudKMS) resolve(id string) string {
	if target, ok := s.aliases[id]; ok {
		return target
	}
	return id
}

func alicloudAnswer(w http.ResponseWriter, members map[string]any) {
	members["RequestId"] = "00000000-0000-4000-8000-000000000000"
	answerJSON(w, "application/json", http.StatusOK, members)
}

func alicloudError(w http.ResponseWriter, status int, code string) {
	answerJSON(w, "application/json", status, map[string]any{
		"HttpStatus": status, "Code": code, "RequestId": "00000000-0000-4000-8000-000000000000", "HostId": "kms.test",
	})
}
