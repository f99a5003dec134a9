// Package controllerstest holds what tests of the controllers share: a key service that seals nothing, a client that fails or
// dies at a chosen write, and an API server.
package controllerstest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
)

// KeyService is a fake. Its blobs are JSON and hold no key, but they are bound to what a real blob is bound to, and its
// material is a Secret that is made with Create, read back and changed by compare-and-set, like the real one.
type KeyService struct {
	// Client reaches the Secrets with the material. Its reads must not come from a cache.
	Client client.Client
	// Namespace is where the Secrets are.
	Namespace string
	// Serial numbers whatever is made, so that no two are alike. Share one between fakes of one story.
	Serial *atomic.Int64
	// Clock dates versions; nil: all are made at MadeAt.
	Clock clock.PassiveClock
	// Err, where it is set, is what every call returns.
	Err error
	// Opened counts the calls of OpenDataKey.
	Opened atomic.Int64
}

var _ controllers.KeyService = &KeyService{}

// MadeAt is when everything was made, without a clock.
var MadeAt = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)

// IV is the initialization vector of every blob.
const IV = "0123456789ab"

// recordEntry is the entry of a material that is not a version's.
const recordEntry = "record"

// record is what a material says beside its versions, in the entry recordEntry.
type record struct {
	Namespace         string                    `json:"namespace"`
	Name              string                    `json:"name"`
	Primary           int32                     `json:"primary"`
	PrimarySince      time.Time                 `json:"primarySince"`
	RotateRequestedAt string                    `json:"rotateRequestedAt"`
	Terms             controllers.DeletionTerms `json:"terms"`
	BeganAt           time.Time                 `json:"beganAt"`
	DueAt             time.Time                 `json:"dueAt"`
	Destroyed         bool                      `json:"destroyed"`
}

// version is one version of a material.
type version struct {
	MaterialID string    `json:"materialID"`
	CreatedAt  time.Time `json:"createdAt"`
}

// material is the material of a master key as it was read.
type material struct {
	record

	versions map[int32]version
	secret   *corev1.Secret
}

// Material is a Secret with one version, as EnsureMasterKey makes it.
func Material(namespace string, key controllers.MasterKeyRef, serial int64, createdAt time.Time, terms controllers.DeletionTerms) *corev1.Secret {
	m := material{
		record: record{Namespace: key.Namespace, Name: key.Name, Primary: 1, PrimarySince: createdAt, Terms: terms},
		secret: &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: key.KeyID}, Type: v1alpha1.SecretTypeMasterKey},
	}
	m.add(1, version{MaterialID: fmt.Sprintf("material-%d", serial), CreatedAt: createdAt})
	m.put()
	return m.secret
}

func (m *material) add(number int32, v version) {
	if m.secret.Data == nil {
		m.secret.Data = map[string][]byte{}
	}
	m.secret.Data[fmt.Sprintf("v%d", number)] = mustJSON(v)
}

func (m *material) put() { m.secret.Data[recordEntry] = mustJSON(m.record) }

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) //nolint:forbidigo // the types of this file have no value that cannot be written
	}
	return b
}

func (m *material) newest() int32 { return int32(len(m.versions)) }

// A blob is the JSON of what a real blob is bound to.
type blob struct {
	Serial            int64             `json:"serial"`
	KeyID             string            `json:"keyID"`
	KeyVersion        int32             `json:"keyVersion"`
	MaterialID        string            `json:"materialID"`
	Namespace         string            `json:"namespace"`
	Name              string            `json:"name"`
	Generation        int32             `json:"generation"`
	Length            int               `json:"length"`
	KeyPairSpec       string            `json:"keyPairSpec,omitempty"`
	EncryptionContext map[string]string `json:"encryptionContext"`
	AAD               []byte            `json:"aad,omitempty"`
}

