package kms

import (
	"bytes"
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

// createdAtSuffix follows the name of a version's entry in the name of the entry that says, as RFC 3339, when it was made.
const createdAtSuffix = ".createdAt"

// sealFirstVersion makes the Secret of a new master key: version 1, sealed, and its record.
func sealFirstVersion(s *seal.Keyring, id envelope.KeyID, ref MasterKeyRef, now time.Time, terms DeletionTerms, rotateRequestedAt string) (
	seal.Secret, envelope.MaterialID, error,
) {
	secret := seal.Secret{
		Name: id.String(),
		Type: string(v1alpha1.SecretTypeMasterKey),
		Labels: map[string]string{
			v1alpha1.LabelManagedBy: v1alpha1.ManagedBy,
			v1alpha1.LabelMasterKey: labelValue(ref.Name),
		},
	}
	secret, err := firstRecord(wholeSecond(now), terms, rotateRequestedAt).in(secret)
	if err != nil {
		return seal.Secret{}, envelope.MaterialID{}, err
	}
	materialID, err := sealVersion(s, id, ref, 1, now, secret.Data)
	return secret, materialID, err
}

// sealVersion makes a version of a master key and puts it, sealed, into the data of its Secret. It counts once it was read back.
func sealVersion(s *seal.Keyring, id envelope.KeyID, ref MasterKeyRef, number uint32, now time.Time, data map[string][]byte) (
	envelope.MaterialID, error,
) {
	m := envelope.NewMaterial()
	defer m.Destroy()
	materialID := envelope.NewMaterialID()
	sealed, err := s.Seal(seal.MasterKeyVersion{KeyID: id, Namespace: ref.Namespace, Name: ref.Name, Version: number}, materialID, m)
	if err != nil {
		return envelope.MaterialID{}, fmt.Errorf("sealing version %d of key %s: %w", number, id, err)
	}
	data[seal.VersionEntry(number)] = sealed
	data[seal.VersionEntry(number)+createdAtSuffix] = []byte(wholeSecond(now).Format(time.RFC3339))
	return materialID, nil
}

// wholeSecond is a time as API objects have it.
func wholeSecond(t time.Time) time.Time { return t.UTC().Truncate(time.Second) }

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
// manager has not met yet and cannot ask for now. What known, an earlier load, has opened of the very same bytes is not opened
// again.
//
// Of a destroyed key it returns what is left, and no error.
func unsealKey(ctx context.Context, s *seal.Keyring, id envelope.KeyID, secret seal.Secret, known *key) (*key, error) {
	broken := func(format string, args ...any) error {
		return fmt.Errorf("%w: Secret %s %w: restore it from a backup", ErrMaterialBroken, secret.Name, fmt.Errorf(format, args...))
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
	var problem error
	if k.record, problem = recordOf(secret); problem != nil {
		damaged(broken("has an entry %s that %w", recordEntry, problem))
	}
	for _, entry := range slices.Sorted(maps.Keys(secret.Data)) { // sorted, so that the same damage is told each time
		number, ok := seal.ParseVersionEntry(entry)
		if !ok {
			continue
		}
		entries++
		k.newest = max(k.newest, number)
		v, owner, err := unsealVersion(ctx, s, id, number, secret.Data[entry], known)
		if err != nil && !unopenable(err) {
			return nil, fmt.Errorf("unsealing entry %s of Secret %s: %w", entry, secret.Name, err)
		}
		if err != nil {
			damaged(broken("has an entry %s that does not open (%v)", entry, err))
			continue
		}
		if v.createdAt, err = time.Parse(time.RFC3339, string(secret.Data[entry+createdAtSuffix])); err != nil {
			// The version opens all the same; only its age is not known.
			damaged(broken("has no time as in RFC 3339 in its entry %s", entry+createdAtSuffix))
		}
		if len(k.versions) > 0 && (owner.Namespace != k.namespace || owner.Name != k.name) {
			// A key belongs to one MasterKey. Which of the two it is, nothing here can tell.
			return nil, broken("has versions of two MasterKeys, %s/%s and %s/%s", k.namespace, k.name, owner.Namespace, owner.Name)
		}
		k.namespace, k.name = owner.Namespace, owner.Name
		k.versions[number] = v
	}
	if d := k.record.Destroyed; d != nil && entries == 0 {
		k.namespace, k.name = d.Namespace, d.Name
		return k, nil
	}
	switch {
	case entries == 0 && problem == nil:
		return nil, broken("has no entry with a version")
	case len(k.versions) == 0:
		return nil, k.damage
	}
	if err := k.checkWhole(entries); err != nil {
		damaged(broken("%w", err))
	}
	return k, nil
}

// checkWhole returns an error unless there are all versions and they fit the record. Under one that they do not fit, what is there
// opens what it wrapped, and wraps nothing.
func (k *key) checkWhole(entries int) error {
	var unfit error
	if k.record.Primary > 0 { // else it could not be read
		if unfit = k.record.fits(k.newest); unfit != nil {
			k.record.Primary = 0
		}
	}
	switch {
	case entries != int(k.newest) || entries > v1alpha1.MaxMasterKeyVersions:
		return fmt.Errorf("lacks an entry: it has %d versions and the newest is %d", entries, k.newest)
	case unfit != nil:
		return fmt.Errorf("has an entry %s that %w", recordEntry, unfit)
	}
	return nil
}

// unsealVersion opens one version, unless known has opened the same bytes and was not forgotten since.
func unsealVersion(ctx context.Context, s *seal.Keyring, id envelope.KeyID, number uint32, sealed []byte, known *key) (
	*version, MasterKeyRef, error,
) {
	if known != nil {
		if v := known.versions[number]; v != nil && bytes.Equal(v.sealed, sealed) && !v.material.IsZero() {
			again := *v
			return &again, MasterKeyRef{Namespace: known.namespace, Name: known.name}, nil
		}
	}
	owner, materialID, material, err := s.Unseal(ctx, id, number, sealed)
	v := &version{number: number, materialID: materialID, material: material, sealed: sealed}
	return v, MasterKeyRef{Namespace: owner.Namespace, Name: owner.Name}, err
}

// unopenable reports whether a sealed version does not open because of its bytes. Any other error is worth another try.
func unopenable(err error) bool {
	return errors.Is(err, envelope.ErrNotMine) || errors.Is(err, envelope.ErrBroken) || errors.Is(err, envelope.ErrInvalid)
}
