package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// phase is a part of the run: how long it took, and what was written meanwhile.
type phase struct {
	took                                    time.Duration
	ofRequests, ofSecrets, ofKeys, ofEvents int
}

// since is what was written after another reading.
func (p phase) since(earlier phase) phase {
	return phase{
		ofRequests: p.ofRequests - earlier.ofRequests, ofSecrets: p.ofSecrets - earlier.ofSecrets,
		ofKeys: p.ofKeys - earlier.ofKeys, ofEvents: p.ofEvents - earlier.ofEvents,
	}
}

func requestName(i int) string { return "request-" + strconv.Itoa(i) }

func (s *scale) keyName(i int) string { return "key-" + strconv.Itoa(i%s.keys) }

// each does something for the requests of these numbers, as many at once as the manager does.
func (s *scale) each(ctx context.Context, from, to int, do func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(s.parallel)
	for i := from; i < to; i++ {
		group.Go(func() error { return do(ctx, i) })
	}
	return group.Wait()
}

// declare makes the objects that the manager is to work on, and the same requests for the bare client.
func (s *scale) declare(ctx context.Context) (*bare, error) {
	for i := range s.keys {
		if err := s.own.client.Create(ctx, &v1alpha1.MasterKey{ObjectMeta: metav1.ObjectMeta{Namespace: tenant, Name: s.keyName(i)}}); err != nil {
			return nil, err
		}
	}
	b := &bare{client: s.others.client, requests: make([]*v1alpha1.DataKeyRequest, s.requests), secrets: make([]*corev1.Secret, s.requests)}
	return b, s.each(ctx, 0, s.requests, func(ctx context.Context, i int) error {
		request := &v1alpha1.DataKeyRequest{
			ObjectMeta: metav1.ObjectMeta{Namespace: tenant, Name: requestName(i)},
			Spec: v1alpha1.DataKeyRequestSpec{
				MasterKeyRef: v1alpha1.MasterKeyReference{Name: s.keyName(i)}, KeySpec: v1alpha1.DataKeySpecAES256,
				EncryptionContext: map[string]v1alpha1.EncryptionContextValue{"tenant": "a"},
			},
		}
		b.requests[i] = request.DeepCopy()
		if err := s.own.client.Create(ctx, request); err != nil {
			return err
		}
		return b.client.Create(ctx, b.requests[i])
	})
}

