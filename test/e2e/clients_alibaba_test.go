//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// alibabaUser uses Alibaba's SDK for instances of its KMS.
type alibabaUser struct {
	*clients
	caller
}

// aad is what the data keys of c are made with.
var aad = b64("tenant a")

func (u *alibabaUser) usesKeys(t *testing.T) {
	t.Run("round trips", u.goesRound)
	t.Run("versions", u.tellsVersions)
	t.Run("mistakes", u.makesMistakes)
}

// opens decrypts, and checks that it is that plaintext.
func (u *alibabaUser) opens(t *testing.T, operation string, request fields, plaintext any) fields {
	t.Helper()
	opened := must(t, u, operation, request)
	if opened["Plaintext"] != plaintext || opened["KeyId"] != u.keyID {
		t.Errorf("%s: it opens to something else, or by the key %v", operation, opened["KeyId"])
	}
	return opened
}

func (u *alibabaUser) goesRound(t *testing.T) {
	for operation, request := range map[string]fields{
		"GenerateDataKey": {"NumberOfBytes": 32}, "Encrypt": {"Plaintext": b64("hello")},
		"GenerateDataKeyPair":                 {"KeyPairSpec": "EC_P256", "KeyFormat": "DER"},
		"GenerateDataKeyPairWithoutPlaintext": {"KeyPairSpec": "EC_P256", "KeyFormat": "DER"},
	} {
		for _, prefix := range []string{"", "Advance"} {
			t.Run(prefix+operation, func(t *testing.T) {
				made := must(t, u, prefix+operation, request.plus(fields{"KeyId": u.alias, "Aad": aad}))
				if made["KeyId"] != u.keyID || made["Algorithm"] != "AES_GCM" || len(made.bytes(t, "Iv")) != 12 || made["RequestId"] == nil {
					t.Errorf("got the key %v, the algorithm %v, the request ID %v", made["KeyId"], made["Algorithm"], made["RequestId"])
				}
				sealed := made.only("CiphertextBlob")
				if blob := made["PrivateKeyCiphertextBlob"]; blob != nil {
					sealed["CiphertextBlob"] = blob
				}
				detached := sealed.plus(fields{"KeyId": u.keyID, "Iv": made["Iv"], "Aad": aad})
				opened := must(t, u, "AdvanceDecrypt", detached)
				u.checkPlaintext(t, request, made, opened)
				if prefix == "Advance" {
					u.opens(t, "AdvanceDecrypt", sealed.plus(fields{"Aad": aad}), opened["Plaintext"])
					u.refuses(t, "Decrypt", detached, invalidParameter)
				} else {
					u.opens(t, "Decrypt", detached, opened["Plaintext"])
					u.refuses(t, "AdvanceDecrypt", sealed.plus(fields{"Aad": aad}), invalidParameter)
				}
				for _, more := range []fields{{"Aad": b64("tenant b")}, {"Aad": nil}, {"Iv": b64("123456789012")}, {"KeyId": u.other}} {
					u.refuses(t, "AdvanceDecrypt", detached.plus(more), invalidParameter)
				}
			})
		}
	}
	random := must(t, u, "GenerateRandom", fields{"Length": 1024})
	if len(random.bytes(t, "Random")) != 1024 {
		t.Error("GenerateRandom: not 1024 bytes")
	}
}

// checkPlaintext checks what was opened against what was asked for, and answered where that has a plaintext.
func (u *alibabaUser) checkPlaintext(t *testing.T, request, made, opened fields) {
	t.Helper()
	plaintext := opened.bytes(t, "Plaintext")
	for _, member := range []string{"Plaintext", "PrivateKeyPlaintext"} {
		if made[member] != nil && !bytes.Equal(made.bytes(t, member), plaintext) {
			t.Error("it opens to something else")
		}
	}
	switch {
	case request["NumberOfBytes"] != nil && (len(plaintext) != 32 || made["Plaintext"] == nil):
		t.Errorf("got a data key of %d bytes", len(plaintext))
	case request["Plaintext"] != nil && string(plaintext) != "hello":
		t.Error("it opens to another text")
	case request["KeyPairSpec"] != nil:
		checkPair(t, plaintext, made.bytes(t, "PublicKey"))
	}
}

