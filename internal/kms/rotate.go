package kms

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
)

// writeTries is how often a Secret of a master key is read for one change of it, of two writes at most, where others write to it
// at the same time.
const writeTries = 8

// RotateMasterKey makes a new version durable, reads it back, opens it, and only then lets it be the primary version: two writes,
// each of what was read right before. It goes on where another call ended, and does nothing where version from is not the primary
// version any more; Created says that this call promoted the one that is. requestedAt, at most 256 bytes, counts as served. The error
// may be one of MasterKey's, or ErrTooManyVersions.
func (s *Service) RotateMasterKey(ctx context.Context, ref MasterKeyRef, from int32, requestedAt string) (MasterKeyInfo, error) {
	id, err := ref.keyID()
	if err != nil {
		return MasterKeyInfo{}, err
	}
	if err := checkRotateRequest(requestedAt); err != nil {
		return MasterKeyInfo{}, err
	}
	promoted := envelope.MaterialID{} // by this call
	for range writeTries {
		k, secret, err := s.masterKeySecret(ctx, id, ref)
		if err != nil {
			return MasterKeyInfo{}, err
		}
		primary, err := k.primaryVersion()
		if err != nil {
			return MasterKeyInfo{}, err
		}
		if int64(primary.number) != int64(from) {
			info := s.info(k)
			info.Created = primary.materialID == promoted
			return info, nil
		}
		if err := s.checkRotation(ctx, k); err != nil {
			return MasterKeyInfo{}, err
		}
		start, operation := s.Now(), OperationCreateMasterKeyVersion
		if k.newest > primary.number {
			operation = OperationRotateMasterKey
			err = s.promote(ctx, k, secret, requestedAt)
		} else {
			err = s.addVersion(ctx, k, secret, ref)
		}
		s.metrics.observe(operation, s.clock.Since(start), err)
		switch {
		case errors.Is(err, seal.ErrSecretChanged): // whoever did it may have rotated the key: read again
		case err != nil:
			return MasterKeyInfo{}, err
		case operation == OperationRotateMasterKey:
			promoted = k.versions[k.newest].materialID
		}
	}
	return MasterKeyInfo{}, fmt.Errorf("rotating key %s: %w again and again", id, seal.ErrSecretChanged)
}

// checkRotation makes sure that nothing stands in the way of another version.
func (s *Service) checkRotation(ctx context.Context, k *key) error {
	// The new version would take the number of the lost one, and stand in the way of the backup that has it.
	if lost := s.ring.lost(k); len(lost) > 0 {
		return fmt.Errorf("%w: Secret %s lacks version %d, which this manager has opened before: an older backup seems to have been restored: "+
			"restore a newer one, or, if there is none, have what that version wraps wrapped anew while this manager runs, and restart it then",
			ErrMaterialBroken, k.text, slices.Max(lost))
	}
	if k.newest == k.record.Primary && k.newest >= v1alpha1.MaxMasterKeyVersions {
		return fmt.Errorf("%w: key %s has %d: make a new MasterKey", ErrTooManyVersions, k.text, k.newest)
	}
	// After an old backup of the sealing keys was restored, the primary one may be in the memory of running managers alone.
	return s.seal.CheckStored(ctx)
}

// addVersion writes a new version, which wraps nothing yet.
func (s *Service) addVersion(ctx context.Context, k *key, secret seal.Secret, ref MasterKeyRef) error {
	// With the record, where there was none: two versions have to have one.
	secret, err := k.record.in(secret)
	if err != nil {
		return err
	}
	number := k.newest + 1
	if _, err := sealVersion(s.seal, k.id, ref, number, s.Now(), secret.Data); err != nil {
		return err
	}
	return s.write(ctx, AuditRecord{Operation: OperationCreateMasterKeyVersion, Key: k.auditedVersion(number)}, secret)
}

// promote lets the newest version, which was read back and opens, be the primary one.
func (s *Service) promote(ctx context.Context, k *key, secret seal.Secret, requestedAt string) error {
	r := k.record
	r.Primary, r.PrimarySince, r.RotateRequestedAt = k.newest, wholeSecond(s.Now()), requestedAt
	secret, err := r.in(secret)
	if err != nil {
		return err
	}
	return s.write(ctx, AuditRecord{Operation: OperationRotateMasterKey, Key: k.auditedVersion(k.newest)}, secret)
}

// write writes what was read and changed, after the audit record of it.
func (s *Service) write(ctx context.Context, record AuditRecord, secret seal.Secret) error {
	if err := s.audit(ctx, record); err != nil {
		return err
	}
	if err := s.store.Update(ctx, secret); err != nil {
		return fmt.Errorf("writing Secret %s: %w", secret.Name, err)
	}
	return nil
}

// auditedVersion names a version of a key in an audit record, 0 for none.
func (k *key) auditedVersion(number uint32) *AuditKey {
	a := k.audited(nil)
	a.Version = number
	return &a
}

// lost returns the numbers of the versions that this process has opened and the Secret has no more.
func (r *keyring) lost(k *key) []uint32 {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if latest := r.keys[k.id]; latest != nil {
		k = latest // it may have been read twice at once, and only one of them knows
	}
	return slices.Collect(maps.Keys(k.lost))
}
