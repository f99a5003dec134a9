// Package kms is the key service: it holds unsealed master keys, makes and opens data keys, and is the only part of the
// manager that ever sees a plaintext one.
//
// Controllers call what returns sealed bytes only, such as EnsureMasterKey and OpenDataKey. Callers in pods call the operations of
// kmsv1.KeyService, over gRPC (kmsgrpc). What a caller is told depends on nothing that its permissions do not already show:
//
//  1. The token is reviewed, before a byte of the request is read. Whoever is not a pod learns nothing else. Then the request is
//     checked by itself.
//  2. A blob with a scope in another namespace is refused. Its header says so in clear.
//  3. The key is looked up, to know which MasterKey to ask about, and RBAC is asked. Without a permission the answer is
//     the same whether or not there is such a key. So is what the call takes from the limits of the pod: they count
//     refusals, and not the look-ups that led to them, which only a key that is not loaded costs. Where the look-up
//     fails, nobody is denied: whose the key is, and so who may use it, is not known then.
//  4. Only then come the existence of the key, its version and its MasterKey, and whether the blob opens.
//  5. The audit record is written. If it cannot be written, nothing leaves.
package kms

import (
	"context"
	"errors"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"

	"github.com/datakeys/datakeys/internal/seal"
)

// KeyStore keeps the Secrets with sealed master key material, in the manager's namespace, each named by its key ID. Reads
// are live, as of seal.Store.
type KeyStore interface {
	// Get returns the Secret of that name, or an error that is seal.ErrSecretNotFound.
	Get(ctx context.Context, name string) (seal.Secret, error)
	// Create makes a Secret and changes none: where there is one of that name, the error is seal.ErrSecretExists.
	Create(ctx context.Context, s seal.Secret) error
	// Update replaces the data of a Secret. Where it is not any more as it was read, the error is seal.ErrSecretChanged.
	Update(ctx context.Context, s seal.Secret) error
	// Remove removes a Secret. Where it is not any more as it was read, nothing is removed and the error is seal.ErrSecretChanged,
	// or seal.ErrSecretNotFound where it is gone.
	Remove(ctx context.Context, s seal.Secret) error
	// List returns the names of all Secrets of that type, sorted.
	List(ctx context.Context, secretType string) ([]string, error)
}

// Caller is who calls: a pod, by its projected ServiceAccount token.
type Caller struct {
	// Namespace, ServiceAccount, PodName and PodUID are set for every token that is bound to a pod.
	Namespace, ServiceAccount, PodName, PodUID string
	// Node is the name of the pod's node, where the token says it.
	Node string
	// Username, UID, Groups and Extra are what a SubjectAccessReview asks about.
	Username, UID string
	Groups        []string
	Extra         map[string][]string
}

// Authenticator tells who sent a token.
type Authenticator interface {
	// Authenticate reviews a token for the audience datakeys.io and checks the audiences that come back. The error is
	// ErrUnauthenticated for a token that proves nothing; after any other the call may be tried again. A positive answer
	// is remembered for at most 10 seconds.
	Authenticate(ctx context.Context, token string) (Caller, error)
}

// Access is what RBAC is asked: may the caller do Verb on Resource of the group datakeys.io?
type Access struct {
	Verb      string // v1alpha1.VerbDecrypt, ...
	Resource  string // v1alpha1.ResourceMasterKeys or v1alpha1.ResourceDataKeyRequests
	Namespace string
	Name      string // empty: on every object of the resource in the namespace
}

// Authorizer asks Kubernetes RBAC.
type Authorizer interface {
	// Authorize reports whether the access is allowed. An answer is remembered for at most 10 seconds. After an error
	// the call may be tried again.
	Authorize(ctx context.Context, caller Caller, access Access) (bool, error)
}

// KeyState says what a master key may be used for. The zero KeyState is invalid.
type KeyState string

// States of a master key, in the words of AWS KMS but for the last.
const (
	KeyStateEnabled         KeyState = "Enabled"
	KeyStateDisabled        KeyState = "Disabled"
	KeyStatePendingDeletion KeyState = "PendingDeletion"
	// KeyStateDestroyed is of a key whose material is destroyed while its MasterKey is still there. To callers there is no such
	// key any more.
	KeyStateDestroyed KeyState = "Destroyed"
)

