package kms

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// source is a blob to be opened, with what has to be stated again.
type source struct {
	fields *fieldNames
	blob   *envelope.Blob
	ad     envelope.AssociatedData
	key    keyName // that the blob must be of; the zero keyName: the blob says it
	iv     []byte  // nil: not stated
	door   Door
}

// sourceRequest holds the fields of a source.
type sourceRequest struct {
	blob    []byte
	context map[string]string
	aad     []byte
	key     string
	iv      []byte
	door    Door
}

// checkSource checks each field of a source by itself.
func (s *Service) checkSource(f *fieldNames, r sourceRequest) (src source, err error) {
	src = source{fields: f, iv: r.iv, door: r.door}
	if n := len(r.blob); n < 1 || n > envelope.MaxBlobSize {
		return source{}, invalid("ciphertext_blob", fmt.Errorf("must be 1 to %d bytes", envelope.MaxBlobSize))
	}
	if src.blob, err = envelope.Parse(r.blob); err != nil {
		return source{}, invalidCiphertext("ciphertext_blob: is no blob of this key service, or is damaged", err)
	}
	if kind := src.blob.Header.Kind; !opened(kind) { // above all sealed master keys, whatever key they name
		return source{}, invalidCiphertext(fmt.Sprintf("ciphertext_blob: a blob of kind %v is opened for nobody", kind), nil)
	}
	if src.ad, err = checkAssociated(f, r.context, r.aad); err != nil {
		return source{}, err
	}
	if r.key != "" {
		if src.key, err = s.parseKeyName(f.key, r.key); err != nil {
			return source{}, err
		}
	}
	if n := len(r.iv); n != 0 && n != envelope.IVSize {
		return source{}, invalid(f.iv, fmt.Errorf("must be %d bytes", envelope.IVSize))
	}
	return src, nil
}

// keyToOpen asks RBAC about a blob with this header, and returns its key with its MasterKey, in whatever state that is. The key is the
// one that the caller says, if he says one.
func (s *Service) keyToOpen(
	ctx context.Context, review *reviewer, verb string, h envelope.Header, said keyName, record *AuditKey,
) (*key, MasterKey, error) {
	caller := review.caller
	if !h.Scope.IsZero() && h.Scope.Namespace != caller.Namespace {
		return nil, MasterKey{}, &Error{Code: CodeDenied, Message: fmt.Sprintf(
			"the data key belongs to namespace %s: a pod of namespace %s cannot open it", h.Scope.Namespace, caller.Namespace)}
	}
	k, absence := s.ring.get(ctx, h.KeyID)
	if absence != nil && !absent(absence) {
		return nil, MasterKey{}, outward(absence)
	}
	if k != nil {
		record.Namespace, record.Name = k.namespace, k.name
	}
	allowed, known, err := review.mayOpen(ctx, verb, k, h.Scope)
	switch {
	case err != nil:
		return nil, MasterKey{}, err
	case !allowed:
		return nil, MasterKey{}, deniedBlob(caller, verb, h, absence)
	case !known:
		return nil, MasterKey{}, notFoundBlob(absence)
	}
	if said.text != "" {
		same, err := s.means(ctx, caller.Namespace, said, k)
		if err != nil {
			return nil, MasterKey{}, err
		}
		if !same {
			return nil, MasterKey{}, &Error{Code: CodeInvalidArgument, Reason: kmsv1.ReasonIncorrectKey,
				Message: said.field + ": the blob is of another key"}
		}
	}
	o, err := s.object(ctx, k)
	return k, o, err
}

// audited names the key that the blob claims to be of.
func (src *source) audited() AuditKey {
	h := src.blob.Header
	return AuditKey{ID: h.KeyID.String(), Version: h.KeyVersion}
}

// open opens a blob with k, the key that it is of. Its caller may use the key, and the key may be used.
func (s *Service) open(ctx context.Context, k *key, src *source) (*version, envelope.Plaintext, error) {
	v, err := s.versionToOpen(ctx, k, src.blob.Header)
	if err != nil {
		return nil, envelope.Plaintext{}, err
	}
	if err := src.checkDoor(); err != nil {
		return nil, envelope.Plaintext{}, err
	}
	p, err := v.material.Open(src.blob, src.ad)
	if errors.Is(err, envelope.ErrBroken) {
		return nil, envelope.Plaintext{}, invalidCiphertext(fmt.Sprintf("ciphertext_blob: does not open with this %s or %s, or is damaged",
			src.fields.context, src.fields.aad), err)
	}
	return v, p, err
}

// versionToOpen returns the version of the key that a blob with this header is of.
func (s *Service) versionToOpen(ctx context.Context, k *key, h envelope.Header) (*version, error) {
	v, err := s.ring.getFor(ctx, h)
	if errors.Is(err, ErrMaterialMissing) {
		return nil, notFoundBlob(err)
	}
	if err != nil {
		return nil, outwardOf(k.namespace, k.text, err)
	}
	return v, nil
}

// checkDoor returns an error unless the blob opens through the door, with the IV that was stated.
func (src *source) checkDoor() error {
	switch kind := src.blob.Header.Kind; {
	case !src.door.opens(kind):
		return invalidCiphertext(fmt.Sprintf("ciphertext_blob: a blob of kind %v does not open through the door %v", kind, src.door), nil)
	case len(src.iv) == 0 && needsIV(kind):
		return invalidCiphertext(fmt.Sprintf("%s: must be stated for a blob of kind %v", src.fields.iv, kind), nil)
	case len(src.iv) > 0 && !bytes.Equal(src.iv, src.blob.IV()):
		return invalidCiphertext(src.fields.iv+": is not the one of the blob", nil)
	}
	return nil
}

// deniedBlob says what permission is needed. It is the same whether or not the blob's key exists: the key ID is the one that the blob
// claims, where everybody can read it.
func deniedBlob(c Caller, verb string, h envelope.Header, cause error) *Error {
	scope := h.Scope
	if scope.IsZero() {
		return &Error{Code: CodeDenied, Err: cause, Message: fmt.Sprintf(
			"%s needs the verb %s on the MasterKey of the blob, which has the key ID %s, if there is one", c.Username, verb, h.KeyID)}
	}
	return &Error{Code: CodeDenied, Err: cause, Message: fmt.Sprintf("%s needs the verb %s on %s/%s in namespace %s, or on its MasterKey",
		c.Username, v1alpha1.VerbDecrypt, v1alpha1.ResourceDataKeyRequests, scope.Name, scope.Namespace)}
}

func notFoundBlob(cause error) *Error {
	return &Error{Code: CodeNotFound, Err: cause, Message: "ciphertext_blob: the key or key version that made it is not known here"}
}