// Serial is what a blob of the fake has instead of a data key: a blob that was wrapped anew has the same.
func Serial(data []byte) int64 {
	var b blob
	if json.Unmarshal(data, &b) != nil {
		return 0
	}
	return b.Serial
}

func (s *KeyService) now() time.Time {
	if s.Clock == nil {
		return MadeAt
	}
	return s.Clock.Now().UTC().Truncate(time.Second)
}

// EnsureMasterKey makes material if there is none.
func (s *KeyService) EnsureMasterKey(
	ctx context.Context, key controllers.MasterKeyRef, terms controllers.DeletionTerms, rotateRequestedAt string,
) (controllers.MasterKeyInfo, error) {
	if s.Err != nil {
		return controllers.MasterKeyInfo{}, s.Err
	}
	info, err := s.MasterKey(ctx, key)
	if !errors.Is(err, controllers.ErrMaterialMissing) {
		return info, err
	}
	secret := Material(s.Namespace, key, s.Serial.Add(1), s.now(), terms)
	var r record
	if err := json.Unmarshal(secret.Data[recordEntry], &r); err != nil {
		return controllers.MasterKeyInfo{}, err
	}
	r.RotateRequestedAt = rotateRequestedAt
	secret.Data[recordEntry] = mustJSON(r)
	err = s.Client.Create(ctx, secret)
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return controllers.MasterKeyInfo{}, err
	}
	info, readErr := s.MasterKey(ctx, key)
	info.Created = err == nil
	return info, readErr
}

// MasterKey reads the material.
func (s *KeyService) MasterKey(ctx context.Context, key controllers.MasterKeyRef) (controllers.MasterKeyInfo, error) {
	m, err := s.material(ctx, key)
	if err != nil {
		return controllers.MasterKeyInfo{}, err
	}
	return m.info(key), nil
}

// OwnerOf reads the material, whoever it belongs to.
func (s *KeyService) OwnerOf(ctx context.Context, keyID string) (controllers.MasterKeyRef, controllers.MasterKeyInfo, error) {
	m, err := s.read(ctx, keyID)
	key := controllers.MasterKeyRef{KeyID: keyID}
	if m != nil {
		key.Namespace, key.Name = m.Namespace, m.Name
	}
	if err != nil {
		return key, controllers.MasterKeyInfo{}, err
	}
	return key, m.info(key), nil
}

func (m *material) info(key controllers.MasterKeyRef) controllers.MasterKeyInfo {
	info := controllers.MasterKeyInfo{
		ARN:               fmt.Sprintf("arn:datakeys:kms:fake:%s:key/%s", key.Namespace, key.KeyID),
		PrimaryVersion:    m.Primary,
		PrimarySince:      m.PrimarySince,
		RotateRequestedAt: m.RotateRequestedAt,
		Terms:             m.Terms,
		DeletionTime:      m.DueAt,
	}
	for n := m.newest(); n > 0; n-- {
		info.Versions = append(info.Versions, controllers.MasterKeyVersion{Version: n, CreatedAt: m.versions[n].CreatedAt})
	}
	return info
}

// RotateMasterKey makes a version with one write, and lets it be the primary one with another.
func (s *KeyService) RotateMasterKey(ctx context.Context, key controllers.MasterKeyRef, from int32, requestedAt string) (controllers.MasterKeyInfo, error) {
	for {
		m, err := s.material(ctx, key)
		if err != nil {
			return controllers.MasterKeyInfo{}, err
		}
		if m.Primary != from {
			return m.info(key), nil
		}
		promotes := m.newest() > m.Primary
		switch {
		case promotes:
			m.Primary, m.PrimarySince, m.RotateRequestedAt = m.newest(), s.now(), requestedAt
		case m.newest() >= v1alpha1.MaxMasterKeyVersions:
			return controllers.MasterKeyInfo{}, controllers.ErrTooManyVersions
		default:
			m.add(m.newest()+1, version{MaterialID: fmt.Sprintf("material-%d", s.Serial.Add(1)), CreatedAt: s.now()})
		}
		m.put()
		if err := s.Client.Update(ctx, m.secret); err != nil {
			return controllers.MasterKeyInfo{}, err
		}
		if promotes {
			info, err := s.MasterKey(ctx, key)
			info.Created = true
			return info, err
		}
	}
}

