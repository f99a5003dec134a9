package kms

import (
	"context"
	"fmt"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// EncryptRequest asks to encrypt. At most one of EncryptionContext and AAD is set.
type EncryptRequest struct {
	// KeyID names the key as in GenerateDataKeyRequest.
	KeyID string
	// Plaintext is 1 to 4096 bytes. Whoever made it destroys it.
	Plaintext         envelope.Plaintext
	EncryptionContext map[string]string
	AAD               []byte
	Door              Door
	DryRun            bool
}

// EncryptResponse is what Encrypt answers.
type EncryptResponse struct{ Encrypted }

// Encrypt encrypts up to 4096 bytes. It needs the verb encrypt on the master key.
func (s *Service) Encrypt(ctx context.Context, caller Caller, req EncryptRequest) (resp EncryptResponse, err error) {
	start := s.Now()
	defer func() { s.done(ctx, OperationEncrypt, start, caller, err) }()
	t, err := s.checkEncrypt(req)
	if err != nil {
		return EncryptResponse{}, err
	}
	record := newRecord(OperationEncrypt, &caller, req.Door, req.DryRun)
	resp, err = s.encrypt(ctx, s.reviewer(caller), t, req.Plaintext, record)
	if err != nil {
		s.refused(ctx, caller, *record, err)
	}
	return resp, err
}

func (s *Service) encrypt(ctx context.Context, review *reviewer, t target, p envelope.Plaintext, record *AuditRecord) (EncryptResponse, error) {
	k, v, err := s.keyToSeal(ctx, review, v1alpha1.VerbEncrypt, t, record.Key)
	if err != nil {
		return EncryptResponse{}, err
	}
	if record.DryRun {
		return EncryptResponse{}, errDryRun()
	}
	sealed, err := s.sealFor(ctx, k, v, t, p, record)
	if err != nil {
		return EncryptResponse{}, err
	}
	return EncryptResponse{sealed}, nil
}

func (s *Service) checkEncrypt(req EncryptRequest) (target, error) {
	t, err := s.checkTarget(&plainFields, req.KeyID, req.EncryptionContext, req.AAD, req.Door)
	if err != nil {
		return target{}, err
	}
	if req.Plaintext.Len() == 0 { // an envelope.Plaintext is never longer than the limit
		return target{}, invalid("plaintext", fmt.Errorf("must be 1 to %d bytes", envelope.MaxPlaintextSize))
	}
	return t, checkTogether(&plainFields, t.ad)
}
