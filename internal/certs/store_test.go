package certs

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

var (
	secrets        = schema.GroupResource{Resource: "secrets"}
	errUnavailable = errors.New("the API server is away")
)

// memoryStore is a Store with the semantics of the API server, and hooks for what goes wrong.
type memoryStore struct {
	mu      sync.Mutex
	secret  *corev1.Secret
	version int
	writes  int

	// afterGet runs after each read, outside the lock.
	afterGet func()
	// failWrite says for the n-th write, counted from 1, whether it fails before or after it was done.
	failWrite func(n int) (before, after bool)
	down      bool
}

func (s *memoryStore) Get(context.Context) (*corev1.Secret, error) {
	secret, err := s.get()
	if s.afterGet != nil {
		s.afterGet()
	}
	return secret, err
}

func (s *memoryStore) get() (*corev1.Secret, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.down:
		return nil, errUnavailable
	case s.secret == nil:
		return nil, apierrors.NewNotFound(secrets, SecretName)
	}
	return s.secret.DeepCopy(), nil
}

func (s *memoryStore) Create(_ context.Context, data map[string][]byte) error {
	return s.write(func() error {
		if s.secret != nil {
			return apierrors.NewAlreadyExists(secrets, SecretName)
		}
		s.set(&corev1.Secret{Data: data})
		return nil
	})
}

func (s *memoryStore) Update(_ context.Context, secret *corev1.Secret) error {
	return s.write(func() error {
		switch {
		case s.secret == nil:
			return apierrors.NewNotFound(secrets, SecretName)
		case secret.ResourceVersion != s.secret.ResourceVersion:
			return apierrors.NewConflict(secrets, SecretName, errors.New("another resourceVersion"))
		}
		s.set(secret)
		return nil
	})
}

func (s *memoryStore) write(do func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	var before, after bool
	if s.failWrite != nil {
		before, after = s.failWrite(s.writes)
	}
	if s.down || before {
		return errUnavailable
	}
	if err := do(); err != nil {
		return err
	}
	if after {
		return errUnavailable
	}
	return nil
}

func (s *memoryStore) set(secret *corev1.Secret) {
	s.version++
	s.secret = secret.DeepCopy()
	s.secret.ResourceVersion = strconv.Itoa(s.version)
}

// change edits the Secret as a person would.
func (s *memoryStore) change(edit func(data map[string][]byte)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	secret := s.secret.DeepCopy()
	edit(secret.Data)
	s.set(secret)
}

func (s *memoryStore) remove() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.secret = nil
}

func (s *memoryStore) roots(t *testing.T) []*root {
	t.Helper()
	secret, err := s.get()
	if err != nil {
		t.Fatal(err)
	}
	roots, err := parseRoots(secret.Data)
	if err != nil {
		t.Fatal(err)
	}
	return roots
}

func TestSecretStore(t *testing.T) {
	ctx := t.Context()
	kube := fake.NewClientBuilder().Build()
	store := NewSecretStore(kube, kube, "system")
	if _, err := store.Get(ctx); !apierrors.IsNotFound(err) {
		t.Errorf("Get of no Secret: got %v, want IsNotFound", err)
	}
	data := map[string][]byte{"a": []byte("b")}
	if err := store.Create(ctx, data); err != nil {
		t.Fatal(err)
	}
	if err := store.Create(ctx, data); !apierrors.IsAlreadyExists(err) {
		t.Errorf("the second Create: got %v, want IsAlreadyExists", err)
	}
	secret, err := store.Get(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if secret.Name != SecretName || secret.Namespace != "system" || secret.Type != v1alpha1.SecretTypeServingRoots ||
		secret.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedBy || string(secret.Data["a"]) != "b" {
		t.Errorf("the Secret is %v/%v of type %v, labels %v, %d entries",
			secret.Namespace, secret.Name, secret.Type, secret.Labels, len(secret.Data))
	}
	stale := secret.DeepCopy()
	metav1.SetMetaDataLabel(&secret.ObjectMeta, "changed", "true")
	if err := store.Update(ctx, secret); err != nil {
		t.Fatal(err)
	}
	if err := store.Update(ctx, stale); !apierrors.IsConflict(err) {
		t.Errorf("Update of what has changed: got %v, want IsConflict", err)
	}
}
