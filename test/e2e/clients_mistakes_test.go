//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

const (
	notFound          = "NotFoundException"
	invalidArn        = "InvalidArnException"
	invalidCiphertext = "InvalidCiphertextException"
	invalidKeyUsage   = "InvalidKeyUsageException"
	invalidMarker     = "InvalidMarkerException"
	noKeyStore        = "CustomKeyStoreNotFoundException"
	validation        = "ValidationException"
	unsupported       = "UnsupportedOperationException"

	noSuchKey = "11111111-1111-4111-8111-111111111111"
	noMarker  = "Could not deserialize marker: it must be the NextMarker of the answer before"
	eitherOr  = "Please specify either number of bytes or key spec."
	disabling = `DisableKey is not offered by Datakeys: kubectl patch masterkey <name> --type=merge -p '{"spec":{"state":"Disabled"}}'`
)

// mistake is a call that is refused while the keys are Enabled and the pod may use them.
type mistake struct {
	operation string
	request   fields
	want      exception
	newer     bool // than Debian's clients: they know no such member
}

// violated is the message of a member that breaks its rule.
func violated(value, member, rule string, args ...any) exception {
	return exception{name: validation, message: fmt.Sprintf(
		"1 validation error detected: Value%s at '%s' failed to satisfy constraint: Member must %s", value, member, fmt.Sprintf(rule, args...))}
}

