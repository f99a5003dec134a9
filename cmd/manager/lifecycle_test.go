package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers/controllerstest"
)

// A movedClock runs on, and jumps when it is told to. It is the manager's and the API server's in one.
type movedClock struct{ by atomic.Int64 }

func (c *movedClock) Now() time.Time                  { return time.Now().Add(time.Duration(c.by.Load())) }
func (c *movedClock) Since(t time.Time) time.Duration { return c.Now().Sub(t) }
func (c *movedClock) move(d time.Duration)            { c.by.Add(int64(d)) }

// A life is one installation in the course of a story, with the MasterKey key and the DataKeyRequests orders and signing, which is a
// key pair.
type life struct {
	*witness
	t     *testing.T
	clock *movedClock
	// wrote and deleted are what this side of the story did, which has to be seen before what comes of it.
	wrote   map[string]uint64
	deleted map[string]int
}

// A step is what somebody does, or waits for.
type step func(l *life) error

// A lifeStory is one operation of the lifecycle. Before comes what has to be there, which meets no fault; tell is the operation,
// until end holds.
type lifeStory struct {
	least int // writes at least
	// versions and generations are how many there are to be at most; 0 is 1.
	versions, generations int

	key     v1alpha1.MasterKeySpec
	request v1alpha1.DataKeyRequestSpec // its rotation and policies
	before  []step
	tell    []step
	end     condition
}

// A lifeWant is what becomes of the MasterKey and of each DataKeyRequest: all Ready, and nothing left to do.
type lifeWant struct {
	versions    int32   // of the master key; the newest is the primary one
	wrappedBy   int32   // wraps every generation; 0: the primary version
	generations []int32 // of each data key
}

var lifeRequests = []string{"orders", "signing"}

const lifeKey = "key"

