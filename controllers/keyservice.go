package controllers

import (
	"context"
	"errors"
	"time"
)

// KeyService is what the controllers need of the key service. It gives out sealed bytes only: no controller ever holds a
// plaintext key, and this package cannot import the rooms that do.
//
// An error that is none of the sentinels below is transient: the caller tries again with back-off.
type KeyService interface {
	// EnsureMasterKey makes version 1 of the key durable if there is no material of that key ID yet, and in either case
	// reads the material back and opens it. It may be called any number of times, by two managers at once. What material it makes
	// has these terms, and counts rotateRequestedAt as served. Errors: ErrInvalidKeyID, ErrMaterialConflict, ErrMaterialBroken,
	// ErrMaterialDestroyed.
	EnsureMasterKey(ctx context.Context, key MasterKeyRef, terms DeletionTerms, rotateRequestedAt string) (MasterKeyInfo, error)
	// MasterKey reads the material and opens it. It never makes any. Errors: those of EnsureMasterKey and
	// ErrMaterialMissing.
	MasterKey(ctx context.Context, key MasterKeyRef) (MasterKeyInfo, error)
	// OwnerOf reads the material of a key ID and opens it, whichever MasterKey it belongs to. Beside ErrMaterialDestroyed comes that
	// MasterKey too. Errors: those of MasterKey but ErrMaterialConflict.
	OwnerOf(ctx context.Context, keyID string) (MasterKeyRef, MasterKeyInfo, error)
	// RotateMasterKey makes a new version durable, reads it back, opens it, and only then lets it be the primary version. It goes on
	// where another call ended, and does nothing where version from is not the primary version any more. requestedAt counts as
	// served. Errors: those of MasterKey and ErrTooManyVersions.
	RotateMasterKey(ctx context.Context, key MasterKeyRef, from int32, requestedAt string) (MasterKeyInfo, error)
	// RecordDeletion records by which terms the material is destroyed, and that the waiting period began then; the zero time says
	// that it did not, or no longer does. A waiting period that has begun goes on from when it began, and its end never comes
	// nearer. Where the record says all that, nothing is written. Errors: those of MasterKey.
	RecordDeletion(ctx context.Context, key MasterKeyRef, terms DeletionTerms, began time.Time) (MasterKeyInfo, error)
	// DestroyMasterKey destroys all versions of a key whose waiting period ended before now. What is left says that they were
	// destroyed, and whose they were. It may be called again. Errors: those of MasterKey but ErrMaterialDestroyed, and ErrNotDue.
	DestroyMasterKey(ctx context.Context, key MasterKeyRef, now time.Time) error
	// ForgetMasterKey removes what DestroyMasterKey left of a key. Errors: ErrInvalidKeyID, ErrNotDue where it is not destroyed.
	ForgetMasterKey(ctx context.Context, keyID string) error

	// GenerateDataKeyWithoutPlaintext makes a new data key, wraps it under the primary version and forgets it. Every call
	// makes another one. Errors: those of MasterKey and ErrUnsupported.
	GenerateDataKeyWithoutPlaintext(ctx context.Context, key DataKey) (SealedDataKey, error)
	// OpenDataKey proves that blob opens as exactly this data key: under its master key, in its scope, with its associated
	// data, to its length or key pair spec. Generation 0 stands for any. The plaintext is dropped. Errors: those of
	// GenerateDataKeyWithoutPlaintext, ErrBlobRefused and ErrKeyVersionMissing.
	OpenDataKey(ctx context.Context, key DataKey, blob []byte) (SealedDataKey, error)
	// RewrapDataKey is OpenDataKey, and wraps the data key anew under the primary version. A blob that is of the primary version is
	// returned as it is. Errors: those of OpenDataKey.
	RewrapDataKey(ctx context.Context, key DataKey, blob []byte) (SealedDataKey, error)
}

// MasterKeyRef names a master key by its key ID, and the object that its material has to belong to.
type MasterKeyRef struct {
	// KeyID is a UUID in canonical, lower-case form.
	KeyID     string
	Namespace string
	Name      string
}

