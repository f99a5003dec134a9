package controllers_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/controllers/controllerstest"
)

// A lifetime is a world in which time passes: one MasterKey, orders-key, and its DataKeyRequest, orders.
type lifetime struct {
	*world
	reconcilers controllers.Reconcilers
	reader      client.Reader                  // of the API server
	server      *clocktesting.FakePassiveClock // the API server's clock
	rewrapRate  int
	recorder    *events.FakeRecorder
}

func newLifetime(t *testing.T, objects ...client.Object) *lifetime {
	t.Helper()
	w := newWorld(t, objects, nil)
	w.keys.Clock = w.clock
	l := &lifetime{world: w, reader: w.direct, server: clocktesting.NewFakePassiveClock(now.Time), rewrapRate: 1000, recorder: events.NewFakeRecorder(1000)}
	l.restart()
	return l
}

// restart makes reconcilers that remember nothing.
func (l *lifetime) restart() { l.reconcilers = l.reconcilersOf(l.keys) }

func (l *lifetime) reconcilersOf(keys controllers.KeyService) controllers.Reconcilers {
	return controllers.NewReconcilers(l.client, l.reader, controllers.Config{
		KeyService: keys, Clock: l.clock, Recorder: l.recorder, RewrapRate: l.rewrapRate,
		ServerTime: func(context.Context) (time.Time, error) { return l.server.Now(), nil },
	})
}

// settle reconciles everything until nothing is written any more, and returns the events.
func (l *lifetime) settle(t *testing.T) []string {
	t.Helper()
	for range 20 {
		before := len(l.faults.Writes())
		revision := l.revision(t)
		_, _ = l.reconcilers.MasterKey.Reconcile(t.Context(), masterKeyRequest)
		_, _ = l.reconcilers.DataKeyRequest.Reconcile(t.Context(), dataKeyRequest)
		var secrets corev1.SecretList
		if err := l.direct.List(t.Context(), &secrets, client.InNamespace(managerNamespace)); err != nil {
			t.Fatal(err)
		}
		for _, secret := range secrets.Items {
			_, _ = l.reconcilers.Material.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(&secret)})
		}
		if len(l.faults.Writes()) == before && l.revision(t) == revision {
			return drain(l.recorder.Events)
		}
	}
	t.Fatal("it never settles")
	return nil
}

// revision tells two states of the Secrets apart.
func (l *lifetime) revision(t *testing.T) string {
	t.Helper()
	var secrets corev1.SecretList
	if err := l.direct.List(t.Context(), &secrets); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, secret := range secrets.Items {
		fmt.Fprintln(&out, secret.Name, secret.ResourceVersion)
	}
	return out.String()
}

// pass lets time pass, by both clocks.
func (l *lifetime) pass(d time.Duration) {
	l.clock.SetTime(l.clock.Now().Add(d))
	l.server.SetTime(l.server.Now().Add(d))
}

func (l *lifetime) key(t *testing.T) *v1alpha1.MasterKey {
	t.Helper()
	key := &v1alpha1.MasterKey{}
	if err := l.direct.Get(t.Context(), masterKeyRequest.NamespacedName, key); err != nil {
		t.Fatal(err)
	}
	return key
}

func (l *lifetime) request(t *testing.T) *v1alpha1.DataKeyRequest {
	t.Helper()
	request := &v1alpha1.DataKeyRequest{}
	if err := l.direct.Get(t.Context(), dataKeyRequest.NamespacedName, request); err != nil {
		t.Fatal(err)
	}
	return request
}

func (l *lifetime) secret(t *testing.T) *corev1.Secret {
	t.Helper()
	secret := &corev1.Secret{}
	if err := l.direct.Get(t.Context(), dataKeyRequest.NamespacedName, secret); err != nil {
		t.Fatal(err)
	}
	return secret
}

// edit changes an object as a user does.
func edit[T client.Object](t *testing.T, l *lifetime, object T, change func(T)) {
	t.Helper()
	change(object)
	object.SetGeneration(object.GetGeneration() + 1)
	if err := l.direct.Update(t.Context(), object); err != nil {
		t.Fatal(err)
	}
}

func annotate[T client.Object](name, value string) func(T) {
	return func(object T) {
		annotations := object.GetAnnotations()
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[name] = value
		object.SetAnnotations(annotations)
	}
}

// serials are what the Secret has instead of data keys, the newest generation first.
func serials(secret *corev1.Secret) []int64 {
	var out []int64
	newest := controllerstest.Serial(secret.Data["ciphertextBlob"])
	for n := 100; n > 0; n-- {
		if blob, found := secret.Data[fmt.Sprintf("ciphertextBlob.%d", n)]; found {
			out = append(out, controllerstest.Serial(blob))
		}
	}
	return append([]int64{newest}, out...)
}

// condition is "True Reason" or "False Reason", and empty for none.
func condition(conditions []metav1.Condition, kind string) string {
	c := meta.FindStatusCondition(conditions, kind)
	if c == nil {
		return ""
	}
	return string(c.Status) + " " + c.Reason
}

