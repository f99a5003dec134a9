package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	v1alpha1ac "github.com/datakeys/datakeys/api/v1alpha1/applyconfiguration/api/v1alpha1"
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

func (s *scale) requestName(i int) string { return "request-" + strconv.Itoa(i) }

func (s *scale) keyName(i int) string { return "key-" + strconv.Itoa(i%s.keys) }

func (s *scale) request(namespace string, i int) *v1alpha1.DataKeyRequest {
	return &v1alpha1.DataKeyRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: s.requestName(i)},
		Spec: v1alpha1.DataKeyRequestSpec{
			MasterKeyRef: v1alpha1.MasterKeyReference{Name: s.keyName(i)}, KeySpec: v1alpha1.DataKeySpecAES256,
			EncryptionContext: map[string]v1alpha1.EncryptionContextValue{"tenant": "a"},
		},
	}
}

// each does something for every request, as many at once as the manager does.
func (s *scale) each(ctx context.Context, do func(ctx context.Context, i int) error) (time.Duration, error) {
	began := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(s.parallel)
	for i := range s.requests {
		group.Go(func() error { return do(ctx, i) })
	}
	err := group.Wait()
	return time.Since(began), err
}

// declare makes the objects that the manager is to work on.
func (s *scale) declare(ctx context.Context) error {
	for i := range s.keys {
		if err := s.client.Create(ctx, &v1alpha1.MasterKey{ObjectMeta: metav1.ObjectMeta{Namespace: tenant, Name: s.keyName(i)}}); err != nil {
			return err
		}
	}
	_, err := s.each(ctx, func(ctx context.Context, i int) error { return s.client.Create(ctx, s.request(tenant, i)) })
	return err
}

// bare writes what the manager would write, of the same sizes, and nothing else: first a Secret and a status for each request, then
// the status and the Secret again. The manager does not run meanwhile, and what was written is removed.
func (s *scale) bare(ctx context.Context) (made, rewrapped phase, err error) {
	requests, secrets := make([]*v1alpha1.DataKeyRequest, s.requests), make([]*corev1.Secret, s.requests)
	if _, err = s.each(ctx, func(ctx context.Context, i int) error {
		requests[i] = s.request(bareTenant, i)
		return s.client.Create(ctx, requests[i])
	}); err != nil {
		return made, rewrapped, err
	}
	const blobSize = 270
	status := func(ctx context.Context, i int, version int32, blob []byte) error {
		conditions := []*metav1ac.ConditionApplyConfiguration{}
		for _, kind := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionRewrapped} {
			conditions = append(conditions, metav1ac.Condition().WithType(kind).WithStatus(metav1.ConditionTrue).WithReason(kind).
				WithMessage(fmt.Sprintf("generation 1 is wrapped by version %d of master key %s", version, requests[i].UID)).
				WithObservedGeneration(1).WithLastTransitionTime(metav1.Now()))
		}
		apply := v1alpha1ac.DataKeyRequest(requests[i].Name, bareTenant).WithStatus(v1alpha1ac.DataKeyRequestStatus().
			WithConditions(conditions...).WithObservedGeneration(1).WithKeyID(string(requests[i].UID)).WithKeyVersion(version).WithGeneration(1).
			WithLastRotationTime(metav1.Now()).
			WithGenerations(v1alpha1ac.DataKeyGeneration().WithGeneration(1).WithKeyVersion(version).WithCreatedAt(metav1.Now()).WithCiphertextBlob(blob...)))
		return s.client.Status().Apply(ctx, apply, client.FieldOwner("bare"), client.ForceOwnership)
	}
	newBlob := func() []byte {
		blob := make([]byte, blobSize)
		_, _ = rand.Read(blob)
		return blob
	}
	made.took, err = s.each(ctx, func(ctx context.Context, i int) error {
		blob := newBlob()
		secrets[i] = &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: bareTenant, Name: requests[i].Name, Labels: map[string]string{v1alpha1.LabelManagedBy: "bare"}},
			Type:       v1alpha1.SecretTypeDataKey,
			Data: map[string][]byte{
				v1alpha1.SecretKeyCiphertextBlob: blob, v1alpha1.SecretKeyIV: blob[:12], v1alpha1.SecretKeyAlgorithm: []byte(v1alpha1.AlgorithmAESGCM),
				v1alpha1.SecretKeyKeyID: []byte(requests[i].UID), v1alpha1.SecretKeyKeyVersion: []byte("1"), v1alpha1.SecretKeyGeneration: []byte("1"),
				v1alpha1.SecretKeyEncryptionContext: []byte(`{"tenant":"a"}`),
			},
		}
		if err := s.client.Create(ctx, secrets[i]); err != nil {
			return err
		}
		return status(ctx, i, 1, blob)
	})
	if err != nil {
		return made, rewrapped, err
	}
	rewrapped.took, err = s.each(ctx, func(ctx context.Context, i int) error {
		blob := newBlob()
		if err := status(ctx, i, 2, blob); err != nil {
			return err
		}
		secrets[i].Data[v1alpha1.SecretKeyCiphertextBlob], secrets[i].Data[v1alpha1.SecretKeyKeyVersion] = blob, []byte("2")
		return s.client.Update(ctx, secrets[i])
	})
	if err != nil {
		return made, rewrapped, err
	}
	fmt.Printf("the bare client took %.1fs and %.1fs\n", made.took.Seconds(), rewrapped.took.Seconds())
	_, err = s.each(ctx, func(ctx context.Context, i int) error {
		return errors.Join(s.client.Delete(ctx, secrets[i]), s.client.Delete(ctx, requests[i]))
	})
	return made, rewrapped, err
}