// MasterKeyInfo is what may be known of a master key outside the key service.
type MasterKeyInfo struct {
	// ARN is the full name of the key at the front doors.
	ARN            string
	PrimaryVersion int32
	// PrimarySince is when it became the primary version.
	PrimarySince time.Time
	// Versions are all versions, the newest first. One above PrimaryVersion is of a rotation that is not done.
	Versions []MasterKeyVersion
	// Created says that this very call made the material, or in RotateMasterKey its primary version.
	Created bool
	// RotateRequestedAt is the request for a rotation that was served last.
	RotateRequestedAt string
	// Terms are those by which the material is destroyed.
	Terms DeletionTerms
	// DeletionTime is when the waiting period ends, zero where it did not begin.
	DeletionTime time.Time
}

// MasterKeyVersion is one version of a master key.
type MasterKeyVersion struct {
	Version   int32
	CreatedAt time.Time
}

// DeletionTerms say how a master key is destroyed. They are kept with the material: the object that states them may be gone.
type DeletionTerms struct {
	// WaitingPeriod is for how long the material is kept.
	WaitingPeriod time.Duration
	// OrphanDataKeys destroys it although data keys still need it.
	OrphanDataKeys bool
}

// DataKey is a data key by what its blob is bound to.
type DataKey struct {
	MasterKey MasterKeyRef
	// Namespace, Name and Generation are the scope: those of the DataKeyRequest.
	Namespace  string
	Name       string
	Generation int32
	// Length is the length of a symmetric data key in bytes, 1 to 1024; KeyPairSpec, one of v1alpha1.KeyPairSpecs, makes it a
	// key pair. Exactly one of them is set.
	Length      int
	KeyPairSpec string
	// At most one of EncryptionContext and AAD is set.
	EncryptionContext map[string]string
	AAD               []byte
}

// SealedDataKey is a wrapped data key: ciphertext and what may be known of it.
type SealedDataKey struct {
	CiphertextBlob []byte
	// IV is the initialization vector inside CiphertextBlob.
	IV []byte
	// KeyVersion is the version of the master key that wraps the data key.
	KeyVersion int32
	// Generation is the one of the blob's scope.
	Generation int32
	// PublicKey is the public key of a key pair, SubjectPublicKeyInfo in DER (RFC 5280); CiphertextBlob holds the private key.
	PublicKey []byte
}

// Errors of a KeyService, for errors.Is.
var (
	// ErrInvalidKeyID: the key ID is not a UUID in canonical form.
	ErrInvalidKeyID = errors.New("the key ID is not a lower-case UUID")
	// ErrMaterialMissing: there is no material of that key ID.
	ErrMaterialMissing = errors.New("there is no material of that key ID")
	// ErrMaterialConflict: the material belongs to a MasterKey of another namespace or name.
	ErrMaterialConflict = errors.New("the material belongs to another MasterKey")
	// ErrMaterialBroken: the material does not open under the sealing keys of this installation, or is not whole.
	ErrMaterialBroken = errors.New("the material is damaged")
	// ErrMaterialDestroyed: the material was destroyed at the end of its waiting period.
	ErrMaterialDestroyed = errors.New("the material is destroyed")
	// ErrNotDue: the waiting period has not ended, or not begun.
	ErrNotDue = errors.New("the waiting period is not over")
	// ErrTooManyVersions: the key has as many versions as it may have.
	ErrTooManyVersions = errors.New("the key has as many versions as it may have")
	// ErrKeyVersionMissing: the blob is of a version of the key that its material does not have.
	ErrKeyVersionMissing = errors.New("the blob is of a version of the master key that its material does not have")
	// ErrUnsupported: the key service does not offer that kind of key pair.
	ErrUnsupported = errors.New("the key service does not offer this kind of key pair")
	// ErrBlobRefused: the blob does not open as the data key that was asked for.
	ErrBlobRefused = errors.New("the blob does not open as this data key")
)
