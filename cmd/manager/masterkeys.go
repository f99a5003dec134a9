package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/internal/kms"
)

// aliasAge is how long a namespace that was read for an alias is not read for another: an alias costs a read of all
// MasterKeys of its namespace, be it there or not. The cache of the manager has heard of everything new by then.
const aliasAge = 2 * time.Second

// maxAliasReads bounds the namespaces whose aliases are remembered for that time.
const maxAliasReads = 16

// livePage is how many MasterKeys are read from the API server at once, where all of a namespace are needed. Each may have a megabyte of
// annotations and the like, whoever made it.
const livePage = 20

// stateAge is for how long what the cache has of a MasterKey holds without a word of the API server. A watch that has stalled, or that
// ended and cannot be begun again, tells nobody; a key that was Disabled since must not stay usable for that.
const stateAge = reviewTTL

// maxStates bounds the MasterKeys whose state is remembered for that time, some 300 bytes each.
const maxStates = 8192

// masterKeys finds MasterKeys for the key service in the manager's cache and, because the cache of a replica may not have
// heard of a key yet, on a miss at the API server.
type masterKeys struct {
	cache, live client.Reader
	// states are MasterKeys as the API server had them a moment ago.
	states *answerCache[client.ObjectKey, masterKeyAt]
	// aliases are the holders of the aliases of a namespace, as the API server had them a moment ago.
	aliases *answerCache[string, aliasHolders]
	reads   *singleflight.Group
}

// aliasHolders has the MasterKey that has each alias of a namespace.
type aliasHolders map[string]kms.MasterKey

// masterKeyAt is a MasterKey as it was at a resource version.
type masterKeyAt struct {
	kms.MasterKey
	version string
}

// newMasterKeys needs the index of aliases that controllers.Setup adds to the cache.
func newMasterKeys(cache, live client.Reader) masterKeys {
	return masterKeys{
		cache:   cache,
		live:    live,
		states:  newAnswerCache[client.ObjectKey, masterKeyAt](stateAge, maxStates),
		aliases: newAnswerCache[string, aliasHolders](aliasAge, maxAliasReads),
		reads:   new(singleflight.Group),
	}
}

var _ kms.MasterKeys = masterKeys{}

// ByName implements kms.MasterKeys.
func (m masterKeys) ByName(ctx context.Context, namespace, name string) (kms.MasterKey, error) {
	var o v1alpha1.MasterKey
	key := client.ObjectKey{Namespace: namespace, Name: name}
	// Every call of a pod comes here: no copy is made of what is only read.
	err := m.cache.Get(ctx, key, &o, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) {
		asked, err := m.readState(ctx, key)
		return asked.MasterKey, err
	}
	if err != nil {
		return kms.MasterKey{}, fmt.Errorf("read MasterKey %s: %w", key, err)
	}
	asked, known := m.states.get(key)
	if !known {
		asked, err = shared(ctx, m.reads, "state "+key.String(), func(ctx context.Context) (masterKeyAt, error) { return m.readState(ctx, key) })
		if errors.Is(err, kms.ErrMasterKeyNotFound) { // which may have been so before this call: it was made since
			asked, err = m.readState(ctx, key)
		}
		if err != nil {
			return kms.MasterKey{}, err
		}
	}
	// Whatever is newer. Where nothing can be told from the versions, it is what the API server said.
	if order, err := resourceversion.CompareResourceVersion(o.ResourceVersion, asked.version); err == nil && order > 0 {
		return masterKey(&o), nil
	}
	return asked.MasterKey, nil
}

// readState reads a MasterKey from the API server, and remembers it.
func (m masterKeys) readState(ctx context.Context, key client.ObjectKey) (masterKeyAt, error) {
	asked := m.states.clock.Now()
	var o v1alpha1.MasterKey
	err := m.live.Get(ctx, key, &o)
	if apierrors.IsNotFound(err) {
		return masterKeyAt{}, fmt.Errorf("%s: %w", key, kms.ErrMasterKeyNotFound)
	}
	if err != nil {
		return masterKeyAt{}, fmt.Errorf("read MasterKey %s: %w", key, err)
	}
	state := masterKeyAt{masterKey(&o), o.ResourceVersion}
	m.states.add(key, state, asked)
	return state, nil
}

// shared reads for all who ask for the same at the same time. Whoever asked first may go away; the others still wait.
func shared[T any](ctx context.Context, reads *singleflight.Group, what string, read func(context.Context) (T, error)) (value T, err error) {
	under := reads.DoChan(what, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reviewTimeout)
		defer cancel()
		return read(ctx)
	})
	select {
	case result := <-under:
		if result.Err != nil {
			return value, result.Err
		}
		return result.Val.(T), nil //nolint:forcetypeassert // what read returns
	case <-ctx.Done():
		return value, context.Cause(ctx)
	}
}

// ByAlias implements kms.MasterKeys.
//
// An alias is moved by two writes, as of one kubectl apply of both MasterKeys. If the other claims it before the holder lets it go, the
// other has it by the second write, and every answer is one of the two. If the holder lets it go first, nobody has it between the
// writes. In either case the other has it from the second write on: a replica that has heard of none yet answers the old holder until
// its watch delivers the first, and one that has heard of the first alone reads live, and may go on for aliasAge with what it read.
func (m masterKeys) ByAlias(ctx context.Context, namespace, alias string) (kms.MasterKey, error) {
	var claimants v1alpha1.MasterKeyList
	err := m.cache.List(ctx, &claimants, client.InNamespace(namespace), client.MatchingFields{controllers.IndexAlias: alias}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return kms.MasterKey{}, fmt.Errorf("read the MasterKeys of alias %s/%s: %w", namespace, alias, err)
	}
	if holder := v1alpha1.AliasHolder(alias, claimants.Items); holder != nil {
		return masterKey(holder), nil
	}
	holders, err := m.liveAliases(ctx, namespace)
	if err != nil {
		return kms.MasterKey{}, err
	}
	o, found := holders[alias]
	if !found {
		return kms.MasterKey{}, fmt.Errorf("alias %s/%s: %w", namespace, alias, kms.ErrMasterKeyNotFound)
	}
	return o, nil
}

