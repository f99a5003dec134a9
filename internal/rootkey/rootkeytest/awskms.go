package rootkeytest

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// AWSKMS is a fake of AWS KMS: JSON 1.1 with Encrypt, Decrypt and DescribeKey on symmetric keys, with real encryption and
// the service's own errors. It asks for a signature and does not check it.
type AWSKMS struct {
	Service
	region string

	keys       map[string]*serviceKey // by ARN; guarded by mu
	aliases    map[string]string      // to ARNs; guarded by mu
	credential string                 // guarded by mu
}

const (
	awsAccount     = "111122223333"
	awsContentType = "application/x-amz-json-1.1"
)

var awsCredential = regexp.MustCompile(`^AWS4-HMAC-SHA256 Credential=([^/]+)/\d{8}/([a-z0-9-]+)/kms/aws4_request,`)

// NewAWSKMS starts the service of a region. It has no key yet.
func NewAWSKMS(region string) *AWSKMS {
	s := &AWSKMS{region: region, keys: map[string]*serviceKey{}, aliases: map[string]string{}}
	s.start(func(r *http.Request, _ []byte) string {
		return strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")
	}, `{"CiphertextBlob":7,"Plaintext":[],"KeyId":{}}`, s.answer)
	return s
}

// CreateKey makes a key of that ID, a UUID in text, and returns its ARN.
func (s *AWSKMS) CreateKey(id string) string {
	arn := "arn:aws:kms:" + s.region + ":" + awsAccount + ":key/" + id
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[arn] = newServiceKey()
	return arn
}

// RootKey returns the URI of the key of that ID as a root key, and gives this process credentials that the service takes.
func (s *AWSKMS) RootKey(t testing.TB, id string) (uri string) {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CA_BUNDLE", "") // read for every call, and used for none
	return "awskms://" + s.region + "/" + id + "?endpoint=" + url.QueryEscape("https://"+s.Host()) + "&ca-file=" + s.certificateFile(t)
}

// PointAlias points the alias, alias/NAME, to a key.
func (s *AWSKMS) PointAlias(alias, arn string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aliases[alias] = arn
}

// RotateKey gives the key new material.
func (s *AWSKMS) RotateKey(arn string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[arn].rotate()
}

// DisableKey disables the key, or enables it again.
func (s *AWSKMS) DisableKey(arn string, disabled bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[arn].disabled = disabled
}

// DeleteKey forgets the key.
func (s *AWSKMS) DeleteKey(arn string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.keys, arn)
}

// Credential returns the access key ID of the last request.
func (s *AWSKMS) Credential() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.credential
}

type awsRequest struct {
	KeyID             string `json:"KeyId"`
	Plaintext         []byte
	CiphertextBlob    []byte
	EncryptionContext map[string]string
}

// awsBlob is what a ciphertext of the fake holds; clients take it as it is.
type awsBlob struct {
	ARN     string
	Version int
	Sealed  []byte
}

func (s *AWSKMS) answer(w http.ResponseWriter, r *http.Request, body []byte, m Mischief) {
	s.mu.Lock()
	defer s.mu.Unlock()
	signed := awsCredential.FindStringSubmatch(r.Header.Get("Authorization"))
	if signed == nil {
		awsError(w, "MissingAuthenticationTokenException")
		return
	}
	if signed[2] != s.region {
		awsError(w, "InvalidSignatureException")
		return
	}
	s.credential = signed[1]
	var in awsRequest
	if json.Unmarshal(body, &in) != nil {
		awsError(w, "SerializationException")
		return
	}
	switch strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService.") {
	case "Encrypt":
		s.encrypt(w, &in, m)
	case "Decrypt":
		s.decrypt(w, &in, m)
	case "DescribeKey":
		arn := s.resolve(in.KeyID)
		k, ok := s.keys[arn]
		if !ok {
			awsError(w, "NotFoundException")
			return
		}
		_, id, _ := strings.Cut(arn, ":key/")
		awsAnswer(w, map[string]any{"KeyMetadata": map[string]any{"KeyId": id, "Arn": arn, "Enabled": !k.disabled}})
	default:
		awsError(w, "UnknownOperationException")
	}
}

func (s *AWSKMS) encrypt(w http.ResponseWriter, in *awsRequest, m Mischief) {
	arn := s.resolve(in.KeyID)
	k, ok := s.keys[arn]
	switch {
	case len(in.Plaintext) == 0 || len(in.Plaintext) > 4096:
		awsError(w, "ValidationException")
		return
	case !ok:
		awsError(w, "NotFoundException")
		return
	case k.disabled:
		awsError(w, "DisabledException")
		return
	}
	version, sealed := k.seal(in.Plaintext, awsContext(arn, in.EncryptionContext))
	blob, err := json.Marshal(awsBlob{ARN: arn, Version: version, Sealed: sealed})
	if err != nil {
		awsError(w, "KMSInternalException")
		return
	}
	if m == OtherKey {
		arn += "0"
	}
	awsAnswer(w, map[string]any{"CiphertextBlob": blob, "KeyId": arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"})
}

func (s *AWSKMS) decrypt(w http.ResponseWriter, in *awsRequest, m Mischief) {
	var blob awsBlob
	if len(in.CiphertextBlob) == 0 || len(in.CiphertextBlob) > 6144 {
		awsError(w, "ValidationException")
		return
	}
	if !readBlob(in.CiphertextBlob, &blob) {
		awsError(w, "InvalidCiphertextException")
		return
	}
	k, ok := s.keys[blob.ARN]
	switch {
	case in.KeyID != "" && s.resolve(in.KeyID) != blob.ARN:
		awsError(w, "IncorrectKeyException")
		return
	case !ok:
		awsError(w, "AccessDeniedException")
		return
	case k.disabled:
		awsError(w, "DisabledException")
		return
	}
	plaintext, err := k.open(blob.Version, blob.Sealed, awsContext(blob.ARN, in.EncryptionContext))
	if err != nil {
		awsError(w, "InvalidCiphertextException")
		return
	}
	if m == WrongPlaintext {
		plaintext = twisted(plaintext)
	}
	awsAnswer(w, map[string]any{"Plaintext": plaintext, "KeyId": blob.ARN, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"})
}

// resolve returns the ARN that a key ID, ARN, alias or alias ARN means. mu is held.
func (s *AWSKMS) resolve(id string) string {
	prefix := "arn:aws:kms:" + s.region + ":" + awsAccount + ":"
	if arn, ok := s.aliases[strings.TrimPrefix(id, prefix)]; ok {
		return arn
	}
	if strings.HasPrefix(id, "arn:") {
		return id
	}
	return prefix + "key/" + id
}

func awsContext(arn string, context map[string]string) []byte {
	parts := []string{arn}
	for _, name := range slices.Sorted(maps.Keys(context)) {
		parts = append(parts, name, context[name])
	}
	b, err := json.Marshal(parts)
	if err != nil {
		return nil
	}
	return b
}

func awsAnswer(w http.ResponseWriter, members map[string]any) {
	w.Header().Set("X-Amzn-Requestid", "00000000-0000-4000-8000-000000000000")
	answerJSON(w, awsContentType, http.StatusOK, members)
}

func awsError(w http.ResponseWriter, code string) {
	answerJSON(w, awsContentType, http.StatusBadRequest, map[string]any{"__type": code})
}