// settled holds when all is as it is wanted, and every status says so.
func settled(want lifeWant) condition {
	return func(l *life, m moment) error {
		key := of[*v1alpha1.MasterKey](m, l.tenant, lifeKey)
		if key == nil {
			return errors.New("there is no MasterKey")
		}
		material, err := l.material(m)
		if err != nil {
			return err
		}
		wrappedBy, behind := want.versions, int32(0)
		if want.wrappedBy != 0 && want.wrappedBy != want.versions {
			wrappedBy, behind = want.wrappedBy, int32(len(lifeRequests))
		}
		s, asked := key.Status, key.Annotations[v1alpha1.AnnotationRotateRequestedAt]
		switch {
		case !key.Ready() || s.State != v1alpha1.MasterKeyStateEnabled || key.Annotations[v1alpha1.AnnotationKeyID] != s.KeyID:
			return fmt.Errorf("the MasterKey is not Ready: %+v", s)
		case material.record.Primary != uint32(want.versions) || len(material.versions) != int(want.versions) || material.record.Deletion != nil:
			return fmt.Errorf("the material has %d versions and the record %+v", len(material.versions), material.record)
		case ptr.Deref(s.PrimaryVersion, 0) != want.versions || ptr.Deref(s.VersionCount, 0) != want.versions ||
			s.RotateRequestedAt != asked || material.record.RotateRequestedAt != asked || !s.DeletionTime.IsZero():
			return fmt.Errorf("the status of the MasterKey is %+v", s)
		case ptr.Deref(s.DataKeys, 0) != int32(len(lifeRequests)) || ptr.Deref(s.DataKeysBehind, 0) != behind:
			return fmt.Errorf("the status of the MasterKey counts %d of %d DataKeyRequests behind", ptr.Deref(s.DataKeysBehind, 0), ptr.Deref(s.DataKeys, 0))
		}
		for _, name := range lifeRequests {
			request := of[*v1alpha1.DataKeyRequest](m, l.tenant, name)
			if request == nil {
				return fmt.Errorf("there is no %s", name)
			}
			s, ask := request.Status, request.Annotations
			if !request.Ready() || s.RotateRequestedAt != ask[v1alpha1.AnnotationRotateRequestedAt] || s.RewrapRequestedAt != ask[v1alpha1.AnnotationRewrapRequestedAt] {
				return fmt.Errorf("%s is not Ready, or something is asked of it: %+v", name, s)
			}
			var generations []int32
			for _, g := range s.Generations {
				if generations = append(generations, g.Generation); g.KeyVersion != wrappedBy {
					return fmt.Errorf("generation %d of %s is wrapped by version %d", g.Generation, name, g.KeyVersion)
				}
			}
			if !slices.Equal(generations, want.generations) {
				return fmt.Errorf("%s has generations %v, want %v", name, generations, want.generations)
			}
			if err := checkAgree(of[*corev1.Secret](m, l.tenant, name), request); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	}
}

// first is how every story begins.
var first = settled(lifeWant{versions: 1, generations: []int32{1}})

// material is that of the MasterKey key, whose UID, and so its key ID, the first one of that name had.
func (l *life) material(m moment) (materialState, error) {
	for _, secret := range all[*corev1.Secret](m, l.system) {
		if secret.Type == v1alpha1.SecretTypeMasterKey && secret.Labels[v1alpha1.LabelMasterKey] == lifeKey {
			return readMaterial(secret)
		}
	}
	return materialState{}, errors.New("there is no material")
}

// isInState holds when the MasterKey says that it is not Ready for that reason, and neither are the DataKeyRequests.
func isInState(reason string) condition {
	return func(l *life, m moment) error {
		reasons := map[string]string{lifeKey: reason}
		conditions := map[string][]metav1.Condition{}
		if key := of[*v1alpha1.MasterKey](m, l.tenant, lifeKey); key != nil && ptr.Deref(key.Status.ObservedGeneration, 0) == key.Generation {
			conditions[lifeKey] = key.Status.Conditions
		}
		for _, request := range all[*v1alpha1.DataKeyRequest](m, l.tenant) {
			conditions[request.Name], reasons[request.Name] = request.Status.Conditions, v1alpha1.ReasonMasterKeyNotReady
		}
		for name, reason := range reasons {
			ready := meta.FindStatusCondition(conditions[name], v1alpha1.ConditionReady)
			if ready == nil || ready.Status == metav1.ConditionTrue || ready.Reason != reason {
				return fmt.Errorf("%s is not %s: %+v", name, reason, ready)
			}
		}
		return nil
	}
}

// deletionBegan holds when the material records that it is to be destroyed.
func deletionBegan(l *life, m moment) error {
	material, err := l.material(m)
	if err == nil && material.record.Deletion == nil {
		err = errors.New("the material records no deletion")
	}
	return err
}

// forgotten holds when nothing is left of the key, and no DataKeyRequest is Ready.
func forgotten(l *life, m moment) error {
	if key := of[*v1alpha1.MasterKey](m, l.tenant, lifeKey); key != nil {
		return errors.New("there is a MasterKey")
	}
	if material, err := l.material(m); err == nil || material.record.Destroyed != nil {
		return errors.New("there is something left of the material")
	}
	for _, request := range all[*v1alpha1.DataKeyRequest](m, l.tenant) {
		if ready := meta.FindStatusCondition(request.Status.Conditions, v1alpha1.ConditionReady); ready == nil || ready.Status == metav1.ConditionTrue {
			return fmt.Errorf("%s is Ready", request.Name)
		}
	}
	return nil
}

// Steps.

func until(c condition) step {
	return func(l *life) error {
		return l.await(l.t.Context(), func(m moment) error {
			for name, version := range l.wrote {
				if l.newest[name] < version {
					return fmt.Errorf("%s is not seen as it was written", name)
				}
			}
			for name, times := range l.deleted {
				if l.deletions[name] < times {
					return fmt.Errorf("%s is not seen to be deleted", name)
				}
			}
			return c(l, m)
		})
	}
}

func (l *life) key() *v1alpha1.MasterKey { return l.masterKey(lifeKey) }

// each is done to every DataKeyRequest.
func each(do func(l *life, request *v1alpha1.DataKeyRequest) error) step {
	return func(l *life) error {
		for _, name := range lifeRequests {
			if err := do(l, l.request(name, lifeKey)); err != nil {
				return err
			}
		}
		return nil
	}
}

func (l *life) patch(object client.Object, patch string) error {
	return l.did(object, l.client.Patch(l.t.Context(), object, client.RawPatch(types.MergePatchType, []byte(patch))))
}

// did remembers a write.
func (l *life) did(object client.Object, err error) error {
	if err == nil {
		l.wrote[nameOf(object)] = versionOf(object)
	}
	return err
}

func (l *life) annotate(object client.Object, annotation, value string) error {
	return l.patch(object, fmt.Sprintf(`{"metadata":{"annotations":{%q:%q}}}`, annotation, value))
}

func patchKey(patch string) step {
	return func(l *life) error { return l.patch(l.key(), patch) }
}

func setState(state v1alpha1.MasterKeyState) step {
	return patchKey(fmt.Sprintf(`{"spec":{"state":%q}}`, state))
}

func rotateKey(at string) step {
	return func(l *life) error { return l.annotate(l.key(), v1alpha1.AnnotationRotateRequestedAt, at) }
}

func askEach(annotation, at string) step {
	return each(func(l *life, request *v1alpha1.DataKeyRequest) error { return l.annotate(request, annotation, at) })
}

func rotateDataKeys(at string) step { return askEach(v1alpha1.AnnotationRotateRequestedAt, at) }

// pass lets time pass, and wakes everything: a timer would not notice for up to an hour.
func pass(d time.Duration) step {
	return func(l *life) error {
		l.clock.move(d)
		return wake(l)
	}
}

func wake(l *life) error {
	const annotation = "example.com/woken"
	objects := []client.Object{l.key()}
	for _, name := range lifeRequests {
		objects = append(objects, l.request(name, lifeKey))
	}
	l.mu.Lock()
	for _, secret := range all[*corev1.Secret](l.now, l.system) {
		if secret.Type == v1alpha1.SecretTypeMasterKey {
			objects = append(objects, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: secret.Namespace, Name: secret.Name}})
		}
	}
	l.mu.Unlock()
	for _, object := range objects {
		if err := client.IgnoreNotFound(l.annotate(object, annotation, l.clock.Now().String())); err != nil {
			return err
		}
	}
	return nil
}

