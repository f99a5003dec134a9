package main

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/client-go/tools/events"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/kms"
)

// refusalInterval is how often the same refusal of a data key to the same pod becomes an event. A sidecar asks again every
// few seconds.
const refusalInterval = 5 * time.Minute

// maxRefusals is how many different refusals of one pod become events in that time.
const maxRefusals = 20

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
	// Names come from headers that nobody has authenticated yet: a pod that makes them up gets few events all the same.
	count, _ := r.told.Get(pod.UID)
	told, _ := count.(int)
	if told >= maxRefusals {
		return
	}
	r.told.Add(pod.UID, told+1, refusalInterval)
	r.told.Add(key, struct{}{}, refusalInterval)
	var related runtime.Object // tells the refusals of two data keys apart, which the recorder would merge
	if dataKeyRequest != "" {
		related = &corev1.ObjectReference{
			APIVersion: v1alpha1.SchemeGroupVersion.String(), Kind: "DataKeyRequest", Namespace: pod.Namespace, Name: dataKeyRequest,
		}
	}
	regarding := &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: types.UID(pod.UID)}
	r.recorder.Eventf(regarding, related, corev1.EventTypeWarning, v1alpha1.ReasonDataKeyDenied, "IssueDataKey", "%s", message)
}
