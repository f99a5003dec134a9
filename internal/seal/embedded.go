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

// embeddedPrefix begins the URI of an embedded root key, which goes on with the name of its Secret.
const embeddedPrefix = "secret://"

// embeddedRoot is the embedded root key: a key in a Secret of the manager's namespace. Whoever reads the Secrets of that
// namespace can unseal everything; it is the default because it needs nothing outside the cluster.
type embeddedRoot struct {
	HeldKey
	name string
}

func (c Config) openEmbedded(ctx context.Context, name string, create bool) (RootKey, error) {
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 || name == SealingKeysSecret {
		return nil, fmt.Errorf("root key %s: must name a Secret of its own, such as %s", ShownURI(embeddedPrefix+name), DefaultRootKey)
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
		if err := c.createEmbedded(ctx, name); err != nil && !errors.Is(err, ErrSecretExists) {
			return nil, fmt.Errorf("making the root key in Secret %s: %w", name, err)
		}
		s, err = c.Store.Get(ctx, name)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the root key in Secret %s: %w", name, err)
	}
	return readEmbedded(s)
}

func (c Config) createEmbedded(ctx context.Context, name string) error {
	id, m := envelope.NewKeyID(), envelope.NewMaterial()
	defer m.Destroy()
	made := Change{Action: ActionCreateRootKey, RootKey: embeddedID(name, id), Reason: "there is none of that name"}
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

func readEmbedded(s Secret) (RootKey, error) {
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
	return &embeddedRoot{HeldKey: NewHeldKey(id, m), name: embeddedID(s.Name, id)}, nil
}

func embeddedID(secret string, id envelope.KeyID) string {
	return embeddedPrefix + secret + "#" + id.String()
}

func (r *embeddedRoot) ID() string { return r.name }
