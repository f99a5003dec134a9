package main

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/kms"
)

// oneKey answers with one MasterKey, or with an error, and counts.
type oneKey struct {
	client.Reader
	key  *v1alpha1.MasterKey
	err  error
	gets int
}

func (r *oneKey) Get(_ context.Context, key client.ObjectKey, o client.Object, _ ...client.GetOption) error {
	r.gets++
	if r.err != nil {
		return r.err
	}
	if r.key == nil {
		return apierrors.NewNotFound(schema.GroupResource{Resource: v1alpha1.ResourceMasterKeys}, key.Name)
	}
	r.key.DeepCopyInto(o.(*v1alpha1.MasterKey))
	return nil
}

func keyAt(version int, state v1alpha1.MasterKeyState) *v1alpha1.MasterKey {
	return &v1alpha1.MasterKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: "team-a", Name: "orders", UID: "1", ResourceVersion: strconv.Itoa(version)},
		Spec:       v1alpha1.MasterKeySpec{State: state},
	}
}

// A watch that is silent does not keep a key usable: what the cache has is confirmed by the API server.
func TestTheStateOfAKeyDoesNotHangOnAWatch(t *testing.T) {
	const enabled, disabled = v1alpha1.MasterKeyStateEnabled, v1alpha1.MasterKeyStateDisabled
	down := errors.New("no connection")
	begin := time.Unix(0, 0)
	now := clocktesting.NewFakePassiveClock(begin)
	cache, live := &oneKey{key: keyAt(9, enabled)}, &oneKey{key: keyAt(9, enabled)}
	m := newMasterKeys(cache, live)
	m.states.clock = now
	for _, step := range []struct {
		what  string
		at    time.Duration
		cache *v1alpha1.MasterKey
		live  *v1alpha1.MasterKey
		down  error
		want  kms.KeyState
		err   error
		gets  int // of the API server so far
	}{
		{what: "the first call", cache: keyAt(9, enabled), live: keyAt(9, enabled), want: kms.KeyStateEnabled, gets: 1},
		{what: "another", at: stateAge - 1, cache: keyAt(9, enabled), live: keyAt(9, enabled), want: kms.KeyStateEnabled, gets: 1},
		{what: "Disabled, and the watch tells", at: stateAge - 1, cache: keyAt(10, disabled), live: keyAt(10, disabled), want: kms.KeyStateDisabled, gets: 1},
		{what: "Enabled, and the watch tells", at: stateAge - 1, cache: keyAt(11, enabled), live: keyAt(11, enabled), want: kms.KeyStateEnabled, gets: 1},
		{what: "Disabled, and the watch is silent", at: stateAge, cache: keyAt(11, enabled), live: keyAt(100, disabled), want: kms.KeyStateDisabled, gets: 2},
		{what: "the API server is away", at: 2*stateAge - 1, cache: keyAt(11, enabled), down: down, want: kms.KeyStateDisabled, gets: 2},
		{what: "for longer", at: 2 * stateAge, cache: keyAt(11, enabled), down: down, err: down, gets: 3},
		{what: "back, and the watch as well", at: 2 * stateAge, cache: keyAt(101, enabled), live: keyAt(101, enabled), want: kms.KeyStateEnabled, gets: 4},
		{what: "deleted, and the watch is silent", at: 3 * stateAge, cache: keyAt(101, enabled), err: kms.ErrMasterKeyNotFound, gets: 6},
		{what: "made again, and the watch is silent", at: 3 * stateAge, cache: keyAt(101, enabled), live: keyAt(102, enabled), want: kms.KeyStateEnabled, gets: 7},
		{what: "versions that tell nothing", at: 4 * stateAge, cache: keyAt(-1, enabled), live: keyAt(103, disabled), want: kms.KeyStateDisabled, gets: 8},
	} {
		now.SetTime(begin.Add(step.at))
		cache.key, live.key, live.err = step.cache, step.live, step.down
		got, err := m.ByName(t.Context(), "team-a", "orders")
		if got.State != step.want || !errors.Is(err, step.err) || (err != nil) != (step.err != nil) || live.gets != step.gets {
			t.Errorf("%s: got %q, %v after %d reads, want %q, %v after %d", step.what, got.State, err, live.gets, step.want, step.err, step.gets)
		}
	}
}
