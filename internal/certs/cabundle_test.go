package certs

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clocktesting "k8s.io/utils/clock/testing"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
)

const configurationName = "datakeys-injector"

func configuration() *admissionregistrationv1.MutatingWebhookConfiguration {
	return &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: configurationName},
		Webhooks: []admissionregistrationv1.MutatingWebhook{{
			Name: "inject.datakeys.io",
			ClientConfig: admissionregistrationv1.WebhookClientConfig{
				Service: &admissionregistrationv1.ServiceReference{Namespace: "system", Name: "webhook", Path: new("/inject-pod")},
			},
			SideEffects:             new(admissionregistrationv1.SideEffectClassNone),
			AdmissionReviewVersions: []string{"v1"},
			FailurePolicy:           new(admissionregistrationv1.Fail),
		}},
	}
}

// bundleTest is a CABundle on a fake API server that keeps what is applied.
type bundleTest struct {
	*CABundle
	authority *Authority
	store     *memoryStore
	kube      client.Client
	applied   []string // each as its JSON and its options
	getErr    error
}

func newBundleTest(t *testing.T, objects ...client.Object) *bundleTest {
	t.Helper()
	b := &bundleTest{store: &memoryStore{}}
	b.kube = fake.NewClientBuilder().WithObjects(objects...).WithInterceptorFuncs(interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			if b.getErr != nil {
				return b.getErr
			}
			return c.Get(ctx, key, o, opts...)
		},
		// The API server merges what is applied as it was sent. The fake one reads it into the Go type first, whose required
		// fields would then overwrite with nothing, so the merge is done here.
		Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			raw, err := json.Marshal(o)
			if err != nil {
				return err
			}
			options := (&client.ApplyOptions{}).ApplyOptions(opts)
			b.applied = append(b.applied, fmt.Sprintf("%s manager=%s force=%v", raw, options.FieldManager, ptr.Deref(options.Force, false)))
			sent := &admissionregistrationv1.MutatingWebhookConfiguration{}
			if err := json.Unmarshal(raw, sent); err != nil {
				return err
			}
			got := &admissionregistrationv1.MutatingWebhookConfiguration{}
			if err := c.Get(ctx, client.ObjectKeyFromObject(sent), got); err != nil {
				return err
			}
			for i := range got.Webhooks {
				got.Webhooks[i].ClientConfig.CABundle = sent.Webhooks[i].ClientConfig.CABundle
			}
			return c.Update(ctx, got)
		},
	}).Build()
	authority, clock := newTestAuthority(t, b.store)
	b.authority = authority
	b.CABundle = NewCABundle(authority, b.kube, b.kube, configurationName, clock, logr.Discard())
	return b
}