func expect(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

func TestRotationOnDemandIsFollowedByARewrap(t *testing.T) {
	l := newLifetime(t, masterKey(), request())
	l.settle(t)
	first := serials(l.secret(t))
	writes := len(l.faults.Writes())
	edit(t, l, l.key(t), annotate[*v1alpha1.MasterKey](v1alpha1.AnnotationRotateRequestedAt, "today"))
	l.pass(time.Hour)
	told := l.settle(t)

	key, request, secret := l.key(t), l.request(t), l.secret(t)
	expect(t, "primary version", *key.Status.PrimaryVersion, int32(2))
	expect(t, "served", key.Status.RotateRequestedAt, "today")
	expect(t, "last rotation", key.Status.LastRotationTime.UTC(), now.Add(time.Hour).UTC())
	expect(t, "Rotated", condition(key.Status.Conditions, "Rotated"), "True Rotated")
	expect(t, "Rewrapped", condition(key.Status.Conditions, "Rewrapped"), "True Rewrapped")
	expect(t, "behind", *key.Status.DataKeysBehind, int32(0))
	expect(t, "versions", []string{string(key.Status.Versions[0].State), string(key.Status.Versions[1].State)}, []string{"Primary", "Previous"})
	expect(t, "data keys of versions", []int32{*key.Status.Versions[0].DataKeys, *key.Status.Versions[1].DataKeys}, []int32{1, 0})
	expect(t, "version of the data key", *request.Status.KeyVersion, int32(2))
	expect(t, "version in the Secret", string(secret.Data["keyVersion"]), "2")
	expect(t, "the data key", serials(secret), first)
	expect(t, "generation", *request.Status.Generation, int32(1))
	ofRequest := slices.DeleteFunc(l.faults.Writes()[writes:], func(w string) bool { return w == "update status MasterKey" })
	expect(t, "writes of the request", ofRequest, []string{"update status DataKeyRequest", "update Secret"})
	expect(t, "events", told, []string{
		"Normal Rotated version 2 of master key " + keyUID + " is the primary version now",
		"Normal Rewrapped the primary version wraps the data keys of all 1 DataKeyRequests",
	})
}

// A new leader whose cache is behind asks for nothing that was served before what was served last.
func TestAnOlderRequestForARotationIsNotServedAgain(t *testing.T) {
	l := newLifetime(t, masterKey())
	l.settle(t)
	edit(t, l, l.key(t), annotate[*v1alpha1.MasterKey](v1alpha1.AnnotationRotateRequestedAt, "1"))
	l.settle(t)
	old := l.key(t)
	edit(t, l, l.key(t), annotate[*v1alpha1.MasterKey](v1alpha1.AnnotationRotateRequestedAt, "2"))
	l.settle(t)
	expect(t, "primary version", *l.key(t).Status.PrimaryVersion, int32(3))

	l.client = interceptor.NewClient(l.client, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, name client.ObjectKey, object client.Object, options ...client.GetOption) error {
			if key, ok := object.(*v1alpha1.MasterKey); ok {
				old.DeepCopyInto(key)
				return nil
			}
			return c.Get(ctx, name, object, options...)
		},
	})
	l.restart()
	_, _ = l.reconcilers.MasterKey.Reconcile(t.Context(), masterKeyRequest)
	info, err := l.keys.MasterKey(t.Context(), controllers.MasterKeyRef{KeyID: keyUID, Namespace: namespace, Name: "orders-key"})
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "primary version after an older reading", info.PrimaryVersion, int32(3))
	expect(t, "served last", info.RotateRequestedAt, "2")
}

// The key service of a manager may have read the material a moment before another manager rotated the key. A data key is wrapped anew
// when it has read it again.
func TestARewrapThatFindsAnOldPrimaryVersionIsTriedAgain(t *testing.T) {
	l := newLifetime(t, masterKey(), request())
	l.settle(t)
	edit(t, l, l.key(t), annotate[*v1alpha1.MasterKey](v1alpha1.AnnotationRotateRequestedAt, "today"))
	if _, err := l.reconcilers.MasterKey.Reconcile(t.Context(), masterKeyRequest); err != nil {
		t.Fatal(err)
	}
	lags := &lagging{KeyService: l.keys, lags: true}
	lagged := l.reconcilersOf(lags)
	result, err := lagged.DataKeyRequest.Reconcile(t.Context(), dataKeyRequest)
	if result.RequeueAfter == 0 && err == nil {
		t.Error("it is not tried again")
	}
	expect(t, "Rewrapped before", condition(l.request(t).Status.Conditions, "Rewrapped"), "False Rewrapping")
	lags.lags = false
	for range 2 {
		if _, err := lagged.DataKeyRequest.Reconcile(t.Context(), dataKeyRequest); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, "Rewrapped after", condition(l.request(t).Status.Conditions, "Rewrapped"), "True Rewrapped")
	expect(t, "key version", *l.request(t).Status.KeyVersion, int32(2))
}

// lagging is a key service that has not heard of a rotation yet.
type lagging struct {
	controllers.KeyService

	lags bool
}

func (l *lagging) RewrapDataKey(ctx context.Context, key controllers.DataKey, blob []byte) (controllers.SealedDataKey, error) {
	if l.lags {
		return l.OpenDataKey(ctx, key, blob)
	}
	return l.KeyService.RewrapDataKey(ctx, key, blob)
}

// An older backup of the material was restored, and the manager still knows a newer version: it rotates no more, and says what to do.
func TestARotationOverOlderMaterialSaysWhatToDo(t *testing.T) {
	l := newLifetime(t, masterKey())
	l.settle(t)
	l.reconcilers = l.reconcilersOf(&restored{l.keys})
	edit(t, l, l.key(t), annotate[*v1alpha1.MasterKey](v1alpha1.AnnotationRotateRequestedAt, "today"))
	l.settle(t)
	rotated := meta.FindStatusCondition(l.key(t).Status.Conditions, "Rotated")
	if rotated == nil || rotated.Reason != "RotationFailed" || !strings.Contains(rotated.Message, "restart no manager before") {
		t.Errorf("got %+v", rotated)
	}
	expect(t, "Ready", condition(l.key(t).Status.Conditions, "Ready"), "True Ready")
}

// restored is a key service whose material is older than what it knows.
type restored struct{ controllers.KeyService }