// RecordDeletion writes the terms, and when the waiting period began.
func (s *KeyService) RecordDeletion(
	ctx context.Context, key controllers.MasterKeyRef, terms controllers.DeletionTerms, began time.Time,
) (controllers.MasterKeyInfo, error) {
	m, err := s.material(ctx, key)
	if err != nil {
		return controllers.MasterKeyInfo{}, err
	}
	before := m.record
	m.Terms = terms
	switch {
	case began.IsZero():
		m.BeganAt, m.DueAt = time.Time{}, time.Time{}
	case m.BeganAt.IsZero():
		m.BeganAt, m.DueAt = began.UTC(), began.Add(terms.WaitingPeriod).UTC()
	default:
		if due := m.BeganAt.Add(terms.WaitingPeriod); due.After(m.DueAt) {
			m.DueAt = due
		}
	}
	if m.record == before {
		return m.info(key), nil
	}
	m.put()
	if err := s.Client.Update(ctx, m.secret); err != nil {
		return controllers.MasterKeyInfo{}, err
	}
	return m.info(key), nil
}

// DestroyMasterKey leaves the record alone.
func (s *KeyService) DestroyMasterKey(ctx context.Context, key controllers.MasterKeyRef, now time.Time) error {
	m, err := s.material(ctx, key)
	switch {
	case errors.Is(err, controllers.ErrMaterialDestroyed):
		return nil
	case err != nil:
		return err
	case m.DueAt.IsZero() || now.Before(m.DueAt):
		return controllers.ErrNotDue
	}
	m.Destroyed, m.secret.Data = true, map[string][]byte{}
	m.put()
	return s.Client.Update(ctx, m.secret)
}

// ForgetMasterKey deletes what is left of destroyed material.
func (s *KeyService) ForgetMasterKey(ctx context.Context, keyID string) error {
	m, err := s.read(ctx, keyID)
	switch {
	case errors.Is(err, controllers.ErrMaterialMissing):
		return nil
	case err == nil:
		return controllers.ErrNotDue
	case !errors.Is(err, controllers.ErrMaterialDestroyed):
		return err
	}
	return client.IgnoreNotFound(s.Client.Delete(ctx, m.secret, client.Preconditions{ResourceVersion: &m.secret.ResourceVersion}))
}

// GenerateDataKeyWithoutPlaintext makes another blob with every call.
func (s *KeyService) GenerateDataKeyWithoutPlaintext(ctx context.Context, key controllers.DataKey) (controllers.SealedDataKey, error) {
	m, err := s.material(ctx, key.MasterKey)
	if err != nil {
		return controllers.SealedDataKey{}, err
	}
	return sealed(bind(key, m, m.Primary, s.Serial.Add(1)))
}

// OpenDataKey compares what the blob is bound to.
func (s *KeyService) OpenDataKey(ctx context.Context, key controllers.DataKey, data []byte) (controllers.SealedDataKey, error) {
	s.Opened.Add(1)
	b, _, err := s.open(ctx, key, data)
	if err != nil {
		return controllers.SealedDataKey{}, err
	}
	return sealed(b)
}

// RewrapDataKey returns the blob under the primary version, with the same serial number.
func (s *KeyService) RewrapDataKey(ctx context.Context, key controllers.DataKey, data []byte) (controllers.SealedDataKey, error) {
	b, m, err := s.open(ctx, key, data)
	if err != nil {
		return controllers.SealedDataKey{}, err
	}
	key.Generation = b.Generation
	return sealed(bind(key, m, m.Primary, b.Serial))
}