func (l *life) delete(object client.Object) error {
	l.deleted[nameOf(object)]++
	return l.client.Delete(l.t.Context(), object)
}

func deleteKey(l *life) error { return l.delete(l.key()) }

func (l *life) dataKeySecret(name string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: l.tenant, Name: name}}
}

var deleteRequests = each(func(l *life, request *v1alpha1.DataKeyRequest) error { return l.delete(request) })

var deleteSecrets = each(func(l *life, request *v1alpha1.DataKeyRequest) error {
	return l.delete(l.dataKeySecret(request.Name))
})

// applyKeyAgain makes the MasterKey again, with the annotation that says which key it is.
func applyKeyAgain(l *life) error {
	return l.restore(l.seen(&v1alpha1.MasterKey{}, lifeKey))
}

// seen is the last state of an object of the tenant that was seen.
func (l *life) seen(kind client.Object, name string) client.Object {
	l.mu.Lock()
	defer l.mu.Unlock()
	kind.SetNamespace(l.tenant)
	kind.SetName(name)
	for _, e := range slices.Backward(l.events) {
		if o := e.Object.(client.Object); nameOf(o) == nameOf(kind) {
			return o
		}
	}
	return nil
}

// restore makes an object as a backup has it: the API server gives it another UID, and of kinds with a status takes none.
func (l *life) restore(object client.Object) error {
	object = object.DeepCopyObject().(client.Object)
	object.SetUID("")
	object.SetResourceVersion("")
	object.SetManagedFields(nil)
	object.SetGeneration(0)
	object.SetDeletionTimestamp(nil)
	object.SetCreationTimestamp(metav1.Time{})
	return l.did(object, l.client.Create(l.t.Context(), object))
}