func (*restored) RotateMasterKey(context.Context, controllers.MasterKeyRef, int32, string) (controllers.MasterKeyInfo, error) {
	return controllers.MasterKeyInfo{}, fmt.Errorf("%w: it lacks version 4", controllers.ErrMaterialBroken)
}

// What waits for its turn writes nothing: there may be thousands.
func TestARewrapThatWaitsForItsTurnWritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLifetime(t, masterKey(), request())
		l.rewrapRate = 1
		l.restart()
		l.settle(t)
		edit(t, l, l.key(t), annotate[*v1alpha1.MasterKey](v1alpha1.AnnotationRotateRequestedAt, "1"))
		l.settle(t)
		expect(t, "key version after the first rotation", *l.request(t).Status.KeyVersion, int32(2))

		edit(t, l, l.key(t), annotate[*v1alpha1.MasterKey](v1alpha1.AnnotationRotateRequestedAt, "2"))
		if _, err := l.reconcilers.MasterKey.Reconcile(t.Context(), masterKeyRequest); err != nil {
			t.Fatal(err)
		}
		reconcile := func() (time.Duration, []string) {
			before := len(l.faults.Writes())
			result, err := l.reconcilers.DataKeyRequest.Reconcile(t.Context(), dataKeyRequest)
			if err != nil {
				t.Fatal(err)
			}
			return result.RequeueAfter, l.faults.Writes()[before:]
		}
		again, writes := reconcile()
		expect(t, "when to come again", again, time.Second)
		expect(t, "writes while it waits", writes, []string{})
		time.Sleep(again)
		_, inTurn := reconcile()
		_, after := reconcile()
		expect(t, "writes in its turn", slices.Concat(inTurn, after), []string{"update status DataKeyRequest", "update Secret"})
		expect(t, "key version", *l.request(t).Status.KeyVersion, int32(3))
	})
}

func TestManualRewrapWaitsToBeAskedFor(t *testing.T) {
	l := newLifetime(t, masterKey(), request(func(r *v1alpha1.DataKeyRequest) { r.Spec.RewrapPolicy = "Manual" }))
	l.settle(t)
	edit(t, l, l.key(t), annotate[*v1alpha1.MasterKey](v1alpha1.AnnotationRotateRequestedAt, "today"))
	l.settle(t)
	expect(t, "version of the data key", *l.request(t).Status.KeyVersion, int32(1))
	expect(t, "Rewrapped of the request", condition(l.request(t).Status.Conditions, "Rewrapped"), "False Manual")
	expect(t, "Rewrapped of the key", condition(l.key(t).Status.Conditions, "Rewrapped"), "False Manual")
	expect(t, "behind", *l.key(t).Status.DataKeysBehind, int32(1))
	expect(t, "Ready", condition(l.request(t).Status.Conditions, "Ready"), "True Ready")

	edit(t, l, l.request(t), annotate[*v1alpha1.DataKeyRequest](v1alpha1.AnnotationRewrapRequestedAt, "now"))
	told := l.settle(t)
	expect(t, "version of the data key", *l.request(t).Status.KeyVersion, int32(2))
	expect(t, "served", l.request(t).Status.RewrapRequestedAt, "now")
	expect(t, "behind", *l.key(t).Status.DataKeysBehind, int32(0))
	expect(t, "the first event", told[0], "Normal Rewrapped wrapped the data key anew, under version 2 of master key "+keyUID)

	edit(t, l, l.request(t), annotate[*v1alpha1.DataKeyRequest](v1alpha1.AnnotationRewrapRequestedAt, "once more"))
	expect(t, "events where nothing is behind", l.settle(t), []string(nil))
	expect(t, "served", l.request(t).Status.RewrapRequestedAt, "once more")
}

func TestRotationByTime(t *testing.T) {
	interval := func(k *v1alpha1.MasterKey) { k.Spec.Rotation.Interval = &metav1.Duration{Duration: 100 * time.Hour} }
	l := newLifetime(t, masterKey(interval), request())
	l.settle(t)
	next := l.key(t).Status.NextRotationTime
	l.pass(next.Sub(now.Time) - time.Second)
	l.settle(t)
	expect(t, "primary version just before", *l.key(t).Status.PrimaryVersion, int32(1))

	l.clock.SetTime(now.AddDate(1, 0, 0))
	told := l.settle(t)
	expect(t, "events", len(told) == 1 && strings.HasPrefix(told[0], "Warning ClocksDisagree "), true)
	expect(t, "primary version after the manager's clock jumped", *l.key(t).Status.PrimaryVersion, int32(1))
	expect(t, "Rotated", condition(l.key(t).Status.Conditions, "Rotated"), "False ClocksDisagree")
	expect(t, "Ready", condition(l.key(t).Status.Conditions, "Ready"), "True Ready")

	l.server.SetTime(l.clock.Now())
	l.settle(t)
	expect(t, "a year later, what was missed is made up for once", *l.key(t).Status.PrimaryVersion, int32(2))
	expect(t, "Rotated", condition(l.key(t).Status.Conditions, "Rotated"), "True Rotated")

	edit(t, l, l.key(t), func(k *v1alpha1.MasterKey) { k.Spec.State = "Disabled" })
	l.pass(1000 * time.Hour)
	l.settle(t)
	expect(t, "a Disabled key is not rotated", *l.key(t).Status.PrimaryVersion, int32(2))
	expect(t, "Rotated", condition(l.key(t).Status.Conditions, "Rotated"), "False NotEnabled")
	expect(t, "no next time", l.key(t).Status.NextRotationTime.IsZero(), true)
	edit(t, l, l.key(t), func(k *v1alpha1.MasterKey) { k.Spec.State = "Enabled" })
	l.settle(t)
	expect(t, "it is when it is Enabled", *l.key(t).Status.PrimaryVersion, int32(3))

	edit(t, l, l.key(t), func(k *v1alpha1.MasterKey) { k.Spec.Rotation.Suspend = new(true) })
	l.pass(1000 * time.Hour)
	l.settle(t)
	expect(t, "a suspended rotation is left out", *l.key(t).Status.PrimaryVersion, int32(3))
	edit(t, l, l.key(t), func(k *v1alpha1.MasterKey) { k.Spec.Rotation.Suspend = nil })
	l.settle(t)
	expect(t, "and made up for once", *l.key(t).Status.PrimaryVersion, int32(4))
}

