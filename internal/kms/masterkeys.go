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
	// Versions are all versions, the newest first.
	Versions []MasterKeyVersion
	// Created says that this call made the material.
	Created bool
}

// MasterKeyVersion is one version of a master key.
type MasterKeyVersion struct {
	Version   int32
	CreatedAt time.Time
}

// EnsureMasterKey makes version 1 of a master key where there is no material of its key ID, and returns what is durable,
// read back and opened. It must be called only for a key ID that never had material: the controller's own, not one that
// an annotation brought back. The error may be ErrInvalidKeyID, ErrMaterialConflict or ErrMaterialBroken.
func (s *Service) EnsureMasterKey(ctx context.Context, ref MasterKeyRef) (MasterKeyInfo, error) {
	id, err := ref.keyID()
	if err != nil {
		return MasterKeyInfo{}, err
	}
	k, err := s.masterKey(ctx, id, ref)
	if err == nil {
		return s.info(k), nil
	}
	if !errors.Is(err, ErrMaterialMissing) {
		return MasterKeyInfo{}, err
	}

	start := s.now()
	k, created, err := s.createMasterKey(ctx, id, ref)
	s.metrics.observe(OperationCreateMasterKeyVersion, s.clock.Since(start), err)
	if err != nil {
		return MasterKeyInfo{}, err
	}
	info := s.info(k)
	info.Created = created
	return info, nil
}

func (s *Service) createMasterKey(ctx context.Context, id envelope.KeyID, ref MasterKeyRef) (k *key, created bool, err error) {
	if err := s.seal.CheckStored(ctx); err != nil {
		return nil, false, err
	}
	secret, materialID, err := sealFirstVersion(s.seal, id, ref, s.now())
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
// nothing. The error may be ErrInvalidKeyID, ErrMaterialMissing, ErrMaterialConflict or ErrMaterialBroken.
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

// masterKey reads a key's material now and checks that it is whole and belongs to ref.
func (s *Service) masterKey(ctx context.Context, id envelope.KeyID, ref MasterKeyRef) (*key, error) {
	k, err := s.ring.read(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := k.belongsTo(ref); err != nil {
		return nil, err
	}
	return k, k.damage
}

func (k *key) belongsTo(ref MasterKeyRef) error {
	if k.namespace != ref.Namespace || k.name != ref.Name {
		return fmt.Errorf("%w: key %s belongs to %s/%s and not to %s/%s: remove the annotation or take the other name",
			ErrMaterialConflict, k.id, k.namespace, k.name, ref.Namespace, ref.Name)
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
	info := MasterKeyInfo{ARN: k.arn, PrimaryVersion: int32(k.primary)}
	for n := k.primary; n > 0; n-- {
		if v := k.versions[n]; v != nil {
			info.Versions = append(info.Versions, MasterKeyVersion{Version: int32(n), CreatedAt: v.createdAt})
		}
	}
	return info
}
