//go:build e2e

package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// awsUser uses a client of AWS KMS.
type awsUser struct {
	*clients
	caller
	// class is the type of errors that the model does not have; empty: this client has no types.
	class string
	// silent is what it says of an error without a message.
	silent string
	// old says that it is Debian's, which does not know of DryRun and Recipient.
	old bool
	// slow says that it is the CLI, which does once what others do in every way.
	slow bool
}

// unmodelled are the exceptions of AWS KMS that its service model does not have, so no client has a type for them.
var unmodelled = map[string]bool{"AccessDeniedException": true, "ThrottlingException": true, "ValidationException": true}

// exception is an error that a client has to tell.
type exception struct {
	name    string
	message string // after "…" a part of it
	status  int    // 0 is 400
}

// refuses calls what is refused so.
func (u *awsUser) refuses(t *testing.T, operation string, request fields, want exception) {
	t.Helper()
	_, got := u.call(t, operation, request)
	u.isRefused(t, operation, got, want)
}

func (u *awsUser) isRefused(t *testing.T, operation string, got *failure, want exception) {
	t.Helper()
	if got == nil {
		t.Errorf("%s: got an answer, want %s", operation, want.name)
		return
	}
	if want.status == 0 {
		want.status = http.StatusBadRequest
	}
	if want.message == "" {
		want.message = u.silent
	}
	expected := failure{Code: want.name, Message: want.message, Class: want.name, Status: want.status}
	if unmodelled[want.name] {
		expected.Class = u.class
	}
	if u.class == "" {
		expected.Class, expected.Status = "", 0
	}
	if part, isPart := strings.CutPrefix(want.message, "…"); isPart && strings.Contains(got.Message, part) {
		expected.Message = got.Message
	}
	if diff := cmp.Diff(expected, *got); diff != "" {
		t.Errorf("%s is refused (-want +got):\n%s", operation, diff)
	}
}

// usesKeys goes round through every operation, and makes every mistake.
func (u *awsUser) usesKeys(t *testing.T) {
	t.Run("round trips", u.goesRound)
	t.Run("what describes", u.describes)
	t.Run("mistakes", u.makesMistakes)
}

// encryptionContexts are two, and what is not the first.
var (
	pairs      = fields{"tenant": "ä", "app": "b c"}
	otherPairs = map[string]fields{
		"no context": nil, "one pair": {"tenant": "ä"}, "one pair more": {"tenant": "ä", "app": "b c", "x": ""},
		"another value": {"tenant": "a", "app": "b c"},
		"another name":  {"Tenant": "ä", "app": "b c"}, "values exchanged": {"tenant": "b c", "app": "ä"},
	}
)

func (u *awsUser) goesRound(t *testing.T) {
	for operation, c := range map[string]struct {
		request         fields
		blob, plaintext string // members of the answer; no plaintext: it is not to have one
		bytes           int    // of the data key
	}{
		"GenerateDataKey":                     {fields{"KeySpec": "AES_256"}, "CiphertextBlob", "Plaintext", 32},
		"GenerateDataKeyWithoutPlaintext":     {fields{"NumberOfBytes": 1024}, "CiphertextBlob", "", 1024},
		"GenerateDataKeyPair":                 {fields{"KeyPairSpec": "ECC_NIST_P256"}, "PrivateKeyCiphertextBlob", "PrivateKeyPlaintext", 0},
		"GenerateDataKeyPairWithoutPlaintext": {fields{"KeyPairSpec": "ECC_NIST_P256"}, "PrivateKeyCiphertextBlob", "", 0},
		"Encrypt":                             {fields{"Plaintext": b64("hello")}, "CiphertextBlob", "", 0},
	} {
		t.Run(operation, func(t *testing.T) {
			c.request["KeyId"], c.request["EncryptionContext"] = u.alias, pairs
			made := must(t, u, operation, c.request)
			for _, member := range []string{"Plaintext", "PrivateKeyPlaintext"} {
				if made[member] != nil && member != c.plaintext {
					t.Errorf("the answer has the member %s", member)
				}
			}
			opened := u.opens(t, u.arn, made[c.blob], pairs)
			if c.plaintext != "" && !bytes.Equal(opened, made.bytes(t, c.plaintext)) {
				t.Error("it opens to something else")
			}
			if made["KeyId"] != u.arn || c.bytes > 0 && len(opened) != c.bytes {
				t.Errorf("got %d bytes under the key %v", len(opened), made["KeyId"])
			}
			if c.request["KeyPairSpec"] != nil {
				checkPair(t, opened, made.bytes(t, "PublicKey"))
			}
			if operation != "Encrypt" {
				return
			}
			if string(opened) != "hello" || made["EncryptionAlgorithm"] != "SYMMETRIC_DEFAULT" {
				t.Errorf("it opens to something else, or by %v", made["EncryptionAlgorithm"])
			}
			for name, context := range otherPairs {
				if !u.slow || name == "another value" {
					u.refuses(t, "Decrypt", decrypting(made[c.blob], context), exception{name: invalidCiphertext})
				}
			}
			u.encryptsAnew(t, made[c.blob])
		})
	}
}

