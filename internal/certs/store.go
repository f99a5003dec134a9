package certs

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// SecretName is the name of the Secret, in the manager's namespace, that holds the roots.
const SecretName = "datakeys-serving-roots"

// Store keeps the Secret with the roots. Its errors are those of the Kubernetes API: IsNotFound from Get, IsAlreadyExists
// from Create, and IsConflict from Update, which must compare the resourceVersion.
type Store interface {
	// Get reads the Secret, never from a cache.
	Get(ctx context.Context) (*corev1.Secret, error)
	// Create makes the Secret with these entries.
	Create(ctx context.Context, data map[string][]byte) error
	// Update writes a Secret that Get returned.
	Update(ctx context.Context, secret *corev1.Secret) error
}

// SecretStore is the Store in a cluster.
type SecretStore struct {
	reader    client.Reader
	writer    client.Writer
	namespace string
}

var _ Store = (*SecretStore)(nil)

// NewSecretStore returns the store of the roots in this namespace. The reader must not be a cache: what was just written
// has to be read back.
func NewSecretStore(reader client.Reader, writer client.Writer, namespace string) *SecretStore {
	return &SecretStore{reader: reader, writer: writer, namespace: namespace}
}

// Get implements Store.
func (s *SecretStore) Get(ctx context.Context) (*corev1.Secret, error) {
	secret := &corev1.Secret{}
	if err := s.reader.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: SecretName}, secret); err != nil {
		return nil, err
	}
	return secret, nil
}

// Create implements Store.
func (s *SecretStore) Create(ctx context.Context, data map[string][]byte) error {
	return s.writer.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.namespace,
			Name:      SecretName,
			Labels:    map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
		},
		Type: v1alpha1.SecretTypeServingRoots,
		Data: data,
	})
}

// Update implements Store.
func (s *SecretStore) Update(ctx context.Context, secret *corev1.Secret) error {
	return s.writer.Update(ctx, secret)
}
