package kms

import (
	"context"
	"fmt"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// GenerateDataKeyRequest asks for a data key.
type GenerateDataKeyRequest struct {
	// KeyID is a key ID, an ARN, or the name of a MasterKey in the caller's namespace; at most 2048 bytes.
	KeyID string
	// NumberOfBytes is the length of the data key, 1 to 1024.
	NumberOfBytes     int
	EncryptionContext map[string]string
}

// GenerateDataKeyResponse is a new data key. Whoever takes it destroys the plaintext.
type GenerateDataKeyResponse struct {
	KeyARN         string
	KeyVersion     int32
	CiphertextBlob []byte
	Plaintext      envelope.Plaintext
}

// GenerateDataKey makes a data key under the primary version of a master key and returns it in plaintext too. It needs
// the verb generatedatakey on the master key.
//
// The blob has no scope: only the controllers' path can set one. Its kind is that of the AWS front door, whose operation
// this is (name, members and limits); the Alibaba front door has kinds of its own.
func (s *Service) GenerateDataKey(ctx context.Context, token string, req GenerateDataKeyRequest) (resp GenerateDataKeyResponse, err error) {
	start := s.now()
	defer func() { s.metrics.observe(OperationGenerateDataKey, s.clock.Since(start), err) }()
	if req.NumberOfBytes < 1 || req.NumberOfBytes > maxDataKey {
		return GenerateDataKeyResponse{}, invalid("number_of_bytes", fmt.Errorf("must be 1 to %d", maxDataKey))
	}
	name, err := s.parseKeyName("key_id", req.KeyID)
	if err != nil {
		return GenerateDataKeyResponse{}, err
	}
	ad := envelope.AssociatedData{Context: req.EncryptionContext}
	if err := ad.Validate(); err != nil {
		return GenerateDataKeyResponse{}, invalid("encryption_context", err)
	}
	caller, err := s.authenticate(ctx, token)
	if err != nil {
		return GenerateDataKeyResponse{}, err
	}
	record := AuditRecord{Operation: OperationGenerateDataKey, Caller: caller.audited(), Key: new(AuditKey), Bytes: req.NumberOfBytes}
	resp, err = s.generateDataKey(ctx, s.reviewer(caller), name, req, &record)
	if err != nil {
		s.refused(ctx, caller, record, err)
		return GenerateDataKeyResponse{}, err
	}
	return resp, nil
}

func (s *Service) generateDataKey(
	ctx context.Context, review *reviewer, name keyName, req GenerateDataKeyRequest, record *AuditRecord,
) (GenerateDataKeyResponse, error) {
	k, o, err := s.keyToUse(ctx, review, v1alpha1.VerbGenerateDataKey, name, record.Key)
	if err != nil {
		return GenerateDataKeyResponse{}, err
	}
	if err := o.usable(); err != nil {
		return GenerateDataKeyResponse{}, err
	}
	v, err := k.primaryVersion()
	if err != nil {
		return GenerateDataKeyResponse{}, outward(err)
	}
	*record.Key = k.audited(v)
	p, err := envelope.NewPlaintext(req.NumberOfBytes)
	if err != nil {
		return GenerateDataKeyResponse{}, err
	}
	blob, err := v.material.Seal(k.header(v, envelope.KindAWS, envelope.Scope{}), envelope.AssociatedData{Context: req.EncryptionContext}, p)
	if err == nil {
		err = s.audit(ctx, *record)
	}
	if err != nil {
		p.Destroy()
		return GenerateDataKeyResponse{}, err
	}
	return GenerateDataKeyResponse{KeyARN: s.arn(k), KeyVersion: int32(v.number), CiphertextBlob: blob, Plaintext: p}, nil
}
