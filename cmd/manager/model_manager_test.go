package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/controllers/controllerstest"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/rootkey"
	"github.com/datakeys/datakeys/internal/seal"
)

// modelClock is the clock of one manager: the true time, and how far it is off.
type modelClock struct {
	clock.PassiveClock // nil: nobody calls what is not implemented here

	world *modelWorld
	// offsets are by how much the clock was ever off, the last one now.
	offsets []time.Duration
}

func (c *modelClock) set(offset time.Duration) { c.offsets = append(c.offsets, offset) }

func (c *modelClock) now() time.Time { return c.world.now.Add(c.offsets[len(c.offsets)-1]) }

// jumped reports whether the clock is far off.
func (c *modelClock) jumped() bool { return c.offsets[len(c.offsets)-1].Abs() > time.Hour }

// Now carries in its nanoseconds by which offset it was told. With them, Since is right across a jump, as that of the time package is,
// whose times have a monotonic reading.
func (c *modelClock) Now() time.Time {
	return c.now().Truncate(time.Microsecond).Add(time.Duration(len(c.offsets) - 1))
}

func (c *modelClock) Since(t time.Time) time.Duration {
	offset := c.offsets[min(t.Nanosecond()%1000, len(c.offsets)-1)]
	return c.world.now.Sub(t.Add(-offset))
}

// A modelManager is one process: controllers and a key service of its own over a cache that lags, and a clock that may jump.
type modelManager struct {
	world  *modelWorld
	name   string
	clock  *modelClock
	cache  snapshot
	faults *controllerstest.Faults

	service     *kms.Service
	reconcilers controllers.Reconcilers

	// before is how many more calls are made before something else happens, once.
	before    int
	preempted func()
	// seen is what was there when the present step began.
	seen snapshot
	// remembers is set while the process may know versions of master keys that a restored backup does not have.
	remembers bool
	// busy is set while it works on something.
	busy bool
	// runs is how many processes there were.
	runs int
}

// start begins a new process, which has nothing but what is durable.
func (m *modelManager) start() {
	m.runs++
	m.faults = controllerstest.NewFaults(0, 0)
	m.preempted, m.remembers = nil, false
	m.refresh(cachedKinds()...)

	server := m.faults.Wrap(m.server())
	cached := m.faults.Wrap(m.cached())
	store := secretStore{reader: server, writer: cached, namespace: modelSystem}
	ctx := context.Background()
	keyring, err := seal.Config{RootKey: seal.DefaultRootKey, Store: store, Clock: m.clock, OpenRootKey: rootkey.Open}.Open(ctx)
	if err != nil {
		m.world.failf("%s does not start: %v", m.name, err)
		return
	}
	m.service, err = kms.New(kms.Config{
		Seal: keyring, Keys: store, MasterKeys: newMasterKeys(cached, server),
		Authenticator: anyPod{}, Authorizer: anyPod{}, Auditor: kms.NewJSONAuditor(io.Discard), Clock: m.clock,
	})
	if err != nil {
		m.world.failf("%s does not start: %v", m.name, err)
		return
	}
	unsealed := make(chan struct{})
	close(unsealed)
	m.reconcilers = controllers.NewReconcilers(cached, server, controllers.Config{
		KeyService: &keyService{unsealed: unsealed, service: m.service},
		Namespace:  modelSystem,
		ServerTime: func(context.Context) (time.Time, error) { return m.world.now.Truncate(time.Second), nil },
		Clock:      m.clock,
		Recorder:   &events.FakeRecorder{},
		RewrapRate: 1 << 30, // it goes by the real clock
	})
}

// cachedKinds are the kinds of which a cache knows, of Secrets their metadata.
func cachedKinds() []string { return []string{kindMasterKey, kindDataKeyRequest, kindSecret} }

// refresh lets the cache of the manager catch up with what there is of some kinds.
func (m *modelManager) refresh(kinds ...string) {
	cache := snapshot{}
	for key, object := range m.cache {
		if !slices.Contains(kinds, key.kind) {
			cache[key] = object
		}
	}
	for key, object := range m.world.store.objects {
		if slices.Contains(kinds, key.kind) {
			cache[key] = object
		}
	}
	m.cache = cache
}

// server is the API server as this manager reaches it.
func (m *modelManager) server() client.WithWatch {
	called := func() {
		if m.preempted == nil {
			return
		}
		if m.before--; m.before < 0 {
			preempt := m.preempted
			m.preempted = nil
			preempt()
		}
	}
	write := func(do func() error) error {
		called()
		by := m.world.writer
		m.world.writer = m
		defer func() { m.world.writer = by }()
		return do()
	}
	return interceptor.NewClient(m.world.store, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
			called()
			return c.Get(ctx, key, object, options...)
		},
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
			called()
			return c.List(ctx, list, options...)
		},
		Create: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.CreateOption) error {
			return write(func() error { return c.Create(ctx, object, options...) })
		},
		Update: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.UpdateOption) error {
			return write(func() error { return c.Update(ctx, object, options...) })
		},
		Patch: func(ctx context.Context, c client.WithWatch, object client.Object, patch client.Patch, options ...client.PatchOption) error {
			return write(func() error { return c.Patch(ctx, object, patch, options...) })
		},
		Delete: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.DeleteOption) error {
			return write(func() error { return c.Delete(ctx, object, options...) })
		},
		SubResourceUpdate: func(ctx context.Context, c client.Client, sub string, object client.Object, options ...client.SubResourceUpdateOption) error {
			return write(func() error { return c.SubResource(sub).Update(ctx, object, options...) })
		},
	})
}

// cached is the API server with the manager's cache before it, as the client of a controller-runtime manager is.
func (m *modelManager) cached() client.WithWatch {
	return interceptor.NewClient(m.server(), interceptor.Funcs{
		Get: func(_ context.Context, _ client.WithWatch, key client.ObjectKey, object client.Object, _ ...client.GetOption) error {
			if _, body := object.(*corev1.Secret); body {
				return errors.New("no cache holds the body of a Secret")
			}
			return m.cache.read(asked(key, object), object)
		},
		List: func(_ context.Context, _ client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
			return m.cache.list(list, m.world.indexes, options)
		},
	})
}

// reconcile lets the manager work on one object, and restarts it where it dies of that.
func (m *modelManager) reconcile(of objectKey) error {
	seen := m.seen
	m.seen = maps.Clone(m.world.store.objects)
	defer func() { m.seen = seen }()
	reconciler := map[string]reconcile.Reconciler{
		kindMasterKey: m.reconcilers.MasterKey, kindDataKeyRequest: m.reconcilers.DataKeyRequest, kindSecret: m.reconcilers.Material,
	}[of.kind]
	_, err := reconciler.Reconcile(context.Background(), ctrl.Request{
		NamespacedName: client.ObjectKey{Namespace: of.namespace, Name: of.name},
	})
	m.preempted = nil
	m.faults.At = 0
	select {
	case <-m.faults.Died():
		m.start()
	default:
	}
	return err
}

// meet lets the write that comes after that many others of the next step meet a fault.
func (m *modelManager) meet(others int, fault controllerstest.Fault) string {
	m.faults.At, m.faults.Fault = len(m.faults.Writes())+others+1, fault
	for name, known := range controllerstest.AllFaults {
		if known == fault {
			return fmt.Sprintf(", %s, after %d others", name, others)
		}
	}
	return ""
}
