package seal

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/go-logr/logr"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// SealingKeysSecret is the name of the Secret with the wrapped sealing keys and the install ID.
const SealingKeysSecret = "datakeys-sealing-keys"

// Entries of the Secret with the sealing keys, beside one a version: v1, v2 and so on.
const (
	sealingEntryInstallID = "installID"
	sealingEntryKeyID     = "keyID"
)

var installIDPattern = regexp.MustCompile(`^[0-9a-f]{12}$`)

// Keyring holds the sealing keys of an installation, unwrapped. It is safe for concurrent use.
type Keyring struct {
	uri       string
	store     Store
	installID string
	root      RootKey
	id        envelope.KeyID
	versions  map[uint32]sealingKey
	primary   uint32
}

// sealingKey is one version of the sealing key.
type sealingKey struct {
	materialID envelope.MaterialID
	material   envelope.Material
	wrapped    []byte
}

// Open opens the root key that uri names and the sealing keys that it wraps. Where the installation is new, it makes
// them. A *SecretError says which Secret has to be restored first; every other error is worth another try, but for a
// wrong uri.
func Open(ctx context.Context, uri string, store Store) (*Keyring, error) {
	s, err := store.Get(ctx, SealingKeysSecret)
	isNew := errors.Is(err, ErrSecretNotFound)
	if err != nil && !isNew {
		return nil, fmt.Errorf("reading Secret %s: %w", SealingKeysSecret, err)
	}
	if isNew {
		used, err := store.Any(ctx, v1alpha1.SecretTypeMasterKey)
		if err != nil {
			return nil, fmt.Errorf("looking for Secrets of type %s: %w", v1alpha1.SecretTypeMasterKey, err)
		}
		if used {
			return nil, &SecretError{
				Secret:  SealingKeysSecret,
				Problem: "is missing, but there are Secrets of type " + v1alpha1.SecretTypeMasterKey + " sealed under it",
				Remedy:  "restore it from a backup; no new sealing key is made, because it could open nothing",
			}
		}
	}
	root, err := openRootKey(ctx, uri, store, isNew, logr.Discard())
	if err != nil {
		return nil, err
	}
	if isNew {
		if err := createSealingKeys(ctx, root, store); err != nil && !errors.Is(err, ErrSecretExists) {
			return nil, fmt.Errorf("making Secret %s: %w", SealingKeysSecret, err)
		}
		if s, err = store.Get(ctx, SealingKeysSecret); err != nil {
			return nil, fmt.Errorf("reading Secret %s: %w", SealingKeysSecret, err)
		}
	}
	k, err := readSealingKeys(ctx, root, s)
	if err != nil {
		return nil, err
	}
	k.uri, k.store = uri, store
	return k, nil
}

// CheckStored returns a *SecretError unless a manager that starts now would find the newest sealing key. It is asked before
// something new is sealed: what only running managers can open is lost with the last of them.
//
// It asks the root key only where that is embedded, and so near: a root key's service is needed at the start alone.
func (k *Keyring) CheckStored(ctx context.Context) error {
	s, err := k.store.Get(ctx, SealingKeysSecret)
	if errors.Is(err, ErrSecretNotFound) {
		return &SecretError{
			Secret:  SealingKeysSecret,
			Problem: "is missing, although this manager runs with the sealing keys that were in it",
			Remedy:  "restore it from a backup; until then nothing new is sealed, because no manager that starts could open it",
		}
	}
	if err != nil {
		return fmt.Errorf("reading Secret %s: %w", SealingKeysSecret, err)
	}
	if !bytes.Equal(s.Data[VersionEntry(k.primary)], k.versions[k.primary].wrapped) {
		return &SecretError{
			Secret:  SealingKeysSecret,
			Problem: "does not hold the newest sealing key of this manager any more",
			Remedy:  "restart the manager, or restore the Secret from a backup; until then nothing new is sealed",
		}
	}
	if !k.root.Embedded() {
		return nil
	}
	root, err := openRootKey(ctx, k.uri, k.store, false, logr.Discard())
	if err != nil {
		return err
	}
	_, err = readSealingKeys(ctx, root, s)
	return err
}

