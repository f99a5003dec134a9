package kms

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

const (
	// maxBatch is the most blobs of one BatchDecrypt.
	maxBatch = 100
	// batchWorkers is how many blobs of a batch are worked on at once: each may wait for a review of its own.
	batchWorkers = 8
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

// absent reports whether a key cannot be had because its material is missing or does not open. Without material it is
// not known which MasterKey it belongs to, so both are "no such key" to a caller; the log has the difference.
func absent(err error) bool {
	return errors.Is(err, ErrMaterialMissing) || errors.Is(err, ErrMaterialBroken)
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
		name, err := s.parseKeyName(req.KeyID)
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
	allowed, known, err := review.mayDecrypt(ctx, k, h.Scope)
	switch {
	case err != nil:
		return DecryptResponse{}, err
	case !allowed:
		return DecryptResponse{}, deniedDecrypt(caller, h.Scope, absence)
	case !known:
		return DecryptResponse{}, notFoundBlob(absence)
	}
	if c.key != nil && !c.key.is(k, caller.Namespace) {
		return DecryptResponse{}, invalid("key_id", errors.New("the blob is of another key"))
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

// outward gives an error of the keyring its code. What is wrong with material is for the log and for the conditions of
// the MasterKey.
func outward(err error) error {
	switch {
	case absent(err), errors.Is(err, ErrMaterialConflict):
		return &Error{Code: CodeFailedPrecondition, Message: "the material of the key cannot be used: see the conditions of its MasterKey", Err: err}
	case errors.Is(err, errBudget):
		return &Error{Code: CodeUnavailable, Message: errBudget.Error() + ": try again later"}
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	return unavailable(err, "the material of the key could not be read: try again")
}

// audit writes the record of something that is about to be done. An error means that it must not be.
func (s *Service) audit(ctx context.Context, r AuditRecord) error {
	r.Time, r.Decision = s.now().UTC(), DecisionAllowed
	if err := s.auditor.Record(ctx, r); err != nil {
		return unavailable(err, "the audit record could not be written")
	}
	return nil
}

// refused records a refusal and tells of a denial. Nothing was released, so the refusal stands even where it cannot be
// recorded.
func (s *Service) refused(ctx context.Context, caller Caller, r AuditRecord, cause error) {
	message := "internal error"
	if e, ok := errors.AsType[*Error](cause); ok {
		message = e.Message
	}
	r.Time, r.Decision, r.Code, r.Reason, r.Bytes = s.now().UTC(), DecisionRefused, CodeOf(cause).String(), message, 0
	// A caller who hangs up must not get around the record.
	if err := s.auditor.Record(context.WithoutCancel(ctx), r); err != nil {
		s.log.Error(err, "Could not record a refusal", "operation", r.Operation, "code", r.Code)
	}
	if CodeOf(cause) == CodeDenied {
		request := ""
		if r.DataKey != nil && r.DataKey.Namespace == caller.Namespace {
			request = r.DataKey.Name
		}
		s.events.Denied(Pod{Namespace: caller.Namespace, Name: caller.PodName, UID: caller.PodUID}, request, message)
	}
}

func (c Caller) audited() *AuditCaller {
	return &AuditCaller{
		Username:       c.Username,
		Namespace:      c.Namespace,
		ServiceAccount: c.ServiceAccount,
		Pod:            c.PodName,
		PodUID:         c.PodUID,
		Node:           c.Node,
	}
}

// audited names a key in an audit record, with a version if v is not nil.
func (k *key) audited(v *version) *AuditKey {
	a := &AuditKey{ID: k.id.String(), Namespace: k.namespace, Name: k.name}
	if v != nil {
		a.Version = v.number
	}
	return a
}

func audited(s envelope.Scope) *AuditDataKey {
	if s.IsZero() {
		return nil
	}
	return &AuditDataKey{Namespace: s.Namespace, Name: s.Name, Generation: s.Generation}
}

// panicError turns a panic into an error. It keeps the value only of the runtime's own panics: any other may hold
// anything.
func panicError(p any) *Error {
	cause := fmt.Errorf("panic with a %T", p)
	if e, ok := p.(runtime.Error); ok {
		cause = fmt.Errorf("panic: %w", e)
	}
	return &Error{Code: CodeInternal, Message: "internal error", Err: cause}
}
