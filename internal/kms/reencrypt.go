package kms

import (
	"context"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// ReEncryptRequest asks to encrypt what is in a blob under another key, or with other associated data. On each side at most one
// of encryption context and AAD is set.
type ReEncryptRequest struct {
	// CiphertextBlob is at most 6144 bytes.
	CiphertextBlob          []byte
	SourceEncryptionContext map[string]string
	SourceAAD               []byte
	// SourceKeyID is the key that the blob must be of, named as in GenerateDataKeyRequest; empty: the blob says it.
	SourceKeyID string
	// SourceIV is as IV of DecryptRequest.
	SourceIV []byte
	// DestinationKeyID names the key of the new blob.
	DestinationKeyID             string
	DestinationEncryptionContext map[string]string
	DestinationAAD               []byte
	// Door opens the blob, and is the door of the new one.
	Door   Door
	DryRun bool
}

// ReEncryptResponse is the new blob, and which key the old one was of.
type ReEncryptResponse struct {
	Encrypted
	SourceKeyARN     string
	SourceKeyVersion int32
	SourceMaterialID envelope.MaterialID
}

// ReEncrypt opens a blob and encrypts what was in it. The plaintext leaves neither this process nor this call. It needs the verb
// reencryptfrom on the blob's master key, or for a blob with a scope all that Decrypt needs, and the verb reencryptto on the
// destination. The new blob has no scope.
func (s *Service) ReEncrypt(ctx context.Context, caller Caller, req ReEncryptRequest) (resp ReEncryptResponse, err error) {
	start := s.Now()
	defer func() { s.done(ctx, OperationReEncrypt, start, caller, err) }()
	src, dst, err := s.checkReEncrypt(req)
	if err != nil {
		return ReEncryptResponse{}, err
	}
	record := newRecord(OperationReEncrypt, &caller, req.Door, req.DryRun)
	from := src.audited()
	record.SourceKey, record.DataKey = &from, audited(src.blob.Header.Scope)
	*record.Key = AuditKey{ID: dst.key.text}
	resp, err = s.reEncrypt(ctx, s.reviewer(caller), &src, dst, record)
	if err != nil {
		s.refused(ctx, caller, *record, err)
	}
	return resp, err
}

func (s *Service) reEncrypt(ctx context.Context, review *reviewer, src *source, dst target, record *AuditRecord) (ReEncryptResponse, error) {
	from, fromObject, err := s.keyToOpen(ctx, review, v1alpha1.VerbReEncryptFrom, src.blob.Header, src.key, record.SourceKey)
	if err != nil {
		return ReEncryptResponse{}, err
	}
	to, toObject, err := s.keyToUse(ctx, review, v1alpha1.VerbReEncryptTo, dst.key, record.Key)
	if err != nil {
		return ReEncryptResponse{}, err
	}
	if err := fromObject.usable(); err != nil {
		return ReEncryptResponse{}, err
	}
	v, err := toObject.versionToSeal(to, dst.door, record.Key)
	if err != nil {
		return ReEncryptResponse{}, err
	}
	opened, p, err := s.open(ctx, from, src)
	if err != nil {
		return ReEncryptResponse{}, err
	}
	defer p.Destroy()
	if record.DryRun {
		return ReEncryptResponse{}, errDryRun()
	}
	sealed, err := s.sealFor(ctx, to, v, dst, p, record)
	if err != nil {
		return ReEncryptResponse{}, err
	}
	return ReEncryptResponse{
		Encrypted:        sealed,
		SourceKeyARN:     from.arn,
		SourceKeyVersion: int32(opened.number),
		SourceMaterialID: opened.materialID,
	}, nil
}

func (s *Service) checkReEncrypt(req ReEncryptRequest) (src source, dst target, err error) {
	src, err = s.checkSource(&sourceFields, sourceRequest{
		blob: req.CiphertextBlob, context: req.SourceEncryptionContext, aad: req.SourceAAD, key: req.SourceKeyID, iv: req.SourceIV, door: req.Door,
	})
	if err != nil {
		return source{}, target{}, err
	}
	dst, err = s.checkTarget(&destinationFields, req.DestinationKeyID, req.DestinationEncryptionContext, req.DestinationAAD, req.Door)
	if err != nil {
		return source{}, target{}, err
	}
	if err := checkTogether(&sourceFields, src.ad); err != nil {
		return source{}, target{}, err
	}
	return src, dst, checkTogether(&destinationFields, dst.ad)
}