// tellsVersions: operations without Advance use the initial version for ever, the others the primary one, and all open what is older.
func (u *alibabaUser) tellsVersions(t *testing.T) {
	version := func(f fields) string {
		return strings.Join(strings.SplitAfterN(fmt.Sprint(f["KeyVersionId"]), "-v", 2)[1:], "")
	}
	u.canUse(t)
	for operation, want := range map[string]string{
		"GenerateDataKey": "1-", "Encrypt": "1-", "AdvanceGenerateDataKey": "2-", "AdvanceEncrypt": "2-",
	} {
		request := fields{"KeyId": u.keyID, "NumberOfBytes": 16}
		if strings.HasSuffix(operation, "Encrypt") {
			request = fields{"KeyId": u.keyID, "Plaintext": b64("hello")}
		}
		made := must(t, u, operation, request)
		opened := must(t, u, "AdvanceDecrypt", made.only("CiphertextBlob", "Iv", "KeyId"))
		if !strings.HasPrefix(version(opened), want) {
			t.Errorf("%s encrypts with the version %v, want %s", operation, opened["KeyVersionId"], want)
		}
		if isAdvance := want == "2-"; isAdvance != (made["KeyVersionId"] == opened["KeyVersionId"]) {
			t.Errorf("%s says the version %v, AdvanceDecrypt %v", operation, made["KeyVersionId"], opened["KeyVersionId"])
		}
	}
}

// refusal is an error of an instance: its message begins with the words of Alibaba's documentation.
type refusal struct {
	code    string
	status  int
	message string
}

var (
	invalidParameter = refusal{"InvalidParameter", http.StatusBadRequest, "The specified parameter is not valid. "}
	keyNotFound      = refusal{"Forbidden.KeyNotFound", http.StatusNotFound, "The specified key does not exist. "}
	notOffered       = refusal{"UnsupportedOperation", http.StatusBadRequest, "Rejected.UnsupportedOperation"}
	tooLarge         = refusal{"InvalidParameter", http.StatusRequestEntityTooLarge, "The specified parameter is not valid. "}
	missing          = refusal{"MissingParameter", http.StatusBadRequest, "Parameter KeyId does not exist in http header or body."}
)

func (u *alibabaUser) refuses(t *testing.T, operation string, request fields, want refusal) {
	t.Helper()
	_, got := u.call(t, operation, request)
	u.isRefused(t, operation, got, want)
}

func (u *alibabaUser) isRefused(t *testing.T, operation string, got *failure, want refusal) {
	t.Helper()
	if got == nil {
		t.Errorf("%s: got an answer, want %s", operation, want.code)
	} else if got.Code != want.code || got.Status != want.status || !strings.HasPrefix(got.Message, want.message) {
		t.Errorf("%s: got %+v, want %+v", operation, *got, want)
	}
}

