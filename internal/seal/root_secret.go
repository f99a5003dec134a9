package seal

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// Entries of the Secret of the embedded root key.
const (
	rootEntryID  = "id"  // a UUID in text
	rootEntryKey = "key" // 32 bytes
)

// secretRoot is the embedded root key: a key in a Secret of the manager's namespace. Whoever reads the Secrets of that
// namespace can unseal everything; it is the default because it needs nothing outside the cluster.
type secretRoot struct {
	secret   string // its name
	id       envelope.KeyID
	material envelope.Material
}

func (c Config) openSecretRoot(ctx context.Context, name string, create bool) (RootKey, error) {
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 || name == SealingKeysSecret {
		return nil, fmt.Errorf("root key secret://%s: must name a Secret of its own, such as %s", name, DefaultRootKey)
	}
	s, err := c.Store.Get(ctx, name)
	if errors.Is(err, ErrSecretNotFound) {
		if !create {
			return nil, &SecretError{
				Secret:  name,
				Problem: "is missing, but Secret " + SealingKeysSecret + " is wrapped by the root key in it",
				Remedy:  "restore it from a backup; no new root key is made, because it could open nothing",
			}
		}
		if err := c.createSecretRoot(ctx, name); err != nil && !errors.Is(err, ErrSecretExists) {
			return nil, fmt.Errorf("making the root key in Secret %s: %w", name, err)
		}
		s, err = c.Store.Get(ctx, name)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the root key in Secret %s: %w", name, err)
	}
	return readSecretRoot(s)
}

func (c Config) createSecretRoot(ctx context.Context, name string) error {
	id, m := envelope.NewKeyID(), envelope.NewMaterial()
	defer m.Destroy()
	made := Change{Action: ActionCreateRootKey, RootKey: secretRootID(name, id), Reason: "there is none of that name"}
	if err := c.record(ctx, []Change{made}); err != nil {
		return err
	}
	return c.Store.Create(ctx, Secret{
		Name:      name,
		Type:      v1alpha1.SecretTypeRootKey,
		Labels:    map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
		Immutable: true,
		Data: map[string][]byte{
			rootEntryID:  []byte(id.String()),
			rootEntryKey: m.AppendTo(insecuresecret.Token{}, nil),
		},
	})
}

func readSecretRoot(s Secret) (RootKey, error) {
	broken := func(problem string) error {
		return &SecretError{Secret: s.Name, Problem: problem, Remedy: "restore the root key in it from a backup"}
	}
	if s.Type != v1alpha1.SecretTypeRootKey {
		return nil, broken(fmt.Sprintf("is of type %q and not %q", s.Type, v1alpha1.SecretTypeRootKey))
	}
	id, err := envelope.ParseKeyID(string(s.Data[rootEntryID]))
	if err != nil {
		return nil, broken("has no UUID in its entry " + rootEntryID)
	}
	m, err := envelope.MaterialFromBytes(s.Data[rootEntryKey])
	clear(s.Data[rootEntryKey])
	if err != nil {
		return nil, broken("has no 32 bytes of a key in its entry " + rootEntryKey)
	}
	return &secretRoot{secret: s.Name, id: id, material: m}, nil
}

func (r *secretRoot) ID() string { return secretRootID(r.secret, r.id) }

func secretRootID(name string, id envelope.KeyID) string {
	return schemeSecret + "://" + name + "#" + id.String()
}

func (r *secretRoot) Embedded() bool { return true }

func (r *secretRoot) Close() error {
	r.material.Destroy()
	return nil
}

func (r *secretRoot) Wrap(_ context.Context, p envelope.Plaintext, ad []byte) ([]byte, error) {
	return r.material.Seal(envelope.Header{
		Kind:       envelope.KindSealingKey,
		KeyID:      r.id,
		KeyVersion: 1, // an embedded root key has one version: another key is another root key
		MaterialID: envelope.MaterialID(r.id),
	}, envelope.AssociatedData{Raw: ad}, p)
}

func (r *secretRoot) Unwrap(_ context.Context, wrapped, ad []byte) (envelope.Plaintext, error) {
	b, err := envelope.Parse(wrapped)
	if err != nil {
		return envelope.Plaintext{}, err
	}
	if b.Header.Kind != envelope.KindSealingKey {
		return envelope.Plaintext{}, envelope.ErrBroken
	}
	if b.CheckKey(r.id, 1, envelope.MaterialID(r.id)) != nil {
		return envelope.Plaintext{}, fmt.Errorf("%w, %s", ErrOtherRootKey, b.Header.KeyID)
	}
	return r.material.Open(b, envelope.AssociatedData{Raw: ad})
}
