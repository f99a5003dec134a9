package kms

import (
	"context"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// DecryptRequest asks to open a blob. At most one of EncryptionContext and AAD is set.
type DecryptRequest struct {
	// CiphertextBlob is at most 6144 bytes.
	CiphertextBlob    []byte
	EncryptionContext map[string]string
	AAD               []byte
	// KeyID is the key that the blob must be of, named as in GenerateDataKeyRequest; empty: the blob says it.
	KeyID string
	// IV is the one in the blob, stated again: needed for blobs of DoorAlibaba, and checked wherever it is set.
	IV     []byte
	Door   Door
	DryRun bool
}

// DecryptResponse is an opened blob. Whoever takes it destroys the plaintext.
type DecryptResponse struct {
	KeyARN     string
	KeyVersion int32
	// MaterialID names the material of that version.
	MaterialID envelope.MaterialID
	Plaintext  envelope.Plaintext
}

// Decrypt opens a blob. It needs the verb decrypt on the master key, or on the DataKeyRequest that the blob belongs to,
// and for a blob with a scope a caller in the scope's namespace.
func (s *Service) Decrypt(ctx context.Context, caller Caller, req DecryptRequest) (resp DecryptResponse, err error) {
	start := s.Now()
	defer func() { s.done(ctx, OperationDecrypt, start, caller, err) }()
	src, err := s.checkDecrypt(req)
	if err != nil {
		return DecryptResponse{}, err
	}
	return s.decrypt(ctx, s.reviewer(caller), &src, req.DryRun)
}

func (s *Service) checkDecrypt(req DecryptRequest) (source, error) {
	src, err := s.checkSource(&plainFields, sourceRequest{
		blob: req.CiphertextBlob, context: req.EncryptionContext, aad: req.AAD, key: req.KeyID, iv: req.IV, door: req.Door,
	})
	if err != nil {
		return source{}, err
	}
	if err := req.Door.checkToOpen(); err != nil {
		return source{}, err
	}
	return src, checkTogether(&plainFields, src.ad)
}

// decrypt opens a blob for a caller who is known, and writes the audit record whatever comes of it.
func (s *Service) decrypt(ctx context.Context, review *reviewer, src *source, dryRun bool) (DecryptResponse, error) {
	record := newRecord(OperationDecrypt, &review.caller, src.door, dryRun)
	*record.Key, record.DataKey = src.audited(), audited(src.blob.Header.Scope)
	resp, err := s.decryptAudited(ctx, review, src, record)
	if err != nil {
		s.refused(ctx, review.caller, *record, err)
	}
	return resp, err
}

func (s *Service) decryptAudited(ctx context.Context, review *reviewer, src *source, record *AuditRecord) (DecryptResponse, error) {
	k, o, err := s.keyToOpen(ctx, review, v1alpha1.VerbDecrypt, src.blob.Header, src.key, record.Key)
	if err != nil {
		return DecryptResponse{}, err
	}
	if err := o.usable(); err != nil {
		return DecryptResponse{}, err
	}
	v, p, err := s.open(ctx, k, src)
	if err != nil {
		return DecryptResponse{}, err
	}
	if record.DryRun {
		p.Destroy()
		return DecryptResponse{}, errDryRun()
	}
	record.Bytes = p.Len()
	if err := s.audit(ctx, *record); err != nil {
		p.Destroy()
		return DecryptResponse{}, err
	}
	return DecryptResponse{KeyARN: k.arn, KeyVersion: int32(v.number), MaterialID: v.materialID, Plaintext: p}, nil
}
