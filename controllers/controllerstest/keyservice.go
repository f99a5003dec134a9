// Package controllerstest holds what tests of the controllers share: a key service that seals nothing, a client that fails or
// dies at a chosen write, and an API server.
package controllerstest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
)

// KeyService is a fake. Its blobs are JSON and hold no key, but they are bound to what a real blob is bound to, and its
// material is a Secret that is made with Create and read back, like the real one.
type KeyService struct {
	// Client reaches the Secrets with the material. Its reads must not come from a cache.
	Client client.Client
	// Namespace is where the Secrets are.
	Namespace string
	// Serial numbers whatever is made, so that no two are alike. Share one between fakes of one story.
	Serial *atomic.Int64
	// Err, where it is set, is what every call returns.
	Err error
	// Opened counts the calls of OpenDataKey.
	Opened atomic.Int64
}

var _ controllers.KeyService = &KeyService{}

// MadeAt is when everything was made.
var MadeAt = time.Date(2026, time.March, 1, 12, 0, 0, 0, time.UTC)

// IV is the initialization vector of every blob.
const IV = "0123456789ab"

// Entries of a fake material.
const (
	materialID        = "materialID"
	materialNamespace = "namespace"
	materialName      = "name"
)

// A blob is the JSON of what a real blob is bound to.
type blob struct {
	Serial            int64             `json:"serial"`
	KeyID             string            `json:"keyID"`
	MaterialID        string            `json:"materialID"`
	Namespace         string            `json:"namespace"`
	Name              string            `json:"name"`
	Generation        int32             `json:"generation"`
	Length            int               `json:"length"`
	KeyPairSpec       string            `json:"keyPairSpec,omitempty"`
	EncryptionContext map[string]string `json:"encryptionContext"`
	AAD               []byte            `json:"aad,omitempty"`
}

// EnsureMasterKey makes material if there is none.
func (s *KeyService) EnsureMasterKey(ctx context.Context, key controllers.MasterKeyRef) (controllers.MasterKeyInfo, error) {
	if s.Err != nil {
		return controllers.MasterKeyInfo{}, s.Err
	}
	material := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: key.KeyID},
		Type:       v1alpha1.SecretTypeMasterKey,
		Data: map[string][]byte{
			materialID:        strconv.AppendInt([]byte("material-"), s.Serial.Add(1), 10),
			materialNamespace: []byte(key.Namespace),
			materialName:      []byte(key.Name),
		},
	}
	err := s.Client.Create(ctx, material)
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return controllers.MasterKeyInfo{}, err
	}
	info, readErr := s.MasterKey(ctx, key)
	info.Created = err == nil
	return info, readErr
}

// MasterKey reads the material.
func (s *KeyService) MasterKey(ctx context.Context, key controllers.MasterKeyRef) (controllers.MasterKeyInfo, error) {
	if _, err := s.material(ctx, key); err != nil {
		return controllers.MasterKeyInfo{}, err
	}
	return controllers.MasterKeyInfo{
		ARN:            fmt.Sprintf("arn:datakeys:kms:fake:%s:key/%s", key.Namespace, key.KeyID),
		PrimaryVersion: 1,
		Versions:       []controllers.MasterKeyVersion{{Version: 1, CreatedAt: MadeAt}},
	}, nil
}

// GenerateDataKeyWithoutPlaintext makes another blob with every call.
func (s *KeyService) GenerateDataKeyWithoutPlaintext(ctx context.Context, key controllers.DataKey) (controllers.SealedDataKey, error) {
	material, err := s.material(ctx, key.MasterKey)
	if err != nil {
		return controllers.SealedDataKey{}, err
	}
	return sealed(bind(key, material, s.Serial.Add(1)))
}

// OpenDataKey compares what the blob is bound to.
func (s *KeyService) OpenDataKey(ctx context.Context, key controllers.DataKey, data []byte) (controllers.SealedDataKey, error) {
	s.Opened.Add(1)
	material, err := s.material(ctx, key.MasterKey)
	if err != nil {
		return controllers.SealedDataKey{}, err
	}
	var have blob
	if err := json.Unmarshal(data, &have); err != nil {
		return controllers.SealedDataKey{}, controllers.ErrBlobRefused
	}
	want := bind(key, material, have.Serial)
	if !maps.Equal(have.EncryptionContext, want.EncryptionContext) {
		return controllers.SealedDataKey{}, controllers.ErrBlobRefused
	}
	out, err := sealed(want)
	if err != nil {
		return controllers.SealedDataKey{}, err
	}
	if !bytes.Equal(out.CiphertextBlob, data) {
		return controllers.SealedDataKey{}, controllers.ErrBlobRefused
	}
	return out, nil
}

func (s *KeyService) material(ctx context.Context, key controllers.MasterKeyRef) (*corev1.Secret, error) {
	if s.Err != nil {
		return nil, s.Err
	}
	if !v1alpha1.IsKeyID(key.KeyID) {
		return nil, controllers.ErrInvalidKeyID
	}
	material := &corev1.Secret{}
	err := s.Client.Get(ctx, client.ObjectKey{Namespace: s.Namespace, Name: key.KeyID}, material)
	switch {
	case apierrors.IsNotFound(err):
		return nil, controllers.ErrMaterialMissing
	case err != nil:
		return nil, err
	case len(material.Data[materialID]) == 0:
		return nil, controllers.ErrMaterialBroken
	case string(material.Data[materialNamespace]) != key.Namespace, string(material.Data[materialName]) != key.Name:
		return nil, controllers.ErrMaterialConflict
	}
	return material, nil
}

func bind(key controllers.DataKey, material *corev1.Secret, serial int64) blob {
	return blob{
		Serial:            serial,
		KeyID:             key.MasterKey.KeyID,
		MaterialID:        string(material.Data[materialID]),
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
	data, err := json.Marshal(b)
	return controllers.SealedDataKey{CiphertextBlob: data, IV: []byte(IV), KeyVersion: 1, PublicKey: publicKey(b)}, err
}
