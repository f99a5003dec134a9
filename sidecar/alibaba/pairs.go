package alibaba

import (
	"context"

	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/alibaba/internal/dkms"
)

// keyPairSpecs are Alibaba's names that are not AWS's, which are the key service's. It knows more, and they are passed on.
var keyPairSpecs = map[string]string{"EC_P256": "ECC_NIST_P256", "EC_P256K": "ECC_SECG_P256K1"}

// pairRequest is what all operations that make a key pair are asked.
type pairRequest interface {
	proto.Message
	GetKeyId() string
	GetKeyPairSpec() string
	GetKeyFormat() string
	GetAad() []byte
}

// decodePair reads the request for a key pair, and returns the spec in the words of the key service.
func decodePair(c *call) (in pairRequest, spec string, err error) {
	if c.door == kmsv1.Door_DOOR_ALIBABA_ADVANCE {
		in = &dkms.AdvanceGenerateDataKeyPairRequest{}
	} else {
		in = &dkms.GenerateDataKeyPairRequest{}
	}
	if err := c.decode(in); err != nil {
		return nil, "", err
	}
	if withMode, ok := in.(interface{ GetAlgorithm() string }); ok {
		if err := checkMode(withMode.GetAlgorithm(), ""); err != nil {
			return nil, "", err
		}
	}
	if err := c.needsKey(in.GetKeyId(), in.GetAad()); err != nil {
		return nil, "", err
	}
	spec = in.GetKeyPairSpec()
	if spec == "" {
		return nil, "", missing("KeyPairSpec")
	}
	if known, ok := keyPairSpecs[spec]; ok {
		spec = known
	}
	return in, spec, checkFormat(in.GetKeyFormat())
}

// checkFormat checks the encoding that both keys are to have.
func checkFormat(format string) error {
	switch format {
	case "":
		return missing("KeyFormat")
	case "DER", "PEM":
		return nil
	default:
		return invalid("KeyFormat must be PEM or DER, not %s.", quote(format))
	}
}

func generateDataKeyPair(ctx context.Context, c *call) (proto.Message, error) {
	in, spec, err := decodePair(c)
	if err != nil {
		return nil, err
	}
	made, err := c.kms.GenerateDataKeyPair(ctx, &kmsv1.GenerateDataKeyPairRequest{
		KeyId: in.GetKeyId(), KeyPairSpec: spec, KeyFormat: in.GetKeyFormat(), Aad: in.GetAad(), Door: c.door,
	})
	if err != nil {
		return nil, err
	}
	plaintext, blob := c.secret(made.GetPrivateKeyPlaintext()), made.GetPrivateKeyCiphertextBlob()
	if err := whole(len(made.GetKeyId()), len(made.GetIv()), len(plaintext), len(blob), len(made.GetPublicKey())); err != nil {
		return nil, err
	}
	return &dkms.GenerateDataKeyPairResponse{
		KeyId:                    keyID(made),
		Iv:                       made.GetIv(),
		KeyPairSpec:              in.GetKeyPairSpec(),
		PrivateKeyPlaintext:      plaintext,
		PrivateKeyCiphertextBlob: blob,
		PublicKey:                made.GetPublicKey(),
		RequestId:                c.requestID,
		Algorithm:                algorithm,
		KeyVersionId:             c.versionID(made),
	}, nil
}

func generateDataKeyPairWithoutPlaintext(ctx context.Context, c *call) (proto.Message, error) {
	in, spec, err := decodePair(c)
	if err != nil {
		return nil, err
	}
	made, err := c.kms.GenerateDataKeyPairWithoutPlaintext(ctx, &kmsv1.GenerateDataKeyPairWithoutPlaintextRequest{
		KeyId: in.GetKeyId(), KeyPairSpec: spec, KeyFormat: in.GetKeyFormat(), Aad: in.GetAad(), Door: c.door,
	})
	if err != nil {
		return nil, err
	}
	blob := made.GetPrivateKeyCiphertextBlob()
	if err := whole(len(made.GetKeyId()), len(made.GetIv()), len(blob), len(made.GetPublicKey())); err != nil {
		return nil, err
	}
	return &dkms.GenerateDataKeyPairWithoutPlaintextResponse{
		KeyId:                    keyID(made),
		Iv:                       made.GetIv(),
		KeyPairSpec:              in.GetKeyPairSpec(),
		PrivateKeyCiphertextBlob: blob,
		PublicKey:                made.GetPublicKey(),
		RequestId:                c.requestID,
		Algorithm:                algorithm,
		KeyVersionId:             c.versionID(made),
	}, nil
}