func (u *alibabaUser) makesMistakes(t *testing.T) {
	cut := u.advance.bytes(t, "CiphertextBlob")
	flipped := bytes.Clone(cut)
	flipped[len(flipped)-1] ^= 1
	cut = cut[:len(cut)-1]
	text := fields{"KeyId": u.keyID, "Plaintext": b64("a")}
	sm2 := fields{"KeyId": u.keyID, "KeyPairSpec": "EC_SM2", "KeyFormat": "PEM"}
	initial := u.initial.only("CiphertextBlob", "KeyId").plus(fields{"Aad": aad})
	for name, m := range map[string]struct {
		operation string
		request   fields
		want      refusal
	}{
		"a key that is not there":      {"GenerateDataKey", fields{"KeyId": noSuchKey, "NumberOfBytes": 32}, keyNotFound},
		"an alias of no key":           {"AdvanceGenerateDataKey", fields{"KeyId": "alias/none", "NumberOfBytes": 32}, keyNotFound},
		"no name of a key":             {"AdvanceEncrypt", fields{"KeyId": "No name!", "Plaintext": b64("a")}, invalidParameter},
		"no key":                       {"GenerateDataKey", fields{"NumberOfBytes": 32}, missing},
		"no key to decrypt with":       {"Decrypt", u.initial.only("CiphertextBlob", "Iv").plus(fields{"Aad": aad}), missing},
		"no length":                    {"AdvanceGenerateDataKey", fields{"KeyId": u.keyID}, invalidParameter},
		"too long":                     {"GenerateDataKey", fields{"KeyId": u.keyID, "NumberOfBytes": 1025}, invalidParameter},
		"too much to encrypt":          {"Encrypt", text.plus(fields{"Plaintext": b64(make([]byte, 4097))}), invalidParameter},
		"far too much":                 {"Encrypt", text.plus(fields{"Plaintext": b64(make([]byte, 1<<20))}), tooLarge},
		"an IV of its own":             {"AdvanceEncrypt", text.plus(fields{"Iv": b64("123456789012")}), invalidParameter},
		"CBC":                          {"Encrypt", text.plus(fields{"Algorithm": "AES_CBC"}), invalidParameter},
		"a pair of no spec":            {"GenerateDataKeyPair", sm2, invalidParameter},
		"too much random":              {"GenerateRandom", fields{"Length": 1025}, invalidParameter},
		"without the detached IV":      {"AdvanceDecrypt", initial, invalidParameter},
		"with another detached IV":     {"Decrypt", initial.plus(fields{"Iv": u.advance["Iv"]}), invalidParameter},
		"with an IV that is too short": {"Decrypt", initial.plus(fields{"Iv": b64("12345678901")}), invalidParameter},
		"a ciphertext that was cut":    {"AdvanceDecrypt", fields{"CiphertextBlob": b64(cut), "Aad": aad}, invalidParameter},
		"one with a bit changed":       {"AdvanceDecrypt", fields{"CiphertextBlob": b64(flipped), "Aad": aad}, invalidParameter},
		"one of nobody":                {"AdvanceDecrypt", fields{"CiphertextBlob": b64("something else")}, invalidParameter},
		"one of AWS's door":            {"AdvanceDecrypt", u.blob.only("CiphertextBlob"), invalidParameter},
		"a signature":                  {"Sign", fields{"KeyId": u.keyID}, notOffered},
		"a public key":                 {"GetPublicKey", fields{"KeyId": u.keyID}, notOffered},
		"a secret":                     {"GetSecretValue", fields{"SecretName": "a"}, notOffered},
	} {
		t.Run(name, func(t *testing.T) { u.refuses(t, m.operation, m.request, m.want) })
	}
}

func (u *alibabaUser) cannotUse(t *testing.T, why trouble) {
	calls := map[string]fields{
		"Decrypt":        u.initial.only("CiphertextBlob", "Iv", "KeyId").plus(fields{"Aad": aad}),
		"AdvanceDecrypt": u.advance.only("CiphertextBlob").plus(fields{"Aad": aad}),
	}
	for _, prefix := range []string{"", "Advance"} {
		calls[prefix+"GenerateDataKey"] = fields{"KeyId": u.keyID, "NumberOfBytes": 32}
		calls[prefix+"Encrypt"] = fields{"KeyId": u.keyID, "Plaintext": b64("a")}
		calls[prefix+"GenerateDataKeyPair"] = fields{"KeyId": u.keyID, "KeyPairSpec": "EC_P256", "KeyFormat": "PEM"}
		calls[prefix+"GenerateDataKeyPairWithoutPlaintext"] = fields{"KeyId": u.keyID, "KeyPairSpec": "EC_P256", "KeyFormat": "PEM"}
	}
	if why.state == "" {
		calls["GenerateRandom"] = fields{"Length": 1}
	}
	for operation, request := range calls {
		if why.slow && operation != "AdvanceDecrypt" { // this door waits for the key service, 5 s or 15
			continue
		}
		_, got := callUntil(t, u, operation, request, why.told(why.alibaba.code))
		u.isRefused(t, operation, got, why.alibaba)
	}
}

func (u *alibabaUser) canUse(t *testing.T) {
	opened := u.opens(t, "Decrypt", u.initial.only("CiphertextBlob", "Iv", "KeyId").plus(fields{"Aad": aad}), u.initial["Plaintext"])
	if opened["KeyVersionId"] != nil {
		t.Errorf("Decrypt says the version %v", opened["KeyVersionId"])
	}
	for _, made := range []fields{u.initial, u.advance} {
		opened := u.opens(t, "AdvanceDecrypt", made.only("CiphertextBlob", "Iv").plus(fields{"Aad": aad}), made["Plaintext"])
		if opened["KeyVersionId"] != u.advance["KeyVersionId"] {
			t.Errorf("AdvanceDecrypt says the version %v, want %v", opened["KeyVersionId"], u.advance["KeyVersionId"])
		}
	}
}
