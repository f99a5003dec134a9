package kms

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

const (
	// maxBatch is the most blobs of one BatchDecrypt.
	maxBatch = 100
	// batchWorkers is how many blobs of a batch are worked on at once: each may wait for a review of its own.
	batchWorkers = 8
)

// DecryptRequest asks to open a blob.
type DecryptRequest struct {
	// CiphertextBlob is at most 6144 bytes.
	CiphertextBlob    []byte
	EncryptionContext map[string]string
	// KeyID is the key that the blob must be of, named as in GenerateDataKeyRequest; empty: the blob says it.
	KeyID string
}

// DecryptResponse is an opened blob. Whoever takes it destroys the plaintext.
type DecryptResponse struct {
	KeyARN     string
	KeyVersion int32
	Plaintext  envelope.Plaintext
}

// BatchDecryptResult is what one request of a batch came to: a response, or an error.
type BatchDecryptResult struct {
	Response DecryptResponse
	Err      error
}

// Decrypt opens a blob. It needs the verb decrypt on the master key, or on the DataKeyRequest that the blob belongs to,
// and for a blob with a scope a caller in the scope's namespace.
func (s *Service) Decrypt(ctx context.Context, token string, req DecryptRequest) (resp DecryptResponse, err error) {
	start := s.now()
	defer func() { s.metrics.observe(OperationDecrypt, s.clock.Since(start), err) }()
	c, err := s.checkDecrypt(req)
	if err != nil {
		return DecryptResponse{}, err
	}
	caller, err := s.authenticate(ctx, token)
	if err != nil {
		return DecryptResponse{}, err
	}
	return s.decrypt(ctx, s.reviewer(caller), c)
}

// BatchDecrypt opens 1 to 100 blobs, each as Decrypt would. The token is reviewed once, and about the same access RBAC is
// asked once. Only what concerns the whole call is returned as an error.
func (s *Service) BatchDecrypt(ctx context.Context, token string, reqs []DecryptRequest) (results []BatchDecryptResult, err error) {
	start := s.now()
	defer func() { s.metrics.observe(OperationBatchDecrypt, s.clock.Since(start), err) }()
	if len(reqs) < 1 || len(reqs) > maxBatch {
		return nil, invalid("requests", fmt.Errorf("must be 1 to %d, not %d", maxBatch, len(reqs)))
	}
	caller, err := s.authenticate(ctx, token)
	if err != nil {
		return nil, err
	}
	review := s.reviewer(caller)
	results = make([]BatchDecryptResult, len(reqs))
	var g errgroup.Group
	g.SetLimit(batchWorkers)
	for i, req := range reqs {
		g.Go(func() error {
			results[i] = s.decryptItem(ctx, review, req)
			return nil
		})
	}
	_ = g.Wait() // the workers return no error: each result has its own
	return results, nil
}

func (s *Service) decryptItem(ctx context.Context, review *reviewer, req DecryptRequest) (result BatchDecryptResult) {
	start := s.now()
	defer func() {
		if p := recover(); p != nil { // in a goroutine of its own, where it would end the process
			result = BatchDecryptResult{Err: panicError(p)}
		}
		s.metrics.observe(OperationDecrypt, s.clock.Since(start), result.Err)
	}()
	c, err := s.checkDecrypt(req)
	if err != nil {
		return BatchDecryptResult{Err: err}
	}
	resp, err := s.decrypt(ctx, review, c)
	return BatchDecryptResult{Response: resp, Err: err}
}

// checkedDecrypt is a DecryptRequest that is well-formed.
type checkedDecrypt struct {
	blob *envelope.Blob
	ad   envelope.AssociatedData
	key  *keyName // nil: the blob says it
}

func (s *Service) checkDecrypt(req DecryptRequest) (c checkedDecrypt, err error) {
	if n := len(req.CiphertextBlob); n < 1 || n > envelope.MaxBlobSize {
		return c, invalid("ciphertext_blob", fmt.Errorf("must be 1 to %d bytes", envelope.MaxBlobSize))
	}
	if c.blob, err = envelope.Parse(req.CiphertextBlob); err != nil {
		return c, &Error{Code: CodeInvalidArgument, Message: "ciphertext_blob: is no blob of this key service, or is damaged", Err: err}
	}
	switch c.blob.Header.Kind {
	case envelope.KindDataKey, envelope.KindAWS:
	default: // other doors' blobs, and above all sealed master keys
		return c, invalid("ciphertext_blob", fmt.Errorf("a blob of kind %v is not opened by Decrypt", c.blob.Header.Kind))
	}
	c.ad.Context = req.EncryptionContext
	if err := c.ad.Validate(); err != nil {
		return c, invalid("encryption_context", err)
	}
	if req.KeyID != "" {
		name, err := s.parseKeyName("key_id", req.KeyID)
		if err != nil {
			return c, err
		}
		c.key = &name
	}
	return c, nil
}

