package kms

import (
	"context"
	"time"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// OperationDescribeKey is DescribeKey in audit records and metrics.
const OperationDescribeKey = "DescribeKey"

// stateUnavailable is the state, in the words of AWS KMS, of a key that is Enabled and cannot be used all the same: its
// material is missing or damaged.
const stateUnavailable = "Unavailable"

// KeyMetadata is what may be told of a key.
type KeyMetadata struct {
	KeyID, ARN string
	// Namespace and Name are those of the MasterKey.
	Namespace, Name string
	Description     string
	// State is a KeyState, or Unavailable.
	State   string
	KeySpec string
	// CreatedAt is when version 1 was made, or where that is not known the MasterKey.
	CreatedAt time.Time
	// DeletionTime is set for KeyStatePendingDeletion.
	DeletionTime time.Time
	// PrimaryVersion and MaterialID are zero where the material is missing or damaged.
	PrimaryVersion int32
	MaterialID     envelope.MaterialID
}

// DescribeKey tells what is known of the key that a caller names, in whatever state it is. It needs the verb describekey
// on the master key.
func (s *Service) DescribeKey(ctx context.Context, caller Caller, keyID string) (metadata KeyMetadata, err error) {
	start := s.Now()
	defer func() { s.done(ctx, OperationDescribeKey, start, caller, err) }()
	name, err := s.parseKeyName("key_id", keyID)
	if err != nil {
		return KeyMetadata{}, err
	}
	record := AuditRecord{Operation: OperationDescribeKey, Caller: caller.audited(), Key: new(AuditKey)}
	if metadata, err = s.describeKey(ctx, s.reviewer(caller), name, record.Key); err == nil {
		err = s.audit(ctx, record)
	}
	if err != nil {
		s.refused(ctx, caller, record, err)
		return KeyMetadata{}, err
	}
	return metadata, nil
}

func (s *Service) describeKey(ctx context.Context, review *reviewer, name keyName, record *AuditKey) (KeyMetadata, error) {
	k, o, err := s.keyToUse(ctx, review, v1alpha1.VerbDescribeKey, name, record)
	if err != nil {
		_, notOne := envelope.ParseKeyID(o.KeyID)
		if ReasonOf(err) != kmsv1.ReasonKeyUnavailable || notOne != nil {
			return KeyMetadata{}, err
		}
		*record = AuditKey{ID: o.KeyID, Namespace: o.Namespace, Name: o.Name}
	}
	m := KeyMetadata{
		KeyID:        o.KeyID,
		ARN:          s.keyARN(o.Namespace, o.KeyID),
		Namespace:    o.Namespace,
		Name:         o.Name,
		Description:  o.Description,
		State:        string(o.State),
		KeySpec:      string(v1alpha1.MasterKeySpecAES256),
		CreatedAt:    o.CreatedAt,
		DeletionTime: o.DeletionTime,
	}
	usable := false
	if k != nil {
		if first := k.versions[1]; first != nil && !first.createdAt.IsZero() {
			m.CreatedAt = first.createdAt
		}
		if v, err := k.primaryVersion(); err == nil {
			m.PrimaryVersion, m.MaterialID, usable = int32(v.number), v.materialID, true
		}
	}
	if !usable && o.State == KeyStateEnabled {
		m.State = stateUnavailable
	}
	return m, nil
}
