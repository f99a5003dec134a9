package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/log"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/yaml"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/controllers/controllerstest"
)

// apiServer is one API server for all tests of the package, started by the first that needs it.
var apiServer struct {
	once   sync.Once
	config *rest.Config
	stop   func() error
	err    error
}

func TestMain(m *testing.M) {
	log.SetLogger(logr.Discard())
	code := m.Run()
	if apiServer.stop != nil {
		if err := apiServer.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop the API server:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// managerUser is who the controllers are. It may do what the generated role says and nothing else.
const managerUser = "datakeys-manager"

func grantRole(ctx context.Context, config *rest.Config, scheme *runtime.Scheme) error {
	text, err := os.ReadFile("../config/rbac/role.yaml")
	if err != nil {
		return err
	}
	role := &rbacv1.ClusterRole{}
	if err := yaml.UnmarshalStrict(text, role); err != nil {
		return err
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return err
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: managerUser}},
	}
	return errors.Join(c.Create(ctx, role), c.Create(ctx, binding))
}

// A cluster is the API server, seen by a test that has a namespace of its own and one for its manager.
type cluster struct {
	config    *rest.Config
	client    client.WithWatch
	namespace string
	// manager is the namespace with the material.
	manager string
	serial  *atomic.Int64
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	apiServer.once.Do(func() {
		apiServer.config, apiServer.stop, apiServer.err = controllerstest.StartAPIServer("../config/crd/bases")
		if apiServer.err == nil {
			apiServer.err = grantRole(t.Context(), apiServer.config, newScheme(t))
		}
	})
	if apiServer.err != nil {
		t.Fatal(apiServer.err)
	}
	c, err := client.NewWithWatch(apiServer.config, client.Options{Scheme: newScheme(t)})
	if err != nil {
		t.Fatal(err)
	}
	return &cluster{
		config: apiServer.config, client: c, serial: &atomic.Int64{},
		namespace: controllerstest.NewNamespace(t, c), manager: controllerstest.NewNamespace(t, c),
	}
}

// startManager runs the controllers, as cmd/manager does, until stop is called or the test ends. Every call that they make
// goes through faults.
func (c *cluster) startManager(t *testing.T, faults *controllerstest.Faults, change ...func(*controllers.Config)) (stop func()) {
	t.Helper()

	cacheOptions := controllers.CacheOptions()
	// Other tests have managers of their own.
	cacheOptions.DefaultNamespaces = map[string]cache.Config{c.namespace: {}, c.manager: {}}
	config := rest.CopyConfig(c.config)
	config.Impersonate.UserName = managerUser
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:     newScheme(t),
		Cache:      cacheOptions,
		Metrics:    metricsserver.Options{BindAddress: "0"},
		Controller: ctrlconfig.Controller{SkipNameValidation: new(true)},
		NewClient: func(config *rest.Config, options client.Options) (client.Client, error) {
			direct, err := client.NewWithWatch(config, options)
			return faults.Wrap(direct), err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	keys := &controllerstest.KeyService{Client: faults.Wrap(c.client), Namespace: c.manager, Serial: c.serial}
	ctx, cancel := context.WithCancel(context.Background()) // t.Context ends before the cleanups run
	setup := controllers.Config{
		KeyService: keys, Namespace: c.manager, ServerTime: controllers.ServerTime(clock.RealClock{}), CountDelay: time.Millisecond,
		Namespaces: cacheOptions.DefaultNamespaces,
	}
	for _, f := range change {
		f(&setup)
	}
	if err := controllers.Setup(ctx, mgr, setup); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- mgr.Start(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the manager: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// deadline is long, because it is only for what went wrong: nothing here waits for time to pass.
func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func (c *cluster) key(name string) client.ObjectKey {
	return client.ObjectKey{Namespace: c.namespace, Name: name}
}

func (c *cluster) create(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, object := range objects {
		if err := c.client.Create(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
}

func (c *cluster) delete(t *testing.T, object client.Object) {
	t.Helper()
	if err := c.client.Delete(t.Context(), object); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) masterKey(name string) *v1alpha1.MasterKey {
	return &v1alpha1.MasterKey{ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: name}}
}

func (c *cluster) request(name, masterKey string, options ...requestOption) *v1alpha1.DataKeyRequest {
	request := &v1alpha1.DataKeyRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: c.namespace, Name: name},
		Spec:       v1alpha1.DataKeyRequestSpec{MasterKeyRef: v1alpha1.MasterKeyReference{Name: masterKey}, KeySpec: v1alpha1.DataKeySpecAES256},
	}
	for _, option := range options {
		option(request)
	}
	return request
}

// waitForMasterKey waits until the Ready condition of a MasterKey has a reason.
func (c *cluster) waitForMasterKey(t *testing.T, name, reason string) *v1alpha1.MasterKey {
	t.Helper()
	return controllerstest.WaitFor(deadline(t), t, c.client, &v1alpha1.MasterKeyList{}, &v1alpha1.MasterKey{}, c.key(name),
		fmt.Sprintf("MasterKey %s is %s", name, reason),
		func(key *v1alpha1.MasterKey) bool { return key != nil && reasonOf(key.Status.Conditions) == reason })
}

// waitForRequest waits until the Ready condition of a DataKeyRequest has a reason.
func (c *cluster) waitForRequest(t *testing.T, name, reason string) *v1alpha1.DataKeyRequest {
	t.Helper()
	return controllerstest.WaitFor(deadline(t), t, c.client, &v1alpha1.DataKeyRequestList{}, &v1alpha1.DataKeyRequest{}, c.key(name),
		fmt.Sprintf("DataKeyRequest %s is %s", name, reason),
		func(request *v1alpha1.DataKeyRequest) bool {
			return request != nil && reasonOf(request.Status.Conditions) == reason
		})
}

// waitForSecret waits until done says so of a Secret, nil for none.
func (c *cluster) waitForSecret(t *testing.T, name, what string, done func(*corev1.Secret) bool) *corev1.Secret {
	t.Helper()
	return controllerstest.WaitFor(deadline(t), t, c.client, &corev1.SecretList{}, &corev1.Secret{}, c.key(name), "Secret "+name+" "+what, done)
}

// waitForEvent waits for an event about an object of the namespace.
func (c *cluster) waitForEvent(t *testing.T, kind, name, reason, note string) {
	t.Helper()
	watcher, err := c.client.Watch(deadline(t), &eventsv1.EventList{}, client.InNamespace(c.namespace))
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Stop()
	for e := range watcher.ResultChan() {
		if event, ok := e.Object.(*eventsv1.Event); ok && event.Regarding.Kind == kind && event.Regarding.Name == name && event.Reason == reason && event.Note == note {
			return
		}
	}
	t.Fatalf("waited in vain for an event %s about %s %s: %s", reason, kind, name, note)
}

func reasonOf(conditions []metav1.Condition) string {
	ready := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
	if ready == nil {
		return ""
	}
	return ready.Reason
}

// blobIn is the blob in a Secret, or nothing.
func blobIn(secret *corev1.Secret) string {
	if secret == nil {
		return ""
	}
	return string(secret.Data[v1alpha1.SecretKeyCiphertextBlob])
}
