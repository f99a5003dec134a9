package kms

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
)

// MasterKeyRef names a master key: its key ID and the MasterKey that it belongs to.
type MasterKeyRef struct{ KeyID, Namespace, Name string }

// MasterKeyInfo is what is known of the material of a master key.
type MasterKeyInfo struct {
	ARN            string
	PrimaryVersion int32
	// PrimarySince is when it became the primary version.
	PrimarySince time.Time
	// Versions are all versions, the newest first. One above PrimaryVersion is of a rotation that is not done.
	Versions []MasterKeyVersion
	// Created says that this call made the material, or in RotateMasterKey its primary version.
	Created bool
	// RotateRequestedAt is the request for a rotation that was served last.
	RotateRequestedAt string
	// Terms are those by which the material is destroyed.
	Terms DeletionTerms
	// DeletionTime is when the waiting period ends, zero where it did not begin.
	DeletionTime time.Time
}

// DeletionTerms say how a master key is destroyed.
type DeletionTerms struct {
	// WaitingPeriod is for how long the material is kept: more than 0.
	WaitingPeriod time.Duration
	// OrphanDataKeys: it is destroyed although data keys still need it. The controllers see to that.
	OrphanDataKeys bool
}

// MasterKeyVersion is one version of a master key.
type MasterKeyVersion struct {
	Version   int32
	CreatedAt time.Time
}

// EnsureMasterKey makes version 1 of a master key where there is no material of its key ID, and returns what is durable,
// read back and opened. It must be called only for a key ID that never had material: the controller's own, not one that
// an annotation brought back. What it makes has these terms, and counts rotateRequestedAt, at most 256 bytes, as served. The
// error may be ErrInvalidKeyID, ErrMaterialConflict, ErrMaterialBroken or ErrMaterialDestroyed.
func (s *Service) EnsureMasterKey(ctx context.Context, ref MasterKeyRef, terms DeletionTerms, rotateRequestedAt string) (MasterKeyInfo, error) {
	id, err := ref.keyID()
	if err != nil {
		return MasterKeyInfo{}, err
	}
	if err := terms.check(); err != nil {
		return MasterKeyInfo{}, err
	}
	if err := checkRotateRequest(rotateRequestedAt); err != nil {
		return MasterKeyInfo{}, err
	}
	k, err := s.masterKey(ctx, id, ref)
	if err == nil {
		return s.info(k), nil
	}
	if !errors.Is(err, ErrMaterialMissing) {
		return MasterKeyInfo{}, err
	}

	start := s.Now()
	k, created, err := s.createMasterKey(ctx, id, ref, terms, rotateRequestedAt)
	s.metrics.observe(OperationCreateMasterKeyVersion, s.clock.Since(start), err)
	if err != nil {
		return MasterKeyInfo{}, err
	}
	info := s.info(k)
	info.Created = created
	return info, nil
}

func (s *Service) createMasterKey(ctx context.Context, id envelope.KeyID, ref MasterKeyRef, terms DeletionTerms, rotateRequestedAt string) (
	k *key, created bool, err error,
) {
	if err := s.seal.CheckStored(ctx); err != nil {
		return nil, false, err
	}
	secret, materialID, err := sealFirstVersion(s.seal, id, ref, s.Now(), terms, rotateRequestedAt)
	if err != nil {
		return nil, false, err
	}
	err = s.audit(ctx, AuditRecord{
		Operation: OperationCreateMasterKeyVersion,
		Key:       &AuditKey{ID: ref.KeyID, Namespace: ref.Namespace, Name: ref.Name, Version: 1},
	})
	if err != nil {
		return nil, false, err
	}
	if err := s.store.Create(ctx, secret); err != nil && !errors.Is(err, seal.ErrSecretExists) {
		return nil, false, fmt.Errorf("making Secret %s: %w", secret.Name, err)
	}
	// Whoever was first made the key; both return it as it now lies in the store.
	if k, err = s.masterKey(ctx, id, ref); err != nil {
		return nil, false, err
	}
	v := k.versions[1]
	return k, v != nil && v.materialID == materialID, nil
}

