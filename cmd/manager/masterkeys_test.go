package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/internal/kms"
)

// shortPages reads from the API server two objects at a time, and counts.
type shortPages struct {
	client.Reader
	gets, lists atomic.Int32
	tooLong     atomic.Int64 // the limit of a list whose answer may be too long
}

func (r *shortPages) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	r.gets.Add(1)
	return r.Reader.Get(ctx, key, o, opts...)
}

func (r *shortPages) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
	const most = 32 << 20 // of the 256 MiB that the chart gives a manager, where etcd takes 1.5 MiB an object
	if limit := (&client.ListOptions{}).ApplyOptions(opts).Limit; limit == 0 || limit*3<<19 > most {
		r.tooLong.Store(limit)
	}
	r.lists.Add(1)
	return r.Reader.List(ctx, list, append(opts, client.Limit(2))...)
}

// deaf is a cache that has heard of nothing yet.
type deaf struct{ client.Reader }

func (d deaf) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	key.Name += "-not-heard-of"
	return d.Reader.Get(ctx, key, o, opts...)
}

func (d deaf) List(context.Context, client.ObjectList, ...client.ListOption) error { return nil }

// startMasterKeys returns MasterKeys over the cache of a running manager, and what it reads from the API server.
func startMasterKeys(t *testing.T, p *place) (masterKeys, *shortPages) {
	t.Helper()
	options := controllers.CacheOptions()
	options.DefaultNamespaces = map[string]cache.Config{p.tenant: {}, p.system: {}}
	mgr, err := ctrl.NewManager(p.config, ctrl.Options{
		Scheme:     p.client.Scheme(),
		Cache:      options,
		Metrics:    metricsserver.Options{BindAddress: "0"},
		Controller: ctrlconfig.Controller{SkipNameValidation: new(true)},
	})
	if err != nil {
		t.Fatal(err)
	}
	// As controllers.Setup adds it.
	err = mgr.GetFieldIndexer().IndexField(t.Context(), &v1alpha1.MasterKey{}, controllers.IndexAlias, func(o client.Object) []string {
		return o.(*v1alpha1.MasterKey).Spec.Aliases
	})
	if err != nil {
		t.Fatal(err)
	}
	m := newMasterKeys(mgr.GetClient(), mgr.GetAPIReader())
	if _, err := mgr.GetCache().GetInformer(t.Context(), &v1alpha1.MasterKey{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if !mgr.GetCache().WaitForCacheSync(t.Context()) {
		t.Fatal("the cache did not start")
	}
	live := &shortPages{Reader: m.live}
	m.live = live
	return m, live
}

// What the cache knows and what the API server knows is the same to the key service, aliases that several claim included.
func TestMasterKeysOnTheAPIServer(t *testing.T) {
	p := newPlace(t)
	made := map[string]kms.MasterKey{}
	var all []v1alpha1.MasterKey
	create := func(namespace, name string, aliases ...string) {
		t.Helper()
		o := &v1alpha1.MasterKey{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Spec: v1alpha1.MasterKeySpec{Description: "of " + name, Aliases: aliases}}
		if err := p.client.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		made[namespace+"/"+name] = kms.MasterKey{
			KeyID: string(o.UID), Namespace: namespace, Name: name, State: kms.KeyStateEnabled,
			Description: "of " + name, CreatedAt: o.CreationTimestamp.Time,
		}
		all = append(all, *o)
	}
	create(p.tenant, "c", "shared", "c/1")
	create(p.tenant, "a", "shared", "a_1", "a-2")
	create(p.tenant, "b", "shared")
	create(p.tenant, "d")
	create(p.system, "e", "theirs", "a_1")
	// By the rule, and not by the order: they may have been made in the same second.
	holder := made[p.tenant+"/"+v1alpha1.AliasHolder("shared", all).Name]

	cached, live := startMasterKeys(t, p)
	unheard := cached
	unheard.cache = deaf{cached.cache}
	for where, m := range map[string]masterKeys{"in the cache": cached, "not in the cache yet": unheard} {
		t.Run(where, func(t *testing.T) {
			for alias, want := range map[string]kms.MasterKey{
				"shared": holder, "c/1": made[p.tenant+"/c"], "a_1": made[p.tenant+"/a"], "a-2": made[p.tenant+"/a"],
			} {
				got, err := m.ByAlias(t.Context(), p.tenant, alias)
				if diff := cmp.Diff(want, got); err != nil || diff != "" {
					t.Errorf("alias %s: got error %v and (-want +got)\n%s", alias, err, diff)
				}
			}
			for _, name := range []string{"a", "b", "c", "d"} {
				got, err := m.ByName(t.Context(), p.tenant, name)
				if diff := cmp.Diff(made[p.tenant+"/"+name], got); err != nil || diff != "" {
					t.Errorf("%s: got error %v and (-want +got)\n%s", name, err, diff)
				}
			}
			for _, alias := range []string{"theirs", "SHARED", "a", "alias/a_1", "c", "c/", "a_1 "} {
				if got, err := m.ByAlias(t.Context(), p.tenant, alias); !errors.Is(err, kms.ErrMasterKeyNotFound) {
					t.Errorf("alias %s: got %v, %v, want that there is none", alias, got, err)
				}
			}
			if got, err := m.ByName(t.Context(), p.tenant, "e"); !errors.Is(err, kms.ErrMasterKeyNotFound) {
				t.Errorf("another namespace's: got %v, %v, want that there is none", got, err)
			}
		})
	}
	list, err := cached.List(t.Context(), p.tenant)
	var want []kms.MasterKey
	for name, aliases := range map[string][]string{"a": {"a_1", "a-2"}, "b": nil, "c": {"c/1"}, "d": nil} {
		k := made[p.tenant+"/"+name]
		if k.Aliases = aliases; name == holder.Name {
			k.Aliases = append([]string{"shared"}, aliases...)
		}
		want = append(want, k)
	}
	slices.SortFunc(want, func(a, b kms.MasterKey) int { return strings.Compare(a.Name, b.Name) })
	if diff := cmp.Diff(want, list); err != nil || diff != "" {
		t.Errorf("List: got error %v and (-want +got)\n%s", err, diff)
	}
	if limit := live.tooLong.Load(); limit != 0 {
		t.Errorf("a page of MasterKeys has %d", limit)
	}
	if got := live.lists.Load(); got != 2 && got != 4 { // one read of two pages; two where the tests took longer than aliasAge
		t.Errorf("the API server was asked for %d lists", got)
	}
}

// An alias that is not there costs one read of the namespace in a while, whoever asks for whatever.
func TestAliasesThatAreNotThereAreReadOnceInAWhile(t *testing.T) {
	p := newPlace(t)
	m, live := startMasterKeys(t, p)
	now := clocktesting.NewFakePassiveClock(time.Unix(0, 0))
	m.cache, m.aliases.clock = deaf{m.cache}, now
	ask := func(alias string, want error, lists int32) {
		t.Helper()
		if _, err := m.ByAlias(t.Context(), p.tenant, alias); !errors.Is(err, want) || (err != nil) != (want != nil) {
			t.Errorf("alias %s: got %v, want %v", alias, err, want)
		}
		if got := live.lists.Load(); got != lists {
			t.Errorf("alias %s: the API server was asked %d times, want %d", alias, got, lists)
		}
	}
	ask("one", kms.ErrMasterKeyNotFound, 1)
	ask("one", kms.ErrMasterKeyNotFound, 1)
	ask("two", kms.ErrMasterKeyNotFound, 1)
	o := &v1alpha1.MasterKey{ObjectMeta: metav1.ObjectMeta{Namespace: p.tenant, Name: "k"}, Spec: v1alpha1.MasterKeySpec{Aliases: []string{"two"}}}
	if err := p.client.Create(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	now.SetTime(time.Unix(0, 0).Add(aliasAge - 1))
	ask("two", kms.ErrMasterKeyNotFound, 1)
	now.SetTime(time.Unix(0, 0).Add(aliasAge))
	ask("two", nil, 2)
	ask("two", nil, 2)
}

func TestWhatTheKeyServiceSeesOfAMasterKey(t *testing.T) {
	due := metav1.NewTime(time.Date(2026, 12, 22, 12, 0, 0, 0, time.UTC))
	created := metav1.NewTime(due.AddDate(0, -6, 0))
	const uid, annotated = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
	for name, c := range map[string]struct {
		change func(*v1alpha1.MasterKey)
		want   func(*kms.MasterKey)
	}{
		"it says no state":      {func(o *v1alpha1.MasterKey) { o.Spec.State = "" }, func(*kms.MasterKey) {}},
		"it is Enabled":         {func(*v1alpha1.MasterKey) {}, func(*kms.MasterKey) {}},
		"it has an annotation":  {func(o *v1alpha1.MasterKey) { o.Annotations = map[string]string{v1alpha1.AnnotationKeyID: annotated} }, func(k *kms.MasterKey) { k.KeyID = annotated }},
		"it is to be Disabled":  {func(o *v1alpha1.MasterKey) { o.Spec.State = "Disabled" }, func(k *kms.MasterKey) { k.State = kms.KeyStateDisabled }},
		"only its status is so": {func(o *v1alpha1.MasterKey) { o.Status.State = "Disabled" }, func(*kms.MasterKey) {}},
		"its status lags":       {func(o *v1alpha1.MasterKey) { o.Spec.State, o.Status.State = "Disabled", "Enabled" }, func(k *kms.MasterKey) { k.State = kms.KeyStateDisabled }},
		"it is PendingDeletion, and that is recorded": {
			func(o *v1alpha1.MasterKey) {
				o.Spec.State, o.Status.State, o.Status.DeletionTime = "PendingDeletion", "PendingDeletion", due
			},
			func(k *kms.MasterKey) { k.State, k.DeletionTime = kms.KeyStatePendingDeletion, due.Time },
		},
		"it is PendingDeletion, and that is not recorded yet": {
			func(o *v1alpha1.MasterKey) { o.Spec.State, o.Status.State = "PendingDeletion", "Enabled" },
			func(k *kms.MasterKey) { k.State = kms.KeyStatePendingDeletion },
		},
		"its deletion was cancelled just now": {
			func(o *v1alpha1.MasterKey) { o.Status.State, o.Status.DeletionTime = "PendingDeletion", due }, func(*kms.MasterKey) {},
		},
		"it is Destroyed": {
			func(o *v1alpha1.MasterKey) {
				o.Spec.State, o.Status.State, o.Status.DeletionTime = "PendingDeletion", "Destroyed", due
			},
			func(k *kms.MasterKey) { k.State = kms.KeyStateDestroyed },
		},
		"it is Destroyed and to be Enabled": {
			func(o *v1alpha1.MasterKey) { o.Status.State = "Destroyed" }, func(k *kms.MasterKey) { k.State = kms.KeyStateDestroyed },
		},
		"its state is of another release": {func(o *v1alpha1.MasterKey) { o.Spec.State = "Paused" }, func(k *kms.MasterKey) { k.State = "Paused" }},
	} {
		t.Run(name, func(t *testing.T) {
			o := &v1alpha1.MasterKey{
				ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "orders", UID: uid, CreationTimestamp: created},
				Spec:       v1alpha1.MasterKeySpec{Description: "for orders", Aliases: []string{"orders"}, State: "Enabled"},
			}
			want := kms.MasterKey{
				KeyID: uid, Namespace: "team-a", Name: "orders", State: kms.KeyStateEnabled, Description: "for orders", CreatedAt: created.Time,
			}
			c.change(o)
			c.want(&want)
			if diff := cmp.Diff(want, masterKey(o)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}