// decrypting is a request to decrypt a blob, with a context unless that is empty.
func decrypting(blob any, context fields) fields {
	request := fields{"CiphertextBlob": blob}
	if context != nil {
		request["EncryptionContext"] = context
	}
	return request
}

// opens decrypts a blob of that key.
func (u *awsUser) opens(t *testing.T, arn string, blob any, context fields) []byte {
	t.Helper()
	opened := must(t, u, "Decrypt", decrypting(blob, context).plus(fields{"KeyId": arn}))
	if opened["KeyId"] != arn || opened["EncryptionAlgorithm"] != "SYMMETRIC_DEFAULT" {
		t.Errorf("it opens by %v with %v", opened["KeyId"], opened["EncryptionAlgorithm"])
	}
	return opened.bytes(t, "Plaintext")
}

// encryptsAnew takes a blob with pairs of the key orders to the other key, without a context.
func (u *awsUser) encryptsAnew(t *testing.T, blob any) {
	t.Helper()
	again := must(t, u, "ReEncrypt", fields{
		"CiphertextBlob": blob, "SourceEncryptionContext": pairs, "SourceKeyId": u.keyID, "DestinationKeyId": u.other,
	})
	want := fields{
		"SourceKeyId": u.arn, "KeyId": u.other,
		"SourceEncryptionAlgorithm": "SYMMETRIC_DEFAULT", "DestinationEncryptionAlgorithm": "SYMMETRIC_DEFAULT",
	}
	for member, value := range want {
		if again[member] != value {
			t.Errorf("ReEncrypt: the member %s is %v, want %v", member, again[member], value)
		}
	}
	if got := u.opens(t, u.other, again["CiphertextBlob"], nil); string(got) != "hello" {
		t.Error("ReEncrypt: it opens to something else")
	}
	u.refuses(t, "ReEncrypt", fields{"CiphertextBlob": blob, "DestinationKeyId": u.other}, exception{name: invalidCiphertext})
}

func checkPair(t *testing.T, private, public []byte) {
	t.Helper()
	own, ownErr := x509.ParsePKCS8PrivateKey(private)
	shown, shownErr := x509.ParsePKIXPublicKey(public)
	if key, ok := own.(*ecdsa.PrivateKey); !ok || ownErr != nil || shownErr != nil || !key.PublicKey.Equal(shown) {
		t.Errorf("the two keys do not belong together (%v, %v)", ownErr, shownErr)
	}
}

func (u *awsUser) describes(t *testing.T) {
	if got := must(t, u, "GenerateRandom", fields{"NumberOfBytes": 1024}).bytes(t, "Plaintext"); len(got) != 1024 {
		t.Errorf("GenerateRandom: %d bytes", len(got))
	}
	u.hasState(t, "Enabled")
	var keys []string
	request := fields{"Limit": 1}
	for page := (fields{"NextMarker": ""}); page["NextMarker"] != nil; request["Marker"] = page["NextMarker"] {
		page = must(t, u, "ListKeys", request)
		if keys = append(keys, members(t, page["Keys"], "KeyArn")...); page["Truncated"] != (page["NextMarker"] != nil) {
			t.Errorf("ListKeys: Truncated is %v, and the marker is %v", page["Truncated"], page["NextMarker"])
		}
	}
	aliases := members(t, must(t, u, "ListAliases", fields{"KeyId": u.arn})["Aliases"], "AliasName", "AliasArn", "TargetKeyId")
	if want := []string{u.arn, u.other}; !slices.Equal(slices.Sorted(slices.Values(keys)), slices.Sorted(slices.Values(want))) {
		t.Errorf("ListKeys: got %v, want %v", keys, want)
	}
	if want := []string{u.alias, u.aliasARN, u.keyID}; !slices.Equal(aliases, want) {
		t.Errorf("ListAliases: got %v, want %v", aliases, want)
	}
}

// members are these members of each item of a list.
func members(t *testing.T, list any, names ...string) (all []string) {
	t.Helper()
	var items []fields
	convert(t, list, &items)
	for _, item := range items {
		for _, name := range names {
			text, _ := item[name].(string)
			all = append(all, text)
		}
	}
	return all
}

