package kms

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
)

// maxDataKey is the longest data key in bytes (AWS KMS, GenerateDataKey: NumberOfBytes).
const maxDataKey = 1024

// wrapAge is how old what is known of a key may be for wrapping the data keys of DataKeyRequests: thousands of them, one after the
// other, read its Secret once in that time.
const wrapAge = time.Second

// DataKey describes the data key, or key pair, of one generation of a DataKeyRequest.
type DataKey struct {
	MasterKey       MasterKeyRef
	Namespace, Name string
	Generation      int32
	// Length is the length of a symmetric data key in bytes, 1 to 1024; KeyPairSpec is one of v1alpha1.KeyPairSpecs and makes it
	// a key pair. Exactly one of them is set.
	Length      int
	KeyPairSpec string
	// At most one of EncryptionContext and AAD is set; each has at most 8192 bytes.
	EncryptionContext map[string]string
	AAD               []byte
}

// SealedDataKey is a data key that only the key service opens.
type SealedDataKey struct {
	CiphertextBlob, IV []byte
	KeyVersion         int32
	// Generation is the one of the blob's scope.
	Generation int32
	// PublicKey, of a key pair, is SubjectPublicKeyInfo in DER (RFC 5280). The blob holds the private key, PKCS #8 in DER.
	PublicKey []byte
}

// GenerateDataKeyWithoutPlaintext makes a data key under the primary version of its master key, in its scope. The error
// may be ErrInvalidKeyID, ErrMaterialMissing, ErrMaterialConflict or ErrMaterialBroken, and has the reason
// kmsv1.ReasonUnsupported for a key pair that this build does not make.
func (s *Service) GenerateDataKeyWithoutPlaintext(ctx context.Context, d DataKey) (sealed SealedDataKey, err error) {
	start, operation := s.Now(), OperationGenerateDataKeyWithoutPlaintext
	if d.KeyPairSpec != "" {
		operation = OperationGenerateDataKeyPairWithoutPlaintext
	}
	defer func() { s.metrics.observe(operation, s.clock.Since(start), err) }()
	if d.Generation < 1 {
		return SealedDataKey{}, invalid("generation", errors.New("must be 1 or more"))
	}
	id, err := d.validate()
	if err != nil {
		return SealedDataKey{}, err
	}
	k, v, err := s.primary(ctx, id, d.MasterKey, wrapAge)
	if err != nil {
		return SealedDataKey{}, err
	}
	p, public, err := d.make(ctx)
	if err != nil {
		return SealedDataKey{}, err
	}
	defer p.Destroy()
	if d.KeyPairSpec != "" { // that may have taken seconds
		if k, v, err = s.primary(ctx, id, d.MasterKey, 0); err != nil {
			return SealedDataKey{}, err
		}
	}
	blob, err := v.material.Seal(k.header(v, envelope.KindDataKey, d.scope()), d.associatedData(), p)
	if err != nil {
		return SealedDataKey{}, invalid("name", err) // all else was checked
	}
	parsed, err := envelope.Parse(blob)
	if err != nil {
		return SealedDataKey{}, err
	}
	key := k.audited(v)
	err = s.audit(ctx, AuditRecord{
		Operation: operation,
		Key:       &key,
		DataKey:   audited(d.scope()),
		Bytes:     p.Len(),
	})
	if err != nil {
		return SealedDataKey{}, err
	}
	return SealedDataKey{
		CiphertextBlob: blob, IV: parsed.IV(), KeyVersion: int32(v.number), Generation: d.Generation, PublicKey: public,
	}, nil
}

// primary is the version that is to wrap a data key, as it lay in the store at most age ago: nothing may be wrapped by material that
// is no longer there to be read again.
func (s *Service) primary(ctx context.Context, id envelope.KeyID, ref MasterKeyRef, age time.Duration) (*key, *version, error) {
	k := s.ring.known(id)
	if k == nil || k.damage != nil || s.clock.Since(k.loadedAt) >= age {
		var err error
		if k, err = s.ring.read(ctx, id); err != nil {
			return nil, nil, err
		}
	}
	if err := k.whole(ref); err != nil {
		return nil, nil, err
	}
	if err := s.usable(ctx, k); err != nil {
		return nil, nil, err
	}
	v, err := k.primaryVersion()
	return k, v, err
}

// OpenDataKey proves that a blob opens as this data key: under its master key, in its scope, with its associated data and of
// its length or spec. Generation 0 stands for any. It returns no plaintext; the public key of a key pair comes out of the blob. The
// error may be ErrBlobRefused, ErrKeyVersionMissing, ErrInvalidKeyID, ErrMaterialMissing, ErrMaterialConflict, ErrMaterialBroken
// or ErrMaterialDestroyed, and has the reason kmsv1.ReasonUnsupported for a key pair that this build cannot read.
func (s *Service) OpenDataKey(ctx context.Context, d DataKey, blob []byte) (sealed SealedDataKey, err error) {
	start := s.Now()
	defer func() { s.metrics.observe(OperationOpenDataKey, s.clock.Since(start), err) }()
	o, err := s.openDataKey(ctx, d, blob, (*key).find)
	if err != nil {
		return SealedDataKey{}, err
	}
	defer o.plaintext.Destroy()
	return o.sealed(), nil
}