func TestADataKeyIsRotatedAndOldGenerationsDropped(t *testing.T) {
	l := newLifetime(t, masterKey(), request(func(r *v1alpha1.DataKeyRequest) {
		r.Spec.Rotation = v1alpha1.DataKeyRotation{Interval: &metav1.Duration{Duration: 10 * time.Hour}, Keep: new(int32(2))}
	}))
	l.settle(t)
	seen := [][]int64{serials(l.secret(t))}
	for range 4 {
		l.pass(11 * time.Hour)
		l.settle(t)
		l.restart()
		seen = append(seen, serials(l.secret(t)))
	}
	// Material 1, then the data keys 2 to 6. Each is kept for 24 hours after the next one came, 11 hours later.
	expect(t, "generations", seen, [][]int64{{2}, {3, 2}, {4, 3, 2}, {5, 4, 3, 2}, {6, 5, 4, 3}})
	expect(t, "generation", *l.request(t).Status.Generation, int32(5))
	expect(t, "generations in the status", len(l.request(t).Status.Generations), 4)
	expect(t, "entry", string(l.secret(t).Data["generation"]), "5")

	edit(t, l, l.request(t), func(r *v1alpha1.DataKeyRequest) {
		r.Spec.Rotation = v1alpha1.DataKeyRotation{Keep: new(int32(2))}
		annotate[*v1alpha1.DataKeyRequest](v1alpha1.AnnotationRotateRequestedAt, "now")(r)
	})
	told := l.settle(t)
	expect(t, "after one on demand", serials(l.secret(t)), []int64{7, 6, 5, 4, 3})
	expect(t, "events", told, []string{"Normal Rotated made generation 6 of the data key, under version 1 of master key " + keyUID})

	// What is dropped by one clock alone cannot be had back.
	l.clock.SetTime(l.clock.Now().AddDate(1, 0, 0))
	l.settle(t)
	expect(t, "with the manager's clock a year ahead", serials(l.secret(t)), []int64{7, 6, 5, 4, 3})
	l.server.SetTime(l.clock.Now())
	told = l.settle(t)
	expect(t, "a year later", serials(l.secret(t)), []int64{7, 6})
	expect(t, "events", told, []string{"Normal Dropped dropped generations 4, 3, 2 of the data key, as spec.rotation.keep says"})
	expect(t, "generations in the status", len(l.request(t).Status.Generations), 2)
}

// A hundred generations within a day are more than keep can drop at once.
func TestTooManyGenerations(t *testing.T) {
	l := newLifetime(t, masterKey(), request())
	l.settle(t)
	for i := range 100 {
		edit(t, l, l.request(t), annotate[*v1alpha1.DataKeyRequest](v1alpha1.AnnotationRotateRequestedAt, strconv.Itoa(i)))
		l.settle(t)
	}
	says := func(reason, message string) {
		t.Helper()
		rotated := meta.FindStatusCondition(l.request(t).Status.Conditions, v1alpha1.ConditionRotated)
		expect(t, "the reason of Rotated", rotated.Reason, reason)
		if !strings.Contains(rotated.Message, message) {
			t.Errorf("Rotated says %q, want %q in it", rotated.Message, message)
		}
	}
	says("TooManyGenerations", "there are 100 generations, the most that a data key may have: set spec.rotation.keep")

	edit(t, l, l.request(t), func(r *v1alpha1.DataKeyRequest) { r.Spec.Rotation.Keep = new(int32(2)) })
	l.settle(t)
	says("TooManyGenerations", "it waits until spec.rotation.keep drops the oldest, 24 hours after that was superseded")

	older := l.secret(t)
	l.pass(25 * time.Hour)
	l.settle(t)
	says("Rotated", "generation 101 is the newest")

	// The Secret of a backup brings back what was dropped. Without keep that is more than there may be, beside what came since.
	edit(t, l, l.request(t), annotate[*v1alpha1.DataKeyRequest](v1alpha1.AnnotationRotateRequestedAt, "later"))
	l.settle(t)
	restore := func() { edit(t, l, l.secret(t), func(s *corev1.Secret) { s.Data = maps.Clone(older.Data) }) }
	data := l.secret(t).Data
	restore()
	l.settle(t)
	expect(t, "the Secret, with keep", l.secret(t).Data, data)
	expect(t, "generations in the status, with keep", len(l.request(t).Status.Generations), 3)

	edit(t, l, l.request(t), func(r *v1alpha1.DataKeyRequest) { r.Spec.Rotation = v1alpha1.DataKeyRotation{} })
	l.settle(t)
	restore()
	l.settle(t)
	ready := meta.FindStatusCondition(l.request(t).Status.Conditions, v1alpha1.ConditionReady)
	expect(t, "Ready", ready.Reason+": "+ready.Message, `TooManyGenerations: the status and the Secret "orders" have 102 generations together, and a data key may have 100: `+
		"take the oldest ones out of the Secret, its entries ciphertextBlob.1 and so on; nothing was touched")
	expect(t, "the Secret", l.secret(t).Data, older.Data)

	edit(t, l, l.secret(t), func(s *corev1.Secret) {
		delete(s.Data, "ciphertextBlob.1")
		delete(s.Data, "ciphertextBlob.2")
	})
	l.settle(t)
	ready = meta.FindStatusCondition(l.request(t).Status.Conditions, v1alpha1.ConditionReady)
	expect(t, "Ready with two less", ready.Reason, "Ready")
	expect(t, "generations in the status", len(l.request(t).Status.Generations), 100)
}

