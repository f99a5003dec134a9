package envelope

import (
	"encoding/binary"
	"fmt"
)

const (
	formatVersion = 1
	algorithm     = 1 // HKDF-SHA-256 and AES-256-GCM with key commitment: docs/format.md

	// headerSize is the size of a header without scope:
	// version, algorithm, kind, key ID, key version, material ID, two lengths and a generation.
	headerSize = 1 + 1 + 1 + 16 + 4 + 16 + 1 + 1 + 4

	maxNamespace = 63 // DNS-1123 label
	maxName      = MaxSubdomain
)

// Kind says what a blob is, and so through which door it opens. The zero Kind is invalid.
type Kind uint8

const (
	// KindDataKey is the data key of a DataKeyRequest. It is the only kind of data key that has a scope.
	KindDataKey Kind = 1
	// KindAWS is a data key or ciphertext made at the AWS KMS front door.
	KindAWS Kind = 2
	// KindAlibabaInitial is one made at the Alibaba KMS front door under the initial version of a key.
	KindAlibabaInitial Kind = 3
	// KindAlibabaAdvance is one made by the Advance operations of the Alibaba KMS front door, under the primary version.
	KindAlibabaAdvance Kind = 4
	// KindMasterKeyVersion is the material of one master key version, sealed by a sealing key. Its scope is the
	// MasterKey's namespace and name, with the version as generation; its associated data is the master key's KeyID.
	KindMasterKeyVersion Kind = 5
	// KindSealingKey is the material of a sealing key, sealed by a root key whose bytes are at hand: an embedded one, or one in a file.
	KindSealingKey Kind = 6
)

// kinds holds every valid kind: its name, and whether a scope is required (else it is forbidden).
var kinds = [...]struct {
	name   string
	scoped bool
}{
	KindDataKey:          {"DataKey", true},
	KindAWS:              {"AWS", false},
	KindAlibabaInitial:   {"AlibabaInitial", false},
	KindAlibabaAdvance:   {"AlibabaAdvance", false},
	KindMasterKeyVersion: {"MasterKeyVersion", true},
	KindSealingKey:       {"SealingKey", false},
}

// Valid reports whether k is one of the kinds of this format version.
func (k Kind) Valid() bool { return k != 0 && int(k) < len(kinds) }

// Scoped reports whether blobs of this kind have a scope. Kinds that may do without do not exist.
func (k Kind) Scoped() bool { return k.Valid() && kinds[k].scoped }

// String returns the name of the kind, for logs and errors.
func (k Kind) String() string {
	if !k.Valid() {
		return fmt.Sprintf("Kind(%d)", uint8(k))
	}
	return kinds[k].name
}

// Scope is the object, and its generation, that a blob belongs to. It stands in the blob in clear, authenticated.
type Scope struct {
	Namespace  string // DNS-1123 label, at most 63 bytes
	Name       string // DNS-1123 subdomain, at most 253 bytes
	Generation uint32 // 1 or more
}

// IsZero reports whether the scope is absent.
func (s Scope) IsZero() bool { return s == Scope{} }

// Header says what a blob is and which key made it. It stands at the front of the blob in clear, authenticated.
type Header struct {
	Kind Kind
	// KeyID is the key whose material wraps the blob: the master key, or for the kinds that protect material the
	// sealing key or root key.
	KeyID KeyID
	// KeyVersion is the version of that key, 1 or more.
	KeyVersion uint32
	// MaterialID names the material of that version. A version number can come again after an old backup is restored,
	// its material cannot.
	MaterialID MaterialID
	// Scope is set for exactly the kinds that are Scoped.
	Scope Scope
}