// openedDataKey is a data key that was opened and proved.
type openedDataKey struct {
	DataKey // with its generation

	blob      *envelope.Blob
	bytes     []byte
	plaintext envelope.Plaintext // to be destroyed
	public    []byte
}

func (o *openedDataKey) sealed() SealedDataKey {
	return SealedDataKey{
		CiphertextBlob: bytes.Clone(o.bytes),
		IV:             o.blob.IV(),
		KeyVersion:     int32(o.blob.Header.KeyVersion),
		Generation:     o.Generation,
		PublicKey:      o.public,
	}
}

// openDataKey opens and proves a data key, by the version that find finds.
func (s *Service) openDataKey(ctx context.Context, d DataKey, blob []byte, find func(*key, envelope.Header) *version) (*openedDataKey, error) {
	id, err := d.validate()
	if err != nil {
		return nil, err
	}
	b, err := envelope.Parse(blob)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBlobRefused, err)
	}
	h := b.Header
	if d.Generation == 0 && h.Scope.Generation <= math.MaxInt32 {
		d.Generation = int32(h.Scope.Generation)
	}
	switch {
	case h.Kind != envelope.KindDataKey:
		return nil, fmt.Errorf("%w: it is of kind %v", ErrBlobRefused, h.Kind)
	case h.KeyID != id:
		return nil, fmt.Errorf("%w: it is of key %s and not of key %s", ErrBlobRefused, h.KeyID, id)
	case h.Scope != d.scope():
		return nil, fmt.Errorf("%w: it belongs to %s/%s, generation %d", ErrBlobRefused, h.Scope.Namespace, h.Scope.Name, h.Scope.Generation)
	}
	k := s.ring.known(id)
	if k == nil || find(k, h) == nil {
		if k, err = s.ring.read(ctx, id); err != nil {
			return nil, err
		}
	}
	if err := k.belongsTo(d.MasterKey); err != nil {
		return nil, err
	}
	v := find(k, h)
	if v == nil {
		if k.damage != nil {
			return nil, k.damage // it may be that version
		}
		return nil, fmt.Errorf("%w: Secret %s has no version %d with the material %s: a newer backup of that Secret has it",
			ErrKeyVersionMissing, id, h.KeyVersion, h.MaterialID)
	}
	p, err := v.material.Open(b, d.associatedData())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBlobRefused, err)
	}
	public, err := d.prove(p)
	if err != nil {
		p.Destroy()
		return nil, fmt.Errorf("%w: %w", ErrBlobRefused, err)
	}
	return &openedDataKey{DataKey: d, blob: b, bytes: blob, plaintext: p, public: public}, nil
}

// make makes what is to be sealed, and the public key where that is a private key.
func (d DataKey) make(ctx context.Context) (private envelope.Plaintext, public []byte, err error) {
	if d.KeyPairSpec != "" {
		return newKeyPair(ctx, d.KeyPairSpec)
	}
	p, err := envelope.NewPlaintext(d.Length)
	return p, nil, err
}

// prove returns an error unless p is what the data key is to be, and the public key where that is a private key.
func (d DataKey) prove(p envelope.Plaintext) (public []byte, err error) {
	if d.KeyPairSpec == "" && p.Len() != d.Length {
		return nil, fmt.Errorf("it holds %d bytes and not %d", p.Len(), d.Length)
	}
	spec, public, err := readKeyPair(p)
	switch {
	case d.KeyPairSpec != "" && err != nil:
		return nil, err
	case string(spec) != d.KeyPairSpec && d.KeyPairSpec != "":
		return nil, fmt.Errorf("it holds a private key of %s and not of %s", spec, d.KeyPairSpec)
	case string(spec) != d.KeyPairSpec: // some private keys have the length of a data key
		return nil, fmt.Errorf("it holds a private key of %s and not %d random bytes", spec, d.Length)
	default:
		return public, nil
	}
}

func (d DataKey) validate() (envelope.KeyID, error) {
	id, err := d.MasterKey.keyID()
	if err != nil {
		return envelope.KeyID{}, err
	}
	if d.Generation < 0 {
		return envelope.KeyID{}, invalid("generation", errors.New("must not be negative"))
	}
	switch {
	case d.KeyPairSpec != "" && d.Length != 0:
		return envelope.KeyID{}, invalid("keyPairSpec", errors.New("excludes a length"))
	case d.KeyPairSpec != "":
		if err := checkKeyPairSpec("keyPairSpec", d.KeyPairSpec); err != nil {
			return envelope.KeyID{}, err
		}
	case d.Length < 1 || d.Length > maxDataKey:
		return envelope.KeyID{}, invalid("length", fmt.Errorf("must be 1 to %d bytes", maxDataKey))
	}
	if err := d.associatedData().Validate(); err != nil {
		return envelope.KeyID{}, invalid("associated data", err)
	}
	if d.MasterKey.Namespace != d.Namespace {
		return envelope.KeyID{}, invalid("masterKey", errors.New("must be of the data key's namespace"))
	}
	return id, nil
}

func (d DataKey) associatedData() envelope.AssociatedData {
	return envelope.AssociatedData{Context: d.EncryptionContext, Raw: d.AAD}
}

func (d DataKey) scope() envelope.Scope {
	return envelope.Scope{Namespace: d.Namespace, Name: d.Name, Generation: uint32(d.Generation)}
}
