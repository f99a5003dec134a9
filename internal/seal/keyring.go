package seal

import (
	"context"
	"encoding/binary"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
)

// Keyring holds the sealing keys of an installation, unwrapped. It is safe for concurrent use: Seal and Unseal read one
// pointer and wait for nobody, but for a version that this manager has not met yet.
type Keyring struct {
	config    Config
	installID string
	id        envelope.KeyID
	keys      atomic.Pointer[sealingKeys]
	report    atomic.Pointer[Report]

	// turn is held by whoever reads the Secret with the sealing keys and asks the root keys; the rest is read and written by
	// them only.
	turn chan struct{}
	// current and previous are the root keys of the configuration, nil until they could be opened.
	current, previous RootKey
	// opened are entries of the Secret that this process has opened, by their names, to be opened once.
	opened map[string][]byte
	// found are the tags of the root keys that wrapped the sealing keys when this process opened them.
	found map[string]bool
	// missed is the sealing key that was last looked for in vain, missedAt when that was, rewrapped when one was wrapped anew.
	missed              uint32
	missedAt, rewrapped time.Time
	// settled is when the installation was last seen to rely on the root key of the configuration.
	settled time.Time
}

// sealingKeys are all versions of the sealing key that this process knows and that may have sealed something. They are never
// changed.
type sealingKeys struct {
	versions map[uint32]sealingKey
	primary  uint32 // seals
}

// sealingKey is one version of the sealing key.
type sealingKey struct {
	materialID envelope.MaterialID
	material   envelope.Material
}

func (s sealingKey) equal(t sealingKey) bool {
	return s.materialID == t.materialID && s.material.Equal(t.material)
}

func (s sealingKey) plaintext() (envelope.Plaintext, error) {
	return envelope.PlaintextOfMaterial(s.materialID, s.material)
}

func binding(id envelope.KeyID, version uint32, installID string) []byte {
	b := append([]byte(nil), id[:]...)
	b = binary.BigEndian.AppendUint32(b, version)
	return append(b, installID...)
}

// takeTurn waits until nobody else talks to the store and the root keys.
func (k *Keyring) takeTurn(ctx context.Context) (done func(), err error) {
	select {
	case k.turn <- struct{}{}:
		return func() { <-k.turn }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// InstallID returns the name of the installation, 12 hexadecimal digits, made once and part of every ARN.
func (k *Keyring) InstallID() string { return k.installID }

// Primary is the version of the sealing key that seals.
func (k *Keyring) Primary() uint32 { return k.keys.Load().primary }

// MasterKeyVersion says whose material it is that is sealed.
type MasterKeyVersion struct {
	// KeyID is the key ID of the master key.
	KeyID envelope.KeyID
	// Namespace and Name are those of the MasterKey that the material belongs to.
	Namespace, Name string
	// Version is 1 or more.
	Version uint32
}

// Seal seals the material of one version of a master key under the primary sealing key. Nothing opens the result but
// Unseal for the same key ID and version.
func (k *Keyring) Seal(v MasterKeyVersion, id envelope.MaterialID, m envelope.Material) ([]byte, error) {
	p, err := envelope.PlaintextOfMaterial(id, m)
	if err != nil {
		return nil, err
	}
	defer p.Destroy()
	keys := k.keys.Load()
	sk := keys.versions[keys.primary]
	return sk.material.Seal(envelope.Header{
		Kind:       envelope.KindMasterKeyVersion,
		KeyID:      k.id,
		KeyVersion: keys.primary,
		MaterialID: sk.materialID,
		Scope:      envelope.Scope{Namespace: v.Namespace, Name: v.Name, Generation: v.Version},
	}, envelope.AssociatedData{Raw: v.KeyID[:]}, p)
}

// SealedBy says which version of the sealing key of this installation sealed something, and 0 of what another one sealed. It
// looks at what stands there in clear: whether it opens, Unseal tells.
func (k *Keyring) SealedBy(sealed []byte) (version uint32) {
	b, err := envelope.Parse(sealed)
	if err != nil || b.Header.Kind != envelope.KindMasterKeyVersion || b.Header.KeyID != k.id {
		return 0
	}
	return b.Header.KeyVersion
}

// Unseal opens what Seal returned. keyID and version are those that the place of the bytes claims; the namespace and name
// are returned as they were sealed. The error is envelope.ErrNotMine for another sealing key's blob and
// envelope.ErrBroken for everything else that is not a sealed version of that key; any other is worth another try: it was
// sealed by a sealing key that has to be read, and unwrapped by the root key, first.
func (k *Keyring) Unseal(ctx context.Context, keyID envelope.KeyID, version uint32, sealed []byte) (
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
	if b.Header.KeyID != k.id {
		return fail(envelope.ErrNotMine)
	}
	sk, ok := k.keys.Load().versions[b.Header.KeyVersion]
	if !ok {
		if sk, err = k.meet(ctx, b.Header.KeyVersion); err != nil {
			return fail(err)
		}
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

// Close closes the root keys, once nobody asks them. What was unwrapped stays: the process ends.
func (k *Keyring) Close() {
	k.turn <- struct{}{}
	defer func() { <-k.turn }()
	for _, root := range []RootKey{k.current, k.previous} {
		if root != nil {
			_ = root.Close() // there is nothing left to do with it
		}
	}
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
