package kms

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// Operations that list, as in audit records and metrics.
const (
	OperationListKeys    = "ListKeys"
	OperationListAliases = "ListAliases"
)

// Limits of lists (AWS KMS, ListKeys and ListAliases).
const (
	maxLimit       = 1000
	defaultKeys    = 100
	defaultAliases = 50
	maxMarker      = 1024 // bytes
)

// KeyEntry is a key in a list.
type KeyEntry struct {
	KeyID, ARN string
	// Name is the name of the MasterKey.
	Name string
}

// AliasEntry is an alias in a list.
type AliasEntry struct {
	// Name has the prefix alias/.
	Name, ARN   string
	TargetKeyID string
}

// ListKeys lists the keys of the caller's namespace by name: at most limit of them, 0 is 100, from where the marker of the
// page before says. next is the marker of the next page, and empty on the last one. It needs the verb listkeys on the
// masterkeys of the namespace.
//
// A page begins after the last name of the page before, so what is there all the time is listed once, whatever comes and
// goes in between.
func (s *Service) ListKeys(ctx context.Context, caller Caller, limit int, marker string) (keys []KeyEntry, next string, err error) {
	start := s.Now()
	defer func() { s.done(ctx, OperationListKeys, start, caller, err) }()
	page, err := newPage(pagesOfKeys, limit, defaultKeys, marker)
	if err != nil {
		return nil, "", err
	}
	err = s.list(ctx, caller, OperationListKeys, v1alpha1.VerbListKeys, func(objects []MasterKey, _ *AuditRecord) error {
		from := sort.Search(len(objects), func(i int) bool { return objects[i].Name > page.after })
		for _, o := range objects[from:] {
			if !o.listed() {
				continue
			}
			if len(keys) == page.limit {
				next = page.marker(keys[len(keys)-1].Name)
				break
			}
			keys = append(keys, KeyEntry{KeyID: o.KeyID, ARN: s.keyARN(o.Namespace, o.KeyID), Name: o.Name})
		}
		return nil
	})
	if err != nil {
		return nil, "", err
	}
	return keys, next, nil
}

// ListAliases lists the aliases of the caller's namespace by name, those of the key that keyID names alone unless that is
// empty: at most limit of them, 0 is 50. It needs the verb listaliases on the masterkeys of the namespace. Pages are as
// those of ListKeys. A key that MasterKeys.List has not heard of yet has no aliases yet.
func (s *Service) ListAliases(ctx context.Context, caller Caller, keyID string, limit int, marker string) (aliases []AliasEntry, next string, err error) {
	start := s.Now()
	defer func() { s.done(ctx, OperationListAliases, start, caller, err) }()
	var name *keyName
	if keyID != "" {
		n, err := s.parseKeyName("key_id", keyID)
		if err != nil {
			return nil, "", err
		}
		name = &n
	}
	page, err := newPage(pagesOfAliases, limit, defaultAliases, marker)
	if err != nil {
		return nil, "", err
	}
	err = s.list(ctx, caller, OperationListAliases, v1alpha1.VerbListAliases, func(objects []MasterKey, record *AuditRecord) error {
		only := ""
		if name != nil {
			record.Key = &AuditKey{ID: name.text}
			o, err := s.ownMasterKey(ctx, caller.Namespace, *name, objects)
			if err != nil {
				return err
			}
			*record.Key = AuditKey{ID: o.KeyID, Namespace: o.Namespace, Name: o.Name}
			only = o.Name
		}
		for _, held := range heldAliases(objects, only, page.after) {
			if len(aliases) == page.limit {
				next = page.marker(strings.TrimPrefix(aliases[len(aliases)-1].Name, aliasPrefix))
				break
			}
			aliases = append(aliases, AliasEntry{
				Name: aliasPrefix + held.alias, ARN: s.aliasARN(held.by.Namespace, held.alias), TargetKeyID: held.by.KeyID,
			})
		}
		return nil
	})
	if err != nil {
		return nil, "", err
	}
	return aliases, next, nil
}

// heldAlias is an alias and the MasterKey that has it.
type heldAlias struct {
	alias string
	by    *MasterKey
}

// heldAliases returns the aliases behind one, by name: those of all these MasterKeys, or of the one with the name only.
func heldAliases(objects []MasterKey, only, after string) (held []heldAlias) {
	for i := range objects {
		o := &objects[i]
		if only != "" && o.Name != only || !o.listed() {
			continue
		}
		for _, alias := range o.Aliases {
			if alias > after {
				held = append(held, heldAlias{alias, o})
			}
		}
	}
	slices.SortFunc(held, func(a, b heldAlias) int { return strings.Compare(a.alias, b.alias) })
	return held
}

