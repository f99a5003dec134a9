package controllerstest

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// A History is every state that was ever durable, however briefly, of the Secrets of a tenant and of the manager, and of the
// tenant's DataKeyRequests.
type History struct {
	client         client.Client
	tenant, system string
	watches        []watch.Interface
}

// Record begins a History of the namespaces of a tenant and of the manager.
func Record(t testing.TB, c client.WithWatch, tenant, system string) *History {
	t.Helper()
	h := &History{client: c, tenant: tenant, system: system}
	for _, of := range []struct {
		list      client.ObjectList
		namespace string
	}{
		{&corev1.SecretList{}, tenant}, {&corev1.SecretList{}, system}, {&v1alpha1.DataKeyRequestList{}, tenant},
	} {
		w, err := c.Watch(context.Background(), of.list, client.InNamespace(of.namespace)) // read when the test ends
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.Stop)
		h.watches = append(h.watches, w)
	}
	return h
}

// End shows every state, up to a last object that it makes itself in each place.
func (h *History) End(t testing.TB, see func(client.Object)) {
	t.Helper()
	const last = "the-end"
	for _, object := range []client.Object{
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: h.tenant, Name: last}},
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: h.system, Name: last}},
		&v1alpha1.DataKeyRequest{
			ObjectMeta: metav1.ObjectMeta{Namespace: h.tenant, Name: last},
			Spec:       v1alpha1.DataKeyRequestSpec{MasterKeyRef: v1alpha1.MasterKeyReference{Name: "no-such-key"}, KeySpec: v1alpha1.DataKeySpecAES256},
		},
	} {
		if err := h.client.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range h.watches {
		for {
			e, open := <-w.ResultChan()
			object, ok := e.Object.(client.Object)
			if !open || !ok { // an API server ends the watch of whom it cannot tell of every state
				t.Fatalf("the watch ended, and with it the history: %+v", e.Object)
			}
			if object.GetName() == last {
				break
			}
			see(object)
		}
	}
}