// MasterKey is what the key service needs to know of a MasterKey object.
type MasterKey struct {
	// KeyID is the annotation datakeys.io/key-id, else the object's UID.
	KeyID           string
	Namespace, Name string
	State           KeyState
	Description     string
	// Aliases are the aliases that the key has, without "alias/": of those that its object claims, the ones that no other MasterKey
	// of the namespace has (v1alpha1.AliasHolder). MasterKeys.List alone fills them in, which sees all who claim one. They are not
	// to be written to.
	Aliases []string
	// CreatedAt is when the object was made, to the second.
	CreatedAt time.Time
	// DeletionTime is when the material is due to be destroyed, in KeyStatePendingDeletion. It is zero until that is recorded.
	DeletionTime time.Time
}

// MasterKeys knows the MasterKey objects. A key is usable only while the object that its material belongs to exists and
// has its key ID.
type MasterKeys interface {
	// ByName returns the MasterKey of that name without its Aliases, or an error that is ErrMasterKeyNotFound after a live read. The
	// answer is as new as a watch tells, and at most 10 seconds old where that is silent.
	ByName(ctx context.Context, namespace, name string) (MasterKey, error)
	// ByAlias returns the MasterKey of the namespace that has the alias, by v1alpha1.AliasHolder, without its Aliases. It may lag
	// behind the API server as a watch does: so the key is one that has the alias or had it a moment ago. The error is
	// ErrMasterKeyNotFound only after a live read that began at most 2 seconds before the call.
	ByAlias(ctx context.Context, namespace, alias string) (MasterKey, error)
	// List returns every MasterKey of the namespace with its Aliases, sorted by name. No alias is of two of them. It may lag
	// behind the API server as a watch does.
	List(ctx context.Context, namespace string) ([]MasterKey, error)
}

// Pod names a pod.
type Pod struct{ Namespace, Name, UID string }

// Events tells people of what they should look at.
type Events interface {
	// Denied tells that a data key was refused to a pod. dataKeyRequest is the name of the request in the pod's namespace,
	// or empty where the refusal is not about one. The same refusal comes again and again: it is up to the
	// implementation to say it once in a while. It must not block.
	Denied(pod Pod, dataKeyRequest, message string)
	// InitialVersionUsed tells that a pod had something encrypted under the initial version of a master key that was rotated since:
	// rotation does not reach what is encrypted so. For how often to say it and for how long it may take, see Denied.
	InitialVersionUsed(key MasterKeyRef, pod Pod, operation string)
}

// Config is what a Service works with. Seal, Keys, MasterKeys, Authenticator, Authorizer and Auditor are required.
type Config struct {
	Seal          *seal.Keyring
	Keys          KeyStore
	MasterKeys    MasterKeys
	Authenticator Authenticator
	Authorizer    Authorizer
	Auditor       Auditor
	// Events is told what people should look at; nil: nobody is.
	Events Events
	// Registerer takes the metrics; nil: they are counted for nobody.
	Registerer prometheus.Registerer
	// Limits are what one pod may cost; zero: DefaultLimits.
	Limits Limits
	// Clock is the time; nil: the real one.
	Clock clock.PassiveClock
	// Logger takes what callers are not told. The zero Logger drops it.
	Logger logr.Logger
}

// Service is the key service. It is safe for concurrent use.
type Service struct {
	seal          *seal.Keyring
	store         KeyStore
	ring          *keyring
	reseal        *resealing
	objects       MasterKeys
	authenticator Authenticator
	authorizer    Authorizer
	auditor       Auditor
	events        Events
	metrics       *metrics
	limits        *limits
	clock         clock.PassiveClock
	log           logr.Logger
}

// New returns a key service.
func New(c Config) (*Service, error) {
	if c.Seal == nil || c.Keys == nil || c.MasterKeys == nil || c.Authenticator == nil || c.Authorizer == nil || c.Auditor == nil {
		return nil, errors.New("key service: Seal, Keys, MasterKeys, Authenticator, Authorizer and Auditor are required")
	}
	if c.Clock == nil {
		c.Clock = clock.RealClock{}
	}
	if c.Events == nil {
		c.Events = noEvents{}
	}
	if c.Limits == (Limits{}) {
		c.Limits = DefaultLimits
	}
	m, err := newMetrics(c.Registerer, c.Seal)
	if err != nil {
		return nil, err
	}
	return &Service{
		seal:          c.Seal,
		store:         c.Keys,
		ring:          newKeyring(c.Seal, c.Keys, c.Clock),
		reseal:        &resealing{},
		objects:       c.MasterKeys,
		authenticator: c.Authenticator,
		authorizer:    c.Authorizer,
		auditor:       c.Auditor,
		events:        c.Events,
		metrics:       m,
		limits:        newLimits(c.Limits),
		clock:         c.Clock,
		log:           c.Logger,
	}, nil
}

type noEvents struct{}

func (noEvents) Denied(Pod, string, string) {}

func (noEvents) InitialVersionUsed(MasterKeyRef, Pod, string) {}
