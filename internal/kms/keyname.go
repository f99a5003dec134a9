package kms

import (
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/datakeys/datakeys/internal/envelope"
)

// maxKeyName is the most bytes by which a caller names a key (AWS KMS: KeyId).
const maxKeyName = 2048

// keyName is a key as a caller names it: by key ID, by ARN, or by the name of a MasterKey in the caller's namespace.
// Exactly one of id and name is set.
type keyName struct {
	id        envelope.KeyID
	namespace string // of an ARN only
	name      string
}

// parseKeyName reads key_id. What can be a key ID is one, although a MasterKey may have such a name.
func (s *Service) parseKeyName(text string) (keyName, error) {
	if len(text) > maxKeyName {
		return keyName{}, invalid("key_id", fmt.Errorf("must be at most %d bytes", maxKeyName))
	}
	if id, err := envelope.ParseKeyID(text); err == nil {
		return keyName{id: id}, nil
	}
	if strings.HasPrefix(text, "arn:") {
		return s.parseARN(text)
	}
	if problems := validation.IsDNS1123Subdomain(text); len(problems) > 0 {
		return keyName{}, invalid("key_id", errors.New(
			"must be a key ID (a UUID in lower case), an ARN, or the name of a MasterKey in the caller's namespace"))
	}
	return keyName{name: text}, nil
}

func (s *Service) parseARN(text string) (keyName, error) {
	rule := errors.New("an ARN must have the form arn:datakeys:kms:<install>:<namespace>:key/<key ID>")
	parts := strings.Split(text, ":")
	if len(parts) != 6 || parts[1] != "datakeys" || parts[2] != "kms" {
		return keyName{}, invalid("key_id", rule)
	}
	resource, isKey := strings.CutPrefix(parts[5], "key/")
	id, err := envelope.ParseKeyID(resource)
	if !isKey || err != nil || len(validation.IsDNS1123Label(parts[4])) > 0 {
		return keyName{}, invalid("key_id", rule)
	}
	if parts[3] != s.seal.InstallID() {
		return keyName{}, &Error{Code: CodeNotFound, Message: "key_id: the ARN is of another installation than " + s.seal.InstallID()}
	}
	return keyName{id: id, namespace: parts[4]}, nil
}

// is reports whether a caller in that namespace means k by this name.
func (n keyName) is(k *key, namespace string) bool {
	if n.name != "" {
		return k.namespace == namespace && k.name == n.name
	}
	return k.id == n.id && (n.namespace == "" || n.namespace == k.namespace)
}

// arn returns the full name of a key.
func (s *Service) arn(k *key) string {
	return "arn:datakeys:kms:" + s.seal.InstallID() + ":" + k.namespace + ":key/" + k.id.String()
}
