package kms

import (
	"context"
	"errors"
	"fmt"
	"sync"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// Authenticate tells who calls. A token that is bound to no pod would outlive every pod, and nobody would know whose key was read: it
// is refused. All operations take a Caller from here.
func (s *Service) Authenticate(ctx context.Context, token string) (Caller, error) {
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

// reviewer asks RBAC for one call. Of a batch it asks about the same access only once, whichever item comes first.
type reviewer struct {
	authorizer Authorizer
	caller     Caller
	batch      *decisions // nil: there is one item
}

// decisions are those of RBAC that one batch has asked for.
type decisions struct {
	mu    sync.Mutex
	known map[Access]func() (bool, error)
}

func (s *Service) reviewer(c Caller) *reviewer { return &reviewer{authorizer: s.authorizer, caller: c} }

func (s *Service) batchReviewer(c Caller) *reviewer {
	r := s.reviewer(c)
	r.batch = &decisions{known: map[Access]func() (bool, error){}}
	return r
}

func (d *decisions) ask(ctx context.Context, r *reviewer, access Access) (bool, error) {
	d.mu.Lock()
	decision, ok := d.known[access]
	if !ok {
		decision = sync.OnceValues(func() (bool, error) { return r.authorizer.Authorize(ctx, r.caller, access) })
		d.known[access] = decision
	}
	d.mu.Unlock()
	return decision()
}

func (r *reviewer) allowed(ctx context.Context, a Access) (allowed bool, err error) {
	if r.batch != nil {
		allowed, err = r.batch.ask(ctx, r, a)
	} else {
		allowed, err = r.authorizer.Authorize(ctx, r.caller, a)
	}
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

// mayOpen reports whether RBAC allows to open a blob of this scope under k, which is nil where there is no such key, and
// whether the caller may be told of k. Permission on the DataKeyRequest is enough only for a master key of the same
// namespace; with no other permission, a key elsewhere is as good as none. A blob with a scope needs the verb decrypt,
// whatever becomes of what is in it.
func (r *reviewer) mayOpen(ctx context.Context, verb string, k *key, scope envelope.Scope) (allowed, known bool, err error) {
	allowed, known, err = r.mayUseKey(ctx, verbToOpen(verb, scope), k)
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

// verbToOpen is the verb that opening a blob of this scope needs on the master key, for an operation with that verb.
func verbToOpen(verb string, scope envelope.Scope) string {
	if scope.IsZero() {
		return verb
	}
	return v1alpha1.VerbDecrypt
}

// keyToUse finds the key that a caller names, asks RBAC for the verb on it, and returns it with its MasterKey, in whatever
// state that is. Where there is the MasterKey and its material is missing or damaged, the MasterKey comes beside the error.
// What is known of the key goes into record.
func (s *Service) keyToUse(ctx context.Context, review *reviewer, verb string, name keyName, record *AuditKey) (*key, MasterKey, error) {
	owner := name.name
	if name.alias != "" {
		var err error
		if owner, err = s.holder(ctx, review.caller.Namespace, name); err != nil {
			return nil, MasterKey{}, err
		}
	}
	if owner != "" {
		return s.keyOf(ctx, review, verb, name, owner, record)
	}
	*record = AuditKey{ID: name.text}
	k, absence := s.find(ctx, name)
	if absence != nil && !absent(absence) {
		return nil, MasterKey{}, outward(absence)
	}
	if k != nil {
		*record = k.audited(nil)
	}
	allowed, known, err := review.mayUseKey(ctx, verb, k)
	switch {
	case err != nil:
		return nil, MasterKey{}, err
	case !allowed:
		return nil, MasterKey{}, deniedKey(review.caller, verb, name, absence)
	case !known:
		return nil, MasterKey{}, notFoundKey(name, absence)
	}
	o, err := s.object(ctx, k)
	if err == nil && absence != nil {
		return nil, o, outwardOf(o.Namespace, o.KeyID, absence)
	}
	return k, o, err
}

// keyOf is keyToUse for the MasterKey of that name in the caller's namespace: the permission is asked first, for it needs no key.
func (s *Service) keyOf(ctx context.Context, review *reviewer, verb string, name keyName, owner string, record *AuditKey) (*key, MasterKey, error) {
	namespace := review.caller.Namespace
	*record = AuditKey{Namespace: namespace, Name: owner}
	allowed, err := review.allowed(ctx, masterKeyAccess(verb, namespace, owner))
	if err != nil {
		return nil, MasterKey{}, err
	}
	if !allowed {
		return nil, MasterKey{}, deniedKey(review.caller, verb, name, nil)
	}
	o, err := s.objects.ByName(ctx, namespace, owner)
	switch {
	case errors.Is(err, ErrMasterKeyNotFound):
		return nil, MasterKey{}, notFoundKey(name, err)
	case err != nil:
		return nil, MasterKey{}, unavailable(err, fmt.Sprintf("MasterKey %s/%s could not be read", namespace, owner))
	}
	if err := o.exists(); err != nil {
		return nil, MasterKey{}, err
	}
	id, err := envelope.ParseKeyID(o.KeyID)
	if err != nil {
		return nil, o, &Error{Code: CodeFailedPrecondition, Message: fmt.Sprintf(
			"MasterKey %s/%s has no valid key ID: see its conditions", namespace, owner), Err: err}
	}
	k, err := s.ring.getPrimary(ctx, id)
	switch {
	case err != nil:
		return nil, o, outwardOf(o.Namespace, o.KeyID, err)
	case k.namespace != o.Namespace || k.name != o.Name:
		return nil, o, outwardOf(o.Namespace, o.KeyID, ErrMaterialConflict)
	}
	*record = k.audited(nil)
	return k, o, nil
}

// holder returns the name of the MasterKey of that namespace that has an alias, empty where none has it.
func (s *Service) holder(ctx context.Context, namespace string, name keyName) (string, error) {
	if name.elsewhere || name.namespace != "" && name.namespace != namespace { // its ARN: aliases are the namespace's own
		return "", nil
	}
	o, err := s.objects.ByAlias(ctx, namespace, name.alias)
	switch {
	case errors.Is(err, ErrMasterKeyNotFound):
		return "", nil
	case err != nil:
		return "", unavailable(err, "the MasterKeys could not be read")
	}
	return o.Name, nil
}

// find returns the key that a key ID or its ARN names. The error is one for which absent holds, or one that may pass. Beside
// the former comes the key as it was loaded before, if it was: whose it is has not changed.
func (s *Service) find(ctx context.Context, name keyName) (*key, error) {
	if name.elsewhere || name.alias != "" { // an alias that no MasterKey has
		return nil, ErrMaterialMissing
	}
	k, err := s.ring.getPrimary(ctx, name.id)
	if absent(err) {
		k = s.ring.known(name.id)
	}
	if k != nil && name.namespace != "" && name.namespace != k.namespace { // an ARN with another namespace than the key's
		return nil, ErrMaterialMissing
	}
	return k, err
}

// means reports whether a caller in that namespace means k by this name. Of a name that means no key it says no.
func (s *Service) means(ctx context.Context, namespace string, name keyName, k *key) (bool, error) {
	switch {
	case name.elsewhere:
		return false, nil
	case name.name != "":
		return k.namespace == namespace && k.name == name.name, nil
	case name.alias == "":
		return k.id == name.id && (name.namespace == "" || name.namespace == k.namespace), nil
	case k.namespace != namespace || name.namespace != "" && name.namespace != namespace:
		return false, nil
	}
	o, err := s.objects.ByAlias(ctx, namespace, name.alias)
	switch {
	case errors.Is(err, ErrMasterKeyNotFound):
		return false, nil
	case err != nil:
		return false, unavailable(err, "the MasterKeys could not be read")
	}
	return o.KeyID == k.text && o.Name == k.name, nil
}

// deniedKey says what permission is needed. It is the same whether or not there is the key.
func deniedKey(c Caller, verb string, name keyName, cause error) *Error {
	hint := ""
	if isAliasName(name.name) { // whoever named it so may have meant an alias
		hint = " (an alias is written " + aliasPrefix + "NAME)"
	}
	return &Error{Code: CodeDenied, Err: cause, Message: fmt.Sprintf(
		"%s needs the verb %s on the MasterKey that %s %q names, if there is one%s", c.Username, verb, name.field, name.text, hint)}
}

func notFoundKey(name keyName, cause error) *Error {
	return &Error{Code: CodeNotFound, Err: cause, Message: fmt.Sprintf("%s: there is no key %q", name.field, name.text)}
}

// usable returns an error unless the MasterKey that the material belongs to exists, is that key and is Enabled.
func (s *Service) usable(ctx context.Context, k *key) error {
	o, err := s.object(ctx, k)
	if err != nil {
		return err
	}
	return o.usable()
}

// object returns the MasterKey that the material belongs to, if it exists, is that key and is not Destroyed.
func (s *Service) object(ctx context.Context, k *key) (MasterKey, error) {
	o, err := s.objects.ByName(ctx, k.namespace, k.name)
	switch {
	case errors.Is(err, ErrMasterKeyNotFound):
		return MasterKey{}, &Error{Code: CodeNotFound, Message: fmt.Sprintf(
			"MasterKey %s/%s does not exist any more: apply it again with its annotation %s", k.namespace, k.name, v1alpha1.AnnotationKeyID), Err: err}
	case err != nil:
		return MasterKey{}, unavailable(err, fmt.Sprintf("MasterKey %s/%s could not be read", k.namespace, k.name))
	case o.KeyID != k.text:
		return MasterKey{}, &Error{Code: CodeNotFound, Message: fmt.Sprintf(
			"MasterKey %s/%s is another key now than key %s", k.namespace, k.name, k.id)}
	}
	if err := o.exists(); err != nil {
		return MasterKey{}, err
	}
	return o, nil
}

// exists returns an error if the key is destroyed. It is asked before the material, which this process may still have.
func (k MasterKey) exists() error {
	if k.State == KeyStateDestroyed {
		return &Error{Code: CodeNotFound, Message: fmt.Sprintf(
			"MasterKey %s/%s is Destroyed: what it encrypted opens no more; use another key", k.Namespace, k.Name)}
	}
	return nil
}

// usable returns an error unless the state of the key allows cryptographic operations.
func (k MasterKey) usable() error {
	if k.State == KeyStateEnabled {
		return nil
	}
	e := &Error{Code: CodeFailedPrecondition, Namespace: k.Namespace, KeyID: k.KeyID}
	switch k.State {
	case KeyStateDisabled:
		e.Reason, e.Message = kmsv1.ReasonKeyDisabled, fmt.Sprintf(
			"MasterKey %s/%s is Disabled: set its spec.state to Enabled to use it again", k.Namespace, k.Name)
	case KeyStatePendingDeletion:
		e.Reason, e.Message = kmsv1.ReasonKeyPendingDeletion, fmt.Sprintf(
			"MasterKey %s/%s is PendingDeletion: set its spec.state to Enabled to use it again", k.Namespace, k.Name)
	case KeyStateDestroyed:
		return k.exists()
	default:
		e.Message = fmt.Sprintf("MasterKey %s/%s is in the unknown state %q", k.Namespace, k.Name, k.State)
	}
	return e
}