// hasState describes the key orders, which it may in every state.
func (u *awsUser) hasState(t *testing.T, state string) {
	t.Helper()
	described, _ := must(t, u, "DescribeKey", fields{"KeyId": u.alias})["KeyMetadata"].(map[string]any)
	got := fields{}
	want := fields{
		"KeyId": u.keyID, "Arn": u.arn, "AWSAccountId": u.namespace, "KeyState": state, "Enabled": state == "Enabled",
		"KeyUsage": "ENCRYPT_DECRYPT", "KeySpec": "SYMMETRIC_DEFAULT", "Origin": "AWS_KMS", "KeyManager": "CUSTOMER", "MultiRegion": false,
	}
	for member := range want {
		got[member] = described[member]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("DescribeKey (-want +got):\n%s", diff)
	}
	if (described["DeletionDate"] != nil) != (state == "PendingDeletion") {
		t.Errorf("DescribeKey: the DeletionDate of a key that is %s is %v", state, described["DeletionDate"])
	}
}

func (u *awsUser) makesMistakes(t *testing.T) {
	all, seen := u.mistakes(t), map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		m := all[name]
		if u.old && m.newer || u.slow && seen[m.want.name] {
			continue
		}
		seen[m.want.name] = true
		t.Run(name, func(t *testing.T) { u.refuses(t, m.operation, m.request, m.want) })
	}
}

// using are right requests of the operations that use the key orders.
func (u *awsUser) using() map[string]fields {
	blob := u.blob["CiphertextBlob"]
	return map[string]fields{
		"GenerateDataKey":                     {"KeyId": u.arn, "KeySpec": "AES_256"},
		"GenerateDataKeyWithoutPlaintext":     {"KeyId": u.arn, "KeySpec": "AES_256"},
		"GenerateDataKeyPair":                 {"KeyId": u.arn, "KeyPairSpec": "ECC_NIST_P256"},
		"GenerateDataKeyPairWithoutPlaintext": {"KeyId": u.arn, "KeyPairSpec": "ECC_NIST_P256"},
		"Encrypt":                             {"KeyId": u.arn, "Plaintext": b64("a")},
		"Decrypt":                             {"CiphertextBlob": blob, "EncryptionContext": pairs},
		"ReEncrypt":                           {"CiphertextBlob": blob, "SourceEncryptionContext": pairs, "DestinationKeyId": u.other},
	}
}

// asking are right requests of the other operations.
func (u *awsUser) asking() map[string]fields {
	return map[string]fields{"DescribeKey": {"KeyId": u.arn}, "GenerateRandom": {"NumberOfBytes": 1}, "ListKeys": {}, "ListAliases": {}}
}

// cannotUse is refused what uses the key orders, and nothing else where that is the state of the key.
func (u *awsUser) cannotUse(t *testing.T, why trouble) {
	for operation, request := range u.using() {
		if !u.slow || operation == "Decrypt" || operation == "GenerateDataKeyWithoutPlaintext" {
			u.refusesBy(t, operation, request, why, why.using)
		}
	}
	if why.state != "" {
		u.hasState(t, string(why.state))
		return
	}
	for operation, request := range u.asking() {
		if !u.slow || operation == "ListKeys" {
			u.refusesBy(t, operation, request, why, why.asking)
		}
	}
}

// refusesBy is refuses for a trouble, of which the client may have to wait to see it.
func (u *awsUser) refusesBy(t *testing.T, operation string, request fields, why trouble, want exception) {
	t.Helper()
	if want.name == "AccessDeniedException" {
		verb := strings.ToLower(operation)
		if operation == "ReEncrypt" {
			verb = "reencryptfrom"
		}
		want.message = "…system:serviceaccount:" + u.namespace + ":stranger needs the verb " + verb + " on "
	}
	_, got := callUntil(t, u, operation, request, why.told(want.name))
	u.isRefused(t, operation, got, want)
}

// canUse opens what was made before, and what it makes now.
func (u *awsUser) canUse(t *testing.T) {
	if got := u.opens(t, u.arn, u.blob["CiphertextBlob"], pairs); !bytes.Equal(got, u.blob.bytes(t, "Plaintext")) {
		t.Error("the data key of before opens to something else")
	}
	if u.slow {
		return
	}
	made := must(t, u, "GenerateDataKey", fields{"KeyId": u.alias, "KeySpec": "AES_128"})
	if got := u.opens(t, u.arn, made["CiphertextBlob"], nil); !bytes.Equal(got, made.bytes(t, "Plaintext")) {
		t.Error("a new data key opens to something else")
	}
}
