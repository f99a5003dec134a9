package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/controllers/controllerstest"
	"github.com/datakeys/datakeys/internal/inject"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/porttest"
	"github.com/datakeys/datakeys/internal/rootkey"
	"github.com/datakeys/datakeys/internal/seal"
)

// apiServer is one API server for all tests of the package.
var apiServer = sync.OnceValues(func() (*rest.Config, error) {
	config, stop, err := controllerstest.StartAPIServer("../../config/crd/bases")
	stopAPIServer = stop
	return config, err
})

var stopAPIServer func() error

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	code := m.Run()
	if stopAPIServer != nil {
		if err := stopAPIServer(); err != nil {
			fmt.Fprintln(os.Stderr, "stop the API server:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// A place is what one test has of the API server: a namespace for its tenant and one for its managers.
type place struct {
	config         *rest.Config
	client         client.WithWatch
	tenant, system string
	webhook        string
	history        *controllerstest.History
	// seal is what the sealing keys are opened with, by managers too, but for the store.
	seal seal.Config
	log  logr.Logger // of managers
}

// newPlace is a place whose history is recorded.
func newPlace(t *testing.T) *place {
	t.Helper()
	p := newUnwatchedPlace(t)
	p.history = controllerstest.Record(t, p.client, p.tenant, p.system)
	return p
}

func newUnwatchedPlace(t *testing.T) *place {
	t.Helper()
	config, err := apiServer()
	if err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	p := &place{config: config, client: c, tenant: controllerstest.NewNamespace(t, c), system: controllerstest.NewNamespace(t, c), log: logr.Discard()}
	p.seal.RootKey = seal.DefaultRootKey
	p.webhook = p.system
	webhooks := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: p.webhook}}
	if err := c.Create(t.Context(), webhooks); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // each one more costs the API server time whenever any of them changes
		if err := c.Delete(context.Background(), webhooks); err != nil {
			t.Error(err)
		}
	})
	return p
}

