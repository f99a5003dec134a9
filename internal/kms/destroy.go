package kms

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
)

// RecordDeletion records by which terms the material is destroyed, and that the waiting period began then; the zero time says that it
// did not, or no longer does. A waiting period that has begun goes on from when it began, and its end never comes nearer. Where
// the record says all that, nothing is written. The error may be one of MasterKey's.
func (s *Service) RecordDeletion(ctx context.Context, ref MasterKeyRef, terms DeletionTerms, began time.Time) (MasterKeyInfo, error) {
	id, err := ref.keyID()
	if err != nil {
		return MasterKeyInfo{}, err
	}
	if err := terms.check(); err != nil {
		return MasterKeyInfo{}, err
	}
	var info MasterKeyInfo
	err = s.rewrite(ctx, id, ref, func(k *key, secret seal.Secret) (AuditRecord, seal.Secret, error) {
		info = s.info(k)
		r := k.record.withDeletion(terms, wholeSecond(began))
		if r.sameDeletion(k.record) {
			return AuditRecord{}, seal.Secret{}, errNothingToWrite
		}
		audit := AuditRecord{Operation: OperationUpdateDeletionTerms, Key: k.auditedVersion(0)}
		switch {
		case r.Deletion != nil:
			audit.Operation, audit.Reason = OperationScheduleMasterKeyDeletion, "due at "+r.Deletion.DueAt.Format(time.RFC3339)
		case k.record.Deletion != nil:
			audit.Operation = OperationCancelMasterKeyDeletion
		}
		secret, err := r.in(secret)
		return audit, secret, err
	})
	if err != nil {
		return MasterKeyInfo{}, err
	}
	return info, nil
}

// withDeletion is the record with other terms, and with a waiting period that began then unless one goes on.
func (r record) withDeletion(terms DeletionTerms, began time.Time) record {
	r.WaitingPeriod, r.OrphanDataKeys = duration(terms.WaitingPeriod), terms.OrphanDataKeys
	if began.IsZero() {
		r.Deletion = nil
		return r
	}
	d := deletionRecord{BeganAt: began}
	if r.Deletion != nil {
		d = *r.Deletion
	}
	if due := d.BeganAt.Add(terms.WaitingPeriod); due.After(d.DueAt) {
		d.DueAt = due
	}
	r.Deletion = &d
	return r
}

func (r record) sameDeletion(other record) bool {
	if r.terms() != other.terms() || (r.Deletion == nil) != (other.Deletion == nil) {
		return false
	}
	return r.Deletion == nil || r.Deletion.BeganAt.Equal(other.Deletion.BeganAt) && r.Deletion.DueAt.Equal(other.Deletion.DueAt)
}

// DestroyMasterKey destroys all versions of a key whose waiting period ended at now or before. What is left says that they were
// destroyed, and whose they were. It may be called again. The error may be one of MasterKey's but ErrMaterialDestroyed, or
// ErrNotDue.
func (s *Service) DestroyMasterKey(ctx context.Context, ref MasterKeyRef, now time.Time) error {
	id, err := ref.keyID()
	if err != nil {
		return err
	}
	err = s.rewrite(ctx, id, ref, func(k *key, secret seal.Secret) (AuditRecord, seal.Secret, error) {
		r := k.record
		switch {
		case r.Deletion == nil:
			return AuditRecord{}, seal.Secret{}, fmt.Errorf("%w: that of key %s has not begun", ErrNotDue, k.text)
		case now.Before(r.Deletion.DueAt):
			return AuditRecord{}, seal.Secret{}, fmt.Errorf("%w: that of key %s ends at %s", ErrNotDue, k.text, r.Deletion.DueAt.Format(time.RFC3339))
		}
		r.Destroyed = &destroyedRecord{At: wholeSecond(now), Namespace: k.namespace, Name: k.name, Versions: len(k.versions)}
		secret.Data = nil
		secret, err := r.in(secret)
		return AuditRecord{Operation: OperationDestroyMasterKey, Key: k.auditedVersion(0), Reason: fmt.Sprintf(
			"%d versions, due at %s", len(k.versions), r.Deletion.DueAt.Format(time.RFC3339))}, secret, err
	})
	if errors.Is(err, ErrMaterialDestroyed) {
		return nil
	}
	return err
}

// errNothingToWrite ends a rewrite.
var errNothingToWrite = errors.New("nothing is to be written")

// rewrite changes the Secret of a key until change finds nothing to write. What was written is so read back. The operation is
// that of the audit record.
func (s *Service) rewrite(ctx context.Context, id envelope.KeyID, ref MasterKeyRef,
	change func(*key, seal.Secret) (AuditRecord, seal.Secret, error),
) error {
	for range writeTries {
		k, secret, err := s.masterKeySecret(ctx, id, ref)
		if err != nil {
			return err
		}
		audit, secret, err := change(k, secret)
		if errors.Is(err, errNothingToWrite) {
			return nil
		}
		if err != nil {
			return err
		}
		start := s.Now()
		err = s.write(ctx, audit, secret)
		s.metrics.observe(audit.Operation, s.clock.Since(start), err)
		if err != nil && !errors.Is(err, seal.ErrSecretChanged) {
			return err
		}
	}
	return fmt.Errorf("writing Secret %s: %w again and again", id, seal.ErrSecretChanged)
}

// ForgetMasterKey removes what DestroyMasterKey left of a key, if there is anything. The error may be ErrInvalidKeyID, or ErrNotDue of a
// key that is not destroyed.
func (s *Service) ForgetMasterKey(ctx context.Context, keyID string) error {
	id, err := MasterKeyRef{KeyID: keyID}.keyID()
	if err != nil {
		return err
	}
	for range writeTries {
		k, secret, err := s.ring.readSecret(ctx, id)
		switch {
		case errors.Is(err, ErrMaterialMissing):
			return nil
		case err == nil:
			return fmt.Errorf("%w: key %s is not destroyed", ErrNotDue, k.text)
		case !errors.Is(err, ErrMaterialDestroyed):
			return err
		}
		start := s.Now()
		err = s.audit(ctx, AuditRecord{Operation: OperationForgetMasterKey, Key: k.auditedVersion(0)})
		if err == nil {
			err = s.store.Remove(ctx, secret)
		}
		s.metrics.observe(OperationForgetMasterKey, s.clock.Since(start), err)
		switch {
		case err == nil, errors.Is(err, seal.ErrSecretNotFound):
			return nil
		case !errors.Is(err, seal.ErrSecretChanged):
			return fmt.Errorf("removing Secret %s: %w", secret.Name, err)
		}
	}
	return fmt.Errorf("removing Secret %s: %w again and again", id, seal.ErrSecretChanged)
}
