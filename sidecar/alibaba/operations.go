package alibaba

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// operation is one of dkms-gcs-0.2.
type operation struct {
	// door decides the version of the key that encrypts, and what opens.
	door kmsv1.Door
	// timeout is how long the key service may take for it.
	timeout time.Duration
	// answer answers the body of a call, with a message or an error that call.failure knows.
	answer func(context.Context, *call) (proto.Message, error)
}

// operations go by their names in x-kms-apiname.
var operations = map[string]operation{
	"GenerateDataKey":        {kmsv1.Door_DOOR_ALIBABA, callTimeout, generateDataKey},
	"AdvanceGenerateDataKey": {kmsv1.Door_DOOR_ALIBABA_ADVANCE, callTimeout, advanceGenerateDataKey},
	"Encrypt":                {kmsv1.Door_DOOR_ALIBABA, callTimeout, encrypt},
	"AdvanceEncrypt":         {kmsv1.Door_DOOR_ALIBABA_ADVANCE, callTimeout, encrypt},
	"Decrypt":                {kmsv1.Door_DOOR_ALIBABA, callTimeout, decrypt},
	"AdvanceDecrypt":         {kmsv1.Door_DOOR_ALIBABA_ADVANCE, callTimeout, decrypt},
	"GenerateRandom":         {kmsv1.Door_DOOR_UNSPECIFIED, callTimeout, generateRandom},

	"GenerateDataKeyPair":                        {kmsv1.Door_DOOR_ALIBABA, pairTimeout, generateDataKeyPair},
	"GenerateDataKeyPairWithoutPlaintext":        {kmsv1.Door_DOOR_ALIBABA, pairTimeout, generateDataKeyPairWithoutPlaintext},
	"AdvanceGenerateDataKeyPair":                 {kmsv1.Door_DOOR_ALIBABA_ADVANCE, pairTimeout, generateDataKeyPair},
	"AdvanceGenerateDataKeyPairWithoutPlaintext": {kmsv1.Door_DOOR_ALIBABA_ADVANCE, pairTimeout, generateDataKeyPairWithoutPlaintext},

	"Sign":           notOffered("A master key is symmetric. Sign with the private key of AdvanceGenerateDataKeyPair."),
	"Verify":         notOffered("A master key is symmetric. Verify with the public key of AdvanceGenerateDataKeyPair."),
	"GetPublicKey":   notOffered("A master key is symmetric. AdvanceGenerateDataKeyPair answers with a public key."),
	"Hmac":           notOffered("A master key encrypts. Use a data key of AdvanceGenerateDataKey."),
	"GetSecretValue": notOffered("There are no secrets here but data keys. Use a Secret of Kubernetes."),
}

func notOffered(why string) operation {
	return operation{answer: func(context.Context, *call) (proto.Message, error) { return nil, unsupported(why) }}
}