func createSealingKeys(ctx context.Context, root RootKey, store Store) error {
	var random [6]byte
	rand.Read(random[:])
	k := Keyring{installID: hex.EncodeToString(random[:]), id: envelope.NewKeyID()}

	m := envelope.NewMaterial()
	defer m.Destroy()
	p, err := envelope.PlaintextOfMaterial(envelope.NewMaterialID(), m)
	if err != nil {
		return err
	}
	defer p.Destroy()
	wrapped, err := root.Wrap(ctx, p, k.binding(1))
	if err != nil {
		return fmt.Errorf("wrapping it by root key %s: %w", root.ID(), err)
	}
	return store.Create(ctx, Secret{
		Name:   SealingKeysSecret,
		Type:   v1alpha1.SecretTypeSealingKeys,
		Labels: map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
		Data: map[string][]byte{
			sealingEntryInstallID: []byte(k.installID),
			sealingEntryKeyID:     []byte(k.id.String()),
			VersionEntry(1):       wrapped,
		},
	})
}

func readSealingKeys(ctx context.Context, root RootKey, s Secret) (*Keyring, error) {
	broken := func(format string, args ...any) error {
		return &SecretError{Secret: s.Name, Problem: fmt.Sprintf(format, args...), Remedy: "restore it from a backup"}
	}
	if s.Type != v1alpha1.SecretTypeSealingKeys {
		return nil, broken("is of type %q and not %q", s.Type, v1alpha1.SecretTypeSealingKeys)
	}
	k := &Keyring{root: root, installID: string(s.Data[sealingEntryInstallID]), versions: map[uint32]sealingKey{}}
	if !installIDPattern.MatchString(k.installID) {
		return nil, broken("has no install ID of 12 hexadecimal digits in its entry %s", sealingEntryInstallID)
	}
	var err error
	if k.id, err = envelope.ParseKeyID(string(s.Data[sealingEntryKeyID])); err != nil {
		return nil, broken("has no UUID in its entry %s", sealingEntryKeyID)
	}
	for entry, wrapped := range s.Data {
		version, ok := ParseVersionEntry(entry)
		if !ok {
			continue
		}
		sk, err := k.unwrap(ctx, version, wrapped)
		switch {
		case errors.Is(err, ErrOtherRootKey):
			return nil, &SecretError{
				Secret:  s.Name,
				Problem: fmt.Sprintf("has an entry %s that is %v, but the root key is %s", entry, err, root.ID()),
				Remedy:  "restore that root key, or this Secret and the root key from one backup",
			}
		case errors.Is(err, envelope.ErrBroken), errors.Is(err, envelope.ErrNotMine), errors.Is(err, envelope.ErrInvalid):
			return nil, &SecretError{
				Secret:  s.Name,
				Problem: fmt.Sprintf("has an entry %s that does not open under root key %s", entry, root.ID()),
				Remedy:  "one of the two was altered: restore this Secret and the root key from one backup",
			}
		case err != nil:
			return nil, fmt.Errorf("unwrapping entry %s of Secret %s by root key %s: %w", entry, s.Name, root.ID(), err)
		}
		k.versions[version] = sk
		k.primary = max(k.primary, version)
	}
	if k.primary == 0 || int(k.primary) != len(k.versions) {
		return nil, broken("lacks an entry: it has %d versions and the newest is %d", len(k.versions), k.primary)
	}
	return k, nil
}

func (k *Keyring) unwrap(ctx context.Context, version uint32, wrapped []byte) (sealingKey, error) {
	p, err := k.root.Unwrap(ctx, wrapped, k.binding(version))
	if err != nil {
		return sealingKey{}, err
	}
	defer p.Destroy()
	id, m, err := p.Material()
	if err != nil {
		return sealingKey{}, err
	}
	return sealingKey{materialID: id, material: m, wrapped: bytes.Clone(wrapped)}, nil
}