func TestNothingThatIsDurableIsLostByAnEdit(t *testing.T) {
	rotated := func(t *testing.T) *lifetime {
		l := newLifetime(t, masterKey(), request())
		l.settle(t)
		edit(t, l, l.request(t), annotate[*v1alpha1.DataKeyRequest](v1alpha1.AnnotationRotateRequestedAt, "1"))
		l.settle(t)
		expect(t, "the data keys", serials(l.secret(t)), []int64{3, 2})
		return l
	}
	setStatus := func(change func(*v1alpha1.DataKeyRequestStatus)) func(*testing.T, *lifetime) {
		return func(t *testing.T, l *lifetime) {
			t.Helper()
			request := l.request(t)
			change(&request.Status)
			if err := l.direct.Status().Update(t.Context(), request); err != nil {
				t.Fatal(err)
			}
		}
	}
	setSecret := func(change func(*corev1.Secret)) func(*testing.T, *lifetime) {
		return func(t *testing.T, l *lifetime) {
			t.Helper()
			secret := l.secret(t)
			change(secret)
			if err := l.direct.Update(t.Context(), secret); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tc := range map[string]struct {
		edit      func(*testing.T, *lifetime)
		wantReady string
	}{
		"the status loses the older generation": {setStatus(func(s *v1alpha1.DataKeyRequestStatus) { s.Generations = s.Generations[:1] }), "True Ready"},
		"the status loses the newer generation": {setStatus(func(s *v1alpha1.DataKeyRequestStatus) {
			s.Generations, s.Generation = s.Generations[1:], new(int32(1))
		}), "True Ready"},
		"the status is gone":                       {setStatus(func(s *v1alpha1.DataKeyRequestStatus) { *s = v1alpha1.DataKeyRequestStatus{} }), "True Ready"},
		"the status lies about versions and times": {setStatus(func(s *v1alpha1.DataKeyRequestStatus) { s.KeyVersion, s.Generations[0].KeyVersion = new(int32(9)), 9 }), "True Ready"},
		"a blob of the status is spoilt":           {setStatus(func(s *v1alpha1.DataKeyRequestStatus) { s.Generations[1].CiphertextBlob = []byte("spoilt") }), "True Ready"},
		"the status swaps its blobs": {setStatus(func(s *v1alpha1.DataKeyRequestStatus) {
			a, b := &s.Generations[0], &s.Generations[1]
			a.CiphertextBlob, b.CiphertextBlob = b.CiphertextBlob, a.CiphertextBlob
		}), "True Ready"},
		"the status tells of a generation too much": {setStatus(func(s *v1alpha1.DataKeyRequestStatus) { s.Generation = new(int32(7)) }), "False DataKeyBroken"},
		"the Secret loses the older generation":     {setSecret(func(s *corev1.Secret) { delete(s.Data, "ciphertextBlob.1") }), "True Ready"},
		"the Secret loses the newer generation":     {setSecret(func(s *corev1.Secret) { s.Data["ciphertextBlob"] = s.Data["ciphertextBlob.1"] }), "True Ready"},
		"the Secret is emptied":                     {setSecret(func(s *corev1.Secret) { s.Data = nil }), "True Ready"},
		"an entry of the Secret is spoilt":          {setSecret(func(s *corev1.Secret) { s.Data["ciphertextBlob.1"] = []byte("spoilt") }), "True Ready"},
		"the Secret gets an entry of no generation": {setSecret(func(s *corev1.Secret) { s.Data["ciphertextBlob.9"] = s.Data["ciphertextBlob.1"] }), "True Ready"},
		"the Secret is deleted": {func(t *testing.T, l *lifetime) {
			t.Helper()
			if err := l.direct.Delete(t.Context(), l.secret(t)); err != nil {
				t.Fatal(err)
			}
		}, "True Ready"},
	} {
		for _, restarted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, manager restarted: %t", name, restarted), func(t *testing.T) {
				l := rotated(t)
				if restarted {
					l.restart()
				}
				tc.edit(t, l)
				l.settle(t)
				expect(t, "Ready", condition(l.request(t).Status.Conditions, "Ready"), tc.wantReady)
				expect(t, "the data keys", serials(l.secret(t)), []int64{3, 2})
				if tc.wantReady == "True Ready" {
					expect(t, "generations in the status", len(l.request(t).Status.Generations), 2)
					expect(t, "an entry that is no generation's", len(l.secret(t).Data["ciphertextBlob.9"]), 0)
				}
			})
		}
	}
}

