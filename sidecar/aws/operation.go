package aws

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// operation is one that the key service has.
type operation struct {
	name string
	// members are those of the model, in the order in which their violations are told. The first required of them are required.
	members  []member
	required int
	// unavailable is what it says when the key service cannot answer: one of the exceptions that the model has for it.
	unavailable string
	// invalidArn says that the model has InvalidArnException for it.
	invalidArn bool
	call       func(ctx context.Context, d *Door, x *exchange) *exception
}

// timeout is how long the key service may take for it.
func (o *operation) timeout() time.Duration {
	if slices.Contains(o.members, memberKeyPairSpec) {
		return pairTimeout
	}
	return callTimeout
}

func (o *operation) requires(m member) bool { return slices.Contains(o.members[:o.required], m) }

// operations are those of the service model that the key service has.
var operations = byName(
	operation{"GenerateDataKey", []member{
		memberKeyID, memberEncryptionContext, memberNumberOfBytes, memberKeySpec, memberGrantTokens, memberDryRun,
	}, 1, keyUnavailable, false, generateDataKey},
	operation{"GenerateDataKeyWithoutPlaintext", []member{
		memberKeyID, memberEncryptionContext, memberKeySpec, memberNumberOfBytes, memberGrantTokens, memberDryRun,
	}, 1, keyUnavailable, false, generateDataKeyWithoutPlaintext},
	operation{"GenerateDataKeyPair", []member{
		memberKeyID, memberKeyPairSpec, memberEncryptionContext, memberGrantTokens, memberDryRun,
	}, 2, keyUnavailable, false, generateDataKeyPair},
	operation{"GenerateDataKeyPairWithoutPlaintext", []member{
		memberKeyID, memberKeyPairSpec, memberEncryptionContext, memberGrantTokens, memberDryRun,
	}, 2, keyUnavailable, false, generateDataKeyPairWithoutPlaintext},
	operation{"Encrypt", []member{
		memberKeyID, memberPlaintext, memberEncryptionContext, memberGrantTokens, memberEncryptionAlgorithm, memberDryRun,
	}, 2, keyUnavailable, false, encrypt},
	operation{"Decrypt", []member{
		memberCiphertextBlob, memberEncryptionContext, memberGrantTokens, memberKeyID, memberEncryptionAlgorithm, memberDryRun,
		memberDryRunModifiers,
	}, 1, keyUnavailable, false, decrypt},
	operation{"ReEncrypt", []member{
		memberCiphertextBlob, memberDestinationKeyID, memberSourceEncryptionContext, memberSourceKeyID, memberDestinationEncryptionContext,
		memberSourceEncryptionAlgorithm, memberDestinationEncryptionAlgorithm, memberGrantTokens, memberDryRun, memberDryRunModifiers,
	}, 2, keyUnavailable, false, reEncrypt},
	operation{"GenerateRandom", []member{memberNumberOfBytes, memberCustomKeyStoreID}, 0, dependencyTimeout, false, generateRandom},
	operation{"DescribeKey", []member{memberKeyID, memberGrantTokens}, 1, dependencyTimeout, true, describeKey},
	operation{"ListKeys", []member{memberLimit, memberMarker}, 0, dependencyTimeout, false, listKeys},
	operation{"ListAliases", []member{memberKeyID, memberLimit, memberMarker}, 0, dependencyTimeout, true, listAliases},
)

func byName(all ...operation) map[string]*operation {
	m := map[string]*operation{}
	for i := range all {
		m[all[i].name] = &all[i]
	}
	return m
}

// checkTogether checks the members against each other, and refuses what is in the model and not offered.
func (r *request) checkTogether(o *operation) *exception {
	switch {
	case r.given(memberRecipient):
		return newException(unsupportedOperation,
			"Recipient is not offered by Datakeys, which attests no enclaves: leave it out to get the plaintext in the answer")
	case len(r.dryRunModifiers) > 0:
		return newException(unsupportedOperation, "DryRunModifiers are not offered by Datakeys: send the CiphertextBlob with DryRun")
	case slices.Contains(o.members, memberNumberOfBytes) && r.given(memberNumberOfBytes) == r.given(memberKeySpec):
		return newException(validation, "Please specify either number of bytes or key spec.")
	case r.given(memberCustomKeyStoreID):
		return newException(customKeyStoreNotFound, "Custom key store '%s' does not exist: Datakeys has none", shorten(r.customKeyStoreID))
	case len(r.grantTokens) > 0:
		return newException(invalidGrantToken, "Datakeys issues no grant tokens, so this is none: permissions are Kubernetes RBAC")
	case r.keyPairSpec == sm2:
		return newException(unsupportedOperation, "KeyPairSpec SM2 is not offered by Datakeys: use ECC_NIST_P256")
	}
	for _, algorithm := range []string{r.encryptionAlgorithm, r.sourceEncryptionAlgorithm, r.destinationEncryptionAlgorithm} {
		if algorithm != "" && algorithm != symmetricDefault {
			return newException(invalidKeyUsage, "Algorithm %s and key spec %s are incompatible.", algorithm, symmetricDefault)
		}
	}
	return nil
}

// made refuses an answer of the key service that would look like success and is none: an AWS client takes what is not there for
// empty. With DryRun there is no success.
func (x *exchange) made(parts ...int) *exception {
	if x.request.dryRun || slices.Contains(parts, 0) {
		return newException(kmsInternal, "internal error")
	}
	return nil
}

// materialID writes the name of a version's material, for which AWS KMS has 64 hexadecimal digits and Datakeys 16 bytes: it is their
// SHA-256 under a label. So it changes with the version, as it has to, and is the same for the same material.
func (x *exchange) materialID(name string, id []byte) {
	if len(id) > 0 {
		x.text(name, materialID(id))
	}
}

func materialID(id []byte) string {
	const label = "datakeys.io KeyMaterialId\x00"
	sum := sha256.Sum256(append([]byte(label), id...))
	return hex.EncodeToString(sum[:])
}

const door = kmsv1.Door_DOOR_AWS