func (u *awsUser) mistakes(t *testing.T) map[string]mistake {
	sealed := u.blob.bytes(t, "CiphertextBlob")
	flipped := bytes.Clone(sealed)
	flipped[len(flipped)-1] ^= 1
	key, tokens := fields{"KeyId": u.keyID}, fields{"GrantTokens": []string{"a-token"}}
	text, long := key.plus(fields{"Plaintext": b64("a")}), key.plus(fields{"KeySpec": "AES_256"})
	pair := key.plus(fields{"KeyPairSpec": "ECC_NIST_P256"})
	enclave := fields{"Recipient": fields{"KeyEncryptionAlgorithm": "RSAES_OAEP_SHA_256", "AttestationDocument": b64("a")}}
	blob, dry := decrypting(b64(sealed), pairs), fields{"DryRun": true}
	anew := fields{"CiphertextBlob": b64(sealed), "SourceEncryptionContext": pairs, "DestinationKeyId": u.other}
	named := func(name string) fields { return fields{"KeyId": name} }
	rsa := func(member string) fields { return fields{member: "RSAES_OAEP_SHA_256"} }
	is := func(name, message string) exception { return exception{name: name, message: message} }

	region, account := strings.Replace(u.arn, ":kms:", ":kms:x", 1), strings.Replace(u.arn, u.namespace, u.namespace+"-x", 1)
	ofAWS := strings.Replace(u.arn, "arn:datakeys:", "arn:aws:", 1)
	noKey := func(name string) exception { return is(notFound, "Key '"+name+"' does not exist") }
	noAlias := is(notFound, "Alias alias/none is not found.")
	noARN := is(invalidArn, "…Invalid arn '"+ofAWS+"': it must be arn:datakeys:kms:")
	badBlob := is(invalidCiphertext, "")
	badUsage := is(invalidKeyUsage, "Algorithm RSAES_OAEP_SHA_256 and key spec SYMMETRIC_DEFAULT are incompatible.")
	badToken := is("InvalidGrantTokenException", "Datakeys issues no grant tokens, so this is none: permissions are Kubernetes RBAC")
	notThisKey := is("IncorrectKeyException", "The key ID in the request does not identify a CMK that can perform this operation.")
	would := is("DryRunOperationException", "The request would have succeeded, but the DryRun option is set.")
	return map[string]mistake{
		"a key that is not there":  {"Encrypt", text.plus(named(noSuchKey)), noKey(noSuchKey), false},
		"a key of another region":  {"Encrypt", text.plus(named(region)), noKey(region), false},
		"a key of another account": {"Encrypt", text.plus(named(account)), noKey(account), false},
		"a key of AWS":             {"Encrypt", text.plus(named(ofAWS)), is(notFound, "Invalid arn '"+ofAWS+"'"), false},
		"an alias of no key":       {"Encrypt", text.plus(named("alias/none")), noAlias, false},
		"no name of a key":         {"Encrypt", text.plus(named("fake key")), is(notFound, "Invalid keyId 'fake key'"), false},
		"nothing to describe":      {"DescribeKey", named("alias/none"), noAlias, false},
		"a description of AWS's":   {"DescribeKey", named(ofAWS), noARN, false},
		"aliases of AWS's":         {"ListAliases", named(ofAWS), noARN, false},
		"nowhere to encrypt to":    {"ReEncrypt", anew.plus(fields{"DestinationKeyId": noSuchKey}), noKey(noSuchKey), false},

		"no length":    {"GenerateDataKey", key, is(validation, eitherOr), false},
		"both lengths": {"GenerateDataKeyWithoutPlaintext", long.plus(fields{"NumberOfBytes": 32}), is(validation, eitherOr), false},
		"too many bytes": {
			"GenerateDataKeyWithoutPlaintext", key.plus(fields{"NumberOfBytes": 1025}),
			violated(" '1025'", "numberOfBytes", "have value less than or equal to %d", 1024), false,
		},
		"no key spec": {
			"GenerateDataKey", key.plus(fields{"KeySpec": "AES_512"}),
			violated(" 'AES_512'", "keySpec", "satisfy enum value set: [AES_256, AES_128]"), false,
		},
		"too much to encrypt": {
			"Encrypt", text.plus(fields{"Plaintext": b64(make([]byte, 4097))}),
			violated("", "plaintext", "have length less than or equal to %d", 4096), false,
		},
		"too much to decrypt": {
			"Decrypt", decrypting(b64(make([]byte, 6145)), nil),
			violated("", "ciphertextBlob", "have length less than or equal to %d", 6144), false,
		},
		"too many tokens": {
			"Encrypt", text.plus(fields{"GrantTokens": slices.Repeat([]string{"a"}, 11)}),
			violated("", "grantTokens", "have length less than or equal to %d", 10), false,
		},
		"too many keys a page": {
			"ListKeys", fields{"Limit": 1001}, violated(" '1001'", "limit", "have value less than or equal to %d", 1000), false,
		},
		"no marker":         {"ListKeys", fields{"Marker": "a"}, is(invalidMarker, noMarker), false},
		"no marker either":  {"ListAliases", fields{"Marker": "a"}, is(invalidMarker, noMarker), false},
		"a store of keys":   {"GenerateRandom", fields{"NumberOfBytes": 1, "CustomKeyStoreId": "a"}, is(noKeyStore, "…'a' does not"), false},
		"the control plane": {"DisableKey", key, is(unsupported, disabling), false},
		"a pair for SM2": {
			"GenerateDataKeyPair", pair.plus(fields{"KeyPairSpec": "SM2"}),
			is(unsupported, "KeyPairSpec SM2 is not offered by Datakeys: use ECC_NIST_P256"), false,
		},
		"an enclave": {"Decrypt", blob.plus(enclave), is(unsupported, "…Recipient is not offered by Datakeys"), true},
		"no ciphertext": {
			"Decrypt", dry.plus(fields{"DryRunModifiers": []string{"IGNORE_CIPHERTEXT"}}),
			is(unsupported, "…DryRunModifiers are not offered by Datakeys"), true,
		},

		"a token to generate":   {"GenerateDataKeyWithoutPlaintext", long.plus(tokens), badToken, false},
		"a token for a pair":    {"GenerateDataKeyPair", pair.plus(tokens), badToken, false},
		"a token to encrypt":    {"Encrypt", text.plus(tokens), badToken, false},
		"a token to decrypt":    {"Decrypt", blob.plus(tokens), badToken, false},
		"a token to encrypt to": {"ReEncrypt", anew.plus(tokens), badToken, false},
		"RSA to encrypt":        {"Encrypt", text.plus(rsa("EncryptionAlgorithm")), badUsage, false},
		"RSA to decrypt":        {"Decrypt", blob.plus(key).plus(rsa("EncryptionAlgorithm")), badUsage, false},
		"RSA to encrypt from":   {"ReEncrypt", anew.plus(rsa("SourceEncryptionAlgorithm")).plus(fields{"SourceKeyId": u.keyID}), badUsage, false},
		"RSA to encrypt to":     {"ReEncrypt", anew.plus(rsa("DestinationEncryptionAlgorithm")), badUsage, false},

		"a blob of another key": {"Decrypt", blob.plus(named(u.other)), notThisKey, false},
		"another key's, anew":   {"ReEncrypt", anew.plus(fields{"SourceKeyId": u.other}), notThisKey, false},
		"a bit of it changed":   {"Decrypt", decrypting(b64(flipped), pairs), badBlob, false},
		"a blob that was cut":   {"Decrypt", decrypting(b64(sealed[:len(sealed)-1]), pairs), badBlob, false},
		"a blob of nobody":      {"Decrypt", decrypting(b64("something else"), pairs), badBlob, false},
		"one of Alibaba's door": {"Decrypt", decrypting(u.advance["CiphertextBlob"], nil), badBlob, false},
		"nobody's, anew":        {"ReEncrypt", anew.plus(fields{"CiphertextBlob": b64("something else")}), badBlob, false},

		"dry to generate":    {"GenerateDataKey", long.plus(dry), would, true},
		"dry and hidden":     {"GenerateDataKeyWithoutPlaintext", long.plus(dry), would, true},
		"dry for a pair":     {"GenerateDataKeyPair", pair.plus(dry), would, true},
		"dry for half a one": {"GenerateDataKeyPairWithoutPlaintext", pair.plus(dry), would, true},
		"dry to encrypt":     {"Encrypt", text.plus(dry), would, true},
		"dry to decrypt":     {"Decrypt", blob.plus(dry), would, true},
		"dry to encrypt to":  {"ReEncrypt", anew.plus(dry), would, true},
		"dry, another key's": {"Decrypt", blob.plus(named(u.other)).plus(dry), notThisKey, true},
		"dry, of nobody":     {"Decrypt", decrypting(b64(flipped), pairs).plus(dry), badBlob, true},
	}
}
