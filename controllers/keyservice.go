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
	// reads the material back and opens it. It may be called any number of times, by two managers at once. Errors:
	// ErrInvalidKeyID, ErrMaterialConflict, ErrMaterialBroken.
	EnsureMasterKey(ctx context.Context, key MasterKeyRef) (MasterKeyInfo, error)
	// MasterKey reads the material and opens it. It never makes any. Errors: those of EnsureMasterKey and
	// ErrMaterialMissing.
	MasterKey(ctx context.Context, key MasterKeyRef) (MasterKeyInfo, error)
	// GenerateDataKeyWithoutPlaintext makes a new data key, wraps it under the primary version and forgets it. Every call
	// makes another one. Errors: those of MasterKey and ErrUnsupported.
	GenerateDataKeyWithoutPlaintext(ctx context.Context, key DataKey) (SealedDataKey, error)
	// OpenDataKey proves that blob opens as exactly this data key: under its master key, in its scope, with its associated
	// data, to its length or key pair spec. The plaintext is dropped. Errors: those of GenerateDataKeyWithoutPlaintext and
	// ErrBlobRefused.
	OpenDataKey(ctx context.Context, key DataKey, blob []byte) (SealedDataKey, error)
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
	// Versions are all versions, the newest first.
	Versions []MasterKeyVersion
	// Created says that this very call made the material.
	Created bool
}

// MasterKeyVersion is one version of a master key.
type MasterKeyVersion struct {
	Version   int32
	CreatedAt time.Time
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
	// ErrMaterialBroken: the material does not open under the sealing keys of this installation.
	ErrMaterialBroken = errors.New("the material does not open")
	// ErrUnsupported: the key service does not offer that kind of key pair.
	ErrUnsupported = errors.New("the key service does not offer this kind of key pair")
	// ErrBlobRefused: the blob does not open as the data key that was asked for.
	ErrBlobRefused = errors.New("the blob does not open as this data key")
)
