package alibaba

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/datakeys/datakeys/sidecar/alibaba/internal/dkms"
)

// FuzzDoor: whatever comes, the answer is one that a client of Alibaba Cloud KMS reads, no parameter that breaks its rule gets to the key
// service, and nothing of a plaintext is left.
func FuzzDoor(f *testing.F) {
	message := func(name string, m proto.Message) {
		f.Add(name, apiVersion, mediaProtobuf, "Bearer c2ln", encode(f, m))
	}
	message("GenerateDataKey", &dkms.GenerateDataKeyRequest{KeyId: "orders", NumberOfBytes: 32, Aad: []byte("aad"), Algorithm: algorithm})
	message("AdvanceGenerateDataKey", &dkms.AdvanceGenerateDataKeyRequest{KeyId: "orders", NumberOfBytes: 32, Aad: []byte("aad")})
	message("Encrypt", &dkms.EncryptRequest{KeyId: "orders", Plaintext: []byte("p"), Iv: testIV, PaddingMode: "NO_PADDING"})
	message("AdvanceEncrypt", &dkms.EncryptRequest{KeyId: "orders", Plaintext: []byte("p")})
	message("Decrypt", &dkms.DecryptRequest{KeyId: "orders", CiphertextBlob: []byte("c"), Iv: testIV})
	message("AdvanceDecrypt", &dkms.DecryptRequest{CiphertextBlob: []byte("c")})
	message("GenerateDataKeyPair", &dkms.GenerateDataKeyPairRequest{KeyId: "orders", KeyPairSpec: "EC_P256K", KeyFormat: "PEM"})
	message("AdvanceGenerateDataKeyPairWithoutPlaintext",
		&dkms.AdvanceGenerateDataKeyPairRequest{KeyId: "orders", KeyPairSpec: "RSA_2048", KeyFormat: "DER"})
	message("GenerateRandom", &dkms.GenerateRandomRequest{Length: 32})
	f.Add("Sign", apiVersion, mediaProtobuf, "TOKEN c2ln", []byte("\x0a\xff\xff\xff\xff\x0f"))
	f.Add("ListKeys", "dkms-gcs-0.3", "application/json", "", []byte(`{"KeyId":"orders"}`))
	f.Fuzz(func(t *testing.T, name, version, media, credentials string, body []byte) {
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		r.Header = http.Header{
			"X-Kms-Apiname": {name}, "X-Kms-Apiversion": {version}, "Content-Type": {media}, "Authorization": {credentials},
		}
		k := newFake()
		d := newDoor(k)
		var counted []string
		d.count = func(operation, code string) { counted = append(counted, operation, code) }
		got := do(t, d, r)
		want := []string{"other", "OK"}
		if _, ok := operations[name]; ok {
			want[0] = name
		}
		if got.Status != http.StatusOK {
			want[1] = failed(t, got).GetErrorCode()
		}
		if !slices.Equal(counted, want) {
			t.Errorf("counted %q, want %q", counted, want)
		}
		if (got.Status == http.StatusOK) != (len(k.asked) == 1) || len(k.asked) > 1 || len(got.Body) == 0 {
			t.Errorf("status %d with %d bytes after %d calls of the key service", got.Status, len(got.Body), len(k.asked))
		}
		for _, asked := range k.asked {
			checkAsked(t, asked)
		}
		for _, b := range k.given {
			if !bytes.Equal(b, make([]byte, len(b))) {
				t.Errorf("left is %q", b)
			}
		}
	})
}

// checkAsked sees that a request to the key service is one that it need not refuse for its form.
func checkAsked(t *testing.T, asked proto.Message) {
	t.Helper()
	if m, ok := asked.(interface{ GetKeyId() string }); ok && len(m.GetKeyId()) > maxKeyID {
		t.Errorf("the name of a key has %d bytes", len(m.GetKeyId()))
	}
	if m, ok := asked.(interface{ GetAad() []byte }); ok && len(m.GetAad()) > maxAAD {
		t.Errorf("associated data has %d bytes", len(m.GetAad()))
	}
	if m, ok := asked.(interface{ GetNumberOfBytes() int32 }); ok && (m.GetNumberOfBytes() < 1 || m.GetNumberOfBytes() > maxRandom) {
		t.Errorf("%d random bytes", m.GetNumberOfBytes())
	}
	if m, ok := asked.(interface{ GetPlaintext() []byte }); ok && (len(m.GetPlaintext()) < 1 || len(m.GetPlaintext()) > maxPlaintext) {
		t.Errorf("a plaintext of %d bytes", len(m.GetPlaintext()))
	}
}
