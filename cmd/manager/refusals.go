package main

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/client-go/tools/events"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/kms"
)

// refusalInterval is how often the same refusal of a data key to the same pod becomes an event. A sidecar asks again every
// few seconds.
const refusalInterval = 5 * time.Minute

// refusals tells of refused data keys as events on the pods.
type refusals struct {
	recorder events.EventRecorder
	told     *cache.LRUExpireCache
}

func newRefusals(recorder events.EventRecorder) *refusals {
	return &refusals{recorder: recorder, told: cache.NewLRUExpireCache(4096)}
}

func (r *refusals) Denied(pod kms.Pod, dataKeyRequest, message string) {
	key := [...]string{pod.UID, dataKeyRequest, message}
	if _, ok := r.told.Get(key); ok {
		return
	}
	r.told.Add(key, struct{}{}, refusalInterval)
	regarding := &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.UID)}
	r.recorder.Eventf(regarding, nil, corev1.EventTypeWarning, v1alpha1.ReasonDataKeyDenied, "IssueDataKey", "%s", message)
}