// follow watches the tenant's requests and Secrets until all of either are as wanted. It tells when the first of them was written.
func (s *scale) follow(ctx context.Context, ready func(*v1alpha1.DataKeyRequest) bool, written func(*corev1.Secret) bool) (began time.Time, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	left := map[string]bool{}
	type seen struct {
		key  string
		done bool
	}
	events := make(chan seen, 1000)
	see := func(e watch.Event) {
		var one seen
		switch o := e.Object.(type) {
		case *v1alpha1.DataKeyRequest:
			one = seen{"request " + o.Name, ready(o)}
		case *corev1.Secret:
			one = seen{"secret " + o.Name, e.Type != watch.Deleted && written(o)}
		}
		select {
		case events <- one:
		case <-ctx.Done():
		}
	}
	for _, list := range []client.ObjectList{&v1alpha1.DataKeyRequestList{}, &corev1.SecretList{}} {
		go func() {
			for ctx.Err() == nil { // the API server ends the watch of whom it finds too slow: it begins again with what there is
				w, err := s.client.Watch(ctx, list, client.InNamespace(tenant))
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
	for i := range s.requests {
		left["request "+s.requestName(i)], left["secret "+s.requestName(i)] = true, true
	}
	progress := time.NewTicker(10 * time.Second)
	defer progress.Stop()
	for len(left) > 0 {
		select {
		case e := <-events:
			if e.done && left[e.key] {
				if began.IsZero() {
					began = time.Now()
				}
				delete(left, e.key)
			}
		case <-progress.C:
			fmt.Printf("  %d of %d left\n", len(left), 2*s.requests)
			if s.process.ProcessState != nil {
				return began, fmt.Errorf("the manager ended: %s", tail(s.log.Bytes()))
			}
		case <-ctx.Done():
			return began, ctx.Err()
		}
	}
	return began, nil
}

func tail(log []byte) []byte { return log[max(0, len(log)-2000):] }

// measure counts what is written while something goes on, and how long that takes from the first write that it is about.
func (s *scale) measure(ctx context.Context, goOn func() (time.Time, error)) (phase, error) {
	before, err := s.writes(ctx)
	if err != nil {
		return phase{}, err
	}
	began, err := goOn()
	if err != nil {
		return phase{}, err
	}
	took := time.Since(began)
	after, err := s.writes(ctx)
	if err != nil {
		return phase{}, err
	}
	p := after.since(before)
	p.took = took
	return p, nil
}

func (s *scale) untilReady(ctx context.Context) (phase, error) {
	return s.measure(ctx, func() (time.Time, error) {
		return s.follow(ctx,
			func(r *v1alpha1.DataKeyRequest) bool {
				return meta.IsStatusConditionTrue(r.Status.Conditions, v1alpha1.ConditionReady)
			},
			func(secret *corev1.Secret) bool { return len(secret.Data[v1alpha1.SecretKeyCiphertextBlob]) > 0 })
	})
}

func (s *scale) untilRewrapped(ctx context.Context) (phase, error) {
	return s.measure(ctx, func() (time.Time, error) {
		began := time.Now()
		for i := range s.keys {
			key := &v1alpha1.MasterKey{ObjectMeta: metav1.ObjectMeta{Namespace: tenant, Name: s.keyName(i)}}
			patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"now"}}}`, v1alpha1.AnnotationRotateRequestedAt)
			if err := s.client.Patch(ctx, key, client.RawPatch("application/merge-patch+json", patch)); err != nil {
				return began, err
			}
		}
		_, err := s.follow(ctx,
			func(r *v1alpha1.DataKeyRequest) bool { return r.Status.KeyVersion != nil && *r.Status.KeyVersion == 2 },
			func(secret *corev1.Secret) bool {
				return bytes.Equal(secret.Data[v1alpha1.SecretKeyKeyVersion], []byte("2"))
			})
		return began, err
	})
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
	before, err := s.writes(ctx)
	if err != nil {
		return phase{}, err
	}
	if err := wait(s.idle); err != nil {
		return phase{}, err
	}
	after, err := s.writes(ctx)
	return after.since(before), err
}
