package kms

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
)

// maxVersions is the most versions that a key may have.
const maxVersions = 1000

// createdAtSuffix follows the name of a version's entry in the name of the entry that says, as RFC 3339, when it was made.
const createdAtSuffix = ".createdAt"

// sealFirstVersion makes the Secret of a new master key: version 1, sealed.
func sealFirstVersion(s *seal.Keyring, id envelope.KeyID, ref MasterKeyRef, now time.Time) (seal.Secret, envelope.MaterialID, error) {
	m := envelope.NewMaterial()
	defer m.Destroy()
	materialID := envelope.NewMaterialID()
	sealed, err := s.Seal(seal.MasterKeyVersion{KeyID: id, Namespace: ref.Namespace, Name: ref.Name, Version: 1}, materialID, m)
	if err != nil {
		return seal.Secret{}, envelope.MaterialID{}, fmt.Errorf("sealing version 1 of key %s: %w", id, err)
	}
	return seal.Secret{
		Name: id.String(),
		Type: string(v1alpha1.SecretTypeMasterKey),
		Labels: map[string]string{
			v1alpha1.LabelManagedBy: v1alpha1.ManagedBy,
			v1alpha1.LabelMasterKey: labelValue(ref.Name),
		},
		Data: map[string][]byte{
			seal.VersionEntry(1):                   sealed,
			seal.VersionEntry(1) + createdAtSuffix: []byte(now.UTC().Format(time.RFC3339)),
		},
	}, materialID, nil
}

// labelValue shortens a MasterKey's name to what a label may hold: 63 characters that end with a letter or digit.
func labelValue(name string) string {
	const most = 63
	if len(name) > most {
		name = name[:most]
	}
	for len(name) > 0 && (name[len(name)-1] == '-' || name[len(name)-1] == '.') {
		name = name[:len(name)-1]
	}
	return name
}

// unsealKey opens every version in a key's Secret. Where some open and others do not, the key has the ones that do, and
// damage says what is wrong with the others: one damaged entry takes no data key away that it does not wrap. Where none
// opens, the error is ErrMaterialBroken. Any other error is worth another try: the key is sealed by a sealing key that this
// manager has not met yet and cannot ask for now.
func unsealKey(ctx context.Context, s *seal.Keyring, id envelope.KeyID, secret seal.Secret) (*key, error) {
	broken := func(format string, args ...any) error {
		return fmt.Errorf("%w: Secret %s %s: restore it from a backup", ErrMaterialBroken, secret.Name, fmt.Sprintf(format, args...))
	}
	if secret.Type != string(v1alpha1.SecretTypeMasterKey) {
		return nil, broken("is of type %q and not %q", secret.Type, v1alpha1.SecretTypeMasterKey)
	}
	k := &key{id: id, versions: map[uint32]*version{}}
	entries := 0
	damaged := func(err error) {
		if k.damage == nil {
			k.damage = err
		}
	}
	for _, entry := range slices.Sorted(maps.Keys(secret.Data)) { // sorted, so that the same damage is told each time
		number, ok := seal.ParseVersionEntry(entry)
		if !ok {
			continue
		}
		entries++
		k.primary = max(k.primary, number)
		owner, materialID, material, err := s.Unseal(ctx, id, number, secret.Data[entry])
		if err != nil && !unopenable(err) {
			return nil, fmt.Errorf("unsealing entry %s of Secret %s: %w", entry, secret.Name, err)
		}
		if err != nil {
			damaged(broken("has an entry %s that does not open (%v)", entry, err))
			continue
		}
		createdAt, err := time.Parse(time.RFC3339, string(secret.Data[entry+createdAtSuffix]))
		if err != nil {
			// The version opens all the same; only its age is not known.
			damaged(broken("has no time as in RFC 3339 in its entry %s", entry+createdAtSuffix))
		}
		if len(k.versions) > 0 && (owner.Namespace != k.namespace || owner.Name != k.name) {
			// A key belongs to one MasterKey. Which of the two it is, nothing here can tell.
			return nil, broken("has versions of two MasterKeys, %s/%s and %s/%s", k.namespace, k.name, owner.Namespace, owner.Name)
		}
		k.namespace, k.name = owner.Namespace, owner.Name
		k.versions[number] = &version{number: number, materialID: materialID, material: material, createdAt: createdAt}
	}
	switch {
	case entries == 0:
		return nil, broken("has no entry with a version")
	case len(k.versions) == 0:
		return nil, k.damage
	case entries != int(k.primary) || entries > maxVersions:
		damaged(broken("lacks an entry: it has %d versions and the newest is %d", entries, k.primary))
	}
	return k, nil
}

// unopenable reports whether a sealed version does not open because of its bytes. Any other error is worth another try.
func unopenable(err error) bool {
	return errors.Is(err, envelope.ErrNotMine) || errors.Is(err, envelope.ErrBroken) || errors.Is(err, envelope.ErrInvalid)
}
