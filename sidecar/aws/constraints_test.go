package aws

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

// TestTheConstraintsOfMembers: in the words of AWS KMS, all in one message, and before anybody is asked.
func TestTheConstraintsOfMembers(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	bytes := func(n int) string { return b64(make([]byte, n)) }
	tokens := func(n int) string { return strings.TrimSuffix(strings.Repeat(`"t",`, n), ",") }
	const one = "1 validation error detected: "
	for name, c := range map[string]struct{ operation, body, want string }{
		"no key": {
			"GenerateDataKey", `{"KeySpec":"AES_256"}`, one + "Value null at 'keyId' failed to satisfy constraint: Member must not be null",
		},
		"null for a key": {
			"DescribeKey", `{"KeyId":null}`, one + "Value null at 'keyId' failed to satisfy constraint: Member must not be null",
		},
		"an empty key": {
			"DescribeKey", `{"KeyId":""}`,
			one + "Value '' at 'keyId' failed to satisfy constraint: Member must have length greater than or equal to 1",
		},
		"a long key": {
			"DescribeKey", `{"KeyId":"` + long(2049) + `"}`,
			one + "Value '" + long(256) + "…' at 'keyId' failed to satisfy constraint: Member must have length less than or equal to 2048",
		},
		"no bytes": {
			"GenerateDataKey", `{"KeyId":"k","NumberOfBytes":0}`,
			one + "Value '0' at 'numberOfBytes' failed to satisfy constraint: Member must have value greater than or equal to 1",
		},
		"too many bytes": {
			"GenerateDataKeyWithoutPlaintext", `{"KeyId":"k","NumberOfBytes":1025}`,
			one + "Value '1025' at 'numberOfBytes' failed to satisfy constraint: Member must have value less than or equal to 1024",
		},
		"fewer than no bytes": {
			"GenerateRandom", `{"NumberOfBytes":-1}`,
			one + "Value '-1' at 'numberOfBytes' failed to satisfy constraint: Member must have value greater than or equal to 1",
		},
		"another key spec": {
			"GenerateDataKey", `{"KeyId":"k","KeySpec":"AES_512"}`,
			one + "Value 'AES_512' at 'keySpec' failed to satisfy constraint: Member must satisfy enum value set: [AES_256, AES_128]",
		},
		"another key pair spec": {
			"GenerateDataKeyPair", `{"KeyId":"k","KeyPairSpec":"RSA_1024"}`,
			one + "Value 'RSA_1024' at 'keyPairSpec' failed to satisfy constraint: Member must satisfy enum value set: [RSA_2048, RSA_3072, " +
				"RSA_4096, ECC_NIST_P256, ECC_NIST_P384, ECC_NIST_P521, ECC_SECG_P256K1, SM2, ECC_NIST_EDWARDS25519]",
		},
		"another algorithm": {
			"Encrypt", `{"KeyId":"k","Plaintext":"YQ==","EncryptionAlgorithm":""}`,
			one + "Value '' at 'encryptionAlgorithm' failed to satisfy constraint: Member must satisfy enum value set: [SYMMETRIC_DEFAULT, " +
				"RSAES_OAEP_SHA_1, RSAES_OAEP_SHA_256, SM2PKE]",
		},
		"no plaintext": {
			"Encrypt", `{"KeyId":"k","Plaintext":""}`,
			one + "Value at 'plaintext' failed to satisfy constraint: Member must have length greater than or equal to 1",
		},
		"a long plaintext": {
			"Encrypt", `{"KeyId":"k","Plaintext":"` + bytes(4097) + `"}`,
			one + "Value at 'plaintext' failed to satisfy constraint: Member must have length less than or equal to 4096",
		},
		"a long blob": {
			"Decrypt", `{"CiphertextBlob":"` + bytes(6145) + `"}`,
			one + "Value at 'ciphertextBlob' failed to satisfy constraint: Member must have length less than or equal to 6144",
		},
		"an empty blob": {
			"Decrypt", `{"CiphertextBlob":""}`,
			one + "Value at 'ciphertextBlob' failed to satisfy constraint: Member must have length greater than or equal to 1",
		},
		"no blob": {
			"Decrypt", `{"DryRunModifiers":[]}`, one + "Value null at 'ciphertextBlob' failed to satisfy constraint: Member must not be null",
		},
		"eleven grant tokens": {
			"DescribeKey", `{"KeyId":"k","GrantTokens":[` + tokens(11) + `]}`,
			one + "Value at 'grantTokens' failed to satisfy constraint: Member must have length less than or equal to 10",
		},
		"an empty grant token": {
			"DescribeKey", `{"KeyId":"k","GrantTokens":["t",""]}`,
			one + "Value at 'grantTokens' failed to satisfy constraint: Member must satisfy constraint: [Member must have length less than or " +
				"equal to 8192, Member must have length greater than or equal to 1]",
		},
		"a long grant token": {
			"DescribeKey", `{"KeyId":"k","GrantTokens":["` + long(8193) + `"]}`,
			one + "Value at 'grantTokens' failed to satisfy constraint: Member must satisfy constraint: [Member must have length less than or " +
				"equal to 8192, Member must have length greater than or equal to 1]",
		},
		"another modifier of dry runs": {
			"Decrypt", `{"DryRunModifiers":["X"]}`,
			one + "Value at 'dryRunModifiers' failed to satisfy constraint: Member must satisfy constraint: [Member must satisfy enum value " +
				"set: [IGNORE_CIPHERTEXT]]",
		},
		"a large context": {
			"Decrypt", `{"CiphertextBlob":"YQ==","EncryptionContext":{"a":"` + long(8192) + `"}}`,
			one + "Value at 'encryptionContext' failed to satisfy constraint: Map must have at most 8192 bytes of keys and values",
		},
		"too many pairs": {
			"Decrypt", `{"CiphertextBlob":"YQ==","EncryptionContext":` + pairs(1025) + `}`,
			one + "Value at 'encryptionContext' failed to satisfy constraint: Map must have at most 1024 pairs",
		},
		"no page": {
			"ListKeys", `{"Limit":0}`,
			one + "Value '0' at 'limit' failed to satisfy constraint: Member must have value greater than or equal to 1",
		},
		"a long page": {
			"ListAliases", `{"Limit":1001}`,
			one + "Value '1001' at 'limit' failed to satisfy constraint: Member must have value less than or equal to 1000",
		},
		"an empty marker": {
			"ListKeys", `{"Marker":""}`,
			one + "Value '' at 'marker' failed to satisfy constraint: Member must have length greater than or equal to 1",
		},
		"two at once": {
			"Encrypt", `{"Plaintext":""}`,
			"2 validation errors detected: Value null at 'keyId' failed to satisfy constraint: Member must not be null; " +
				"Value at 'plaintext' failed to satisfy constraint: Member must have length greater than or equal to 1",
		},
		"each of ReEncrypt": {
			"ReEncrypt", `{"SourceKeyId":""}`,
			"3 validation errors detected: Value null at 'ciphertextBlob' failed to satisfy constraint: Member must not be null; " +
				"Value null at 'destinationKeyId' failed to satisfy constraint: Member must not be null; " +
				"Value '' at 'sourceKeyId' failed to satisfy constraint: Member must have length greater than or equal to 1",
		},
		"a constraint before members together": {
			"GenerateDataKey", `{"KeyId":"","GrantTokens":["t"],"Recipient":{}}`,
			one + "Value '' at 'keyId' failed to satisfy constraint: Member must have length greater than or equal to 1",
		},
		"neither length":           {"GenerateDataKey", `{"KeyId":"k"}`, "Please specify either number of bytes or key spec."},
		"both lengths":             {"GenerateDataKey", `{"KeyId":"k","KeySpec":"AES_256","NumberOfBytes":32}`, "Please specify either number of bytes or key spec."},
		"no length of random data": {"GenerateRandom", `{}`, "Please specify either number of bytes or key spec."},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeService{}
			got := saidBy(t, ask(t, newDoor(f), c.operation, c.body))
			if want := (said{http.StatusBadRequest, validation, c.want}); got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			if f.last != nil {
				t.Errorf("the key service was asked: %v", f.last)
			}
		})
	}
}

