package kms

import (
	"context"
	"fmt"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// OperationGenerateRandom is GenerateRandom in audit records and metrics.
const OperationGenerateRandom = "GenerateRandom"

// maxRandom is the most random bytes of one call (AWS KMS, GenerateRandom: NumberOfBytes).
const maxRandom = 1024

// GenerateRandom returns random bytes, 1 to 1024. It needs the verb generaterandom on the masterkeys of the caller's
// namespace. Whoever takes the bytes destroys them.
func (s *Service) GenerateRandom(ctx context.Context, caller Caller, numberOfBytes int) (random envelope.Plaintext, err error) {
	start := s.Now()
	defer func() { s.done(ctx, OperationGenerateRandom, start, caller, err) }()
	if numberOfBytes < 1 || numberOfBytes > maxRandom {
		return envelope.Plaintext{}, invalid("number_of_bytes", fmt.Errorf("must be 1 to %d", maxRandom))
	}
	record := AuditRecord{Operation: OperationGenerateRandom, Caller: caller.audited(), Bytes: numberOfBytes}
	random, err = s.generateRandom(ctx, s.reviewer(caller), numberOfBytes, record)
	if err != nil {
		s.refused(ctx, caller, record, err)
		return envelope.Plaintext{}, err
	}
	return random, nil
}

func (s *Service) generateRandom(ctx context.Context, review *reviewer, numberOfBytes int, record AuditRecord) (envelope.Plaintext, error) {
	if err := review.mustBeAllowedHere(ctx, v1alpha1.VerbGenerateRandom); err != nil {
		return envelope.Plaintext{}, err
	}
	random, err := envelope.NewPlaintext(numberOfBytes)
	if err != nil {
		return envelope.Plaintext{}, err
	}
	if err := s.audit(ctx, record); err != nil {
		random.Destroy()
		return envelope.Plaintext{}, err
	}
	return random, nil
}

// mustBeAllowedHere returns an error unless RBAC allows the verb on the masterkeys of the caller's own namespace.
func (r *reviewer) mustBeAllowedHere(ctx context.Context, verb string) error {
	allowed, err := r.allowed(ctx, masterKeyAccess(verb, r.caller.Namespace, ""))
	if err != nil || allowed {
		return err
	}
	return &Error{Code: CodeDenied, Message: fmt.Sprintf("%s needs the verb %s on %s in namespace %s",
		r.caller.Username, verb, v1alpha1.ResourceMasterKeys, r.caller.Namespace)}
}
