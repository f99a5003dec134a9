package alibaba_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"maps"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/kms"
)

// b64 is how JSON has bytes.
func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestSDK(t *testing.T) {
	w := newWorld(t)
	t.Run("GenerateDataKey, Decrypt and AdvanceDecrypt", w.testDataKeys)
	t.Run("Encrypt and AdvanceEncrypt", w.testEncrypt)
	t.Run("the data key of a DataKeyRequest", w.testDeclared)
	t.Run("key pairs", w.testKeyPairs)
	t.Run("GenerateRandom", func(t *testing.T) {
		a, b := w.do(t, "GenerateRandom", fields{"Length": 1024}), w.do(t, "GenerateRandom", fields{"Length": 1024})
		if len(a.bytes(t, "Random")) != 1024 || bytes.Equal(a.bytes(t, "Random"), b.bytes(t, "Random")) {
			t.Errorf("got %v and %v", a, b)
		}
	})
	t.Run("errors", w.testErrors)
	t.Run("states", w.testStates)
	t.Run("what the SDK tries again", w.testRetries)
	t.Run("rotation", w.testRotation)
}

// opens decrypts what an operation answered, with these fields of the answer.
func (w *world) opens(t *testing.T, operation string, made fields, more fields) fields {
	t.Helper()
	request := maps.Clone(more)
	request["CiphertextBlob"] = made["CiphertextBlob"]
	if blob, ok := made["PrivateKeyCiphertextBlob"]; ok {
		request["CiphertextBlob"] = blob
	}
	return w.do(t, operation, request)
}

func (w *world) testDataKeys(t *testing.T) {
	aad := b64("tenant-a")
	for _, name := range []string{"orders", "alias/orders-prod", ordersKey.KeyID} {
		request := fields{"KeyId": name, "NumberOfBytes": 32, "Aad": aad}
		initial := w.do(t, "GenerateDataKey", request)
		advance := w.do(t, "AdvanceGenerateDataKey", request)
		for operation, made := range map[string]fields{"GenerateDataKey": initial, "AdvanceGenerateDataKey": advance} {
			if made["KeyId"] != ordersKey.KeyID || made["Algorithm"] != "AES_GCM" ||
				len(made.bytes(t, "Iv")) != 12 || len(made.bytes(t, "Plaintext")) != 32 {
				t.Errorf("%s by %s: got %v", operation, name, made.without("Plaintext"))
			}
		}
		if initial["KeyVersionId"] != nil || advance["KeyVersionId"] == nil {
			t.Errorf("got the versions %v and %v", initial["KeyVersionId"], advance["KeyVersionId"])
		}
		all := fields{"KeyId": name, "Iv": initial["Iv"], "Algorithm": "AES_GCM", "Aad": aad}
		for operation, opened := range map[string]fields{
			"Decrypt":        w.opens(t, "Decrypt", initial, all),
			"AdvanceDecrypt": w.opens(t, "AdvanceDecrypt", initial, all),
		} {
			if diff := cmp.Diff(initial["Plaintext"], opened["Plaintext"]); diff != "" || opened["KeyId"] != ordersKey.KeyID {
				t.Errorf("%s of a GenerateDataKey: it opens to something else", operation)
			}
		}
		opened := w.opens(t, "AdvanceDecrypt", advance, fields{"Aad": aad}) // knows the rest
		if opened["Plaintext"] != advance["Plaintext"] || opened["KeyId"] != ordersKey.KeyID ||
			opened["KeyVersionId"] != advance["KeyVersionId"] {
			t.Error("AdvanceDecrypt of an AdvanceGenerateDataKey: it opens to something else")
		}
	}
}

func (w *world) testEncrypt(t *testing.T) {
	plaintext := b64("a password of an old database")
	made := w.do(t, "Encrypt", fields{"KeyId": "orders", "Plaintext": plaintext, "Algorithm": "AES_GCM"})
	opened := w.opens(t, "Decrypt", made, fields{"KeyId": made["KeyId"], "Iv": made["Iv"], "Algorithm": made["Algorithm"]})
	if opened["Plaintext"] != plaintext {
		t.Error("Decrypt: it opens to something else")
	}
	made = w.do(t, "AdvanceEncrypt", fields{"KeyId": "orders", "Plaintext": plaintext})
	opened = w.opens(t, "AdvanceDecrypt", made, fields{})
	if opened["Plaintext"] != plaintext || opened["KeyVersionId"] != made["KeyVersionId"] {
		t.Error("AdvanceDecrypt: it opens to something else")
	}
}