// restoreAll loses all objects and Secrets of the tenant, and restores them: Secrets first, as backup tools do, and the status of
// objects as the backup tool's own if it has it.
func restoreAll(withStatus bool) step {
	return func(l *life) error { return l.loseAndRestore(withStatus) }
}

func (l *life) loseAndRestore(withStatus bool) error {
	backup := []client.Object{}
	for _, name := range lifeRequests {
		backup = append(backup, l.seen(&corev1.Secret{}, name))
	}
	backup = append(backup, l.seen(&v1alpha1.MasterKey{}, lifeKey))
	for _, name := range lifeRequests {
		backup = append(backup, l.seen(&v1alpha1.DataKeyRequest{}, name))
	}
	for _, object := range slices.Backward(backup) {
		if err := l.delete(object); err != nil {
			return err
		}
	}
	if err := until(deletionBegan)(l); err != nil {
		return err
	}
	for _, object := range backup {
		if err := l.restore(object); err != nil {
			return err
		}
		if _, isSecret := object.(*corev1.Secret); isSecret || !withStatus {
			continue
		}
		status, err := json.Marshal(object)
		if err == nil {
			var whole struct {
				Status json.RawMessage `json:"status"`
			}
			err = json.Unmarshal(status, &whole)
			status = append(append([]byte(`{"status":`), whole.Status...), '}')
		}
		object := object.DeepCopyObject().(client.Object)
		if err == nil {
			err = l.client.Status().Patch(l.t.Context(), object, client.RawPatch(types.MergePatchType, status), client.FieldOwner("backup"))
		}
		if err := l.did(object, err); err != nil {
			return err
		}
	}
	return nil
}

// keptFor holds when the material records that waiting period.
func keptFor(period time.Duration) condition {
	return func(l *life, m moment) error {
		material, err := l.material(m)
		if want := period.String(); err == nil && material.record.WaitingPeriod != want {
			err = fmt.Errorf("the material records a waiting period of %s, want %s", material.record.WaitingPeriod, want)
		}
		return err
	}
}

// noDataKeys holds when neither a DataKeyRequest nor its Secret is there.
func noDataKeys(l *life, m moment) error {
	if requests := all[*v1alpha1.DataKeyRequest](m, l.tenant); len(requests) > 0 {
		return fmt.Errorf("there is DataKeyRequest %s", requests[0].Name)
	}
	for _, secret := range all[*corev1.Secret](m, l.tenant) {
		if secret.Type == v1alpha1.SecretTypeDataKey {
			return fmt.Errorf("there is Secret %s", secret.Name)
		}
	}
	return nil
}

// editSecret spoils the older generation in a Secret and takes the newest one out.
func editSecret(l *life) error {
	secret := l.seen(&corev1.Secret{}, lifeRequests[0]).(*corev1.Secret).DeepCopy()
	secret.ResourceVersion = ""
	secret.Data[v1alpha1.SecretKeyOf(v1alpha1.SecretKeyCiphertextBlob, 1)] = spoil
	delete(secret.Data, v1alpha1.SecretKeyCiphertextBlob)
	return l.did(secret, l.client.Update(l.t.Context(), secret))
}

func deleteSecret(l *life) error { return l.delete(l.dataKeySecret(lifeRequests[0])) }

const otherKey = "other"

func setAliases(key string, aliases string) step {
	return func(l *life) error { return l.patch(l.masterKey(key), `{"spec":{"aliases":`+aliases+`}}`) }
}

func makeOtherKey(l *life) error {
	key := l.masterKey(otherKey)
	return l.did(key, l.client.Create(l.t.Context(), key))
}

