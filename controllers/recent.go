package controllers

import (
	"context"
	"maps"
	"sync"
	"time"

	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// recentAge is how old what a recent reader gives may be.
const recentAge = time.Second

// recent reads MasterKeys from the API server, and gives one that it read within the last second once more: thousands of requests of a few
// MasterKeys come one after the other.
type recent struct {
	client.Reader

	clock clock.PassiveClock
	mutex sync.Mutex
	read  map[client.ObjectKey]recentlyRead
}

type recentlyRead struct {
	masterKey *v1alpha1.MasterKey
	at        time.Time
}

func newRecent(reader client.Reader, clock clock.PassiveClock) *recent {
	return &recent{Reader: reader, clock: clock, read: map[client.ObjectKey]recentlyRead{}}
}

// Get reads an object.
func (r *recent) Get(ctx context.Context, name client.ObjectKey, object client.Object, options ...client.GetOption) error {
	masterKey, ok := object.(*v1alpha1.MasterKey)
	if !ok {
		return r.Reader.Get(ctx, name, object, options...)
	}
	now := r.clock.Now()
	if last, found := r.last(name, now); found {
		last.DeepCopyInto(masterKey)
		return nil
	}
	if err := r.Reader.Get(ctx, name, masterKey, options...); err != nil {
		return err
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	maps.DeleteFunc(r.read, func(_ client.ObjectKey, last recentlyRead) bool { return !last.isRecent(now) })
	r.read[name] = recentlyRead{masterKey.DeepCopy(), now}
	return nil
}

func (r *recent) last(name client.ObjectKey, now time.Time) (*v1alpha1.MasterKey, bool) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	last, found := r.read[name]
	return last.masterKey, found && last.isRecent(now)
}

// isRecent also refuses what was read in the future: the clock was set back.
func (r recentlyRead) isRecent(now time.Time) bool {
	age := now.Sub(r.at)
	return age >= 0 && age < recentAge
}