// decrypt opens a blob for a caller who is known, and writes the audit record whatever comes of it.
func (s *Service) decrypt(ctx context.Context, review *reviewer, c checkedDecrypt) (DecryptResponse, error) {
	h := c.blob.Header
	record := AuditRecord{
		Operation: OperationDecrypt,
		Caller:    review.caller.audited(),
		Key:       &AuditKey{ID: h.KeyID.String(), Version: h.KeyVersion},
		DataKey:   audited(h.Scope),
	}
	resp, err := s.open(ctx, review, c, &record)
	if err != nil {
		s.refused(ctx, review.caller, record, err)
		return DecryptResponse{}, err
	}
	return resp, nil
}

func (s *Service) open(ctx context.Context, review *reviewer, c checkedDecrypt, record *AuditRecord) (DecryptResponse, error) {
	h, caller := c.blob.Header, review.caller
	if !h.Scope.IsZero() && h.Scope.Namespace != caller.Namespace {
		return DecryptResponse{}, &Error{Code: CodeDenied, Message: fmt.Sprintf(
			"the data key belongs to namespace %s: a pod of namespace %s cannot open it", h.Scope.Namespace, caller.Namespace)}
	}
	k, absence := s.ring.get(ctx, caller.Namespace, h.KeyID)
	if absence != nil && !absent(absence) {
		return DecryptResponse{}, outward(absence)
	}
	if k != nil {
		record.Key = &AuditKey{ID: h.KeyID.String(), Namespace: k.namespace, Name: k.name, Version: h.KeyVersion}
	}
	allowed, known, err := review.mayOpen(ctx, v1alpha1.VerbDecrypt, k, h.Scope)
	switch {
	case err != nil:
		return DecryptResponse{}, err
	case !allowed:
		return DecryptResponse{}, deniedDecrypt(caller, h.Scope, absence)
	case !known:
		return DecryptResponse{}, notFoundBlob(absence)
	}
	if c.key != nil {
		same, err := s.means(ctx, caller.Namespace, *c.key, k)
		if err != nil {
			return DecryptResponse{}, err
		}
		if !same {
			return DecryptResponse{}, &Error{Code: CodeInvalidArgument, Reason: kmsv1.ReasonIncorrectKey, Message: "key_id: the blob is of another key"}
		}
	}
	v, err := s.ring.getFor(ctx, caller.Namespace, h)
	if errors.Is(err, ErrMaterialMissing) {
		return DecryptResponse{}, notFoundBlob(err)
	}
	if err != nil {
		return DecryptResponse{}, outward(err)
	}
	if err := s.usable(ctx, k); err != nil {
		return DecryptResponse{}, err
	}
	p, err := v.material.Open(c.blob, c.ad)
	if errors.Is(err, envelope.ErrBroken) {
		return DecryptResponse{}, &Error{
			Code: CodeInvalidArgument, Err: err,
			Message: "ciphertext_blob: does not open with this encryption_context, or is damaged",
		}
	}
	if err != nil {
		return DecryptResponse{}, err
	}
	record.Bytes = p.Len()
	if err := s.audit(ctx, *record); err != nil {
		p.Destroy()
		return DecryptResponse{}, err
	}
	return DecryptResponse{KeyARN: s.arn(k), KeyVersion: int32(v.number), Plaintext: p}, nil
}

// deniedDecrypt says what permission is needed. It is the same whether or not the blob's key exists.
func deniedDecrypt(c Caller, scope envelope.Scope, cause error) *Error {
	if scope.IsZero() {
		return &Error{Code: CodeDenied, Err: cause, Message: fmt.Sprintf(
			"%s needs the verb %s on the MasterKey of the blob, if there is one", c.Username, v1alpha1.VerbDecrypt)}
	}
	return &Error{Code: CodeDenied, Err: cause, Message: fmt.Sprintf("%s needs the verb %s on %s/%s in namespace %s, or on its MasterKey",
		c.Username, v1alpha1.VerbDecrypt, v1alpha1.ResourceDataKeyRequests, scope.Name, scope.Namespace)}
}

func notFoundBlob(cause error) *Error {
	return &Error{Code: CodeNotFound, Err: cause, Message: "ciphertext_blob: the key or key version that made it is not known here"}
}