// hasAlias holds when a MasterKey has the alias and another one has none.
func hasAlias(holder, other string) condition {
	return func(l *life, m moment) error {
		for name, want := range map[string]int{holder: 1, other: 0} {
			key := of[*v1alpha1.MasterKey](m, l.tenant, name)
			if key == nil || !key.Ready() || len(key.Status.Aliases) != want {
				return fmt.Errorf("MasterKey %s is not Ready with %d aliases: %+v", name, want, key)
			}
		}
		return nil
	}
}

func both(a, b condition) condition {
	return func(l *life, m moment) error { return errors.Join(a(l, m), b(l, m)) }
}

const enough = 169 * time.Hour // is more than the waiting period of every key here

// rotatedOnce is a master key with two versions, and data keys with two generations.
var rotatedOnce = []step{
	rotateKey("1"), until(settled(lifeWant{versions: 2, generations: []int32{1}})),
	rotateDataKeys("1"), until(settled(lifeWant{versions: 2, generations: []int32{2, 1}})),
}

var lifeStories = map[string]lifeStory{
	"a master key is rotated on demand": {
		least: 7, versions: 2,
		tell: []step{rotateKey("1")},
		end:  settled(lifeWant{versions: 2, generations: []int32{1}}),
	},
	"a master key is rotated by its interval": {
		least: 7, versions: 2,
		key:  v1alpha1.MasterKeySpec{Rotation: v1alpha1.MasterKeyRotation{Interval: &metav1.Duration{Duration: time.Hour}}},
		tell: []step{pass(2 * time.Hour)},
		end:  settled(lifeWant{versions: 2, generations: []int32{1}}),
	},
	"data keys are wrapped anew on demand": {
		least: 4, versions: 2,
		request: v1alpha1.DataKeyRequestSpec{RewrapPolicy: v1alpha1.RewrapPolicyManual},
		before:  []step{rotateKey("1"), until(settled(lifeWant{versions: 2, wrappedBy: 1, generations: []int32{1}}))},
		tell:    []step{askEach(v1alpha1.AnnotationRewrapRequestedAt, "1")},
		end:     settled(lifeWant{versions: 2, generations: []int32{1}}),
	},
	"data keys are rotated twice": {
		least: 8, generations: 3,
		tell: []step{rotateDataKeys("1"), until(settled(lifeWant{versions: 1, generations: []int32{2, 1}})), rotateDataKeys("2")},
		end:  settled(lifeWant{versions: 1, generations: []int32{3, 2, 1}}),
	},
	"old generations are dropped": {
		least: 4, generations: 4,
		request: v1alpha1.DataKeyRequestSpec{Rotation: v1alpha1.DataKeyRotation{Keep: new(int32(2))}},
		before: []step{
			rotateDataKeys("1"), until(settled(lifeWant{versions: 1, generations: []int32{2, 1}})),
			rotateDataKeys("2"), until(settled(lifeWant{versions: 1, generations: []int32{3, 2, 1}})),
			rotateDataKeys("3"), until(settled(lifeWant{versions: 1, generations: []int32{4, 3, 2, 1}})),
		},
		tell: []step{pass(25 * time.Hour)},
		end:  settled(lifeWant{versions: 1, generations: []int32{4, 3}}),
	},
	"a master key is disabled and enabled": {
		least: 4,
		tell:  []step{setState(v1alpha1.MasterKeyStateDisabled), until(isInState(v1alpha1.ReasonDisabled)), setState(v1alpha1.MasterKeyStateEnabled)},
		end:   first,
	},
	"a deletion is cancelled": {
		least: 6,
		tell: []step{
			setState(v1alpha1.MasterKeyStatePendingDeletion), until(isInState(v1alpha1.ReasonPendingDeletion)), until(deletionBegan),
			setState(v1alpha1.MasterKeyStateEnabled),
		},
		end: first,
	},
	"a master key is destroyed once nothing refers to it": {
		least: 5,
		tell: []step{
			setState(v1alpha1.MasterKeyStatePendingDeletion), until(isInState(v1alpha1.ReasonPendingDeletion)),
			pass(enough), until(isInState(v1alpha1.ReasonDeletionBlocked)),
			deleteRequests, deleteSecrets, wake, until(isInState(v1alpha1.ReasonDestroyed)), deleteKey,
		},
		end: forgotten,
	},
	"a MasterKey is deleted and applied again": {
		least: 4,
		tell:  []step{deleteKey, until(deletionBegan), applyKeyAgain},
		end:   first,
	},
	"a MasterKey is deleted for good": {
		least: 3,
		key:   v1alpha1.MasterKeySpec{Deletion: v1alpha1.MasterKeyDeletion{OrphanDataKeys: new(true)}},
		tell:  []step{deleteKey, until(deletionBegan), pass(enough)},
		end:   forgotten,
	},
	"an alias is moved": {
		least:  2,
		key:    v1alpha1.MasterKeySpec{Aliases: []string{"prod"}},
		before: []step{makeOtherKey, until(hasAlias(lifeKey, otherKey))},
		tell:   []step{setAliases(otherKey, `["prod"]`), setAliases(lifeKey, "null")},
		end:    both(first, hasAlias(otherKey, lifeKey)),
	},
	"a Secret is deleted and edited": {
		least: 2, generations: 2,
		before: []step{rotateDataKeys("1"), until(settled(lifeWant{versions: 1, generations: []int32{2, 1}}))},
		tell:   []step{deleteSecret, until(settled(lifeWant{versions: 1, generations: []int32{2, 1}})), editSecret},
		end:    settled(lifeWant{versions: 1, generations: []int32{2, 1}}),
	},
	"everything of the tenant is restored": {
		least: 6, versions: 2, generations: 2,
		before: rotatedOnce,
		tell:   []step{restoreAll(false)},
		end:    settled(lifeWant{versions: 2, generations: []int32{2, 1}}),
	},
	"everything of the tenant is restored with its status": {
		least: 8, versions: 3, generations: 2,
		before: rotatedOnce,
		tell:   []step{restoreAll(true), rotateKey("2")}, // a status of the backup says itself that all is well
		end:    settled(lifeWant{versions: 3, generations: []int32{2, 1}}),
	},
	"other terms of deletion are stated": {
		least: 2,
		tell:  []step{patchKey(`{"spec":{"deletion":{"waitingPeriod":"200h"}}}`)},
		end:   both(first, keptFor(200*time.Hour)),
	},
	"data keys are deleted with their Secrets": {
		least:   4,
		request: v1alpha1.DataKeyRequestSpec{DeletionPolicy: v1alpha1.DeletionPolicyDelete},
		tell:    []step{deleteRequests},
		end:     noDataKeys,
	},
}