// An older backup of the material is restored: what newer versions wrap is told of, and goes on when they are back.
func TestABlobOfAVersionThatIsMissing(t *testing.T) {
	l := newLifetime(t, masterKey(), request())
	l.settle(t)
	backup := &corev1.Secret{}
	if err := l.direct.Get(t.Context(), client.ObjectKey{Namespace: managerNamespace, Name: keyUID}, backup); err != nil {
		t.Fatal(err)
	}
	edit(t, l, l.key(t), annotate[*v1alpha1.MasterKey](v1alpha1.AnnotationRotateRequestedAt, "today"))
	l.settle(t)
	put := func(data map[string][]byte) (before map[string][]byte) {
		material := &corev1.Secret{}
		if err := l.direct.Get(t.Context(), client.ObjectKeyFromObject(backup), material); err != nil {
			t.Fatal(err)
		}
		before, material.Data = material.Data, data
		if err := l.direct.Update(t.Context(), material); err != nil {
			t.Fatal(err)
		}
		return before
	}
	newer := put(backup.Data)
	edit(t, l, l.key(t), annotate[*v1alpha1.MasterKey](v1alpha1.AnnotationRotateRequestedAt, "")) // or version 2 comes again, as another one
	l.restart()
	blob := string(l.secret(t).Data["ciphertextBlob"])
	l.settle(t)
	ready := meta.FindStatusCondition(l.request(t).Status.Conditions, "Ready")
	if ready.Reason != "KeyVersionMissing" || !strings.Contains(ready.Message, keyUID) || !strings.Contains(ready.Message, "newer backup") {
		t.Errorf("got %s: %s", ready.Reason, ready.Message)
	}
	expect(t, "the blob", string(l.secret(t).Data["ciphertextBlob"]), blob)
	expect(t, "Rewrapped of the key", condition(l.key(t).Status.Conditions, "Rewrapped"), "False KeyVersionMissing")

	put(newer)
	l.settle(t)
	expect(t, "Ready", condition(l.request(t).Status.Conditions, "Ready"), "True Ready")
	expect(t, "Rewrapped of the key", condition(l.key(t).Status.Conditions, "Rewrapped"), "True Rewrapped")
}

