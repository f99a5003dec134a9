package kmsgrpc

import (
	"context"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/kms"
)

// GenerateDataKey implements kmsv1.KeyServiceServer.
func (a *adapter) GenerateDataKey(ctx context.Context, req *kmsv1.GenerateDataKeyRequest) (*kmsv1.GenerateDataKeyResponse, error) {
	resp, err := a.service.GenerateDataKey(ctx, a.caller, generateRequest(req, false))
	if err != nil {
		return nil, err
	}
	return &kmsv1.GenerateDataKeyResponse{
		KeyId:          resp.KeyARN,
		KeyVersion:     resp.KeyVersion,
		CiphertextBlob: resp.CiphertextBlob,
		Plaintext:      release(resp.Plaintext),
		Iv:             resp.IV,
		MaterialId:     resp.MaterialID[:],
	}, nil
}

// GenerateDataKeyWithoutPlaintext implements kmsv1.KeyServiceServer.
func (a *adapter) GenerateDataKeyWithoutPlaintext(
	ctx context.Context, req *kmsv1.GenerateDataKeyWithoutPlaintextRequest,
) (*kmsv1.GenerateDataKeyWithoutPlaintextResponse, error) {
	resp, err := a.service.GenerateDataKey(ctx, a.caller, generateRequest(req, true))
	if err != nil {
		return nil, err
	}
	return &kmsv1.GenerateDataKeyWithoutPlaintextResponse{
		KeyId:          resp.KeyARN,
		KeyVersion:     resp.KeyVersion,
		CiphertextBlob: resp.CiphertextBlob,
		Iv:             resp.IV,
		MaterialId:     resp.MaterialID[:],
	}, nil
}

// GenerateDataKeyPair implements kmsv1.KeyServiceServer.
func (a *adapter) GenerateDataKeyPair(ctx context.Context, req *kmsv1.GenerateDataKeyPairRequest) (*kmsv1.GenerateDataKeyPairResponse, error) {
	resp, err := a.service.GenerateDataKeyPair(ctx, a.caller, generatePairRequest(req, false))
	if err != nil {
		return nil, err
	}
	return &kmsv1.GenerateDataKeyPairResponse{
		KeyId:                    resp.KeyARN,
		KeyVersion:               resp.KeyVersion,
		KeyPairSpec:              resp.KeyPairSpec,
		PublicKey:                resp.PublicKey,
		PrivateKeyCiphertextBlob: resp.CiphertextBlob,
		PrivateKeyPlaintext:      release(resp.PrivateKey),
		Iv:                       resp.IV,
		MaterialId:               resp.MaterialID[:],
	}, nil
}

// GenerateDataKeyPairWithoutPlaintext implements kmsv1.KeyServiceServer.
func (a *adapter) GenerateDataKeyPairWithoutPlaintext(
	ctx context.Context, req *kmsv1.GenerateDataKeyPairWithoutPlaintextRequest,
) (*kmsv1.GenerateDataKeyPairWithoutPlaintextResponse, error) {
	resp, err := a.service.GenerateDataKeyPair(ctx, a.caller, generatePairRequest(req, true))
	if err != nil {
		return nil, err
	}
	return &kmsv1.GenerateDataKeyPairWithoutPlaintextResponse{
		KeyId:                    resp.KeyARN,
		KeyVersion:               resp.KeyVersion,
		KeyPairSpec:              resp.KeyPairSpec,
		PublicKey:                resp.PublicKey,
		PrivateKeyCiphertextBlob: resp.CiphertextBlob,
		Iv:                       resp.IV,
		MaterialId:               resp.MaterialID[:],
	}, nil
}

// making is what every request has that makes something under a key.
type making interface {
	GetKeyId() string
	GetEncryptionContext() map[string]string
	GetAad() []byte
	GetDoor() kmsv1.Door
	GetDryRun() bool
}

func generateRequest(req interface {
	making
	GetNumberOfBytes() int32
	GetKeySpec() string
}, withoutPlaintext bool,
) kms.GenerateDataKeyRequest {
	return kms.GenerateDataKeyRequest{
		KeyID:             req.GetKeyId(),
		NumberOfBytes:     int(req.GetNumberOfBytes()),
		KeySpec:           req.GetKeySpec(),
		EncryptionContext: req.GetEncryptionContext(),
		AAD:               req.GetAad(),
		Door:              kms.Door(req.GetDoor()),
		WithoutPlaintext:  withoutPlaintext,
		DryRun:            req.GetDryRun(),
	}
}

func generatePairRequest(req interface {
	making
	GetKeyPairSpec() string
	GetKeyFormat() string
}, withoutPlaintext bool,
) kms.GenerateDataKeyPairRequest {
	return kms.GenerateDataKeyPairRequest{
		KeyID:             req.GetKeyId(),
		KeyPairSpec:       req.GetKeyPairSpec(),
		KeyFormat:         req.GetKeyFormat(),
		EncryptionContext: req.GetEncryptionContext(),
		AAD:               req.GetAad(),
		Door:              kms.Door(req.GetDoor()),
		WithoutPlaintext:  withoutPlaintext,
		DryRun:            req.GetDryRun(),
	}
}

// release copies a plaintext into a response and destroys it. The copy is cleared once it is encoded (secretCodec).
func release(p envelope.Plaintext) []byte {
	defer p.Destroy()
	return p.AppendTo(insecuresecret.Token{}, nil)
}