// A planted bug is in whatever a manager does with its client. live reads from the API server.
type planted func(c client.WithWatch, live client.Reader) client.WithWatch

// at tells the story, with a fault at the write of the operation that has the number at; of says which writes count, empty for all. The
// managers reach the API server through plant, nil for just so. The error is what must not be, at any moment of it.
func (s lifeStory) at(t *testing.T, at int, of string, fault controllerstest.Fault, plant planted) (reached bool, err error) {
	t.Helper()
	p, c := newUnwatchedPlace(t), &movedClock{}
	l := &life{witness: newWitness(t, p, newLaws(c, s.versions, s.generations)), t: t, clock: c, wrote: map[string]uint64{}, deleted: map[string]int{}}
	with := func(o *options) {
		o.clock, o.serverTime = c, func(context.Context) (time.Time, error) { return c.Now(), nil }
		tune := o.tune
		o.tune = func(m *ctrl.Options) {
			tune(m)
			made := m.NewClient
			m.NewClient = func(config *rest.Config, options client.Options) (client.Client, error) {
				faulty, err := made(config, options)
				if err != nil || plant == nil {
					return faulty, err
				}
				return plant(faulty.(client.WithWatch), p.client), nil
			}
		}
	}
	faults := controllerstest.NewFaults(0, fault)
	faults.Of = of
	stop := p.start(t, faults, with)
	key := l.key()
	key.Spec = s.key
	key.Spec.Deletion.WaitingPeriod = &metav1.Duration{Duration: 168 * time.Hour}
	p.create(t, key)
	for i, request := range []*v1alpha1.DataKeyRequest{p.request(lifeRequests[0], lifeKey), p.keyPair(lifeRequests[1], lifeKey)} {
		request.Spec.Rotation, request.Spec.RewrapPolicy = s.request.Rotation, s.request.RewrapPolicy
		request.Spec.DeletionPolicy = s.request.DeletionPolicy
		if i == 0 {
			request.Spec.EncryptionContext = map[string]v1alpha1.EncryptionContextValue{"tenant": "a"}
		}
		p.create(t, request)
	}
	for _, do := range append([]step{until(first)}, s.before...) {
		if err := do(l); err != nil {
			t.Fatalf("before the story: %v", err)
		}
	}

	faults.CountFrom(at)
	settle := faults.Restart(t, func(rest *controllerstest.Faults) *controllerstest.Faults {
		stop()
		stop = p.start(t, rest, with)
		return rest
	})
	for _, do := range append(s.tell, until(s.end)) {
		if err = do(l); err != nil {
			break
		}
	}
	settle()
	stop()
	reached = faults.Reached()
	return reached, errors.Join(err, l.judge(s.end))
}

