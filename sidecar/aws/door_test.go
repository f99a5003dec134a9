package aws

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

func newDoor(f *fakeService) *Door {
	return New(Config{KeyService: f, Logger: slog.New(slog.DiscardHandler)})
}

// ask asks a door for an operation and returns the answer, whose common headers it checks.
func ask(t testing.TB, h http.Handler, operation, body string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(body))
	r.Header.Set("X-Amz-Target", targetPrefix+operation)
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	checkAnswer(t, w)
	return w
}

var uuid = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

// checkAnswer checks what holds for every answer: clients take one that is not for success.
func checkAnswer(t testing.TB, w *httptest.ResponseRecorder) {
	t.Helper()
	body := w.Body.Bytes()
	var object map[string]any
	if err := json.Unmarshal(body, &object); err != nil {
		t.Fatalf("the body is no JSON object: %v", err)
	}
	name, failed := object["__type"]
	if failed != (w.Code != http.StatusOK) || w.Code == http.StatusOK && len(object) == 0 {
		t.Errorf("status %d with the body %s", w.Code, body)
	}
	h := w.Header()
	for header, want := range map[string]string{
		"Content-Type": "application/x-amz-json-1.1", "Content-Length": strconv.Itoa(len(body)), "Cache-Control": "no-cache, no-store",
	} {
		if got := h.Get(header); got != want {
			t.Errorf("%s is %q, want %q", header, got, want)
		}
	}
	if got := h.Get("x-amzn-RequestId"); !uuid.MatchString(got) {
		t.Errorf("x-amzn-RequestId is %q, want a UUID", got)
	}
	if got := h.Get("X-Amzn-ErrorType"); failed && got != name || !failed && got != "" {
		t.Errorf("X-Amzn-ErrorType is %q beside __type %v", got, name)
	}
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// blob is the first that a fakeService makes.
func firstBlob() []byte { return append(bytes.Clone(blobBytes), 0) }

const (
	contextJSON = `{"b":"2","a":"é","\"":""}`
)

var contextMap = map[string]string{"b": "2", "a": "é", "\"": ""}

// TestEachOperationOnTheWire asks each operation with all of its members, as clients write them, and compares what the key service gets
// and the whole answer.
func TestEachOperationOnTheWire(t *testing.T) {
	material, other := materialID(materialBytes), materialID(bytes.ToUpper(materialBytes))
	blob := b64(firstBlob())
	made := `{"CiphertextBlob":"` + blob + `","KeyId":"` + keyARN + `","KeyMaterialId":"` + material + `"`
	for name, c := range map[string]struct {
		operation, body string
		asked           proto.Message
		answer          string
	}{
		"GenerateDataKey with a number of bytes": {
			"GenerateDataKey",
			`{"KeyId":"alias/orders","NumberOfBytes":32,"EncryptionContext":` + contextJSON + `,"GrantTokens":[],"DryRun":false}`,
			&kmsv1.GenerateDataKeyRequest{KeyId: "alias/orders", NumberOfBytes: 32, EncryptionContext: contextMap, Door: door},
			made + `,"Plaintext":"` + b64(secretBytes) + `"}`,
		},
		"GenerateDataKey with a key spec, spaces and escapes": {
			"GenerateDataKey",
			" { \"KeyId\" : \"\\u006frders\" ,\r\n\t\"KeySpec\":\"AES_256\", \"EncryptionContext\" : { \"a\\/\" : \"\\ud83d\\ude00\" } } ",
			&kmsv1.GenerateDataKeyRequest{KeyId: "orders", KeySpec: "AES_256", EncryptionContext: map[string]string{"a/": "😀"}, Door: door},
			made + `,"Plaintext":"` + b64(secretBytes) + `"}`,
		},
		"GenerateDataKeyWithoutPlaintext": {
			"GenerateDataKeyWithoutPlaintext", `{"KeyId":"orders","KeySpec":"AES_128","EncryptionContext":{}}`,
			&kmsv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: "orders", KeySpec: "AES_128", Door: door},
			made + `}`,
		},
		"GenerateDataKeyPair": {
			"GenerateDataKeyPair", `{"KeyId":"orders","KeyPairSpec":"ECC_NIST_P256","EncryptionContext":` + contextJSON + `}`,
			&kmsv1.GenerateDataKeyPairRequest{KeyId: "orders", KeyPairSpec: "ECC_NIST_P256", EncryptionContext: contextMap, Door: door},
			`{"PrivateKeyCiphertextBlob":"` + blob + `","PublicKey":"` + b64(publicBytes) + `","KeyId":"` + keyARN +
				`","KeyPairSpec":"ECC_NIST_P256","KeyMaterialId":"` + material + `","PrivateKeyPlaintext":"` + b64(secretBytes) + `"}`,
		},
		"GenerateDataKeyPairWithoutPlaintext": {
			"GenerateDataKeyPairWithoutPlaintext", `{"KeyId":"orders","KeyPairSpec":"RSA_2048"}`,
			&kmsv1.GenerateDataKeyPairWithoutPlaintextRequest{KeyId: "orders", KeyPairSpec: "RSA_2048", Door: door},
			`{"PrivateKeyCiphertextBlob":"` + blob + `","PublicKey":"` + b64(publicBytes) + `","KeyId":"` + keyARN +
				`","KeyPairSpec":"RSA_2048","KeyMaterialId":"` + material + `"}`,
		},
		"Encrypt": {
			"Encrypt",
			`{"KeyId":"orders","Plaintext":"c2VjcmV0","EncryptionContext":` + contextJSON + `,"EncryptionAlgorithm":"SYMMETRIC_DEFAULT"}`,
			&kmsv1.EncryptRequest{KeyId: "orders", Plaintext: []byte("secret"), EncryptionContext: contextMap, Door: door},
			`{"CiphertextBlob":"` + blob + `","KeyId":"` + keyARN + `","EncryptionAlgorithm":"SYMMETRIC_DEFAULT"}`,
		},
		"Decrypt": {
			"Decrypt", `{"CiphertextBlob":"` + blob + `","KeyId":"` + keyARN + `","EncryptionContext":` + contextJSON + `}`,
			&kmsv1.DecryptRequest{CiphertextBlob: firstBlob(), KeyId: keyARN, EncryptionContext: contextMap, Door: door},
			`{"KeyId":"` + keyARN + `","EncryptionAlgorithm":"SYMMETRIC_DEFAULT","KeyMaterialId":"` + material + `","Plaintext":"b3BlbmVk"}`,
		},
		"ReEncrypt": {
			"ReEncrypt",
			`{"CiphertextBlob":"` + blob + `","SourceKeyId":"source","DestinationKeyId":"orders","SourceEncryptionContext":` +
				contextJSON + `,"DestinationEncryptionContext":{"c":"3"},"SourceEncryptionAlgorithm":"SYMMETRIC_DEFAULT",` +
				`"DestinationEncryptionAlgorithm":"SYMMETRIC_DEFAULT"}`,
			&kmsv1.ReEncryptRequest{
				CiphertextBlob: firstBlob(), SourceKeyId: "source", DestinationKeyId: "orders", SourceEncryptionContext: contextMap,
				DestinationEncryptionContext: map[string]string{"c": "3"}, Door: door,
			},
			`{"CiphertextBlob":"` + b64(append(bytes.Clone(blobBytes), 1)) + `","SourceKeyId":"` + keyARN + `","KeyId":"` + keyARN +
				`","SourceEncryptionAlgorithm":"SYMMETRIC_DEFAULT","DestinationEncryptionAlgorithm":"SYMMETRIC_DEFAULT",` +
				`"SourceKeyMaterialId":"` + material + `","DestinationKeyMaterialId":"` + other + `"}`,
		},
		"GenerateRandom": {
			"GenerateRandom", `{"NumberOfBytes":3}`, &kmsv1.GenerateRandomRequest{NumberOfBytes: 3}, `{"Plaintext":"cnJy"}`,
		},
		"DescribeKey": {
			"DescribeKey", `{"KeyId":"orders","GrantTokens":null}`, &kmsv1.DescribeKeyRequest{KeyId: "orders"},
			`{"KeyMetadata":{"AWSAccountId":"team-a","KeyId":"` + keyID + `","Arn":"` + keyARN + `","CreationDate":1700000000.25,"Enabled":true,` +
				`"Description":"of \"orders\"","KeyUsage":"ENCRYPT_DECRYPT","KeyState":"Enabled","Origin":"AWS_KMS","KeyManager":"CUSTOMER",` +
				`"CustomerMasterKeySpec":"SYMMETRIC_DEFAULT","KeySpec":"SYMMETRIC_DEFAULT","EncryptionAlgorithms":["SYMMETRIC_DEFAULT"],` +
				`"MultiRegion":false,"CurrentKeyMaterialId":"` + material + `"}}`,
		},
		"ListKeys, the first page": {
			"ListKeys", `{"Limit":1}`, &kmsv1.ListKeysRequest{Limit: 1},
			`{"Keys":[{"KeyId":"` + keyID + `","KeyArn":"` + keyARN + `"}],"NextMarker":"more","Truncated":true}`,
		},
		"ListKeys, the last page": {
			"ListKeys", `{"Marker":"more"}`, &kmsv1.ListKeysRequest{Marker: "more"},
			`{"Keys":[{"KeyId":"second","KeyArn":"` + keyARN + `2"}],"Truncated":false}`,
		},
		"ListAliases of a key": {
			"ListAliases", `{"KeyId":"orders","Limit":7}`, &kmsv1.ListAliasesRequest{KeyId: "orders", Limit: 7},
			`{"Aliases":[{"AliasName":"alias/orders","AliasArn":"arn:datakeys:kms:install:team-a:alias/orders","TargetKeyId":"` + keyID + `"}],` +
				`"NextMarker":"more","Truncated":true}`,
		},
		"ListAliases, an empty page": {
			"ListAliases", `{"Marker":"more"}`, &kmsv1.ListAliasesRequest{Marker: "more"}, `{"Aliases":[],"Truncated":false}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeService{}
			if strings.Contains(c.body, blob) {
				f.seal([]byte("opened"), contextMap)
			}
			w := ask(t, newDoor(f), c.operation, c.body)
			if w.Code != http.StatusOK || w.Body.String() != c.answer {
				t.Errorf("status %d:\n%s\nwant\n%s", w.Code, w.Body, c.answer)
			}
			if diff := cmp.Diff(c.asked, f.last, protocmp.Transform()); diff != "" {
				t.Errorf("the key service was asked (-want +got):\n%s", diff)
			}
			f.checkCleared(t)
		})
	}
}