// MasterKey returns what is known of the material of a master key. It reads the store, opens every version, and makes
// nothing. The error may be ErrInvalidKeyID, ErrMaterialMissing, ErrMaterialConflict, ErrMaterialBroken or ErrMaterialDestroyed.
func (s *Service) MasterKey(ctx context.Context, ref MasterKeyRef) (MasterKeyInfo, error) {
	id, err := ref.keyID()
	if err != nil {
		return MasterKeyInfo{}, err
	}
	k, err := s.masterKey(ctx, id, ref)
	if err != nil {
		return MasterKeyInfo{}, err
	}
	return s.info(k), nil
}

// OwnerOf returns what is known of the material of a key ID, whichever MasterKey it belongs to, and that MasterKey. The error may
// be ErrInvalidKeyID, ErrMaterialMissing, ErrMaterialBroken or ErrMaterialDestroyed. The MasterKey comes beside the latter two
// as well, where it is known.
func (s *Service) OwnerOf(ctx context.Context, keyID string) (MasterKeyRef, MasterKeyInfo, error) {
	ref := MasterKeyRef{KeyID: keyID}
	id, err := ref.keyID()
	if err != nil {
		return ref, MasterKeyInfo{}, err
	}
	k, _, err := s.ring.readSecret(ctx, id)
	if k != nil {
		ref.Namespace, ref.Name = k.namespace, k.name
	}
	if err == nil {
		err = k.damage
	}
	if err != nil {
		return ref, MasterKeyInfo{}, err
	}
	return ref, s.info(k), nil
}

// masterKey reads a key's material now and checks that it is whole and belongs to ref.
func (s *Service) masterKey(ctx context.Context, id envelope.KeyID, ref MasterKeyRef) (*key, error) {
	k, _, err := s.masterKeySecret(ctx, id, ref)
	return k, err
}

// masterKeySecret is masterKey, and returns the Secret too.
func (s *Service) masterKeySecret(ctx context.Context, id envelope.KeyID, ref MasterKeyRef) (*key, seal.Secret, error) {
	k, secret, err := s.ring.readSecret(ctx, id)
	if k == nil {
		return nil, secret, err
	}
	if err := k.belongsTo(ref); err != nil {
		return nil, secret, err
	}
	if err != nil {
		return nil, secret, err
	}
	return k, secret, k.damage
}

// whole returns an error unless the material belongs to ref and nothing is wrong with it.
func (k *key) whole(ref MasterKeyRef) error {
	if err := k.belongsTo(ref); err != nil {
		return err
	}
	return k.damage
}

func (k *key) belongsTo(ref MasterKeyRef) error {
	if k.namespace != ref.Namespace || k.name != ref.Name {
		return fmt.Errorf("%w: key %s belongs to %s/%s and not to %s/%s: remove the annotation or take the other name",
			ErrMaterialConflict, k.id, k.namespace, k.name, ref.Namespace, ref.Name)
	}
	return nil
}

func (t DeletionTerms) check() error {
	if t.WaitingPeriod <= 0 {
		return invalid("waitingPeriod", errors.New("must be more than 0s"))
	}
	return nil
}

func (r MasterKeyRef) keyID() (envelope.KeyID, error) {
	id, err := envelope.ParseKeyID(r.KeyID)
	if err != nil {
		return envelope.KeyID{}, fmt.Errorf("%w: %w", ErrInvalidKeyID, err)
	}
	return id, nil
}

func (s *Service) info(k *key) MasterKeyInfo {
	info := MasterKeyInfo{
		ARN:               k.arn,
		PrimaryVersion:    int32(k.record.Primary),
		PrimarySince:      k.record.PrimarySince,
		RotateRequestedAt: k.record.RotateRequestedAt,
		Terms:             k.record.terms(),
	}
	if d := k.record.Deletion; d != nil {
		info.DeletionTime = d.DueAt
	}
	for n := k.newest; n > 0; n-- {
		if v := k.versions[n]; v != nil {
			info.Versions = append(info.Versions, MasterKeyVersion{Version: int32(n), CreatedAt: v.createdAt})
		}
	}
	return info
}
