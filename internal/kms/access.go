package kms

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// authenticate tells who calls. A token that is bound to no pod would outlive every pod, and nobody would know whose key
// was read: it is refused.
func (s *Service) authenticate(ctx context.Context, token string) (Caller, error) {
	if token == "" {
		return Caller{}, &Error{Code: CodeUnauthenticated, Message: "the call carries no token"}
	}
	caller, err := s.authenticator.Authenticate(ctx, token)
	switch {
	case errors.Is(err, ErrUnauthenticated):
		return Caller{}, &Error{Code: CodeUnauthenticated, Message: "the token is not valid", Err: err}
	case err != nil:
		return Caller{}, unavailable(err, "the token could not be reviewed")
	case caller.Namespace == "" || caller.ServiceAccount == "" || caller.PodName == "" || caller.PodUID == "":
		return Caller{}, &Error{Code: CodeUnauthenticated, Message: "the token is bound to no pod"}
	}
	return caller, nil
}

// reviewer asks RBAC for one call: about the same access only once, whoever of a batch asks.
type reviewer struct {
	authorizer Authorizer
	caller     Caller

	mu      sync.Mutex
	answers map[Access]func() (bool, error)
}

func (s *Service) reviewer(c Caller) *reviewer {
	return &reviewer{authorizer: s.authorizer, caller: c, answers: map[Access]func() (bool, error){}}
}

func (r *reviewer) allowed(ctx context.Context, a Access) (bool, error) {
	r.mu.Lock()
	answer, ok := r.answers[a]
	if !ok {
		answer = sync.OnceValues(func() (bool, error) { return r.authorizer.Authorize(ctx, r.caller, a) })
		r.answers[a] = answer
	}
	r.mu.Unlock()
	allowed, err := answer()
	if err != nil {
		return false, unavailable(err, "the permission could not be reviewed")
	}
	return allowed, nil
}

// mayUseKey reports whether RBAC allows the verb on the master key k, which is nil where there is no such key.
//
// Of a key that does not exist there is no name to ask about. Then the verb on all master keys of the caller's own
// namespace counts: only who may use them all is told that it is none of them, which known then says. Of another
// namespace's key, who may not use it is told the same.
func (r *reviewer) mayUseKey(ctx context.Context, verb string, k *key) (allowed, known bool, err error) {
	if k != nil {
		allowed, err = r.allowed(ctx, masterKeyAccess(verb, k.namespace, k.name))
		if err != nil || allowed || k.namespace == r.caller.Namespace {
			return allowed, allowed, err
		}
	}
	allowed, err = r.allowed(ctx, masterKeyAccess(verb, r.caller.Namespace, ""))
	return allowed, false, err
}

// mayDecrypt reports whether RBAC allows to open a blob of this scope under k, which is nil where there is no such key,
// and whether the caller may be told of k. Permission on the DataKeyRequest is enough only for a master key of the same
// namespace; with no other permission, a key elsewhere is as good as none.
func (r *reviewer) mayDecrypt(ctx context.Context, k *key, scope envelope.Scope) (allowed, known bool, err error) {
	allowed, known, err = r.mayUseKey(ctx, v1alpha1.VerbDecrypt, k)
	if err != nil || known || scope.IsZero() {
		return allowed, known, err
	}
	onRequest, err := r.allowed(ctx, Access{
		Verb:      v1alpha1.VerbDecrypt,
		Resource:  v1alpha1.ResourceDataKeyRequests,
		Namespace: scope.Namespace,
		Name:      scope.Name,
	})
	return allowed || onRequest, onRequest && k != nil && k.namespace == scope.Namespace, err
}

func masterKeyAccess(verb, namespace, name string) Access {
	return Access{Verb: verb, Resource: v1alpha1.ResourceMasterKeys, Namespace: namespace, Name: name}
}

// usable returns an error unless the MasterKey that the material belongs to exists and is that key.
func (s *Service) usable(ctx context.Context, k *key) error {
	o, err := s.objects.ByName(ctx, k.namespace, k.name)
	switch {
	case errors.Is(err, ErrMasterKeyNotFound):
		return &Error{Code: CodeNotFound, Message: fmt.Sprintf(
			"MasterKey %s/%s does not exist any more: apply it again with its annotation %s", k.namespace, k.name, v1alpha1.AnnotationKeyID), Err: err}
	case err != nil:
		return unavailable(err, fmt.Sprintf("MasterKey %s/%s could not be read", k.namespace, k.name))
	case o.KeyID != k.id.String():
		return &Error{Code: CodeNotFound, Message: fmt.Sprintf(
			"MasterKey %s/%s is another key now than key %s", k.namespace, k.name, k.id)}
	}
	return nil
}
