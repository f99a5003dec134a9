package kms

import (
	"context"
	"fmt"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// GenerateDataKeyPairRequest asks for a key pair. At most one of EncryptionContext and AAD is set.
type GenerateDataKeyPairRequest struct {
	// KeyID names the key as in GenerateDataKeyRequest.
	KeyID string
	// KeyPairSpec is one of v1alpha1.KeyPairSpecs.
	KeyPairSpec string
	// KeyFormat is how both keys are written: DER, which empty means too, or PEM.
	KeyFormat         string
	EncryptionContext map[string]string
	AAD               []byte
	Door              Door
	// WithoutPlaintext makes it the operation GenerateDataKeyPairWithoutPlaintext.
	WithoutPlaintext bool
	DryRun           bool
}

// GenerateDataKeyPairResponse is a new key pair, its private key encrypted. Whoever takes it destroys the plaintext, which is
// zero if it was not asked for.
type GenerateDataKeyPairResponse struct {
	Encrypted
	KeyPairSpec string
	// PublicKey is SubjectPublicKeyInfo (RFC 5280), PrivateKey PKCS #8 (RFC 5958), both in the KeyFormat.
	PublicKey  []byte
	PrivateKey envelope.Plaintext
}

// GenerateDataKeyPair makes a key pair and returns the private key encrypted, and unless WithoutPlaintext is set in plaintext too.
// It needs the verb generatedatakeypair, or generatedatakeypairwithoutplaintext, on the master key.
func (s *Service) GenerateDataKeyPair(ctx context.Context, caller Caller, req GenerateDataKeyPairRequest) (resp GenerateDataKeyPairResponse, err error) {
	operation, verb := OperationGenerateDataKeyPair, v1alpha1.VerbGenerateDataKeyPair
	if req.WithoutPlaintext {
		operation, verb = OperationGenerateDataKeyPairWithoutPlaintext, v1alpha1.VerbGenerateDataKeyPairWithoutPlaintext
	}
	start := s.Now()
	defer func() { s.done(ctx, operation, start, caller, err) }()
	t, err := s.checkGeneratePair(req)
	if err != nil {
		return GenerateDataKeyPairResponse{}, err
	}
	record := newRecord(operation, &caller, req.Door, req.DryRun)
	resp, err = s.generatePair(ctx, s.reviewer(caller), verb, t, req.KeyPairSpec, req.KeyFormat, record)
	if err == nil && req.WithoutPlaintext {
		resp.PrivateKey.Destroy()
		resp.PrivateKey = envelope.Plaintext{}
	}
	if err != nil {
		s.refused(ctx, caller, *record, err)
	}
	return resp, err
}

func (s *Service) generatePair(
	ctx context.Context, review *reviewer, verb string, t target, spec, format string, record *AuditRecord,
) (GenerateDataKeyPairResponse, error) {
	k, v, err := s.keyToSeal(ctx, review, verb, t, record.Key)
	if err != nil {
		return GenerateDataKeyPairResponse{}, err
	}
	if record.DryRun {
		return GenerateDataKeyPairResponse{}, errDryRun()
	}
	if err := s.reserve(review.caller, costOfKeyPair(spec)); err != nil {
		return GenerateDataKeyPairResponse{}, err
	}
	private, public, err := newKeyPair(ctx, spec)
	if err == nil && format == formatPEM {
		private, public, err = toPEM(private, public)
	}
	if err != nil {
		return GenerateDataKeyPairResponse{}, err
	}
	sealed, err := s.sealFor(ctx, k, v, t, private, record)
	if err != nil {
		private.Destroy()
		return GenerateDataKeyPairResponse{}, err
	}
	return GenerateDataKeyPairResponse{Encrypted: sealed, KeyPairSpec: spec, PublicKey: public, PrivateKey: private}, nil
}

func (s *Service) checkGeneratePair(req GenerateDataKeyPairRequest) (target, error) {
	t, err := s.checkTarget(&plainFields, req.KeyID, req.EncryptionContext, req.AAD, req.Door)
	if err != nil {
		return target{}, err
	}
	if err := checkKeyPairSpec("key_pair_spec", req.KeyPairSpec); err != nil {
		return target{}, err
	}
	if req.KeyFormat != "" && req.KeyFormat != formatDER && req.KeyFormat != formatPEM {
		return target{}, invalid("key_format", fmt.Errorf("must be %s or %s", formatDER, formatPEM))
	}
	return t, checkTogether(&plainFields, t.ad)
}
