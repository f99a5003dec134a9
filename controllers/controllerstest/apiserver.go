package controllerstest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// StartAPIServer starts etcd and a Kubernetes API server with the CRDs of a directory.
func StartAPIServer(crds string) (config *rest.Config, stop func() error, err error) {
	if os.Getenv("KUBEBUILDER_ASSETS") == "" {
		return nil, nil, errors.New("KUBEBUILDER_ASSETS does not name the directory with etcd and kube-apiserver: run `make test`, which builds them and sets it")
	}
	environment := &envtest.Environment{CRDDirectoryPaths: []string{crds}, ErrorIfCRDPathMissing: true}
	config, err = environment.Start()
	if err != nil {
		return nil, nil, fmt.Errorf("start the API server: %w", errors.Join(err, environment.Stop()))
	}
	config.QPS = -1 // the API server's own fairness is enough
	return config, environment.Stop, nil
}

// NewNamespace makes a namespace of a new name.
func NewNamespace(t testing.TB, c client.Client) string {
	t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}
	if err := c.Create(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	return namespace.Name
}

// WaitFor watches one object, by its namespace and name, until done says so; done gets nil where there is no such object.
// object is an empty one and list its list. It fails the test when ctx ends, and says what it waited for.
func WaitFor[T client.Object](ctx context.Context, t testing.TB, c client.WithWatch, list client.ObjectList, object T, key client.ObjectKey, what string, done func(object T) bool) T {
	t.Helper()
	var last T // nil
	// Without a resourceVersion the watch begins with what there is.
	watcher, err := c.Watch(ctx, list, client.InNamespace(key.Namespace), client.MatchingFields{"metadata.name": key.Name})
	if err != nil {
		t.Fatalf("wait until %s: %v", what, err)
	}
	defer watcher.Stop()
	switch err := c.Get(ctx, key, object); {
	case apierrors.IsNotFound(err) && done(last):
		return last
	case client.IgnoreNotFound(err) != nil:
		t.Fatalf("wait until %s: %v", what, err)
	}
	for {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain until %s; last seen: %+v", what, last)
		case e, open := <-watcher.ResultChan():
			var none T
			switch seen, ok := e.Object.(T); {
			case !open || !ok:
				t.Fatalf("wait until %s: the watch ended: %+v", what, e.Object)
			case e.Type == watch.Deleted:
				last = none
			default:
				last = seen
			}
			if done(last) {
				return last
			}
		}
	}
}
