package main

import (
	"context"
	"errors"
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
}

func (r *shortPages) Get(ctx context.Context, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
	r.gets.Add(1)
	return r.Reader.Get(ctx, key, o, opts...)
}

func (r *shortPages) List(ctx context.Context, list client.ObjectList, opts ...client.ListOption) error {
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
	m, err := newMasterKeys(t.Context(), mgr)
	if err != nil {
		t.Fatal(err)
	}
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
	create := func(namespace, name string, aliases ...string) {
		t.Helper()
		o := &v1alpha1.MasterKey{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Spec: v1alpha1.MasterKeySpec{Description: "of " + name, Aliases: aliases}}
		if err := p.client.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		made[namespace+"/"+name] = kms.MasterKey{
			KeyID: string(o.UID), Namespace: namespace, Name: name, UID: string(o.UID), State: kms.KeyStateEnabled,
			Description: "of " + name, Aliases: aliases, CreatedAt: o.CreationTimestamp.Time,
		}
	}
	create(p.tenant, "c", "shared", "c/1")
	create(p.tenant, "a", "shared", "a_1", "a-2")
	create(p.tenant, "b", "shared")
	create(p.tenant, "d")
	create(p.system, "e", "theirs", "a_1")
	holder := made[p.tenant+"/c"] // by the rule, and not by the order: they may have been made in the same second
	for _, name := range []string{"a", "b"} {
		if k := made[p.tenant+"/"+name]; k.Before(holder) {
			holder = k
		}
	}

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
	want := []kms.MasterKey{made[p.tenant+"/a"], made[p.tenant+"/b"], made[p.tenant+"/c"], made[p.tenant+"/d"]}
	if diff := cmp.Diff(want, list); err != nil || diff != "" {
		t.Errorf("List: got error %v and (-want +got)\n%s", err, diff)
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
