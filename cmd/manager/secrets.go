package main

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/internal/seal"
)

// secretStore keeps the Secrets of the manager's namespace for the seal and the key service. It reads from the API server
// and never from a cache: what one replica made, the next read of any other finds.
type secretStore struct {
	reader    client.Reader
	writer    client.Writer
	namespace string
}

var _ seal.Store = secretStore{}

func (s secretStore) Get(ctx context.Context, name string) (seal.Secret, error) {
	var o corev1.Secret
	if err := s.reader.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: name}, &o); err != nil {
		if apierrors.IsNotFound(err) {
			return seal.Secret{}, fmt.Errorf("%s/%s: %w", s.namespace, name, seal.ErrSecretNotFound)
		}
		return seal.Secret{}, err
	}
	return seal.Secret{
		Name:            o.Name,
		Type:            string(o.Type),
		Labels:          o.Labels,
		Annotations:     o.Annotations,
		ResourceVersion: o.ResourceVersion,
		Immutable:       o.Immutable != nil && *o.Immutable,
		Data:            o.Data,
	}, nil
}

func (s secretStore) Create(ctx context.Context, secret seal.Secret) error {
	o := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: secret.Name, Labels: secret.Labels},
		Type:       corev1.SecretType(secret.Type),
		Data:       secret.Data,
	}
	if secret.Immutable {
		o.Immutable = &secret.Immutable
	}
	err := s.writer.Create(ctx, o)
	if apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("%s/%s: %w", s.namespace, secret.Name, seal.ErrSecretExists)
	}
	return err
}

// Update reads the Secret again and puts the new data into what it finds, so that labels, annotations and whatever else
// others wrote stay. The resourceVersion sees to it that the data is still the one that was read first.
func (s secretStore) Update(ctx context.Context, secret seal.Secret) error {
	notFound := func() error { return fmt.Errorf("%s/%s: %w", s.namespace, secret.Name, seal.ErrSecretNotFound) }
	changed := func() error { return fmt.Errorf("%s/%s: %w", s.namespace, secret.Name, seal.ErrSecretChanged) }
	var o corev1.Secret
	if err := s.reader.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: secret.Name}, &o); err != nil {
		if apierrors.IsNotFound(err) {
			return notFound()
		}
		return err
	}
	if secret.ResourceVersion == "" || o.ResourceVersion != secret.ResourceVersion {
		return changed()
	}
	o.Data = secret.Data
	err := s.writer.Update(ctx, &o)
	switch {
	case apierrors.IsConflict(err):
		return changed()
	case apierrors.IsNotFound(err):
		return notFound()
	}
	return err
}

func (s secretStore) Remove(ctx context.Context, secret seal.Secret) error {
	if secret.ResourceVersion == "" {
		return fmt.Errorf("%s/%s: %w", s.namespace, secret.Name, seal.ErrSecretChanged)
	}
	o := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: secret.Name}}
	err := s.writer.Delete(ctx, o, client.Preconditions{ResourceVersion: &secret.ResourceVersion})
	switch {
	case apierrors.IsConflict(err):
		return fmt.Errorf("%s/%s: %w", s.namespace, secret.Name, seal.ErrSecretChanged)
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%s/%s: %w", s.namespace, secret.Name, seal.ErrSecretNotFound)
	}
	return err
}

// listPage is how many names of Secrets one request asks for.
const listPage = 500

func (s secretStore) List(ctx context.Context, secretType string) ([]string, error) {
	var names []string
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("SecretList"))
	for {
		err := s.reader.List(ctx, list, client.InNamespace(s.namespace), client.MatchingFields{"type": secretType},
			client.Limit(listPage), client.Continue(list.Continue))
		if err != nil {
			return nil, err
		}
		for _, o := range list.Items {
			names = append(names, o.Name)
		}
		if list.Continue == "" {
			slices.Sort(names)
			return names, nil
		}
	}
}

func (s secretStore) Any(ctx context.Context, secretType string) (bool, error) {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("SecretList"))
	err := s.reader.List(ctx, list, client.InNamespace(s.namespace), client.MatchingFields{"type": secretType}, client.Limit(1))
	return len(list.Items) > 0, err
}