func (w *world) testDeclared(t *testing.T) {
	declared, err := w.service.GenerateDataKeyWithoutPlaintext(t.Context(), kms.DataKey{
		MasterKey: ordersKey, Namespace: "team-a", Name: "orders", Generation: 1, Length: 32, AAD: []byte("aad"),
	})
	if err != nil {
		t.Fatal(err)
	}
	made := fields{"CiphertextBlob": declared.CiphertextBlob}
	advance := w.opens(t, "AdvanceDecrypt", made, fields{"Aad": b64("aad")})
	opened := w.opens(t, "Decrypt", made, fields{"KeyId": "orders", "Iv": declared.IV, "Aad": b64("aad")})
	if len(advance.bytes(t, "Plaintext")) != 32 || opened["Plaintext"] != advance["Plaintext"] {
		t.Error("it opens to something else")
	}
	w.fails(t, "AdvanceDecrypt", made, "InvalidParameter", http.StatusBadRequest, 1)
}

// testKeyPairs does what Alibaba's example does: what is decrypted has the format that was asked for.
func (w *world) testKeyPairs(t *testing.T) {
	read := func(t *testing.T, format string, text []byte) []byte {
		t.Helper()
		if format == "DER" {
			return text
		}
		block, rest := pem.Decode(text)
		if block == nil || len(rest) > 0 {
			t.Fatal("the key is not in PEM")
		}
		return block.Bytes
	}
	for _, spec := range []string{"RSA_2048", "EC_P256"} {
		for _, format := range []string{"PEM", "DER"} {
			for _, operation := range []string{
				"GenerateDataKeyPair", "AdvanceGenerateDataKeyPair",
				"GenerateDataKeyPairWithoutPlaintext", "AdvanceGenerateDataKeyPairWithoutPlaintext",
			} {
				t.Run(spec+" in "+format+" by "+operation, func(t *testing.T) {
					made := w.do(t, operation, fields{"KeyId": "orders", "KeyPairSpec": spec, "KeyFormat": format})
					opened := w.opens(t, "AdvanceDecrypt", made, fields{"Iv": made["Iv"]})
					if with := made["PrivateKeyPlaintext"] != nil; with == (len(operation) > len("AdvanceGenerateDataKeyPair")) {
						t.Errorf("the private key is there: %v", with)
					} else if with && made["PrivateKeyPlaintext"] != opened["Plaintext"] {
						t.Error("it opens to another private key")
					}
					private, err := x509.ParsePKCS8PrivateKey(read(t, format, opened.bytes(t, "Plaintext")))
					if err != nil {
						t.Fatal("the private key is not PKCS #8")
					}
					public, err := x509.ParsePKIXPublicKey(read(t, format, made.bytes(t, "PublicKey")))
					if err != nil {
						t.Fatal(err)
					}
					if !private.(crypto.Signer).Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(public) {
						t.Error("the public key is of another pair")
					}
					if made["KeyPairSpec"] != spec || made["KeyId"] != ordersKey.KeyID {
						t.Errorf("got %v", made.without("PrivateKeyPlaintext"))
					}
				})
			}
		}
	}
}

// fails is a call that fails, after that many requests.
func (w *world) fails(t *testing.T, operation string, request fields, code string, httpStatus int, requests int64) {
	t.Helper()
	before := w.requests.Load()
	a := w.call(t, operation, request)
	if a.Error == nil {
		t.Fatalf("%s: got an answer", operation)
	}
	if a.Error.Code != code || a.Error.Status != httpStatus || a.Error.Message == "" || len(a.Error.RequestID) != 36 {
		t.Errorf("%s: got %+v, want %s with status %d", operation, *a.Error, code, httpStatus)
	}
	if got := w.requests.Load() - before; got != requests {
		t.Errorf("%s: the SDK sent %d requests, want %d", operation, got, requests)
	}
}

