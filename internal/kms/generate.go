package kms

import (
	"context"
	"errors"
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
	if req.KeyID == "" {
		return GenerateDataKeyResponse{}, invalid("key_id", errors.New("must name a key"))
	}
	name, err := s.parseKeyName(req.KeyID)
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
	record := AuditRecord{Operation: OperationGenerateDataKey, Caller: caller.audited(), Bytes: req.NumberOfBytes}
	resp, err = s.generateDataKey(ctx, caller, name, req, &record)
	if err != nil {
		s.refused(ctx, caller, record, err)
		return GenerateDataKeyResponse{}, err
	}
	return resp, nil
}

func (s *Service) generateDataKey(
	ctx context.Context, caller Caller, name keyName, req GenerateDataKeyRequest, record *AuditRecord,
) (GenerateDataKeyResponse, error) {
	k, err := s.keyToUse(ctx, caller, name, req.KeyID, record)
	if err != nil {
		return GenerateDataKeyResponse{}, err
	}
	if err := s.usable(ctx, k); err != nil {
		return GenerateDataKeyResponse{}, err
	}
	v, err := k.primaryVersion()
	if err != nil {
		return GenerateDataKeyResponse{}, outward(err)
	}
	record.Key = k.audited(v)
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

// keyToUse finds the key that a caller names for GenerateDataKey, and asks RBAC about it.
func (s *Service) keyToUse(ctx context.Context, caller Caller, name keyName, text string, record *AuditRecord) (*key, error) {
	review := s.reviewer(caller)
	denied := &Error{Code: CodeDenied, Message: fmt.Sprintf(
		"%s needs the verb %s on the MasterKey that key_id %q names, if there is one", caller.Username, v1alpha1.VerbGenerateDataKey, text)}
	notFound := &Error{Code: CodeNotFound, Message: fmt.Sprintf("key_id: there is no key %q", text)}

	record.Key = &AuditKey{ID: text}
	if name.name != "" { // the permission is asked first: it needs no key
		record.Key = &AuditKey{Namespace: caller.Namespace, Name: name.name}
		allowed, err := review.allowed(ctx, masterKeyAccess(v1alpha1.VerbGenerateDataKey, caller.Namespace, name.name))
		if err != nil {
			return nil, err
		}
		if !allowed {
			return nil, denied
		}
		o, err := s.objects.ByName(ctx, caller.Namespace, name.name)
		switch {
		case errors.Is(err, ErrMasterKeyNotFound):
			return nil, notFound
		case err != nil:
			return nil, unavailable(err, fmt.Sprintf("MasterKey %s/%s could not be read", caller.Namespace, name.name))
		}
		if name.id, err = envelope.ParseKeyID(o.KeyID); err != nil {
			return nil, &Error{Code: CodeFailedPrecondition, Message: fmt.Sprintf(
				"MasterKey %s/%s has no valid key ID: see its conditions", caller.Namespace, name.name), Err: err}
		}
		k, err := s.ring.getPrimary(ctx, caller.Namespace, name.id)
		switch {
		case err != nil:
			return nil, outward(err)
		case k.namespace != o.Namespace || k.name != o.Name:
			return nil, outward(ErrMaterialConflict)
		}
		record.Key = k.audited(nil)
		return k, nil
	}

	k, err := s.ring.getPrimary(ctx, caller.Namespace, name.id)
	if err != nil && !absent(err) {
		return nil, outward(err)
	}
	if k != nil && !name.is(k, caller.Namespace) { // an ARN with another namespace than the key's
		k = nil
	}
	if k != nil {
		record.Key = k.audited(nil)
	}
	allowed, known, reviewErr := review.mayUseKey(ctx, v1alpha1.VerbGenerateDataKey, k)
	switch {
	case reviewErr != nil:
		return nil, reviewErr
	case !allowed:
		denied.Err = err
		return nil, denied
	case !known:
		notFound.Err = err
		return nil, notFound
	}
	return k, nil
}