// Backups of the material and of the status are older than the Secret, which alone has a generation of a version that is missing. It is
// not taken away: with a newer backup of the material it opens.
func TestAGenerationOfAMissingVersionStaysInTheSecret(t *testing.T) {
	l := newLifetime(t, masterKey(), request())
	l.settle(t)
	older := l.request(t).Status
	material := func() *corev1.Secret {
		secret := &corev1.Secret{}
		if err := l.direct.Get(t.Context(), client.ObjectKey{Namespace: managerNamespace, Name: keyUID}, secret); err != nil {
			t.Fatal(err)
		}
		return secret
	}
	put := func(data map[string][]byte) {
		secret := material()
		secret.Data = data
		if err := l.direct.Update(t.Context(), secret); err != nil {
			t.Fatal(err)
		}
	}
	backup := material().Data
	edit(t, l, l.key(t), annotate[*v1alpha1.MasterKey](v1alpha1.AnnotationRotateRequestedAt, "today"))
	l.settle(t)
	edit(t, l, l.request(t), annotate[*v1alpha1.DataKeyRequest](v1alpha1.AnnotationRotateRequestedAt, "1"))
	l.settle(t)
	newer, want := material().Data, serials(l.secret(t))
	expect(t, "data keys", len(want), 2)

	put(backup)
	for _, change := range []func(){
		func() { edit(t, l, l.key(t), annotate[*v1alpha1.MasterKey](v1alpha1.AnnotationRotateRequestedAt, "")) },
		func() {
			edit(t, l, l.request(t), annotate[*v1alpha1.DataKeyRequest](v1alpha1.AnnotationRotateRequestedAt, ""))
		},
	} {
		change()
	}
	request := l.request(t)
	request.Status = older
	if err := l.direct.Status().Update(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	l.restart()
	l.settle(t)
	ready := meta.FindStatusCondition(l.request(t).Status.Conditions, "Ready")
	if ready.Reason != "KeyVersionMissing" || !strings.Contains(ready.Message, "generation 2:") {
		t.Errorf("got %s: %s", ready.Reason, ready.Message)
	}
	expect(t, "data keys while the version is missing", serials(l.secret(t)), want)

	put(newer)
	l.settle(t)
	expect(t, "Ready", condition(l.request(t).Status.Conditions, "Ready"), "True Ready")
	expect(t, "data keys once the version is back", serials(l.secret(t)), want)
}

func TestDeletionOfAMasterKey(t *testing.T) {
	due := now.Add(168 * time.Hour)
	pending := func(k *v1alpha1.MasterKey) {
		k.Spec.State = "PendingDeletion"
		k.Spec.Deletion.WaitingPeriod = &metav1.Duration{Duration: 168 * time.Hour}
	}
	l := newLifetime(t, masterKey(), request())
	l.settle(t)
	edit(t, l, l.key(t), pending)
	l.settle(t)
	expect(t, "Ready of the key", condition(l.key(t).Status.Conditions, "Ready"), "False PendingDeletion")
	expect(t, "Ready of the request", condition(l.request(t).Status.Conditions, "Ready"), "False MasterKeyNotReady")
	expect(t, "due", l.key(t).Status.DeletionTime.UTC(), due.UTC())

	edit(t, l, l.key(t), func(k *v1alpha1.MasterKey) { k.Spec.State = "Enabled" })
	told := l.settle(t)
	expect(t, "Ready once it is cancelled", condition(l.key(t).Status.Conditions, "Ready"), "True Ready")
	expect(t, "no deletion time", l.key(t).Status.DeletionTime.IsZero(), true)
	expect(t, "the event", told[0], "Normal DeletionCancelled master key "+keyUID+" is not to be destroyed any more")

	edit(t, l, l.key(t), pending)
	l.settle(t)
	edit(t, l, l.key(t), func(k *v1alpha1.MasterKey) { k.Spec.Deletion.WaitingPeriod.Duration = 200 * time.Hour })
	l.settle(t)
	expect(t, "a longer period", l.key(t).Status.DeletionTime.UTC(), now.Add(200*time.Hour).UTC())
	edit(t, l, l.key(t), func(k *v1alpha1.MasterKey) { k.Spec.Deletion.WaitingPeriod.Duration = 168 * time.Hour })
	l.settle(t)
	expect(t, "a shorter period brings the end no nearer", l.key(t).Status.DeletionTime.UTC(), now.Add(200*time.Hour).UTC())

	l.clock.SetTime(now.AddDate(1, 0, 0))
	l.settle(t)
	expect(t, "State after the manager's clock jumped", string(l.key(t).Status.State), "PendingDeletion")
	l.clock.SetTime(now.Add(201 * time.Hour))
	l.server.SetTime(now.Add(201 * time.Hour))
	l.settle(t)
	ready := meta.FindStatusCondition(l.key(t).Status.Conditions, "Ready")
	if ready.Reason != "DeletionBlocked" || !strings.Contains(ready.Message, "DataKeyRequest orders:") {
		t.Errorf("got %s: %s", ready.Reason, ready.Message)
	}

	if err := l.direct.Delete(t.Context(), l.request(t)); err != nil {
		t.Fatal(err)
	}
	l.settle(t)
	ready = meta.FindStatusCondition(l.key(t).Status.Conditions, "Ready")
	if ready.Reason != "DeletionBlocked" || !strings.Contains(ready.Message, "Secret orders:") {
		t.Errorf("got %s: %s", ready.Reason, ready.Message)
	}
	if err := l.direct.Delete(t.Context(), l.secret(t)); err != nil {
		t.Fatal(err)
	}
	l.settle(t)
	expect(t, "State", string(l.key(t).Status.State), "Destroyed")
	expect(t, "Ready", condition(l.key(t).Status.Conditions, "Ready"), "False Destroyed")

	edit(t, l, l.key(t), func(k *v1alpha1.MasterKey) {
		k.Spec.State = "Enabled"
		annotate[*v1alpha1.MasterKey](v1alpha1.AnnotationRotateRequestedAt, "late")(k)
	})
	l.settle(t)
	expect(t, "State of a destroyed key that is Enabled", string(l.key(t).Status.State), "Destroyed")
	expect(t, "Rotated of a destroyed key", condition(l.key(t).Status.Conditions, "Rotated"), "False Destroyed")
	material := &corev1.Secret{}
	if err := l.direct.Get(t.Context(), client.ObjectKey{Namespace: managerNamespace, Name: keyUID}, material); err != nil {
		t.Fatal(err)
	}
	expect(t, "entries of the destroyed material", len(material.Data), 1)
	if err := l.direct.Delete(t.Context(), l.key(t)); err != nil {
		t.Fatal(err)
	}
	l.settle(t)
	err := l.direct.Get(t.Context(), client.ObjectKeyFromObject(material), material)
	expect(t, "the material of a destroyed key that is gone", client.IgnoreNotFound(err) == nil && err != nil, true)
}

// Whether anything refers to a key takes a while to find out. Who changes his mind meanwhile, or brings the MasterKey back, keeps the key.
func TestAChangeOfMindWhileReferencesAreSoughtKeepsTheKey(t *testing.T) {
	for name, gone := range map[string]bool{"the MasterKey is PendingDeletion": false, "the MasterKey is gone": true} {
		t.Run(name, func(t *testing.T) {
			l := newLifetime(t, masterKey())
			l.settle(t)
			key := l.key(t)
			if gone {
				if err := l.direct.Delete(t.Context(), key); err != nil {
					t.Fatal(err)
				}
			} else {
				edit(t, l, key, func(k *v1alpha1.MasterKey) { k.Spec.State = v1alpha1.MasterKeyStatePendingDeletion })
			}
			l.settle(t)
			l.pass(v1alpha1.DefaultWaitingPeriod)
			changes := 0
			l.reader = interceptor.NewClient(l.direct, interceptor.Funcs{
				List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
					if _, ok := list.(*corev1.SecretList); !ok {
						return c.List(ctx, list, options...)
					}
					if changes++; changes == 1 && gone {
						if err := l.direct.Create(ctx, masterKey(withKeyID(keyUID), func(k *v1alpha1.MasterKey) { k.ResourceVersion = "" })); err != nil {
							return err
						}
					} else if changes == 1 {
						edit(t, l, l.key(t), func(k *v1alpha1.MasterKey) { k.Spec.State = v1alpha1.MasterKeyStateEnabled }) //nolint:contextcheck // the test's
					}
					return c.List(ctx, list, options...)
				},
			})
			l.restart()
			for range 2 { // what changes in the middle wakes it again
				l.settle(t)
			}
			expect(t, "changes", changes, 1)
			expect(t, "Ready", condition(l.key(t).Status.Conditions, "Ready"), "True Ready")
		})
	}
}

// A Secret may have a megabyte, and whoever may write Secrets of the namespace makes as many as he likes: none of them ends the manager.
func TestReferencesAreSoughtInSmallPages(t *testing.T) {
	const most = 32 << 20 // of the 256 MiB that the chart gives a manager
	l := newLifetime(t, masterKey())
	l.settle(t)
	edit(t, l, l.key(t), func(k *v1alpha1.MasterKey) { k.Spec.State = v1alpha1.MasterKeyStatePendingDeletion })
	l.settle(t)
	l.pass(v1alpha1.DefaultWaitingPeriod)
	lists := 0
	l.reader = interceptor.NewClient(l.direct, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, options ...client.ListOption) error {
			if _, ok := list.(*corev1.SecretList); ok {
				lists++
				if limit := (&client.ListOptions{}).ApplyOptions(options).Limit; limit == 0 || limit*corev1.MaxSecretSize > most {
					t.Errorf("a page of Secrets has %d", limit)
				}
			}
			return c.List(ctx, list, options...)
		},
	})
	l.restart()
	l.settle(t)
	if lists == 0 {
		t.Error("no Secrets were listed")
	}
}