func (w *world) testErrors(t *testing.T) {
	initial := w.do(t, "GenerateDataKey", fields{"KeyId": "orders", "NumberOfBytes": 32, "Aad": b64("a")})
	advance := w.do(t, "AdvanceGenerateDataKey", fields{"KeyId": "orders", "NumberOfBytes": 32, "Aad": b64("a")})
	flipped := advance.bytes(t, "CiphertextBlob")
	flipped[len(flipped)-1] ^= 1
	for name, c := range map[string]struct {
		operation string
		request   fields
		code      string
		status    int
	}{
		"no such key": {"GenerateDataKey", fields{"KeyId": "none", "NumberOfBytes": 32}, "Forbidden.KeyNotFound", 404},
		"no such alias": {
			"AdvanceGenerateDataKey", fields{"KeyId": "alias/none", "NumberOfBytes": 32},
			"Forbidden.KeyNotFound", 404,
		},
		"a key of others":          {"GenerateDataKey", fields{"KeyId": theirsKey.KeyID, "NumberOfBytes": 32}, "Forbidden.KeyNotFound", 404},
		"a key without permission": {"Encrypt", fields{"KeyId": theirsKey.KeyID, "Plaintext": b64("p")}, "Forbidden.NoPermission", 403},
		"a name that is none":      {"GenerateDataKey", fields{"KeyId": "No name!", "NumberOfBytes": 32}, "InvalidParameter", 400},
		"no key":                   {"GenerateDataKey", fields{"NumberOfBytes": 32}, "MissingParameter", 400},
		"no length":                {"GenerateDataKey", fields{"KeyId": "orders"}, "InvalidParameter", 400},
		"CBC": {
			"Encrypt", fields{"KeyId": "orders", "Plaintext": b64("p"), "Algorithm": "AES_CBC"},
			"InvalidParameter", 400,
		},
		"an IV of the caller's": {
			"Encrypt", fields{"KeyId": "orders", "Plaintext": b64("p"), "Iv": b64("123456789012")},
			"InvalidParameter", 400,
		},
		"too much": {
			"Encrypt", fields{"KeyId": "orders", "Plaintext": b64(string(make([]byte, 4097)))},
			"InvalidParameter", 400,
		},
		"far too much": {
			"Encrypt", fields{"KeyId": "orders", "Plaintext": b64(string(make([]byte, 4<<20)))},
			"InvalidParameter", 413,
		},
		"another Aad": {
			"AdvanceDecrypt", fields{"CiphertextBlob": advance["CiphertextBlob"], "Aad": b64("b")},
			"InvalidParameter", 400,
		},
		"no Aad": {"AdvanceDecrypt", fields{"CiphertextBlob": advance["CiphertextBlob"]}, "InvalidParameter", 400},
		"another IV": {
			"Decrypt", fields{"KeyId": "orders", "CiphertextBlob": initial["CiphertextBlob"], "Aad": b64("a"), "Iv": advance["Iv"]},
			"InvalidParameter", 400,
		},
		"AdvanceDecrypt of an initial blob without the IV": {
			"AdvanceDecrypt", fields{"CiphertextBlob": initial["CiphertextBlob"], "Aad": b64("a")},
			"InvalidParameter", 400,
		},
		"Decrypt of an Advance blob": {
			"Decrypt", fields{"KeyId": "orders", "CiphertextBlob": advance["CiphertextBlob"], "Aad": b64("a"), "Iv": advance["Iv"]},
			"InvalidParameter", 400,
		},
		"a blob that was changed": {
			"AdvanceDecrypt", fields{"CiphertextBlob": flipped, "Aad": b64("a")},
			"InvalidParameter", 400,
		},
		"a blob that is none": {
			"AdvanceDecrypt", fields{"CiphertextBlob": b64("blob")},
			"InvalidParameter", 400,
		},
		"a pair of no known spec": {
			"GenerateDataKeyPair", fields{"KeyId": "orders", "KeyPairSpec": "EC_SM2", "KeyFormat": "PEM"},
			"InvalidParameter", 400,
		},
		"too many random bytes": {"GenerateRandom", fields{"Length": 1025}, "InvalidParameter", 400},
		"Sign":                  {"Sign", fields{"KeyId": "orders"}, "UnsupportedOperation", 400},
		"Verify":                {"Verify", fields{"KeyId": "orders"}, "UnsupportedOperation", 400},
		"GetPublicKey":          {"GetPublicKey", fields{"KeyId": "orders"}, "UnsupportedOperation", 400},
		"GetSecretValue":        {"GetSecretValue", fields{"SecretName": "s"}, "UnsupportedOperation", 400},
	} {
		t.Run(name, func(t *testing.T) { w.fails(t, c.operation, c.request, c.code, c.status, 1) })
	}
}

