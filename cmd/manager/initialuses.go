package main

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/kms"
)

// initialUseInterval is how often it becomes an event that the initial version of a MasterKey is used. An application that does so does it
// all the time, and the API server keeps an event for an hour.
const initialUseInterval = time.Hour

// initialUses tells of what rotation does not reach as events on the MasterKeys.
type initialUses struct {
	recorder events.EventRecorder
	cache    client.Reader // of MasterKeys
	told     *cache.LRUExpireCache
}

func newInitialUses(recorder events.EventRecorder, masterKeys client.Reader) *initialUses {
	return &initialUses{recorder: recorder, cache: masterKeys, told: cache.NewLRUExpireCache(1024)}
}

func (u *initialUses) InitialVersionUsed(key kms.MasterKeyRef, pod kms.Pod, operation string) {
	if _, ok := u.told.Get(key); ok {
		return
	}
	u.told.Add(key, struct{}{}, initialUseInterval)
	var o v1alpha1.MasterKey
	// The cache answers without waiting. Of a MasterKey that it has not heard of, another hour tells.
	if err := u.cache.Get(context.Background(), client.ObjectKey{Namespace: key.Namespace, Name: key.Name}, &o); err != nil {
		return
	}
	user := &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.UID)}
	u.recorder.Eventf(&o, user, corev1.EventTypeWarning, v1alpha1.ReasonInitialVersionUsed, operation,
		"pod %s/%s encrypts with version 1 of this key, which is what %s of Alibaba Cloud KMS does: rotation does not reach that; "+
			"use the Advance operation in its place", pod.Namespace, pod.Name, operation)
}

// serviceEvents are all events of the key service.
type serviceEvents struct {
	*refusals
	*initialUses
}

var _ kms.Events = serviceEvents{}

func newServiceEvents(recorder events.EventRecorder, masterKeys client.Reader) serviceEvents {
	return serviceEvents{newRefusals(recorder), newInitialUses(recorder, masterKeys)}
}
