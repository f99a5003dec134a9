package seal

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// SealingKeysSecret is the name of the Secret with the wrapped sealing keys and the install ID.
const SealingKeysSecret = "datakeys-sealing-keys"

// Entries of the Secret with the sealing keys, beside the wrapped sealing keys. A sealing key of version 2 is wrapped under
// each root key that the index lists: by the root key of tag 1a2b3c4d in the entry v2.1a2b3c4d. An entry v2.1a2b3c4d.next
// is about to take its place.
const (
	sealingEntryInstallID = "installID"
	sealingEntryKeyID     = "keyID"
	sealingEntryIndex     = "index"
	nextSuffix            = ".next"
)

var (
	installIDPattern = regexp.MustCompile(`^[0-9a-f]{12}$`)
	tagPattern       = regexp.MustCompile(`^[0-9a-f]{8}$`)
)

// index is the entry of that name: JSON.
type index struct {
	// Primary is the version that seals. At most one newer version lies beside it, which has sealed nothing yet: until it does,
	// nothing depends on it, and it may be made anew.
	Primary uint32 `json:"primary"`
	// PrimarySince is when it began to.
	PrimarySince time.Time `json:"primarySince"`
	// RotateRequestedAt is the value of the annotation at the last rotation.
	RotateRequestedAt string `json:"rotateRequestedAt,omitempty"`
	// SettledOn is the tag of the root key that the installation relies on: every version was read back and opened by it.
	SettledOn string `json:"settledOn"`
	// RootKeys are the root keys that wrap the sealing keys, each of them all versions up to the primary one, by their tags.
	RootKeys map[string]listedRootKey `json:"rootKeys"`
}

type listedRootKey struct {
	ID string `json:"id"`
	// URI is what --root-key was when it was listed.
	URI string `json:"uri"`
}

// tagOf names a root key in the names of entries.
func tagOf(id string) string {
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:4])
}

func wrappedEntry(version uint32, tag string) string { return VersionEntry(version) + "." + tag }

// layout is what the Secret with the sealing keys holds, read and not unwrapped. It is never changed.
type layout struct {
	secret    Secret
	installID string
	keyID     envelope.KeyID
	index     index
	newest    uint32 // the primary version, or the one after it
}

// readLayout reads the Secret. What is wrong with it is a *SecretError.
func readLayout(s Secret) (*layout, error) {
	broken := func(format string, args ...any) error {
		return &SecretError{Secret: s.Name, Problem: fmt.Sprintf(format, args...), Remedy: "restore it from a backup"}
	}
	if s.Type != v1alpha1.SecretTypeSealingKeys {
		return nil, broken("is of type %q and not %q", s.Type, v1alpha1.SecretTypeSealingKeys)
	}
	l := &layout{secret: s, installID: string(s.Data[sealingEntryInstallID])}
	if !installIDPattern.MatchString(l.installID) {
		return nil, broken("has no install ID of 12 hexadecimal digits in its entry %s", sealingEntryInstallID)
	}
	var err error
	if l.keyID, err = envelope.ParseKeyID(string(s.Data[sealingEntryKeyID])); err != nil {
		return nil, broken("has no UUID in its entry %s", sealingEntryKeyID)
	}
	decoder := json.NewDecoder(bytes.NewReader(s.Data[sealingEntryIndex]))
	decoder.DisallowUnknownFields() // what is not known would be lost with the next write
	if err := decoder.Decode(&l.index); err != nil {
		return nil, broken("has no index that this manager can read in its entry %s (%v)", sealingEntryIndex, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, broken("has more than an index in its entry %s", sealingEntryIndex)
	}
	if _, ok := l.index.RootKeys[l.index.SettledOn]; !ok || l.index.Primary == 0 {
		return nil, broken("has an index without a primary version or the root key that it is settled on")
	}
	if uint64(l.index.Primary) > uint64(len(s.Data)) { // each version has one, and all of them are gone through
		return nil, broken("has an index with the primary version %d, which is more than it has entries", l.index.Primary)
	}
	for tag, root := range l.index.RootKeys {
		if tag != tagOf(root.ID) {
			return nil, broken("has an index that lists root key %s as %q and not as %s", root.ID, tag, tagOf(root.ID))
		}
	}
	l.newest = l.index.Primary
	for entry := range s.Data {
		version, tag, next, ok := parseWrappedEntry(entry)
		if ok && !next && l.lists(tag) {
			l.newest = max(l.newest, version)
		}
	}
	if l.newest-l.index.Primary > 1 {
		return nil, broken("has sealing key %d, but its primary version is %d", l.newest, l.index.Primary)
	}
	return l, nil
}

func parseWrappedEntry(entry string) (version uint32, tag string, next, ok bool) {
	entry, next = strings.CutSuffix(entry, nextSuffix)
	number, tag, found := strings.Cut(entry, ".")
	version, ok = ParseVersionEntry(number)
	return version, tag, next, ok && found && tagPattern.MatchString(tag)
}

func (l *layout) lists(tag string) bool {
	_, ok := l.index.RootKeys[tag]
	return ok
}

// listsURI reports whether a root key of that URI wraps the sealing keys.
func (l *layout) listsURI(uri string) bool {
	for _, root := range l.index.RootKeys {
		if root.URI == uri {
			return true
		}
	}
	return false
}

// settledOn is the root key that the installation relies on.
func (l *layout) settledOn() listedRootKey { return l.index.RootKeys[l.index.SettledOn] }

// tags are those of all root keys, sorted, the one that is settled on first.
func (l *layout) tags() []string {
	return slices.SortedFunc(maps.Keys(l.index.RootKeys), func(a, b string) int {
		switch l.index.SettledOn {
		case a:
			return -1
		case b:
			return 1
		}
		return strings.Compare(a, b)
	})
}

// embedded reports whether a root key that wraps the sealing keys lies beside them.
func (l *layout) embedded() bool {
	for _, root := range l.index.RootKeys {
		if strings.HasPrefix(root.URI, embeddedPrefix) {
			return true
		}
	}
	return false
}

// pending reports whether there is a version that has sealed nothing yet.
func (l *layout) pending() bool { return l.newest > l.index.Primary }

// wrapped is the entry of a version under a root key, nil if there is none.
func (l *layout) wrapped(version uint32, tag string) []byte {
	return l.secret.Data[wrappedEntry(version, tag)]
}

// missing are the versions that a root key has to wrap and does not.
func (l *layout) missing(tag string) []uint32 {
	var versions []uint32
	for v := uint32(1); v <= l.index.Primary; v++ {
		if len(l.wrapped(v, tag)) == 0 {
			versions = append(versions, v)
		}
	}
	return versions
}

// binding is the associated data of a wrapped sealing key: its key ID, its version in four bytes, big-endian, and the
// install ID. A wrapped sealing key so opens only as what it was made.
func (l *layout) binding(version uint32) []byte { return binding(l.keyID, version, l.installID) }

// edit returns the Secret with changed entries and index, to be written with the resourceVersion that was read.
func (l *layout) edit(change func(data map[string][]byte, i *index)) (Secret, error) {
	s := l.secret
	s.Data = maps.Clone(l.secret.Data)
	i := l.index
	i.RootKeys = maps.Clone(l.index.RootKeys)
	change(s.Data, &i)
	var err error
	s.Data[sealingEntryIndex], err = json.Marshal(i)
	return s, err
}