// Validate returns an error that names the field and the rule if no blob can have this header. Sealing and parsing
// both go by it, so nothing is written that would not be read, nor the other way round.
func (h Header) Validate() error {
	switch {
	case !h.Kind.Valid():
		return fmt.Errorf("%w: header kind %d: must be %d to %d", ErrInvalid, uint8(h.Kind), KindDataKey, len(kinds)-1)
	case h.KeyID.IsZero():
		return fmt.Errorf("%w: header key ID: must be set", ErrInvalid)
	case h.KeyVersion == 0:
		return fmt.Errorf("%w: header key version 0: must be 1 or more", ErrInvalid)
	case h.MaterialID.IsZero():
		return fmt.Errorf("%w: header material ID: must be set", ErrInvalid)
	}
	if !h.Kind.Scoped() {
		if !h.Scope.IsZero() {
			return fmt.Errorf("%w: header scope: must be absent for kind %v", ErrInvalid, h.Kind)
		}
		return nil
	}
	switch {
	case !isLabel(h.Scope.Namespace):
		return fmt.Errorf("%w: header scope namespace: must be a DNS-1123 label of at most %d bytes for kind %v",
			ErrInvalid, maxNamespace, h.Kind)
	case !IsSubdomain(h.Scope.Name):
		return fmt.Errorf("%w: header scope name: must be a DNS-1123 subdomain of at most %d bytes for kind %v",
			ErrInvalid, maxName, h.Kind)
	case h.Scope.Generation == 0:
		return fmt.Errorf("%w: header scope generation 0: must be 1 or more for kind %v", ErrInvalid, h.Kind)
	}
	return nil
}

func (h Header) size() int { return headerSize + len(h.Scope.Namespace) + len(h.Scope.Name) }

// append writes a header that Validate accepts.
func (h Header) append(b []byte) []byte {
	b = append(b, formatVersion, algorithm, byte(h.Kind))
	b = append(b, h.KeyID[:]...)
	b = binary.BigEndian.AppendUint32(b, h.KeyVersion)
	b = append(b, h.MaterialID[:]...)
	b = append(b, byte(len(h.Scope.Namespace)))
	b = append(b, h.Scope.Namespace...)
	b = append(b, byte(len(h.Scope.Name)))
	b = append(b, h.Scope.Name...)
	return binary.BigEndian.AppendUint32(b, h.Scope.Generation)
}

// parseHeader reads the header at the front of b and returns what follows it.
func parseHeader(b []byte) (Header, []byte, error) {
	if len(b) == 0 {
		return Header{}, nil, ErrBroken
	}
	if b[0] != formatVersion {
		return Header{}, nil, ErrNotMine
	}
	if len(b) < 2 {
		return Header{}, nil, ErrBroken
	}
	if b[1] != algorithm {
		return Header{}, nil, ErrNotMine
	}
	if len(b) < headerSize {
		return Header{}, nil, ErrBroken
	}
	h := Header{
		Kind:       Kind(b[2]),
		KeyID:      KeyID(b[3:19]),
		KeyVersion: binary.BigEndian.Uint32(b[19:]),
		MaterialID: MaterialID(b[23:39]),
	}
	b = b[39:]
	// At least headerSize bytes were there, so with the lengths checked one by one no index leaves the slice.
	namespaceLen := int(b[0])
	if len(b) < 1+namespaceLen+1 {
		return Header{}, nil, ErrBroken
	}
	nameLen := int(b[1+namespaceLen])
	end := 1 + namespaceLen + 1 + nameLen
	if len(b) < end+4 || namespaceLen > maxNamespace || nameLen > maxName {
		return Header{}, nil, ErrBroken
	}
	if names := string(b[1:end]); len(names) > 1 { // one allocation for both; the length byte between them is left out
		h.Scope.Namespace, h.Scope.Name = names[:namespaceLen], names[namespaceLen+1:]
	}
	h.Scope.Generation = binary.BigEndian.Uint32(b[end:])
	if h.Validate() != nil {
		return Header{}, nil, ErrBroken
	}
	return h, b[end+4:], nil
}

// isLabel is Kubernetes' rule for names of namespaces (RFC 1123, lower case).
func isLabel(s string) bool {
	return len(s) <= maxNamespace && isLabelOfAnyLength(s)
}

// MaxSubdomain is how many bytes IsSubdomain accepts.
const MaxSubdomain = 253

// IsSubdomain is Kubernetes' rule for names of objects (RFC 1123, lower case). As there, a label inside a subdomain has no limit
// of its own.
func IsSubdomain(s string) bool {
	if len(s) > MaxSubdomain {
		return false
	}
	start := 0
	for i := 0; i <= len(s); i++ {
		if i == len(s) || s[i] == '.' {
			if !isLabelOfAnyLength(s[start:i]) {
				return false
			}
			start = i + 1
		}
	}
	return true
}

func isLabelOfAnyLength(s string) bool {
	if s == "" || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
