package alibaba

import (
	"context"

	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/alibaba/internal/dkms"
)

func generateDataKey(ctx context.Context, c *call) (proto.Message, error) {
	var in dkms.GenerateDataKeyRequest
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	if err := checkMode(in.GetAlgorithm(), ""); err != nil {
		return nil, err
	}
	return newDataKey(ctx, c, in.GetKeyId(), in.GetNumberOfBytes(), in.GetAad())
}

func advanceGenerateDataKey(ctx context.Context, c *call) (proto.Message, error) {
	var in dkms.AdvanceGenerateDataKeyRequest
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	return newDataKey(ctx, c, in.GetKeyId(), in.GetNumberOfBytes(), in.GetAad())
}

func newDataKey(ctx context.Context, c *call, key string, length int32, aad []byte) (proto.Message, error) {
	if err := c.needsKey(key, aad); err != nil {
		return nil, err
	}
	if length < 1 || length > maxRandom {
		return nil, invalid("NumberOfBytes must be 1 to %d.", maxRandom)
	}
	made, err := c.kms.GenerateDataKey(ctx, &kmsv1.GenerateDataKeyRequest{
		KeyId: key, NumberOfBytes: length, Aad: aad, Door: c.door,
	})
	if err != nil {
		return nil, err
	}
	plaintext := c.secret(made.GetPlaintext())
	if err := whole(len(made.GetKeyId()), len(made.GetIv()), len(plaintext), len(made.GetCiphertextBlob())); err != nil {
		return nil, err
	}
	return &dkms.GenerateDataKeyResponse{
		KeyId:          keyID(made),
		Iv:             made.GetIv(),
		Plaintext:      plaintext,
		CiphertextBlob: made.GetCiphertextBlob(),
		RequestId:      c.requestID,
		Algorithm:      algorithm,
		KeyVersionId:   c.versionID(made),
	}, nil
}

func generateRandom(ctx context.Context, c *call) (proto.Message, error) {
	var in dkms.GenerateRandomRequest
	if err := c.decode(&in); err != nil {
		return nil, err
	}
	if in.GetLength() < 1 || in.GetLength() > maxRandom {
		return nil, invalid("Length must be 1 to %d.", maxRandom)
	}
	made, err := c.kms.GenerateRandom(ctx, &kmsv1.GenerateRandomRequest{NumberOfBytes: in.GetLength()})
	if err != nil {
		return nil, err
	}
	if err := whole(len(made.GetPlaintext())); err != nil {
		return nil, err
	}
	return &dkms.GenerateRandomResponse{Random: c.secret(made.GetPlaintext()), RequestId: c.requestID}, nil
}
