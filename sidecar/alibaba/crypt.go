package alibaba

import (
	"context"

	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/alibaba/internal/dkms"
)

func encrypt(ctx context.Context, c *call) (proto.Message, error) {
	var in dkms.EncryptRequest
	err := c.decode(&in)
	c.secret(in.GetPlaintext())
	if err != nil {
		return nil, err
	}
	if err := checkEncrypt(c, &in); err != nil {
		return nil, err
	}
	made, err := c.kms.Encrypt(ctx, &kmsv1.EncryptRequest{
		KeyId: in.GetKeyId(), Plaintext: in.GetPlaintext(), Aad: in.GetAad(), Door: c.door,
	})
	if err != nil {
		return nil, err
	}
	if err := whole(len(made.GetKeyId()), len(made.GetCiphertextBlob()), len(made.GetIv())); err != nil {
		return nil, err
	}
	return &dkms.EncryptResponse{
		KeyId:          keyID(made),
		CiphertextBlob: made.GetCiphertextBlob(),
		Iv:             made.GetIv(),
		RequestId:      c.requestID,
		Algorithm:      algorithm,
		KeyVersionId:   c.versionID(made),
	}, nil
}

func checkEncrypt(c *call, in *dkms.EncryptRequest) error {
	if err := c.needsKey(in.GetKeyId(), in.GetAad()); err != nil {
		return err
	}
	switch n := len(in.GetPlaintext()); {
	case n == 0:
		return missing("Plaintext")
	case n > maxPlaintext:
		return invalid("Plaintext must have at most %d bytes, not %d: encrypt with a data key what is longer.", maxPlaintext, n)
	case len(in.GetIv()) > 0:
		return invalid("Iv must be empty: the one that was used is in the answer.")
	}
	return checkMode(in.GetAlgorithm(), in.GetPaddingMode())
}

func decrypt(ctx context.Context, c *call) (proto.Message, error) {
	var in dkms.DecryptRequest
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	if err := checkDecrypt(c, &in); err != nil {
		return nil, err
	}
	opened, err := c.kms.Decrypt(ctx, &kmsv1.DecryptRequest{
		CiphertextBlob: in.GetCiphertextBlob(), KeyId: in.GetKeyId(), Aad: in.GetAad(), Iv: in.GetIv(), Door: c.door,
	})
	if err != nil {
		return nil, err
	}
	plaintext := c.secret(opened.GetPlaintext())
	if err := whole(len(opened.GetKeyId()), len(plaintext)); err != nil {
		return nil, err
	}
	return &dkms.DecryptResponse{
		KeyId:        keyID(opened),
		Plaintext:    plaintext,
		RequestId:    c.requestID,
		Algorithm:    algorithm,
		KeyVersionId: c.versionID(opened),
	}, nil
}

// checkDecrypt checks the parameters. AdvanceDecrypt needs the ciphertext alone, of which it knows the rest.
func checkDecrypt(c *call, in *dkms.DecryptRequest) error {
	if err := c.names(in.GetKeyId(), in.GetAad()); err != nil {
		return err
	}
	alone := c.door == kmsv1.Door_DOOR_ALIBABA_ADVANCE
	switch n := len(in.GetCiphertextBlob()); {
	case n == 0:
		return missing("CiphertextBlob")
	case n > maxCiphertext:
		return invalid("CiphertextBlob must have at most %d bytes, not %d.", maxCiphertext, n)
	case in.GetKeyId() == "" && !alone:
		return missing("KeyId")
	case len(in.GetIv()) == 0 && !alone:
		return missing("Iv")
	}
	return checkMode(in.GetAlgorithm(), in.GetPaddingMode())
}