// pairs is a context of that many pairs.
func pairs(n int) string {
	b := []byte(`{`)
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '"', byte('a'+i/676%26), byte('a'+i/26%26), byte('a'+i%26), '"', ':', '"', '"')
	}
	return string(append(b, '}'))
}

// TestTheLargestMembersAreTaken, to the byte.
func TestTheLargestMembersAreTaken(t *testing.T) {
	context := `{"a":"` + strings.Repeat("x", maxContextSize-1) + `"}`
	for name, c := range map[string]struct{ operation, body string }{
		"bytes":     {"GenerateDataKey", `{"KeyId":"` + strings.Repeat("x", 2048) + `","NumberOfBytes":1024,"EncryptionContext":` + context + `}`},
		"one byte":  {"GenerateDataKey", `{"KeyId":"x","NumberOfBytes":1}`},
		"plaintext": {"Encrypt", `{"KeyId":"x","Plaintext":"` + b64(make([]byte, 4096)) + `","EncryptionContext":` + pairs(1024) + `}`},
		"a marker":  {"ListKeys", `{"Limit":1000,"Marker":"` + strings.Repeat("x", 1024) + `"}`},
	} {
		t.Run(name, func(t *testing.T) {
			if w := ask(t, newDoor(&fakeService{}), c.operation, c.body); w.Code != http.StatusOK {
				t.Errorf("status %d: %s", w.Code, w.Body)
			}
		})
	}
}