func (w *world) testStates(t *testing.T) {
	advance := w.do(t, "AdvanceGenerateDataKey", fields{"KeyId": "orders", "NumberOfBytes": 32})
	enabled := kms.MasterKey{KeyID: ordersKey.KeyID, Namespace: "team-a", Name: "orders", Aliases: []string{"orders-prod"}}
	defer w.objects.Put(enabled)
	for state, code := range map[kms.KeyState]string{
		kms.KeyStateDisabled: "Rejected.Disabled", kms.KeyStatePendingDeletion: "Rejected.PendingDeletion",
	} {
		changed := enabled
		changed.State, changed.DeletionTime = state, time.Now()
		w.objects.Put(changed)
		w.fails(t, "AdvanceGenerateDataKey", fields{"KeyId": "orders", "NumberOfBytes": 32}, code, http.StatusConflict, 1)
		w.fails(t, "AdvanceDecrypt", fields{"CiphertextBlob": advance["CiphertextBlob"]}, code, http.StatusConflict, 1)
	}
}

// refusing is a key service that refuses to open anything.
type refusing struct {
	kmsv1.KeyServiceClient
	err error
}

func (r refusing) Decrypt(context.Context, *kmsv1.DecryptRequest, ...grpc.CallOption) (*kmsv1.DecryptResponse, error) {
	return nil, r.err
}

func (w *world) testRetries(t *testing.T) {
	behind := kmsv1.NewKeyServiceClient(w.conn)
	defer w.through(behind)
	for name, c := range map[string]struct {
		code     codes.Code
		want     string
		status   int
		requests int64
	}{
		"too many calls":     {codes.ResourceExhausted, "Rejected.Throttling", http.StatusTooManyRequests, 4},
		"an outage":          {codes.Unavailable, "ServiceUnavailableTemporary", http.StatusServiceUnavailable, 4},
		"a fault":            {codes.Internal, "InternalFailure", http.StatusInternalServerError, 4},
		"a denial":           {codes.PermissionDenied, "Forbidden.NoPermission", http.StatusForbidden, 1},
		"a token of no pod":  {codes.Unauthenticated, "Forbidden.NoPermission", http.StatusForbidden, 1},
		"a key that is gone": {codes.NotFound, "Forbidden.KeyNotFound", http.StatusNotFound, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w.through(refusing{behind, status.Error(c.code, "why")})
			w.fails(t, "AdvanceDecrypt", fields{"CiphertextBlob": b64("blob")}, c.want, c.status, c.requests)
		})
	}
}

// testRotation is the last: after it, version 2 is the primary one.
func (w *world) testRotation(t *testing.T) {
	before := w.do(t, "AdvanceGenerateDataKey", fields{"KeyId": "orders", "NumberOfBytes": 32})
	if _, err := w.service.RotateMasterKey(t.Context(), ordersKey, 1, ""); err != nil {
		t.Fatal(err)
	}
	if uses := w.events.InitialUses(); len(uses) != 0 {
		t.Errorf("told of %v before the rotation", uses)
	}
	after := w.do(t, "AdvanceGenerateDataKey", fields{"KeyId": "orders", "NumberOfBytes": 32})
	if before["KeyVersionId"] == after["KeyVersionId"] {
		t.Errorf("the version is %v before and after", after["KeyVersionId"])
	}
	initial := w.do(t, "GenerateDataKey", fields{"KeyId": "orders", "NumberOfBytes": 32})
	if opened := w.opens(t, "AdvanceDecrypt", initial, fields{"Iv": initial["Iv"]}); opened["KeyVersionId"] != before["KeyVersionId"] {
		t.Errorf("GenerateDataKey encrypts with %v, want the initial version, %v", opened["KeyVersionId"], before["KeyVersionId"])
	}
	if opened := w.opens(t, "AdvanceDecrypt", before, fields{}); opened["Plaintext"] != before["Plaintext"] {
		t.Error("what is older opens to something else")
	}
	if uses := w.events.InitialUses(); len(uses) != 1 || uses[0].Operation != "GenerateDataKey" || uses[0].Key != ordersKey {
		t.Errorf("told of %v, want the one GenerateDataKey", uses)
	}
}