// judge looks at everything that was, and at the end, when nothing happens any more.
func (l *life) judge(end condition) error {
	events, last := l.witness.end(l.t)
	r, err := l.retell(l.t.Context(), events)
	if r.opened == 0 {
		err = errors.Join(err, errors.New("nothing was opened: the story is not told"))
	}
	return errors.Join(l.broken, err, r.checkReady(l.t.Context()), end(l, last))
}

// Whatever becomes of any single write of any operation of the lifecycle, or of the manager that makes it: at every moment every
// data key that there ever was opens as what it was first, with nothing but what is durable, and the operation comes to its end,
// once. The stories are told by whole managers on a real API server, for every write and every fault.
func TestLifecycleSurvivesEveryWrite(t *testing.T) {
	t.Parallel()
	var points atomic.Int32
	began := time.Now()
	t.Run("stories", func(t *testing.T) {
		for name, story := range lifeStories {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				controllerstest.AtEveryWrite(t, controllerstest.AllFaults, story.least, 40, func(t *testing.T, at int, fault controllerstest.Fault) bool {
					t.Helper()
					reached, err := story.at(t, at, "", fault, nil)
					if err != nil {
						t.Error(err)
					}
					if reached {
						points.Add(1)
					}
					return reached
				})
			})
		}
	})
	t.Logf("%d points of %d operations, in %s", points.Load(), len(lifeStories), time.Since(began).Round(time.Second))
}

// Two writes in the other order, in what is otherwise the manager, are told of at some point, and at none without. Only writes of one
// kind count: those of other objects, which other goroutines make, come between them at one place now and at another then.
func TestLifecycleFindsTwoWritesTurnedAround(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		story string
		fault controllerstest.Fault
		of    string
		plant planted
	}{
		"a version is the primary one before it is there": {
			"a master key is rotated on demand", controllerstest.DieAfter, "update Secret", primaryFirst,
		},
		"generations are dropped from the status before the Secret": {
			"old generations are dropped", controllerstest.DieAfter, "update status DataKeyRequest", statusFirst,
		},
		"a rotation is done before it counts as done": {
			"a master key is rotated on demand", controllerstest.DieAfter, "update Secret", servedLast,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			found, points := 0, 0
			for at, reached := 1, true; reached; at++ {
				reached = false
				t.Run("at write "+strconv.Itoa(at), func(t *testing.T) {
					var err error
					if reached, err = lifeStories[c.story].at(t, at, c.of, c.fault, c.plant); err != nil {
						found++
						t.Logf("found: %v", err)
					}
				})
				points++
			}
			t.Logf("found at %d of %d points", found, points)
			if found == 0 {
				t.Error("nothing was found")
			}
		})
	}
}

