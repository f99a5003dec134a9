package kms

import (
	"context"
	"errors"
	"fmt"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// GenerateDataKeyRequest asks for a data key. Exactly one of NumberOfBytes and KeySpec is set, and at most one of
// EncryptionContext and AAD.
type GenerateDataKeyRequest struct {
	// KeyID is a key ID, an ARN, alias/NAME, or the name of a MasterKey in the caller's namespace; at most 2048 bytes.
	KeyID string
	// NumberOfBytes is the length of the data key, 1 to 1024.
	NumberOfBytes int
	// KeySpec is AES_256 or AES_128.
	KeySpec           string
	EncryptionContext map[string]string
	AAD               []byte
	Door              Door
	// WithoutPlaintext makes it the operation GenerateDataKeyWithoutPlaintext.
	WithoutPlaintext bool
	DryRun           bool
}

// GenerateDataKeyResponse is a new data key. Whoever takes it destroys the plaintext, which is zero if it was not asked for.
type GenerateDataKeyResponse struct {
	Encrypted
	Plaintext envelope.Plaintext
}

// GenerateDataKey makes a data key and returns it encrypted, and unless WithoutPlaintext is set in plaintext too. It needs the
// verb generatedatakey, or generatedatakeywithoutplaintext, on the master key.
func (s *Service) GenerateDataKey(ctx context.Context, caller Caller, req GenerateDataKeyRequest) (resp GenerateDataKeyResponse, err error) {
	operation, verb := OperationGenerateDataKey, v1alpha1.VerbGenerateDataKey
	if req.WithoutPlaintext {
		operation, verb = OperationGenerateDataKeyWithoutPlaintext, v1alpha1.VerbGenerateDataKeyWithoutPlaintext
	}
	start := s.Now()
	defer func() { s.done(ctx, operation, start, caller, err) }()
	t, length, err := s.checkGenerate(req)
	if err != nil {
		return GenerateDataKeyResponse{}, err
	}
	record := newRecord(operation, &caller, req.Door, req.DryRun)
	record.Bytes = length
	resp, err = s.generateDataKey(ctx, s.reviewer(caller), verb, t, record)
	if err == nil && req.WithoutPlaintext {
		resp.Plaintext.Destroy()
		resp.Plaintext = envelope.Plaintext{}
	}
	if err != nil {
		s.refused(ctx, caller, *record, err)
	}
	return resp, err
}

func (s *Service) generateDataKey(ctx context.Context, review *reviewer, verb string, t target, record *AuditRecord) (GenerateDataKeyResponse, error) {
	k, v, err := s.keyToSeal(ctx, review, verb, t, record.Key)
	if err != nil {
		return GenerateDataKeyResponse{}, err
	}
	if record.DryRun {
		return GenerateDataKeyResponse{}, errDryRun()
	}
	p, err := envelope.NewPlaintext(record.Bytes)
	if err != nil {
		return GenerateDataKeyResponse{}, err
	}
	sealed, err := s.sealFor(ctx, k, v, t, p, record)
	if err != nil {
		p.Destroy()
		return GenerateDataKeyResponse{}, err
	}
	return GenerateDataKeyResponse{Encrypted: sealed, Plaintext: p}, nil
}

// checkGenerate returns what to encrypt under, and the length of the data key.
func (s *Service) checkGenerate(req GenerateDataKeyRequest) (t target, length int, err error) {
	if t, err = s.checkTarget(&plainFields, req.KeyID, req.EncryptionContext, req.AAD, req.Door); err != nil {
		return target{}, 0, err
	}
	if req.NumberOfBytes < 0 || req.NumberOfBytes > maxDataKey {
		return target{}, 0, invalid("number_of_bytes", fmt.Errorf("must be 1 to %d", maxDataKey))
	}
	length = req.NumberOfBytes
	switch req.KeySpec {
	case "":
	case string(v1alpha1.DataKeySpecAES256):
		length = 32
	case string(v1alpha1.DataKeySpecAES128):
		length = 16
	default:
		return target{}, 0, invalid("key_spec", errors.New("must be AES_256 or AES_128"))
	}
	if (req.NumberOfBytes == 0) == (req.KeySpec == "") {
		return target{}, 0, invalid("number_of_bytes", errors.New("exactly one of number_of_bytes and key_spec must be set"))
	}
	return t, length, checkTogether(&plainFields, t.ad)
}
