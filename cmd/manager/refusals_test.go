package main

import (
	"strconv"
	"strings"
	"testing"

	"k8s.io/client-go/tools/events"

	"github.com/datakeys/datakeys/internal/kms"
)

func TestRefusalsAreToldOnce(t *testing.T) {
	recorder := events.NewFakeRecorder(100)
	r := newRefusals(recorder)
	pod, other := kms.Pod{Namespace: "n", Name: "p", UID: "1"}, kms.Pod{Namespace: "n", Name: "p", UID: "2"}
	for range 3 {
		r.Denied(pod, "orders", "needs 100% of the verb")
		r.Denied(pod, "payments", "needs the verb")
		r.Denied(other, "orders", "needs the verb")
	}
	if got := len(recorder.Events); got != 3 {
		t.Errorf("got %d events, want one for each pod and data key", got)
	}
	if event := <-recorder.Events; !strings.Contains(event, "DataKeyDenied needs 100% of the verb") {
		t.Errorf("got %q", event)
	}
	for i := range 2 * maxRefusals {
		r.Denied(pod, "made-up-"+strconv.Itoa(i), "needs the verb")
	}
	if got := len(recorder.Events); got > maxRefusals+2 {
		t.Errorf("got %d events of a pod that makes names up", got)
	}
}