// changeMaterial lets each write of material come after one more, which change returns; nil: there is none.
func changeMaterial(c client.WithWatch, live client.Reader, change func(was, is *corev1.Secret) (first *corev1.Secret)) client.WithWatch {
	return interceptor.NewClient(c, interceptor.Funcs{
		Update: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.UpdateOption) error {
			secret, ok := object.(*corev1.Secret)
			if !ok || secret.Type != v1alpha1.SecretTypeMasterKey {
				return c.Update(ctx, object, options...)
			}
			was := &corev1.Secret{}
			if err := live.Get(ctx, client.ObjectKeyFromObject(secret), was); err != nil {
				return err
			}
			if first := change(was, secret); first != nil {
				if err := c.Update(ctx, first, options...); err != nil {
					return err
				}
				secret.ResourceVersion = first.ResourceVersion
			}
			return c.Update(ctx, secret, options...)
		},
	})
}

// primaryFirst turns the two writes of a rotation around: the record names the new version before the version is written.
func primaryFirst(c client.WithWatch, live client.Reader) client.WithWatch {
	return changeMaterial(c, live, func(was, is *corev1.Secret) *corev1.Secret {
		if was.Data["v2"] != nil || is.Data["v2"] == nil {
			return nil
		}
		is.Data["record"] = bytes.Replace(is.Data["record"], []byte(`"primary":1`), []byte(`"primary":2`), 1)
		was.Data["record"] = is.Data["record"]
		return was
	})
}

// servedLast lets a version be the primary one before the request for it counts as served, which is one write otherwise.
func servedLast(c client.WithWatch, live client.Reader) client.WithWatch {
	return changeMaterial(c, live, func(was, is *corev1.Secret) *corev1.Secret {
		served := []byte(`"rotateRequestedAt":"1",`)
		if bytes.Contains(was.Data["record"], served) || !bytes.Contains(is.Data["record"], served) {
			return nil
		}
		first := is.DeepCopy()
		first.Data["record"] = bytes.Replace(is.Data["record"], served, nil, 1)
		return first
	})
}

// statusFirst lets the status of a DataKeyRequest drop a generation before its Secret does.
func statusFirst(c client.WithWatch, live client.Reader) client.WithWatch {
	var mu sync.Mutex
	held := map[string]*corev1.Secret{}
	return interceptor.NewClient(c, interceptor.Funcs{
		Update: func(ctx context.Context, c client.WithWatch, object client.Object, options ...client.UpdateOption) error {
			secret, ok := object.(*corev1.Secret)
			if !ok || secret.Type != v1alpha1.SecretTypeDataKey {
				return c.Update(ctx, object, options...)
			}
			is := &corev1.Secret{}
			if err := live.Get(ctx, client.ObjectKeyFromObject(secret), is); err != nil {
				return err
			}
			older := v1alpha1.SecretKeyOf(v1alpha1.SecretKeyCiphertextBlob, 2)
			if is.Data[older] == nil || secret.Data[older] != nil {
				return c.Update(ctx, object, options...)
			}
			mu.Lock()
			defer mu.Unlock()
			held[secret.Name] = secret.DeepCopy()
			return nil
		},
		SubResourceUpdate: func(ctx context.Context, c client.Client, sub string, object client.Object, options ...client.SubResourceUpdateOption) error {
			if err := c.SubResource(sub).Update(ctx, object, options...); err != nil {
				return err
			}
			mu.Lock()
			secret := held[object.GetName()]
			delete(held, object.GetName())
			mu.Unlock()
			if secret == nil {
				return nil
			}
			return c.Update(ctx, secret)
		},
	})
}