// TestWhatIsInTheModelAndNotOffered is refused by its name, and never passed over.
func TestWhatIsInTheModelAndNotOffered(t *testing.T) {
	recipient := `"Recipient":{"KeyEncryptionAlgorithm":"RSAES_OAEP_SHA_256","AttestationDocument":"YQ=="}`
	type refused struct{ operation, more, want string }
	cases := map[string]refused{
		"SM2":                             {"GenerateDataKeyPair", `"KeyPairSpec":"SM2"`, unsupportedOperation},
		"SM2 without plaintext":           {"GenerateDataKeyPairWithoutPlaintext", `"KeyPairSpec":"SM2"`, unsupportedOperation},
		"a custom key store":              {"GenerateRandom", `"CustomKeyStoreId":"cks-1"`, customKeyStoreNotFound},
		"a dry run without a blob":        {"Decrypt", `"DryRunModifiers":["IGNORE_CIPHERTEXT"]`, unsupportedOperation},
		"a dry run without a blob again":  {"ReEncrypt", `"DryRunModifiers":["IGNORE_CIPHERTEXT"]`, unsupportedOperation},
		"RSA to encrypt":                  {"Encrypt", `"EncryptionAlgorithm":"RSAES_OAEP_SHA_256"`, invalidKeyUsage},
		"RSA to decrypt":                  {"Decrypt", `"EncryptionAlgorithm":"RSAES_OAEP_SHA_1"`, invalidKeyUsage},
		"SM2 to decrypt":                  {"Decrypt", `"EncryptionAlgorithm":"SM2PKE"`, invalidKeyUsage},
		"RSA as the source":               {"ReEncrypt", `"SourceEncryptionAlgorithm":"RSAES_OAEP_SHA_1"`, invalidKeyUsage},
		"RSA as the destination":          {"ReEncrypt", `"DestinationEncryptionAlgorithm":"RSAES_OAEP_SHA_1"`, invalidKeyUsage},
		"a grant token, and a bad blob":   {"Decrypt", `"GrantTokens":["AQpAM2RhZ"],"EncryptionContext":{"a":"b"}`, invalidGrantToken},
		"an empty recipient":              {"Decrypt", `"Recipient":{}`, unsupportedOperation},
		"a recipient and a grant token":   {"Decrypt", `"GrantTokens":["t"],` + recipient, unsupportedOperation},
		"a recipient and a dry run again": {"Decrypt", `"DryRun":true,` + recipient, unsupportedOperation},
	}
	for operation, o := range operations {
		cases["a recipient of "+operation] = refused{operation, recipient, unsupportedOperation}
		if slices.Contains(o.members, memberGrantTokens) {
			cases["a grant token of "+operation] = refused{operation, `"GrantTokens":["AQpAM2RhZ"]`, invalidGrantToken}
		}
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			body := usual[c.operation]
			if strings.Contains(c.more, "KeyPairSpec") {
				body = `{"KeyId":"orders"}`
			}
			body = strings.Replace(strings.TrimSuffix(body, "}")+","+c.more+"}", "{,", "{", 1)
			f := &fakeService{}
			got := saidBy(t, ask(t, newDoor(f), c.operation, body))
			if got.Status != http.StatusBadRequest || got.Type != c.want || got.Message == "" {
				t.Errorf("got %+v, want %s", got, c.want)
			}
			if f.last != nil {
				t.Errorf("the key service was asked: %v", f.last)
			}
		})
	}
}

// TestOperationsThatAreElsewhere say where.
func TestOperationsThatAreElsewhere(t *testing.T) {
	for operation, way := range elsewhere {
		t.Run(operation, func(t *testing.T) {
			f := &fakeService{}
			got := saidBy(t, ask(t, newDoor(f), operation, `{"KeyId":"orders"}`))
			want := said{http.StatusBadRequest, unsupportedOperation, operation + " is not offered by Datakeys: " + way}
			if got != want || len(way) < 20 || f.last != nil {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
	if !strings.Contains(elsewhere["ScheduleKeyDeletion"], `kubectl patch masterkey <name> --type=merge -p '{"spec":{"state":"PendingDeletion"}}'`) {
		t.Errorf("ScheduleKeyDeletion: %s", elsewhere["ScheduleKeyDeletion"])
	}
	if !strings.Contains(elsewhere["EnableKeyRotation"], `"suspend":false`) { // which undoes what DisableKeyRotation says
		t.Errorf("EnableKeyRotation: %s", elsewhere["EnableKeyRotation"])
	}
}
