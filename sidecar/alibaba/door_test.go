package alibaba

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/alibaba/internal/dkms"
)

// The bytes are those that Alibaba's SDK for Go sends and reads.
func TestTheBytesOnTheWire(t *testing.T) {
	for name, c := range map[string]struct {
		operation, body string
		asks            proto.Message
		answers         string
	}{
		"GenerateDataKey": {
			"GenerateDataKey", "0a026b31 1820 22026161",
			&kmsv1.GenerateDataKeyRequest{KeyId: "k1", NumberOfBytes: 32, Aad: []byte("aa"), Door: kmsv1.Door_DOOR_ALIBABA},
			"0a056b65792d31 120c7477656c7665206279746573 1a22" + fmt.Sprintf("%x", testPlaintext) + " 2204626c6f62 2a03726964 32074145535f47434d",
		},
		"AdvanceGenerateDataKey, whose request has other numbers": {
			"AdvanceGenerateDataKey", "0a026b31 1020 1a026161",
			&kmsv1.GenerateDataKeyRequest{KeyId: "k1", NumberOfBytes: 32, Aad: []byte("aa"), Door: kmsv1.Door_DOOR_ALIBABA_ADVANCE},
			"0a056b65792d31 120c7477656c7665206279746573 1a22" + fmt.Sprintf("%x", testPlaintext) +
				" 2204626c6f62 2a03726964 32074145535f47434d 3a0d" + fmt.Sprintf("%x", "key-1-v2-abab"),
		},
		"AdvanceDecrypt, which has the ciphertext alone": {
			"AdvanceDecrypt", "0a026374",
			&kmsv1.DecryptRequest{CiphertextBlob: []byte("ct"), Door: kmsv1.Door_DOOR_ALIBABA_ADVANCE},
			"0a056b65792d31 1222" + fmt.Sprintf("%x", testPlaintext) + " 1a03726964 22074145535f47434d 320d" + fmt.Sprintf("%x", "key-1-v2-abab"),
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			f.arn, f.material = "arn:datakeys:kms:test:team-a:key/key-1", []byte{0xab, 0xab}
			got := do(t, newDoor(f), request(c.operation, unhex(t, c.body)))
			if diff := cmp.Diff(answer{http.StatusOK, unhex(t, c.answers)}, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]proto.Message{c.asks}, f.asked, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("an error", func(t *testing.T) {
		got := encode(t, (&failure{404, "Forbidden.KeyNotFound", "The specified Key is not found."}).message("rid"))
		want := unhex(t, "089403 1215"+fmt.Sprintf("%x", "Forbidden.KeyNotFound")+
			"1a1f"+fmt.Sprintf("%x", "The specified Key is not found.")+"2203726964")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
}

// What each operation asks the key service, and answers.
func TestOperations(t *testing.T) {
	const versionID = testKeyID + "-v2-abababababababababababababababab"
	initial, primary := kmsv1.Door_DOOR_ALIBABA, kmsv1.Door_DOOR_ALIBABA_ADVANCE
	aad, blob := []byte("aad"), []byte("blob")
	encryptRequest := &dkms.EncryptRequest{KeyId: "orders", Plaintext: []byte("p"), Aad: aad, Algorithm: algorithm}
	encrypted := &dkms.EncryptResponse{KeyId: testKeyID, CiphertextBlob: blob, Iv: testIV, RequestId: "rid", Algorithm: algorithm}
	decryptRequest := &dkms.DecryptRequest{CiphertextBlob: []byte("c"), KeyId: "orders", Aad: aad, Iv: testIV, Algorithm: algorithm}
	decrypted := &dkms.DecryptResponse{KeyId: testKeyID, Plaintext: []byte(testPlaintext), RequestId: "rid", Algorithm: algorithm}
	dataKey := &dkms.GenerateDataKeyResponse{
		KeyId: testKeyID, Iv: testIV, Plaintext: []byte(testPlaintext), CiphertextBlob: blob, RequestId: "rid", Algorithm: algorithm,
	}
	pair := &dkms.GenerateDataKeyPairResponse{
		KeyId: testKeyID, Iv: testIV, KeyPairSpec: "EC_P256", PrivateKeyPlaintext: []byte(testPlaintext),
		PrivateKeyCiphertextBlob: blob, PublicKey: []byte("public"), RequestId: "rid", Algorithm: algorithm,
	}
	sealedPair := &dkms.GenerateDataKeyPairWithoutPlaintextResponse{
		KeyId: testKeyID, Iv: testIV, KeyPairSpec: "EC_P256", PrivateKeyCiphertextBlob: blob, PublicKey: []byte("public"),
		RequestId: "rid", Algorithm: algorithm,
	}
	pairRequest := &dkms.GenerateDataKeyPairRequest{KeyId: "orders", KeyPairSpec: "EC_P256", KeyFormat: "DER", Aad: aad, Algorithm: algorithm}
	advancePairRequest := &dkms.AdvanceGenerateDataKeyPairRequest{KeyId: "orders", KeyPairSpec: "EC_P256", KeyFormat: "PEM", Aad: aad}

	for name, c := range map[string]struct{ body, asks, answers proto.Message }{
		"GenerateDataKey": {
			&dkms.GenerateDataKeyRequest{KeyId: "orders", NumberOfBytes: 1024, Aad: aad, Algorithm: algorithm},
			&kmsv1.GenerateDataKeyRequest{KeyId: "orders", NumberOfBytes: 1024, Aad: aad, Door: initial}, dataKey,
		},
		"AdvanceGenerateDataKey": {
			&dkms.AdvanceGenerateDataKeyRequest{KeyId: "orders", NumberOfBytes: 1},
			&kmsv1.GenerateDataKeyRequest{KeyId: "orders", NumberOfBytes: 1, Door: primary},
			with(dataKey, func(m *dkms.GenerateDataKeyResponse) { m.KeyVersionId = versionID }),
		},
		"Encrypt": {
			encryptRequest, &kmsv1.EncryptRequest{KeyId: "orders", Plaintext: []byte("p"), Aad: aad, Door: initial}, encrypted,
		},
		"AdvanceEncrypt": {
			encryptRequest, &kmsv1.EncryptRequest{KeyId: "orders", Plaintext: []byte("p"), Aad: aad, Door: primary},
			with(encrypted, func(m *dkms.EncryptResponse) { m.KeyVersionId = versionID }),
		},
		"Decrypt": {
			decryptRequest,
			&kmsv1.DecryptRequest{CiphertextBlob: []byte("c"), KeyId: "orders", Aad: aad, Iv: testIV, Door: initial}, decrypted,
		},
		"AdvanceDecrypt": {
			decryptRequest,
			&kmsv1.DecryptRequest{CiphertextBlob: []byte("c"), KeyId: "orders", Aad: aad, Iv: testIV, Door: primary},
			with(decrypted, func(m *dkms.DecryptResponse) { m.KeyVersionId = versionID }),
		},
		"GenerateDataKeyPair": {
			pairRequest,
			&kmsv1.GenerateDataKeyPairRequest{KeyId: "orders", KeyPairSpec: "ECC_NIST_P256", KeyFormat: "DER", Aad: aad, Door: initial}, pair,
		},
		"AdvanceGenerateDataKeyPair": {
			advancePairRequest,
			&kmsv1.GenerateDataKeyPairRequest{KeyId: "orders", KeyPairSpec: "ECC_NIST_P256", KeyFormat: "PEM", Aad: aad, Door: primary},
			with(pair, func(m *dkms.GenerateDataKeyPairResponse) { m.KeyVersionId = versionID }),
		},
		"GenerateDataKeyPairWithoutPlaintext": {
			pairRequest,
			&kmsv1.GenerateDataKeyPairWithoutPlaintextRequest{
				KeyId: "orders", KeyPairSpec: "ECC_NIST_P256", KeyFormat: "DER", Aad: aad, Door: initial,
			}, sealedPair,
		},
		"AdvanceGenerateDataKeyPairWithoutPlaintext": {
			advancePairRequest,
			&kmsv1.GenerateDataKeyPairWithoutPlaintextRequest{
				KeyId: "orders", KeyPairSpec: "ECC_NIST_P256", KeyFormat: "PEM", Aad: aad, Door: primary,
			},
			with(sealedPair, func(m *dkms.GenerateDataKeyPairWithoutPlaintextResponse) { m.KeyVersionId = versionID }),
		},
		"GenerateRandom": {
			&dkms.GenerateRandomRequest{Length: 34}, &kmsv1.GenerateRandomRequest{NumberOfBytes: 34},
			&dkms.GenerateRandomResponse{Random: []byte(testPlaintext), RequestId: "rid"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			got := do(t, newDoor(f), request(name, encode(t, c.body)))
			if got.Status != http.StatusOK {
				t.Fatalf("got status %d: %v", got.Status, failed(t, got))
			}
			answered := c.answers.ProtoReflect().New().Interface()
			if err := proto.Unmarshal(got.Body, answered); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.answers, answered, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]proto.Message{c.asks}, f.asked, protocmp.Transform()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func with[M proto.Message](m M, change func(M)) M {
	changed, _ := proto.Clone(m).(M)
	change(changed)
	return changed
}