func (b *bundleTest) mustSync(t *testing.T) {
	t.Helper()
	if err := b.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (b *bundleTest) read(t *testing.T) *admissionregistrationv1.MutatingWebhookConfiguration {
	t.Helper()
	got := &admissionregistrationv1.MutatingWebhookConfiguration{}
	if err := b.kube.Get(t.Context(), client.ObjectKey{Name: configurationName}, got); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestCABundle(t *testing.T) {
	b := newBundleTest(t, configuration())
	if b.Ready(nil) == nil {
		t.Error("ready before anything was looked at")
	}
	b.mustSync(t)
	if err := b.Ready(nil); err != nil {
		t.Errorf("Ready: %v", err)
	}
	got := b.read(t)
	if bundle := b.authority.RootsPEM(); len(bundle) == 0 || !bytes.Equal(got.Webhooks[0].ClientConfig.CABundle, bundle) {
		t.Error("the configuration does not hold the bundle")
	}
	// Nothing but the bundle, and what it takes to find its place.
	want := []string{fmt.Sprintf(`{"kind":"MutatingWebhookConfiguration","apiVersion":"admissionregistration.k8s.io/v1",`+
		`"metadata":{"name":"datakeys-injector"},"webhooks":[{"name":"inject.datakeys.io","clientConfig":{"caBundle":"%s"}}]}`+
		` manager=datakeys-ca-bundle force=true`, base64.StdEncoding.EncodeToString(b.authority.RootsPEM()))}
	if diff := cmp.Diff(want, b.applied); diff != "" {
		t.Errorf("applied (-want +got):\n%s", diff)
	}

	b.mustSync(t)
	if len(b.applied) != 1 {
		t.Errorf("%d writes, want 1: nothing has changed", len(b.applied))
	}
}

func TestCABundleComesBack(t *testing.T) {
	b := newBundleTest(t, configuration())
	b.mustSync(t)
	taken := b.read(t)
	taken.Webhooks[0].ClientConfig.CABundle = []byte("other")
	if err := b.kube.Update(t.Context(), taken); err != nil {
		t.Fatal(err)
	}
	b.mustSync(t)
	if !bytes.Equal(b.read(t).Webhooks[0].ClientConfig.CABundle, b.authority.RootsPEM()) {
		t.Error("the bundle did not come back")
	}
}

// TestCABundleOfAReplicaBehind: a replica that has not heard of a successor does not take it out of the bundle.
func TestCABundleOfAReplicaBehind(t *testing.T) {
	b := newBundleTest(t, configuration())
	b.mustSync(t)
	before := b.authority.RootsPEM()

	ahead := NewAuthority(b.store, clocktesting.NewFakeClock(epoch.Add(5*year+day)), logr.Discard())
	mustSync(t, ahead)
	other := NewCABundle(ahead, b.kube, b.kube, configurationName, nil, logr.Discard())
	if err := other.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(before, ahead.RootsPEM()) || !bytes.Equal(before, b.authority.RootsPEM()) {
		t.Fatal("want one replica that knows the successor, and one that does not")
	}
	b.mustSync(t)
	if !bytes.Equal(b.read(t).Webhooks[0].ClientConfig.CABundle, ahead.RootsPEM()) {
		t.Error("the successor was taken out of the bundle")
	}
	if len(b.applied) != 2 {
		t.Errorf("%d writes, want 2: one for each root", len(b.applied))
	}
}

func TestCABundleReady(t *testing.T) {
	forbidden := apierrors.NewForbidden(admissionregistrationv1.Resource("mutatingwebhookconfigurations"), configurationName, nil)
	for name, test := range map[string]struct {
		objects []client.Object
		prepare func(*bundleTest)
		want    string
	}{
		"without a configuration nobody calls, and nothing is made": {},
		"a configuration that cannot be read": {
			objects: []client.Object{configuration()},
			prepare: func(b *bundleTest) { b.getErr = forbidden },
			want:    "reading the MutatingWebhookConfiguration datakeys-injector",
		},
		"roots that cannot be read": {
			objects: []client.Object{configuration()},
			prepare: func(b *bundleTest) { b.store.down = true },
			want:    "reading the Secret datakeys-serving-roots",
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBundleTest(t, test.objects...)
			if test.prepare != nil {
				test.prepare(b)
			}
			_ = b.sync(t.Context())
			err := b.Ready(nil)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("Ready: got %v, want %q", err, test.want)
			}
			if len(b.applied) != 0 {
				t.Errorf("%d writes, want none", len(b.applied))
			}
		})
	}
}

// TestCABundleStaysReady: what happens to the configuration later does not take the key service away from running pods.
func TestCABundleStaysReady(t *testing.T) {
	b := newBundleTest(t, configuration())
	b.mustSync(t)
	b.getErr = errUnavailable
	if err := b.sync(t.Context()); err == nil {
		t.Fatal("want an error")
	}
	if err := b.Ready(nil); err != nil {
		t.Errorf("Ready: %v", err)
	}
}

// TestCABundleStart: the bundle is there within a second of the configuration, and again ten seconds after it was taken away.
func TestCABundleStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBundleTest(t)
		b.authority = NewAuthority(b.store, nil, logr.Discard())
		b.CABundle = NewCABundle(b.authority, b.kube, b.kube, configurationName, nil, logr.Discard())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- b.Start(ctx) }()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if err := b.kube.Create(t.Context(), configuration()); err != nil {
			t.Fatal(err)
		}
		holdsAfter := func(d time.Duration) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if !holds(b.read(t), b.authority.RootsPEM()) {
				t.Errorf("the bundle is not there after %v", d)
			}
		}
		holdsAfter(bundlePeriodEarly)
		taken := b.read(t)
		taken.Webhooks[0].ClientConfig.CABundle = nil
		if err := b.kube.Update(t.Context(), taken); err != nil {
			t.Fatal(err)
		}
		holdsAfter(bundlePeriod)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Start: %v", err)
		}
	})
}