// start runs a whole manager whose every write goes through faults, until stop is called or the test ends.
func (p *place) start(t *testing.T, faults *controllerstest.Faults, change ...func(*options)) (stop func()) {
	t.Helper()
	o := &options{
		namespace: p.system, restConfig: p.config,
		rootKey: p.seal.RootKey, previousRootKey: p.seal.PreviousRootKey, auditLog: filepath.Join(t.TempDir(), "audit"),
		keyServiceBind: "127.0.0.1:0", keyServiceName: "datakeys-key-service",
		webhookBind: porttest.Reserve(t).String(), webhookName: "datakeys-webhook", webhookConfiguration: p.webhook,
		metricsBind: "0", healthBind: "0",
		sidecarImage: "datakeys/sidecar:test", sidecarImagePullPolicy: string(corev1.PullNever),
		registerer: prometheus.NewRegistry(),
		rewrapRate: controllers.DefaultRewrapRate, countDelay: time.Millisecond, leases: inject.DefaultLeases(),
		tune: func(o *ctrl.Options) {
			// Other tests have managers of their own, in this very process.
			o.Cache.DefaultNamespaces = map[string]cache.Config{p.tenant: {}, p.system: {}}
			o.Controller.SkipNameValidation = new(true)
			o.NewClient = func(config *rest.Config, options client.Options) (client.Client, error) {
				direct, err := client.NewWithWatch(config, options)
				return faults.Wrap(direct), err
			}
		},
	}
	for _, c := range change {
		c(o)
	}
	ctx, cancel := context.WithCancel(context.Background()) // t.Context ends before the cleanups run
	done := make(chan error, 1)
	go func() { done <- run(ctx, o, p.log) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the manager: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// restartAfter starts another manager once the one of faults, which stop ends, has died.
func (p *place) restartAfter(t *testing.T, faults *controllerstest.Faults, stop func(), change ...func(*options)) {
	t.Helper()
	faults.Restart(t, func(rest *controllerstest.Faults) *controllerstest.Faults {
		stop()
		p.start(t, rest, change...)
		return rest
	})
}

// end reads the history, and returns how many different things of each kind there ever were: by the type of Secret every sealed
// master key version, root key, sealing key and blob of the tenant, and as "status" the blobs in the status of DataKeyRequests. Who
// looks is shown every state too.
func (p *place) end(t *testing.T, look ...func(client.Object)) map[string]int {
	t.Helper()
	seen := map[string]map[string]bool{}
	add := func(kind, what string) {
		if seen[kind] == nil {
			seen[kind] = map[string]bool{}
		}
		seen[kind][what] = true
	}
	p.history.End(t, func(object client.Object) {
		for _, look := range look {
			look(object)
		}
		switch o := object.(type) {
		case *corev1.Secret:
			add(string(o.Type), fmt.Sprint(o.Data))
		case *v1alpha1.DataKeyRequest:
			for _, generation := range o.Status.Generations {
				add("status", string(generation.CiphertextBlob))
			}
		}
	})
	counts := map[string]int{}
	for kind, seen := range seen {
		counts[kind] = len(seen)
	}
	return counts
}

func (p *place) create(t *testing.T, objects ...client.Object) {
	t.Helper()
	for _, o := range objects {
		if err := p.client.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
}

func (p *place) masterKey(name string) *v1alpha1.MasterKey {
	return &v1alpha1.MasterKey{ObjectMeta: metav1.ObjectMeta{Namespace: p.tenant, Name: name}}
}

func (p *place) request(name, masterKey string) *v1alpha1.DataKeyRequest {
	return &v1alpha1.DataKeyRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.tenant, Name: name},
		Spec:       v1alpha1.DataKeyRequestSpec{MasterKeyRef: v1alpha1.MasterKeyReference{Name: masterKey}, KeySpec: v1alpha1.DataKeySpecAES256},
	}
}

func (p *place) keyPair(name, masterKey string) *v1alpha1.DataKeyRequest {
	request := p.request(name, masterKey)
	request.Spec.KeySpec, request.Spec.KeyPairSpec, request.Spec.AAD = "", v1alpha1.KeyPairSpecNISTP256, []byte{0, 1, 0xff}
	return request
}

// checkOpens waits until the request is Ready, and opens what its Secret holds with a key service that has nothing but what is
// durable: what a manager would know after everything was restarted.
func (p *place) checkOpens(t *testing.T, name string) {
	t.Helper()
	request := p.waitForRequest(t, name)
	ctx := t.Context()
	var key v1alpha1.MasterKey
	if err := p.client.Get(ctx, client.ObjectKey{Namespace: p.tenant, Name: request.Spec.MasterKeyRef.Name}, &key); err != nil {
		t.Fatal(err)
	}
	var secret corev1.Secret
	if err := p.client.Get(ctx, client.ObjectKeyFromObject(request), &secret); err != nil {
		t.Fatal(err)
	}
	blob := secret.Data[v1alpha1.SecretKeyCiphertextBlob]
	if len(request.Status.Generations) != 1 || string(request.Status.Generations[0].CiphertextBlob) != string(blob) {
		t.Errorf("the Secret and the status of %s do not hold the same blob", name)
	}
	service, done := p.durable(t, p.seal)
	defer done()
	sealed, err := service.OpenDataKey(ctx, kms.DataKey{
		MasterKey: kms.MasterKeyRef{KeyID: key.KeyID(), Namespace: key.Namespace, Name: key.Name},
		Namespace: p.tenant, Name: name, Generation: 1,
		Length: request.Spec.Length(), KeyPairSpec: string(request.Spec.KeyPairSpec), AAD: request.Spec.AAD,
	}, blob)
	if err != nil {
		t.Errorf("the Secret of %s, which is Ready, does not open: %v", name, err)
	}
	if !bytes.Equal(secret.Data[v1alpha1.SecretKeyPublicKey], sealed.PublicKey) {
		t.Errorf("the Secret of %s has another public key than the private key in its blob", name)
	}
}

// waitForRequest waits until a DataKeyRequest is Ready.
func (p *place) waitForRequest(t *testing.T, name string) *v1alpha1.DataKeyRequest {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	return controllerstest.WaitFor(ctx, t, p.client, &v1alpha1.DataKeyRequestList{}, &v1alpha1.DataKeyRequest{},
		client.ObjectKey{Namespace: p.tenant, Name: name}, "DataKeyRequest "+name+" is Ready",
		func(r *v1alpha1.DataKeyRequest) bool {
			return r != nil && meta.IsStatusConditionTrue(r.Status.Conditions, v1alpha1.ConditionReady)
		})
}

// durable is a key service that has nothing but what is durable, which is what the store of config holds if it has one, and the flags
// of config, and lets its callers do everything: what a manager would be after everything was restarted.
func (p *place) durable(t *testing.T, config seal.Config) (service *kms.Service, done func()) {
	t.Helper()
	if config.Store == nil {
		config.Store = secretStore{reader: p.client, writer: p.client, namespace: p.system}
	}
	service, done, err := openService(t.Context(), config, newMasterKeys(p.client, p.client))
	if err != nil {
		t.Fatal(err)
	}
	return service, done
}

// openService makes a key service of what the store of config holds.
func openService(ctx context.Context, config seal.Config, objects kms.MasterKeys) (service *kms.Service, done func(), err error) {
	config.OpenRootKey = rootkey.Open
	keyring, err := config.Open(ctx)
	if err != nil {
		return nil, nil, err
	}
	service, err = kms.New(kms.Config{
		Seal: keyring, Keys: noRemoval{config.Store}, MasterKeys: objects,
		Authenticator: anyPod{}, Authorizer: anyPod{}, Auditor: kms.NewJSONAuditor(io.Discard),
	})
	return service, keyring.Close, err
}

// noRemoval is a store of which nothing is removed.
type noRemoval struct{ seal.Store }

func (noRemoval) Remove(context.Context, seal.Secret) error { return errors.ErrUnsupported }

// caller is a pod of the tenant.
func (p *place) caller() kms.Caller {
	return kms.Caller{Namespace: p.tenant, ServiceAccount: "app", PodName: "app", PodUID: "uid"}
}

// anyPod lets every caller do everything.
type anyPod struct{ kms.Authenticator }

func (anyPod) Authorize(context.Context, kms.Caller, kms.Access) (bool, error) { return true, nil }

// The first start of an installation and the creation of a MasterKey, a DataKeyRequest and one for a key pair bound to an aad, by
// the whole manager with its real key service: whatever becomes of any single write, the end is one root key, one sealing key, one
// material, one data key and one key pair, which open. The story is run for every write and every fault, until one ends without having made that many writes.
func TestEveryWriteMayFail(t *testing.T) {
	controllerstest.AtEveryWrite(t, controllerstest.AllFaults, 7, 40, survives)
}

func survives(t *testing.T, at int, fault controllerstest.Fault) (reached bool) {
	p := newPlace(t)
	faults := controllerstest.NewFaults(at, fault)
	stop := p.start(t, faults)
	p.restartAfter(t, faults, stop)
	p.create(t, p.masterKey("key"), p.request("orders", "key"), p.keyPair("signing", "key"))
	p.checkOpens(t, "orders")
	p.checkOpens(t, "signing")
	reached = faults.Reached()
	p.checkEverOne(t, 2)
	return reached
}

// checkEverOne says that of everything that must be one there was never another.
func (p *place) checkEverOne(t *testing.T, dataKeys int) {
	t.Helper()
	counts := p.end(t)
	for kind, want := range map[string]int{
		v1alpha1.SecretTypeRootKey: 1, v1alpha1.SecretTypeSealingKeys: 1, v1alpha1.SecretTypeMasterKey: 1,
		v1alpha1.SecretTypeDataKey: dataKeys, "status": dataKeys,
	} {
		if counts[kind] != want {
			t.Errorf("there were %d of %s, ever; want %d", counts[kind], kind, want)
		}
	}
}

// Two managers that start at once on an empty cluster and both believe to lead.
func TestTwoManagersAtOnce(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	for range 2 {
		p.start(t, controllerstest.NewFaults(0, 0))
	}
	const requests = 20
	p.create(t, p.masterKey("key"))
	name := func(i int) string { return "orders-" + strconv.Itoa(i) }
	for i := range requests {
		p.create(t, p.request(name(i), "key"))
	}
	for i := range requests {
		p.checkOpens(t, name(i))
	}
	p.checkEverOne(t, requests)
}