// list reads the MasterKeys of the caller's namespace, if RBAC allows the verb on all of them, has read
// make an answer of them, and writes the audit record of it.
func (s *Service) list(
	ctx context.Context, caller Caller, operation, verb string, read func(objects []MasterKey, record *AuditRecord) error,
) error {
	record := AuditRecord{Operation: operation, Caller: caller.audited()}
	answer := func() error {
		if err := s.reviewer(caller).mustBeAllowedHere(ctx, verb); err != nil {
			return err
		}
		objects, err := s.objects.List(ctx, caller.Namespace)
		if err != nil {
			return unavailable(err, "the MasterKeys could not be read")
		}
		s.charge(operation, caller, len(objects)/costObjects)
		if err := read(objects, &record); err != nil {
			return err
		}
		return s.audit(ctx, record)
	}
	if err := answer(); err != nil {
		s.refused(ctx, caller, record, err)
		return err
	}
	return nil
}

// ownMasterKey returns the MasterKey of the namespace that a name means, of those listed or, because a list may not have
// heard of a key yet, by asking again. A key elsewhere is as good as none.
func (s *Service) ownMasterKey(ctx context.Context, namespace string, name keyName, objects []MasterKey) (o MasterKey, err error) {
	switch {
	case name.elsewhere || name.namespace != "" && name.namespace != namespace:
		err = ErrMasterKeyNotFound
	case name.name != "":
		o, err = s.objects.ByName(ctx, namespace, name.name)
	case name.alias != "":
		o, err = s.objects.ByAlias(ctx, namespace, name.alias)
	default:
		if i := slices.IndexFunc(objects, func(k MasterKey) bool { return k.KeyID == name.id.String() }); i >= 0 {
			return objects[i], objects[i].exists()
		}
		k, absence := s.ring.get(ctx, name.id)
		switch {
		case absence != nil && !absent(absence):
			return MasterKey{}, outward(absence)
		case k == nil || k.namespace != namespace:
			err = ErrMasterKeyNotFound
		default:
			if o, err = s.objects.ByName(ctx, namespace, k.name); err == nil && o.KeyID != k.text {
				err = ErrMasterKeyNotFound
			}
		}
	}
	switch {
	case errors.Is(err, ErrMasterKeyNotFound):
		return MasterKey{}, notFoundKey(name, err)
	case err != nil:
		return MasterKey{}, unavailable(err, "the MasterKeys could not be read")
	}
	return o, o.exists()
}

// listed reports whether a list has the MasterKey: it has a key ID by which it could be named, and there still is such a key.
func (k MasterKey) listed() bool {
	_, err := envelope.ParseKeyID(k.KeyID)
	return err == nil && k.exists() == nil
}

// page is the part of a list that is asked for.
type page struct {
	of    string // pagesOfKeys or pagesOfAliases
	limit int
	after string // the name after which it begins; empty: with the first
}

// What pages are of: the first byte of their markers.
const (
	pagesOfKeys    = "k"
	pagesOfAliases = "a"
)

// markerSum is how many bytes of a hash a marker has, so that a list takes no text that none returned. It is no secret:
// whoever makes a marker up begins somewhere in his own list.
const markerSum = 8

func newPage(of string, limit, usual int, marker string) (page, error) {
	p := page{of: of, limit: limit}
	switch {
	case limit < 0 || limit > maxLimit:
		return page{}, invalid("limit", fmt.Errorf("must be 1 to %d, or 0 for %d", maxLimit, usual))
	case limit == 0:
		p.limit = usual
	}
	if marker == "" {
		return p, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(marker[:min(len(marker), maxMarker)])
	if err == nil && len(b) > len(of)+markerSum {
		p.after = string(b[len(of)+markerSum:])
	}
	if p.after == "" || p.marker(p.after) != marker {
		return page{}, &Error{Code: CodeInvalidArgument, Reason: kmsv1.ReasonInvalidMarker,
			Message: "marker: must be the next_marker of the page before, as it was: leave it out to begin anew"}
	}
	return p, nil
}

// marker returns the marker of the page after one that ends with the entry of this name.
func (p page) marker(last string) string {
	sum := sha256.Sum256([]byte(p.of + last))
	return base64.RawURLEncoding.EncodeToString(slices.Concat([]byte(p.of), sum[:markerSum], []byte(last)))
}