func TestDataKeysMayBeOrphaned(t *testing.T) {
	l := newLifetime(t, masterKey(), request())
	l.settle(t)
	edit(t, l, l.key(t), func(k *v1alpha1.MasterKey) {
		k.Spec.State, k.Spec.Deletion.OrphanDataKeys = "PendingDeletion", new(true)
	})
	l.settle(t)
	l.pass(v1alpha1.DefaultWaitingPeriod + time.Second)
	l.settle(t)
	expect(t, "State", string(l.key(t).Status.State), "Destroyed")
	expect(t, "Ready of the request", condition(l.request(t).Status.Conditions, "Ready"), "False MasterKeyNotReady")
	expect(t, "the data key's Secret", len(serials(l.secret(t))), 1)
}

// A MasterKey that is gone leaves its material for the waiting period. Within it the key comes back with its annotation, and after it
// there is nothing left, unless something refers to it.
func TestAMasterKeyThatIsGone(t *testing.T) {
	l := newLifetime(t, masterKey(), request())
	l.settle(t)
	before := serials(l.secret(t))
	gone := l.key(t)
	if err := l.direct.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	told := l.settle(t)
	due := now.Add(v1alpha1.DefaultWaitingPeriod).UTC().Format(time.RFC3339)
	expect(t, "events", slices.ContainsFunc(told, func(e string) bool {
		return strings.HasPrefix(e, "Warning Orphaned MasterKey team-a/orders-key is gone") && strings.Contains(e, due)
	}), true)
	expect(t, "Ready of the request", condition(l.request(t).Status.Conditions, "Ready"), "False MasterKeyNotFound")

	l.pass(v1alpha1.DefaultWaitingPeriod + time.Hour)
	told = l.settle(t)
	expect(t, "while a request refers to it", slices.ContainsFunc(told, func(e string) bool { return strings.HasPrefix(e, "Warning DeletionBlocked") }), true)

	again := masterKey(withKeyID(keyUID), func(k *v1alpha1.MasterKey) { k.UID, k.ResourceVersion = otherUID, "" })
	if err := l.direct.Create(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	l.settle(t)
	expect(t, "Ready of the key", condition(l.key(t).Status.Conditions, "Ready"), "True Ready")
	expect(t, "key ID", l.key(t).Status.KeyID, keyUID)
	expect(t, "no deletion time", l.key(t).Status.DeletionTime.IsZero(), true)
	expect(t, "Ready of the request", condition(l.request(t).Status.Conditions, "Ready"), "True Ready")
	expect(t, "the data key", serials(l.secret(t)), before)

	for _, object := range []client.Object{l.key(t), l.request(t), l.secret(t)} {
		if err := l.direct.Delete(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	l.settle(t)
	l.server.SetTime(l.server.Now().Add(v1alpha1.DefaultWaitingPeriod + time.Hour))
	l.settle(t)
	l.server.SetTime(l.clock.Now())
	l.clock.SetTime(l.clock.Now().Add(v1alpha1.DefaultWaitingPeriod + time.Hour))
	l.settle(t)
	material := &corev1.Secret{}
	if err := l.direct.Get(t.Context(), client.ObjectKey{Namespace: managerNamespace, Name: keyUID}, material); err != nil {
		t.Fatalf("one clock alone destroyed the material: %v", err)
	}
	l.server.SetTime(l.clock.Now())
	l.settle(t)
	err := l.direct.Get(t.Context(), client.ObjectKeyFromObject(material), material)
	expect(t, "the material in the end", client.IgnoreNotFound(err) == nil && err != nil, true)
}

func TestAliasConflict(t *testing.T) {
	younger := masterKey(func(k *v1alpha1.MasterKey) {
		k.Name, k.UID, k.CreationTimestamp = "younger", otherUID, now
		k.Spec.Aliases = []string{"prod"}
	})
	older := masterKey(func(k *v1alpha1.MasterKey) { k.CreationTimestamp = earlier })
	l := newLifetime(t, older, younger)
	reconcile := func() {
		for _, name := range []string{"orders-key", "younger", "orders-key"} {
			if _, err := l.reconcilers.MasterKey.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKey{Namespace: namespace, Name: name}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	status := func(name string) (held []string, said string) {
		key := &v1alpha1.MasterKey{}
		if err := l.direct.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, key); err != nil {
			t.Fatal(err)
		}
		return key.Status.Aliases, condition(key.Status.Conditions, "AliasesHeld")
	}
	reconcile()
	held, said := status("younger")
	expect(t, "the first holder", held, []string{"prod"})
	expect(t, "of whom it is said", said, "True AliasesHeld")

	edit(t, l, l.key(t), func(k *v1alpha1.MasterKey) { k.Spec.Aliases = []string{"prod", "own"} })
	reconcile()
	held, said = status("orders-key")
	expect(t, "an older key that comes later", held, []string{"own"})
	expect(t, "of whom it is said", said, "False AliasConflict")
	held, _ = status("younger")
	expect(t, "the first holder keeps it", held, []string{"prod"})

	if err := l.direct.Get(t.Context(), client.ObjectKeyFromObject(younger), younger); err != nil {
		t.Fatal(err)
	}
	edit(t, l, younger, func(k *v1alpha1.MasterKey) { k.Spec.Aliases = nil })
	reconcile()
	held, said = status("orders-key")
	expect(t, "once it is let go", held, []string{"prod", "own"})
	expect(t, "of whom it is said", said, "True AliasesHeld")
	held, said = status("younger")
	expect(t, "who let it go", held, []string(nil))
	expect(t, "of whom nothing is said", said, "")
}
