//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	datakeys "github.com/datakeys/datakeys/client"
)

// sidecarIsKilled kills the process of a sidecar while an application uses its data key. The kubelet starts it again, the application is
// left alone, and its AEAD does not notice. Its stream of events goes on where it was: the next thing that it tells is that the master
// key is disabled, and then that it is enabled again.
func sidecarIsKilled(t *testing.T) {
	namespace, p, keys := application(t)
	events := watchKey(t, keys)
	wantTold(t, events, datakeys.EventGeneration, 1)
	aead, err := keys.AEAD(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	defer aead.Close()
	use := func() error {
		sealed, err := aead.Seal(t.Context(), []byte("card"), nil)
		if err == nil {
			_, err = aead.Open(t.Context(), sealed, nil)
		}
		return err
	}

	// From now on the AEAD has its key for as long as it was told to, and the kubelet takes less to start the sidecar again.
	asked, died := time.Now(), processOf(t, namespace, p.Name, v1alpha1.SidecarName)
	if err := syscall.Kill(died, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var after *corev1.Pod
	kube.poll(t, "the sidecar to be there again", func() bool {
		if err := use(); err != nil && (time.Since(asked) < datakeys.MaxKeyAge || !temporary(err)) {
			t.Fatalf("the AEAD noticed: %v", err)
		}
		key, err := keys.DataKey(t.Context(), "orders")
		if err != nil {
			if !temporary(err) {
				t.Fatalf("the data key is gone for good: %v", err)
			}
			return false
		}
		key.Destroy()
		after = &corev1.Pod{}
		if err := kube.client.Get(t.Context(), client.ObjectKeyFromObject(p), after); err != nil {
			t.Fatal(err)
		}
		return after.Status.InitContainerStatuses[0].RestartCount == 1
	})
	t.Logf("the sidecar was there again after %v", time.Since(asked))
	last := after.Status.InitContainerStatuses[0].LastTerminationState.Terminated
	if last == nil || last.ExitCode != 128+int32(syscall.SIGKILL) {
		t.Errorf("the sidecar ended with %+v, want the signal", last)
	}
	was, is := p.Status.ContainerStatuses[0], after.Status.ContainerStatuses[0]
	if is.RestartCount != 0 || is.ContainerID != was.ContainerID || !podReady(after) {
		t.Errorf("the application was %+v and is %+v, want it left alone", was, is)
	}

	setState(t, namespace, v1alpha1.MasterKeyStateDisabled)
	if e := wantTold(t, events, datakeys.EventRevoked, 0); e.Reason != "MasterKeyState" {
		t.Errorf("it was told of the reason %q: %s", e.Reason, e.Message)
	}
	revoked := time.Now()
	kube.poll(t, "the AEAD to give up its key", func() bool {
		err := use()
		if err == nil && time.Since(revoked) > datakeys.MaxKeyAge {
			t.Fatalf("the AEAD encrypts %v after the data key was revoked", time.Since(revoked))
		}
		if e, ok := errors.AsType[*datakeys.Error](err); err != nil && (!ok || e.Status != http.StatusForbidden || e.Reason != "MasterKeyState") {
			t.Fatalf("the AEAD is refused with %v", err)
		}
		return err != nil
	})
	setState(t, namespace, v1alpha1.MasterKeyStateEnabled)
	wantTold(t, events, datakeys.EventRestored, 1)
	if err := use(); err != nil {
		t.Errorf("the AEAD after the data key was restored: %v", err)
	}
}

// generationsComeAndGo rotates a data key twice under a running application, which is told. What it encrypted with the first generation
// opens until that generation is dropped. Nobody waits for the 24 hours for which it is kept: the status is dated back.
func generationsComeAndGo(t *testing.T) {
	namespace, p, keys := application(t)
	events := watchKey(t, keys)
	wantTold(t, events, datakeys.EventGeneration, 1)
	old, err := keys.Encrypt(t.Context(), "orders", []byte("card"), nil)
	if err != nil {
		t.Fatal(err)
	}
	var request *v1alpha1.DataKeyRequest
	for generation := int32(2); generation <= 3; generation++ {
		requestRotation(t, &v1alpha1.DataKeyRequest{}, namespace, "orders", fmt.Sprintf("generation %d", generation))
		waitRotated(t, namespace, "orders", 1, generation)
		bringSecret(t, p)
		wantTold(t, events, datakeys.EventGeneration, uint32(generation))
		if opened, err := keys.Decrypt(t.Context(), "orders", old, nil); err != nil || string(opened) != "card" {
			t.Errorf("with generation %d there, what was encrypted with the first one opens to %q, error %v", generation, opened, err)
		}
	}
	plaintextsOf(t, namespace, "orders")

	request = waitRequestReady(t, namespace, "orders")
	for i := range request.Status.Generations {
		g := &request.Status.Generations[i]
		g.CreatedAt.Time = g.CreatedAt.Add(-25 * time.Hour)
	}
	if err := kube.client.Status().Update(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	if opened, err := keys.Decrypt(t.Context(), "orders", old, nil); err != nil || string(opened) != "card" {
		t.Errorf("before it is dropped, the first generation opens to %q, error %v", opened, err)
	}
	mergePatch(t, &v1alpha1.DataKeyRequest{}, namespace, "orders", `{"spec":{"rotation":{"keep":2}}}`)
	kube.waitEvent(t, namespace, "orders", "generation 1", v1alpha1.ReasonDropped)
	bringSecret(t, p)
	kube.poll(t, "the first generation to be gone", func() bool {
		opened, err := keys.Decrypt(t.Context(), "orders", old, nil)
		if e, ok := errors.AsType[*datakeys.Error](err); err != nil && (!ok || e.Reason != datakeys.ReasonUnknownGeneration) {
			t.Fatalf("it is refused with %v", err)
		}
		return err != nil && opened == nil
	})
	if _, err := keys.Encrypt(t.Context(), "orders", []byte("card"), nil); err != nil {
		t.Errorf("the newest generation: %v", err)
	}
}

// application starts a pod with the data key orders, and is the client of its application.
func application(t *testing.T) (namespace string, ready *corev1.Pod, keys *datakeys.Client) {
	t.Helper()
	namespace = tenant(t, "restricted", "orders")
	plaintextOf(t, namespace, "orders")
	kube.create(t, pod(namespace, "app", "orders"))
	ready = kube.waitPodReady(t, namespace, "app")
	return namespace, ready, keysOn(t, socketOf(t, namespace, "app"))
}

// watchKey watches the data key orders until the test ends.
func watchKey(t *testing.T, keys *datakeys.Client) <-chan datakeys.Event {
	t.Helper()
	events := make(chan datakeys.Event)
	go func() {
		defer close(events)
		for e, err := range keys.Watch(t.Context(), "orders") {
			if err != nil {
				return // the test has ended
			}
			select {
			case events <- e:
			case <-t.Context().Done():
			}
		}
	}()
	return events
}

// wantTold waits for the next event, which is to be this one.
func wantTold(t *testing.T, events <-chan datakeys.Event, kind datakeys.EventKind, generation uint32) datakeys.Event {
	t.Helper()
	select {
	case e, open := <-events:
		if !open || e.Kind != kind || e.Generation != generation || e.Name != "orders" {
			t.Fatalf("the application was told %+v, want %s of generation %d", e, kind, generation)
		}
		return e
	case <-time.After(patience):
		t.Fatalf("the application was not told %s of generation %d within %v", kind, generation, patience)
	}
	return datakeys.Event{}
}

func setState(t *testing.T, namespace string, state v1alpha1.MasterKeyState) {
	t.Helper()
	mergePatch(t, &v1alpha1.MasterKey{}, namespace, "orders", fmt.Sprintf(`{"spec":{"state":%q}}`, state))
}

// bringSecret has the kubelet look at a pod, and so at its Secrets, at once: otherwise it does within about a minute and a half.
func bringSecret(t *testing.T, p *corev1.Pod) {
	t.Helper()
	annotate(t, &corev1.Pod{}, p.Namespace, p.Name, "e2e.datakeys.io/looked-at", fmt.Sprint(time.Now().UnixNano()))
}

func temporary(err error) bool {
	e, ok := errors.AsType[*datakeys.Error](err)
	return ok && e.Temporary()
}
