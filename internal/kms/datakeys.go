package kms

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/datakeys/datakeys/internal/envelope"
)

// maxDataKey is the longest data key in bytes (AWS KMS, GenerateDataKey: NumberOfBytes).
const maxDataKey = 1024

// DataKey describes the data key of one generation of a DataKeyRequest.
type DataKey struct {
	MasterKey         MasterKeyRef
	Namespace, Name   string
	Generation        int32
	Length            int // in bytes, 1 to 1024
	EncryptionContext map[string]string
}

// SealedDataKey is a data key that only the key service opens.
type SealedDataKey struct {
	CiphertextBlob, IV []byte
	KeyVersion         int32
}

// GenerateDataKeyWithoutPlaintext makes a data key under the primary version of its master key, in its scope. The error
// may be ErrInvalidKeyID, ErrMaterialMissing, ErrMaterialConflict or ErrMaterialBroken.
func (s *Service) GenerateDataKeyWithoutPlaintext(ctx context.Context, d DataKey) (sealed SealedDataKey, err error) {
	start := s.now()
	defer func() {
		s.metrics.observe(OperationGenerateDataKeyWithoutPlaintext, s.clock.Since(start), err)
	}()
	id, err := d.validate()
	if err != nil {
		return SealedDataKey{}, err
	}
	// The store is read each time: nothing may be wrapped by material that is no longer there to be read again.
	k, err := s.masterKey(ctx, id, d.MasterKey)
	if err != nil {
		return SealedDataKey{}, err
	}
	if err := s.usable(ctx, k); err != nil {
		return SealedDataKey{}, err
	}
	v, err := k.primaryVersion()
	if err != nil {
		return SealedDataKey{}, err
	}
	p, err := envelope.NewPlaintext(d.Length)
	if err != nil {
		return SealedDataKey{}, err
	}
	defer p.Destroy()
	blob, err := v.material.Seal(k.header(v, envelope.KindDataKey, d.scope()), envelope.AssociatedData{Context: d.EncryptionContext}, p)
	if err != nil {
		return SealedDataKey{}, invalid("encryptionContext", err)
	}
	parsed, err := envelope.Parse(blob)
	if err != nil {
		return SealedDataKey{}, err
	}
	key := k.audited(v)
	err = s.audit(ctx, AuditRecord{
		Operation: OperationGenerateDataKeyWithoutPlaintext,
		Key:       &key,
		DataKey:   audited(d.scope()),
		Bytes:     d.Length,
	})
	if err != nil {
		return SealedDataKey{}, err
	}
	return SealedDataKey{CiphertextBlob: blob, IV: parsed.IV(), KeyVersion: int32(v.number)}, nil
}

// OpenDataKey proves that a blob opens as this data key: under its master key, in its scope, with its encryption context
// and of its length. It returns no plaintext. The error may be ErrBlobRefused, ErrInvalidKeyID, ErrMaterialMissing,
// ErrMaterialConflict or ErrMaterialBroken.
func (s *Service) OpenDataKey(ctx context.Context, d DataKey, blob []byte) (sealed SealedDataKey, err error) {
	start := s.now()
	defer func() { s.metrics.observe(OperationOpenDataKey, s.clock.Since(start), err) }()
	id, err := d.validate()
	if err != nil {
		return SealedDataKey{}, err
	}
	b, err := envelope.Parse(blob)
	if err != nil {
		return SealedDataKey{}, fmt.Errorf("%w: %w", ErrBlobRefused, err)
	}
	switch h := b.Header; {
	case h.Kind != envelope.KindDataKey:
		return SealedDataKey{}, fmt.Errorf("%w: it is of kind %v", ErrBlobRefused, h.Kind)
	case h.KeyID != id:
		return SealedDataKey{}, fmt.Errorf("%w: it is of key %s and not of key %s", ErrBlobRefused, h.KeyID, id)
	case h.Scope != d.scope():
		return SealedDataKey{}, fmt.Errorf("%w: it belongs to %s/%s, generation %d", ErrBlobRefused,
			h.Scope.Namespace, h.Scope.Name, h.Scope.Generation)
	}
	k := s.ring.known(id)
	if k == nil || k.find(b.Header) == nil {
		if k, err = s.ring.read(ctx, id); err != nil {
			return SealedDataKey{}, err
		}
	}
	if err := k.belongsTo(d.MasterKey); err != nil {
		return SealedDataKey{}, err
	}
	v := k.find(b.Header)
	if v == nil {
		if k.damage != nil {
			return SealedDataKey{}, k.damage
		}
		return SealedDataKey{}, fmt.Errorf("%w: key %s has no version %d with that material: if the blob is right, restore the Secret of the key",
			ErrBlobRefused, id, b.Header.KeyVersion)
	}
	p, err := v.material.Open(b, envelope.AssociatedData{Context: d.EncryptionContext})
	if err != nil {
		return SealedDataKey{}, fmt.Errorf("%w: %w", ErrBlobRefused, err)
	}
	defer p.Destroy()
	if p.Len() != d.Length {
		return SealedDataKey{}, fmt.Errorf("%w: it holds %d bytes and not %d", ErrBlobRefused, p.Len(), d.Length)
	}
	return SealedDataKey{CiphertextBlob: bytes.Clone(blob), IV: b.IV(), KeyVersion: int32(v.number)}, nil
}

func (d DataKey) validate() (envelope.KeyID, error) {
	id, err := d.MasterKey.keyID()
	if err != nil {
		return envelope.KeyID{}, err
	}
	if d.Generation < 1 {
		return envelope.KeyID{}, invalid("generation", errors.New("must be 1 or more"))
	}
	if d.Length < 1 || d.Length > maxDataKey {
		return envelope.KeyID{}, invalid("length", fmt.Errorf("must be 1 to %d bytes", maxDataKey))
	}
	if d.MasterKey.Namespace != d.Namespace {
		return envelope.KeyID{}, invalid("masterKey", errors.New("must be of the data key's namespace"))
	}
	return id, nil
}

func (d DataKey) scope() envelope.Scope {
	return envelope.Scope{Namespace: d.Namespace, Name: d.Name, Generation: uint32(d.Generation)}
}