func (s *KeyService) open(ctx context.Context, key controllers.DataKey, data []byte) (blob, *material, error) {
	m, err := s.material(ctx, key.MasterKey)
	if err != nil {
		return blob{}, nil, err
	}
	var have blob
	if json.Unmarshal(data, &have) != nil || have.KeyID != key.MasterKey.KeyID {
		return blob{}, nil, controllers.ErrBlobRefused
	}
	if v, found := m.versions[have.KeyVersion]; !found || v.MaterialID != have.MaterialID {
		return blob{}, nil, controllers.ErrKeyVersionMissing
	}
	if key.Generation == 0 {
		key.Generation = have.Generation
	}
	want := bind(key, m, have.KeyVersion, have.Serial)
	if !maps.Equal(have.EncryptionContext, want.EncryptionContext) || !bytes.Equal(mustJSON(want), data) {
		return blob{}, nil, controllers.ErrBlobRefused
	}
	return want, m, nil
}

// material reads the material of a key that belongs to that MasterKey.
func (s *KeyService) material(ctx context.Context, key controllers.MasterKeyRef) (*material, error) {
	m, err := s.read(ctx, key.KeyID)
	if m != nil && (m.Namespace != key.Namespace || m.Name != key.Name) {
		return nil, controllers.ErrMaterialConflict
	}
	return m, err
}

// read reads the material. Of destroyed material it returns what is left beside the error.
func (s *KeyService) read(ctx context.Context, keyID string) (*material, error) {
	if s.Err != nil {
		return nil, s.Err
	}
	if !v1alpha1.IsKeyID(keyID) {
		return nil, controllers.ErrInvalidKeyID
	}
	m := &material{secret: &corev1.Secret{}, versions: map[int32]version{}}
	err := s.Client.Get(ctx, client.ObjectKey{Namespace: s.Namespace, Name: keyID}, m.secret)
	switch {
	case apierrors.IsNotFound(err):
		return nil, controllers.ErrMaterialMissing
	case err != nil:
		return nil, err
	case json.Unmarshal(m.secret.Data[recordEntry], &m.record) != nil:
		return nil, controllers.ErrMaterialBroken
	case m.Destroyed:
		return m, controllers.ErrMaterialDestroyed
	}
	for n := int32(1); ; n++ {
		data, found := m.secret.Data[fmt.Sprintf("v%d", n)]
		if !found {
			break
		}
		var v version
		if json.Unmarshal(data, &v) != nil {
			return nil, controllers.ErrMaterialBroken
		}
		m.versions[n] = v
	}
	if _, found := m.versions[m.Primary]; !found {
		return nil, controllers.ErrMaterialBroken
	}
	return m, nil
}

func bind(key controllers.DataKey, m *material, keyVersion int32, serial int64) blob {
	return blob{
		Serial:            serial,
		KeyID:             key.MasterKey.KeyID,
		KeyVersion:        keyVersion,
		MaterialID:        m.versions[keyVersion].MaterialID,
		Namespace:         key.Namespace,
		Name:              key.Name,
		Generation:        key.Generation,
		Length:            key.Length,
		KeyPairSpec:       key.KeyPairSpec,
		EncryptionContext: key.EncryptionContext,
		AAD:               key.AAD,
	}
}

// publicKey is what stands for the public key of a key pair: like a real one, it follows from the blob and from nothing else.
func publicKey(b blob) []byte {
	if b.KeyPairSpec == "" {
		return nil
	}
	return fmt.Appendf(nil, "public key %d of %s", b.Serial, b.KeyPairSpec)
}

func sealed(b blob) (controllers.SealedDataKey, error) {
	return controllers.SealedDataKey{
		CiphertextBlob: mustJSON(b), IV: []byte(IV), KeyVersion: b.KeyVersion, Generation: b.Generation, PublicKey: publicKey(b),
	}, nil
}
