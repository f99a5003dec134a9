package kms

import (
	"context"
	"errors"

	"github.com/datakeys/datakeys/internal/envelope"
)

// RewrapDataKey is OpenDataKey, and wraps the same data key anew under the primary version of its master key, in the same scope and with
// the same associated data. What it returns was opened, and is the same. A blob that is of the primary version is returned as it
// is. A version that only this process still has opens too: while an older backup of the Secret is in place, that is the way to keep
// what the version wraps. The error may be one of OpenDataKey's.
func (s *Service) RewrapDataKey(ctx context.Context, d DataKey, blob []byte) (sealed SealedDataKey, err error) {
	start := s.Now()
	defer func() { s.metrics.observe(OperationRewrapDataKey, s.clock.Since(start), err) }()
	old, err := s.openDataKey(ctx, d, blob, (*key).findToOpen)
	if err != nil {
		return SealedDataKey{}, err
	}
	defer old.plaintext.Destroy()
	h := old.blob.Header
	k, v, err := s.primary(ctx, h.KeyID, d.MasterKey, wrapAge)
	if err != nil {
		return SealedDataKey{}, err
	}
	if v.number == h.KeyVersion && v.materialID == h.MaterialID {
		return old.sealed(), nil
	}
	anew := *old
	if anew.bytes, err = v.material.Seal(k.header(v, h.Kind, h.Scope), old.associatedData(), old.plaintext); err != nil {
		return SealedDataKey{}, err
	}
	if anew.blob, err = envelope.Parse(anew.bytes); err != nil {
		return SealedDataKey{}, err
	}
	p, err := v.material.Open(anew.blob, old.associatedData())
	if err != nil {
		return SealedDataKey{}, err
	}
	defer p.Destroy()
	if !p.Equal(old.plaintext) {
		return SealedDataKey{}, errors.New("internal error: what was wrapped anew does not open as what it was")
	}
	to, from := k.audited(v), k.audited(nil)
	from.Version = h.KeyVersion
	err = s.audit(ctx, AuditRecord{
		Operation: OperationRewrapDataKey,
		Key:       &to,
		SourceKey: &from,
		DataKey:   audited(h.Scope),
		Bytes:     p.Len(),
	})
	if err != nil {
		return SealedDataKey{}, err
	}
	return anew.sealed(), nil
}