// rotate asks for a rotation of every key.
func (s *scale) rotate(ctx context.Context) error {
	for i := range s.keys {
		key := &v1alpha1.MasterKey{ObjectMeta: metav1.ObjectMeta{Namespace: tenant, Name: s.keyName(i)}}
		patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"now"}}}`, v1alpha1.AnnotationRotateRequestedAt)
		if err := s.own.client.Patch(ctx, key, client.RawPatch("application/merge-patch+json", patch)); err != nil {
			return err
		}
	}
	return nil
}

// turns is in how many turns the manager and the bare client do the same, and leastTurn how many requests are the least of one.
const (
	turns     = 40
	leastTurn = 250
)

// race lets the manager and the bare client bring all requests to a version by turns, each while the other one stands still. The manager's time
// begins with the first write that is seen after begin, or with begin where it runs already.
func (s *scale) race(ctx context.Context, version int32, do func(ctx context.Context, i int) error, begin func() error) (manager, other phase, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	before, err := s.own.writes(ctx)
	if err != nil {
		return manager, other, err
	}
	own, others := follow(ctx, s.own.client, s.requests, version), follow(ctx, s.others.client, s.requests, version)
	running := s.manager != nil
	began := time.Now()
	if err := begin(); err != nil {
		return manager, other, err
	}
	if !running {
		if began, err = own.until(ctx, 1); err != nil {
			return manager, other, s.explain(err)
		}
	}
	size := max(leastTurn, s.requests/turns)
	for from := 0; from < s.requests; from += size {
		to := min(from+size, s.requests)
		ended, err := own.until(ctx, 2*to)
		if err != nil {
			return manager, other, s.explain(err)
		}
		manager.took += max(ended.Sub(began), 0) // what was under way when it was stopped may be all of a short turn
		if err := s.manager.signal(syscall.SIGSTOP); err != nil {
			return manager, other, err
		}
		began = time.Now()
		if err := s.each(ctx, from, to, do); err != nil {
			return manager, other, err
		}
		if ended, err = others.until(ctx, 2*to); err != nil {
			return manager, other, err
		}
		other.took += ended.Sub(began)
		began = time.Now()
		if err := s.manager.signal(syscall.SIGCONT); err != nil {
			return manager, other, err
		}
		if to%(10*size) == 0 {
			fmt.Printf("  %d of %d: %.1fs, bare client %.1fs\n", to, s.requests, manager.took.Seconds(), other.took.Seconds())
		}
	}
	after, err := s.own.writes(ctx)
	took := manager.took
	manager = after.since(before)
	manager.took = took
	return manager, other, err
}

// patience is for how long nothing may happen at all.
const patience = time.Minute

// explain adds what the manager said last.
func (s *scale) explain(err error) error {
	log := s.manager.log.Bytes()
	return fmt.Errorf("%w; the manager said last: %s", err, log[max(0, len(log)-2000):])
}

// A follower watches the requests and Secrets of the tenant.
type follower struct {
	progress chan time.Time // when one more was as wanted

	seen int
}

// follow counts the requests and Secrets that are wrapped by a version.
func follow(ctx context.Context, c client.WithWatch, requests int, version int32) *follower {
	f := &follower{progress: make(chan time.Time, 2*requests)}
	var mutex sync.Mutex
	left := map[string]bool{}
	for i := range requests {
		left["request "+requestName(i)], left["secret "+requestName(i)] = true, true
	}
	see := func(e watch.Event) {
		var key string
		done := false
		switch o := e.Object.(type) {
		case *v1alpha1.DataKeyRequest:
			key = "request " + o.Name
			done = meta.IsStatusConditionTrue(o.Status.Conditions, v1alpha1.ConditionReady) && ptr.Deref(o.Status.KeyVersion, 0) == version
		case *corev1.Secret:
			key = "secret " + o.Name
			done = string(o.Data[v1alpha1.SecretKeyKeyVersion]) == strconv.Itoa(int(version))
		}
		mutex.Lock()
		defer mutex.Unlock()
		if done && left[key] {
			delete(left, key)
			f.progress <- time.Now()
		}
	}
	for _, list := range []client.ObjectList{&v1alpha1.DataKeyRequestList{}, &corev1.SecretList{}} {
		go func() {
			for ctx.Err() == nil { // the API server ends the watch of whom it finds too slow: it begins again with what there is
				w, err := c.Watch(ctx, list, client.InNamespace(tenant))
				if err != nil {
					fmt.Println("  watch:", err)
					continue
				}
				for e := range w.ResultChan() {
					see(e)
				}
				w.Stop()
			}
		}()
	}
	return f
}

// until waits until so many were seen, and returns when the last of them was.
func (f *follower) until(ctx context.Context, many int) (last time.Time, err error) {
	for f.seen < many {
		select {
		case last = <-f.progress:
			f.seen++
		case <-time.After(patience):
			return last, fmt.Errorf("nothing happened for %v, and only %d of %d requests and Secrets are as wanted", patience, f.seen, many)
		case <-ctx.Done():
			return last, ctx.Err()
		}
	}
	if last.IsZero() {
		last = time.Now()
	}
	return last, nil
}

// settle is how long the manager may go on to count before it is to be idle.
const settle = 30 * time.Second

// watchIdle counts what a manager writes that has nothing to do.
func (s *scale) watchIdle(ctx context.Context) (phase, error) {
	wait := func(d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := wait(settle); err != nil {
		return phase{}, err
	}
	before, err := s.own.writes(ctx)
	if err != nil {
		return phase{}, err
	}
	if err := wait(s.idle); err != nil {
		return phase{}, err
	}
	after, err := s.own.writes(ctx)
	return after.since(before), err
}