// liveAliases returns the holders of all aliases of a namespace as the API server has them now, or had them less than
// aliasAge ago. All who ask at the same time share one read.
func (m masterKeys) liveAliases(ctx context.Context, namespace string) (aliasHolders, error) {
	if holders, found := m.aliases.get(namespace); found {
		return holders, nil
	}
	called := m.aliases.clock.Now()
	for {
		read, err := m.readAliases(ctx, namespace)
		// Where the API server is slow, the read of somebody else may have begun too long before this call. The next did not.
		if err != nil || called.Sub(read.asked) < aliasAge {
			return read.holders, err
		}
	}
}

// aliasesAt are the holders of all aliases of a namespace, as they were when the API server was asked.
type aliasesAt struct {
	holders aliasHolders
	asked   time.Time
}

// readAliases reads the holders of all aliases of a namespace from the API server, together with all who ask at this moment.
func (m masterKeys) readAliases(ctx context.Context, namespace string) (aliasesAt, error) {
	return shared(ctx, m.reads, "aliases "+namespace, func(ctx context.Context) (aliasesAt, error) {
		asked := m.aliases.clock.Now()
		first := v1alpha1.AliasHolders{}
		for next, more := "", true; more; more = next != "" {
			var page v1alpha1.MasterKeyList
			if err := m.live.List(ctx, &page, client.InNamespace(namespace), client.Limit(livePage), client.Continue(next)); err != nil {
				return aliasesAt{}, fmt.Errorf("read the MasterKeys of namespace %s: %w", namespace, err)
			}
			for i := range page.Items {
				first.Add(claimant(&page.Items[i]))
			}
			next = page.Continue
		}
		holders := make(aliasHolders, len(first))
		for alias, o := range first {
			holders[alias] = masterKey(o)
		}
		m.aliases.add(namespace, holders, asked)
		return aliasesAt{holders, asked}, nil
	})
}

// List implements kms.MasterKeys.
func (m masterKeys) List(ctx context.Context, namespace string) ([]kms.MasterKey, error) {
	var list v1alpha1.MasterKeyList
	if err := m.cache.List(ctx, &list, client.InNamespace(namespace), client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("read the MasterKeys of namespace %s: %w", namespace, err)
	}
	holders := v1alpha1.AliasHolders{}
	for i := range list.Items {
		holders.Add(&list.Items[i])
	}
	keys := make([]kms.MasterKey, len(list.Items))
	for i := range list.Items {
		keys[i] = masterKey(&list.Items[i])
		keys[i].Aliases = holders.HeldBy(&list.Items[i])
	}
	slices.SortFunc(keys, func(a, b kms.MasterKey) int { return strings.Compare(a.Name, b.Name) })
	return keys, nil
}

// claimant is what is kept of a MasterKey until it is known who holds its aliases, so that the page it came with can go.
func claimant(o *v1alpha1.MasterKey) *v1alpha1.MasterKey {
	kept := &v1alpha1.MasterKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name, UID: o.UID, CreationTimestamp: o.CreationTimestamp},
		Spec:       o.Spec,
		Status:     o.Status,
	}
	if id, found := o.Annotations[v1alpha1.AnnotationKeyID]; found {
		kept.Annotations = map[string]string{v1alpha1.AnnotationKeyID: id}
	}
	return kept
}

// masterKey is what the key service needs of o, but for the aliases that it has: that takes all who claim them.
//
// A status is not trusted to let anybody use a key, and the state is what the spec asks for. One that says Destroyed is believed: it
// can do no more than refuse a key until the controller has looked at it.
func masterKey(o *v1alpha1.MasterKey) kms.MasterKey {
	k := kms.MasterKey{
		KeyID:       o.KeyID(),
		Namespace:   o.Namespace,
		Name:        o.Name,
		State:       kms.KeyState(o.WantedState()),
		Description: o.Spec.Description,
		CreatedAt:   o.CreationTimestamp.Time,
	}
	if o.Status.State == v1alpha1.MasterKeyStateDestroyed {
		k.State = kms.KeyStateDestroyed
	}
	if k.State == kms.KeyStatePendingDeletion {
		k.DeletionTime = o.Status.DeletionTime.Time // what is there in another state is of a deletion that was cancelled just now
	}
	return k
}

// dataKeyRequests tells the pod injector, from the manager's cache, whether a pod's data keys are there.
type dataKeyRequests struct {
	cache client.Reader
}

func (d dataKeyRequests) Ready(ctx context.Context, namespace, name string) (found, ready bool, reason string) {
	var o v1alpha1.DataKeyRequest
	if err := d.cache.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &o); err != nil {
		return false, false, "" // an error of the cache is a request that it does not hold
	}
	if condition := meta.FindStatusCondition(o.Status.Conditions, v1alpha1.ConditionReady); condition != nil {
		reason = condition.Reason
	}
	return true, o.Ready(), reason
}
