package kms

import (
	"context"
	"errors"
	"fmt"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// RenewRequest names a data key of a DataKeyRequest by what its blob's header says, in the caller's namespace.
type RenewRequest struct {
	KeyID      string
	KeyVersion int32
	MaterialID []byte
	// Name is that of the DataKeyRequest.
	Name string
}

// Renew tells of 1 to 100 data keys whether Decrypt would still be allowed, one error each, nil where it would. It opens nothing. Only
// what concerns the whole call is returned as an error.
//
// Every sidecar asks a few times a minute, and nothing leaves: so refusals alone are recorded, and the rest is counted.
func (s *Service) Renew(ctx context.Context, caller Caller, reqs []RenewRequest) (refusals []error, err error) {
	start := s.Now()
	defer func() { s.done(ctx, OperationRenew, start, caller, err) }()
	if err := s.checkBatch(OperationRenew, caller, "data_keys", len(reqs)); err != nil {
		return nil, err
	}
	ctx, cancel := inTime(ctx)
	defer cancel()
	review := s.batchReviewer(caller)
	refusals = make([]error, len(reqs))
	inBatch(len(reqs), func(i int) { refusals[i] = s.renewItem(ctx, review, &reqs[i]) })
	return refusals, nil
}

func (s *Service) renewItem(ctx context.Context, review *reviewer, req *RenewRequest) (err error) {
	start := s.Now()
	defer func() {
		if p := recover(); p != nil {
			err = PanicError(p)
		}
		s.done(ctx, OperationRenewDataKey, start, review.caller, err)
	}()
	h, err := req.header(review.caller.Namespace)
	if err != nil {
		return err
	}
	record := newRecord(OperationRenewDataKey, &review.caller, DoorNative, false)
	*record.Key, record.DataKey = AuditKey{ID: req.KeyID, Version: h.KeyVersion}, &AuditDataKey{Namespace: h.Scope.Namespace, Name: h.Scope.Name}
	if err := s.renew(ctx, review, h, record.Key); err != nil {
		s.refused(ctx, review.caller, *record, err)
		return err
	}
	return nil
}

// renew is Decrypt up to where the blob would be opened.
func (s *Service) renew(ctx context.Context, review *reviewer, h envelope.Header, record *AuditKey) error {
	k, o, err := s.keyToOpen(ctx, review, v1alpha1.VerbDecrypt, h, keyName{}, record)
	if err != nil {
		return err
	}
	if err := o.usable(); err != nil {
		return err
	}
	_, err = s.versionToOpen(ctx, k, h)
	return err
}

// header is what the blob's header says as far as it decides who may open it: the generation does not.
func (r *RenewRequest) header(namespace string) (envelope.Header, error) {
	id, err := envelope.ParseKeyID(r.KeyID)
	switch {
	case err != nil:
		return envelope.Header{}, invalid("key_id", errors.New("must be a key ID, as in the blob: a UUID in lower case"))
	case r.KeyVersion < 1:
		return envelope.Header{}, invalid("key_version", errors.New("must be 1 or more"))
	case len(r.MaterialID) != len(envelope.MaterialID{}):
		return envelope.Header{}, invalid("material_id", fmt.Errorf("must be %d bytes", len(envelope.MaterialID{})))
	case !envelope.IsSubdomain(r.Name):
		return envelope.Header{}, invalid("name", fmt.Errorf("must be the name of a DataKeyRequest: a DNS subdomain of at most %d bytes", envelope.MaxSubdomain))
	}
	return envelope.Header{
		Kind: envelope.KindDataKey, KeyID: id, KeyVersion: uint32(r.KeyVersion), MaterialID: envelope.MaterialID(r.MaterialID),
		Scope: envelope.Scope{Namespace: namespace, Name: r.Name},
	}, nil
}
