package kms

import (
	"context"

	"github.com/datakeys/datakeys/internal/envelope"
)

// target is what an operation encrypts under.
type target struct {
	key  keyName
	ad   envelope.AssociatedData
	door Door
}

// checkTarget checks each field by itself. The fields against each other are checked by checkTogether, after those that only one
// operation has.
func (s *Service) checkTarget(f *fieldNames, key string, context map[string]string, aad []byte, door Door) (t target, err error) {
	if t.key, err = s.parseKeyName(f.key, key); err != nil {
		return target{}, err
	}
	if t.ad, err = checkAssociated(f, context, aad); err != nil {
		return target{}, err
	}
	t.door = door
	return t, door.checkToMake()
}

// Encrypted is what was encrypted, and under which key.
type Encrypted struct {
	KeyARN         string
	KeyVersion     int32
	CiphertextBlob []byte
	// IV is the one in CiphertextBlob: 12 bytes, not secret.
	IV []byte
	// MaterialID names the material of that version.
	MaterialID envelope.MaterialID
}

// keyToSeal returns the version of the key that the caller named to encrypt under.
func (s *Service) keyToSeal(ctx context.Context, review *reviewer, verb string, t target, record *AuditKey) (*key, *version, error) {
	k, o, err := s.keyToUse(ctx, review, verb, t.key, record)
	if err != nil {
		return nil, nil, err
	}
	v, err := o.versionToSeal(k, t.door, record)
	return k, v, err
}

// versionToSeal returns the version that encrypts at a door, if the state of the key allows it.
func (k MasterKey) versionToSeal(material *key, door Door, record *AuditKey) (*version, error) {
	if err := k.usable(); err != nil {
		return nil, err
	}
	v, err := door.version(material)
	if err != nil {
		return nil, outwardOf(k.Namespace, k.KeyID, err)
	}
	*record = material.audited(v)
	return v, nil
}

// sealFor encrypts a plaintext for a caller, and writes the record of it. The blob has no scope: only the controllers' path sets one.
func (s *Service) sealFor(ctx context.Context, k *key, v *version, t target, p envelope.Plaintext, record *AuditRecord) (Encrypted, error) {
	blob, err := v.material.Seal(k.header(v, t.door.kind(), envelope.Scope{}), t.ad, p)
	if err != nil {
		return Encrypted{}, err
	}
	parsed, err := envelope.Parse(blob)
	if err != nil {
		return Encrypted{}, err
	}
	record.Bytes = p.Len()
	if err := s.audit(ctx, *record); err != nil {
		return Encrypted{}, err
	}
	if v.number < k.record.Primary { // at the door that knows no other version
		s.metrics.initialUses.WithLabelValues(record.Operation).Inc()
		s.events.InitialVersionUsed(MasterKeyRef{KeyID: k.text, Namespace: k.namespace, Name: k.name}, record.Caller.pod(), record.Operation)
	}
	return Encrypted{
		KeyARN:         k.arn,
		KeyVersion:     int32(v.number),
		CiphertextBlob: blob,
		IV:             parsed.IV(),
		MaterialID:     v.materialID,
	}, nil
}
