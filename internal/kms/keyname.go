package kms

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// maxKeyName is the most bytes by which a caller names a key (AWS KMS: KeyId).
const maxKeyName = 2048

// keyName is a key as a caller names it: by key ID, by ARN, or by the name or alias of a MasterKey in the caller's namespace.
// Exactly one of id, name and alias is set.
type keyName struct {
	field, text string // where it stands in the request, and what stands there
	id          envelope.KeyID
	namespace   string // of an ARN only
	name        string
	alias       string // without the prefix alias/
	elsewhere   bool   // an ARN of another installation: it means no key here
}

// parseKeyName reads a field that names a key. What can be a key ID is one, although a MasterKey may have such a name.
func (s *Service) parseKeyName(field, text string) (keyName, error) {
	n, err := s.parseKeyNameText(text)
	if err != nil {
		err.Message = field + ": " + err.Message
		return keyName{}, err
	}
	n.field, n.text = field, text
	return n, nil
}

func (s *Service) parseKeyNameText(text string) (keyName, *Error) {
	if text == "" {
		return keyName{}, &Error{Code: CodeInvalidArgument, Message: "must name a key"}
	}
	if len(text) > maxKeyName {
		return keyName{}, &Error{Code: CodeInvalidArgument, Message: fmt.Sprintf("must be at most %d bytes", maxKeyName)}
	}
	if id, err := envelope.ParseKeyID(text); err == nil {
		return keyName{id: id}, nil
	}
	if strings.HasPrefix(text, "arn:") {
		return s.parseARN(text)
	}
	if alias, isAlias := strings.CutPrefix(text, aliasPrefix); isAlias {
		if !isAliasName(alias) {
			return keyName{}, invalidKeyName(aliasRule)
		}
		return keyName{alias: alias}, nil
	}
	if problems := validation.IsDNS1123Subdomain(text); len(problems) > 0 {
		return keyName{}, invalidKeyName(
			"must be a key ID (a UUID in lower case), an ARN, alias/NAME, or the name of a MasterKey in the caller's namespace")
	}
	return keyName{name: text}, nil
}

func invalidKeyName(rule string) *Error {
	return &Error{Code: CodeInvalidArgument, Reason: kmsv1.ReasonInvalidKeyName, Message: rule}
}

// parseARN reads the ARN of a key or of an alias. Every part of it counts: only the very text that an answer had is taken.
func (s *Service) parseARN(text string) (keyName, *Error) {
	const rule = "an ARN must have the form arn:datakeys:kms:<install>:<namespace>:key/<key ID>, or alias/<name> at its end"
	parts := strings.Split(text, ":")
	if len(parts) != 6 || parts[1] != "datakeys" || parts[2] != "kms" || parts[3] == "" || len(validation.IsDNS1123Label(parts[4])) > 0 {
		return keyName{}, invalidKeyName(rule)
	}
	n := keyName{namespace: parts[4]}
	if alias, isAlias := strings.CutPrefix(parts[5], aliasPrefix); isAlias {
		if !isAliasName(alias) {
			return keyName{}, invalidKeyName(aliasRule)
		}
		n.alias = alias
	} else {
		resource, isKey := strings.CutPrefix(parts[5], "key/")
		id, err := envelope.ParseKeyID(resource)
		if !isKey || err != nil {
			return keyName{}, invalidKeyName(rule)
		}
		n.id = id
	}
	n.elsewhere = parts[3] != s.seal.InstallID()
	return n, nil
}

// aliasPrefix begins the name of an alias, as AWS KMS writes it.
const aliasPrefix = "alias/"

// maxAlias is the most bytes of an alias without its prefix (AWS KMS, CreateAlias: 256 with it).
const maxAlias = 256 - len(aliasPrefix)

const aliasRule = "an alias must be alias/ and then 1 to 250 letters, digits, slashes, underscores or dashes"

// isAliasName reports whether a MasterKey could have the alias, which is written without its prefix. The rule is the one of
// spec.aliases but for reserved beginnings: an alias that cannot be is not found, like one that is not there.
func isAliasName(alias string) bool {
	if len(alias) < 1 || len(alias) > maxAlias {
		return false
	}
	for _, c := range []byte(alias) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '/', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// aliasARN returns the full name of an alias.
func (s *Service) aliasARN(namespace, alias string) string {
	return "arn:datakeys:kms:" + s.seal.InstallID() + ":" + namespace + ":" + aliasPrefix + alias
}

// keyARN returns the full name of a key.
func (s *Service) keyARN(namespace, keyID string) string {
	return keyARN(s.seal.InstallID(), namespace, keyID)
}

func keyARN(install, namespace, keyID string) string {
	return "arn:datakeys:kms:" + install + ":" + namespace + ":key/" + keyID
}