// binding is the associated data of a wrapped sealing key: its key ID, its version in four bytes, big-endian, and the
// install ID. A wrapped sealing key so opens only as what it was made.
func (k *Keyring) binding(version uint32) []byte {
	b := append([]byte(nil), k.id[:]...)
	b = binary.BigEndian.AppendUint32(b, version)
	return append(b, k.installID...)
}

// InstallID returns the name of the installation, 12 hexadecimal digits, made once and part of every ARN.
func (k *Keyring) InstallID() string { return k.installID }

// RootKeyEmbedded reports whether the root key lies in the cluster beside what it protects.
func (k *Keyring) RootKeyEmbedded() bool { return k.root.Embedded() }

// MasterKeyVersion says whose material it is that is sealed.
type MasterKeyVersion struct {
	// KeyID is the key ID of the master key.
	KeyID envelope.KeyID
	// Namespace and Name are those of the MasterKey that the material belongs to.
	Namespace, Name string
	// Version is 1 or more.
	Version uint32
}

// Seal seals the material of one version of a master key under the newest sealing key. Nothing opens the result but
// Unseal for the same key ID and version.
func (k *Keyring) Seal(v MasterKeyVersion, id envelope.MaterialID, m envelope.Material) ([]byte, error) {
	p, err := envelope.PlaintextOfMaterial(id, m)
	if err != nil {
		return nil, err
	}
	defer p.Destroy()
	sk := k.versions[k.primary]
	return sk.material.Seal(envelope.Header{
		Kind:       envelope.KindMasterKeyVersion,
		KeyID:      k.id,
		KeyVersion: k.primary,
		MaterialID: sk.materialID,
		Scope:      envelope.Scope{Namespace: v.Namespace, Name: v.Name, Generation: v.Version},
	}, envelope.AssociatedData{Raw: v.KeyID[:]}, p)
}

// Unseal opens what Seal returned. keyID and version are those that the place of the bytes claims; the namespace and name
// are returned as they were sealed. The error is envelope.ErrNotMine for another sealing key's blob and
// envelope.ErrBroken for everything else that is not a sealed version of that key.
func (k *Keyring) Unseal(keyID envelope.KeyID, version uint32, sealed []byte) (
	MasterKeyVersion, envelope.MaterialID, envelope.Material, error,
) {
	fail := func(err error) (MasterKeyVersion, envelope.MaterialID, envelope.Material, error) {
		return MasterKeyVersion{}, envelope.MaterialID{}, envelope.Material{}, err
	}
	b, err := envelope.Parse(sealed)
	if err != nil {
		return fail(err)
	}
	if b.Header.Kind != envelope.KindMasterKeyVersion || b.Header.Scope.Generation != version {
		return fail(envelope.ErrBroken)
	}
	sk, ok := k.versions[b.Header.KeyVersion]
	if !ok {
		return fail(envelope.ErrNotMine)
	}
	if err := b.CheckKey(k.id, b.Header.KeyVersion, sk.materialID); err != nil {
		return fail(err)
	}
	p, err := sk.material.Open(b, envelope.AssociatedData{Raw: keyID[:]})
	if err != nil {
		return fail(err)
	}
	defer p.Destroy()
	id, m, err := p.Material()
	if err != nil {
		return fail(envelope.ErrBroken)
	}
	scope := b.Header.Scope
	return MasterKeyVersion{KeyID: keyID, Namespace: scope.Namespace, Name: scope.Name, Version: version}, id, m, nil
}

// VersionEntry is the name of a version's entry in a Secret with key versions: v1, v2 and so on.
func VersionEntry(version uint32) string { return "v" + strconv.FormatUint(uint64(version), 10) }

// ParseVersionEntry reads what VersionEntry wrote and nothing else.
func ParseVersionEntry(entry string) (version uint32, ok bool) {
	digits, found := strings.CutPrefix(entry, "v")
	n, err := strconv.ParseUint(digits, 10, 32)
	if !found || err != nil || n == 0 || VersionEntry(uint32(n)) != entry {
		return 0, false
	}
	return uint32(n), true
}
