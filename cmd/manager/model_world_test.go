package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
	"github.com/datakeys/datakeys/internal/rootkey"
	"github.com/datakeys/datakeys/internal/seal"
)

const (
	modelTenant = "team-a"
	modelSystem = "datakeys-system"
)

// modelStart is when every sequence begins.
var modelStart = time.Date(2026, time.May, 4, 12, 0, 0, 0, time.UTC)

// modelMasterKeys are the names of all MasterKeys, and modelAliases what they may claim.
var (
	modelMasterKeys = []string{"main", "spare"}
	modelAliases    = []string{"a", "b"}
)

// modelRequests are all DataKeyRequests, but for what may be changed of them: one of every name is always the same.
func modelRequests() []*v1alpha1.DataKeyRequest {
	request := func(name, masterKey string, spec v1alpha1.DataKeyRequestSpec) *v1alpha1.DataKeyRequest {
		spec.MasterKeyRef.Name = masterKey
		return &v1alpha1.DataKeyRequest{ObjectMeta: metav1.ObjectMeta{Namespace: modelTenant, Name: name}, Spec: spec}
	}
	return []*v1alpha1.DataKeyRequest{
		request("orders", "main", v1alpha1.DataKeyRequestSpec{
			KeySpec: v1alpha1.DataKeySpecAES256, EncryptionContext: map[string]v1alpha1.EncryptionContextValue{"tenant": "a"},
		}),
		request("ledger", "main", v1alpha1.DataKeyRequestSpec{NumberOfBytes: new(int32(48))}),
		request("signing", "main", v1alpha1.DataKeyRequestSpec{KeyPairSpec: v1alpha1.KeyPairSpecNISTP256}),
		request("backups", "spare", v1alpha1.DataKeyRequestSpec{KeySpec: v1alpha1.DataKeySpecAES128, AAD: []byte{0, 1, 0xff}}),
	}
}

func modelRequest(name string) *v1alpha1.DataKeyRequest {
	requests := modelRequests()
	return requests[slices.IndexFunc(requests, func(r *v1alpha1.DataKeyRequest) bool { return r.Name == name })]
}

// modelSetUp is what every sequence begins with: the scheme, the indexes, and the Secrets of an installation without keys.
type modelSetUp struct {
	scheme  *runtime.Scheme
	indexes []controllers.Index
	objects snapshot
	keyring *seal.Keyring
}

var newModelSetUp = sync.OnceValues(func() (*modelSetUp, error) {
	s := &modelSetUp{scheme: runtime.NewScheme(), indexes: controllers.Indexes()}
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(s.scheme); err != nil {
			return nil, err
		}
	}
	store := &modelStore{scheme: s.scheme, objects: snapshot{}, now: func() time.Time { return modelStart }, changed: func(objectKey, client.Object, client.Object) {}}
	var err error
	s.keyring, err = seal.Config{
		RootKey: seal.DefaultRootKey, Store: secretStore{reader: store, writer: store, namespace: modelSystem}, OpenRootKey: rootkey.Open,
	}.Open(context.Background())
	s.objects = store.objects
	return s, err
})

// A modelWorld is one sequence: an API server, two managers that both believe to lead, and whoever does things by hand.
type modelWorld struct {
	random    *rand.Rand
	now       time.Time
	store     *modelStore
	indexes   []controllers.Index
	reference *modelReference
	managers  []*modelManager

	// writer is the manager that makes the present write, nil for whoever does it by hand.
	writer *modelManager
	// nested is set while something happens in the middle of a step.
	nested bool
	// usual is what may happen in this sequence.
	usual []operation
	// serial numbers what is asked for.
	serial int
	// backup is the last backup, and removed the Secrets with material that were removed by hand.
	backup  snapshot
	removed snapshot

	log, failures []string
}

func newModelWorld(set *modelSetUp, seed uint64) *modelWorld {
	w := &modelWorld{random: rand.New(rand.NewPCG(seed, 0)), now: modelStart, indexes: set.indexes, removed: snapshot{}}
	w.store = &modelStore{scheme: set.scheme, objects: maps.Clone(set.objects), version: 1000, uids: 1000, now: func() time.Time { return w.now }}
	w.reference = newModelReference(w, set.keyring)
	w.store.changed = func(key objectKey, before, after client.Object) { w.reference.changed(w.writer, key, before, after) }
	w.usual = w.operations()
	for i := range 2 {
		m := &modelManager{world: w, name: fmt.Sprintf("manager %d", i+1)}
		m.clock = &modelClock{world: w, offsets: []time.Duration{time.Duration(w.random.IntN(121)-60) * time.Second}}
		w.managers = append(w.managers, m)
		m.start()
	}
	return w
}

// failf notes that something is not as it must be. The sequence ends with the step.
func (w *modelWorld) failf(format string, args ...any) {
	w.failures = append(w.failures, fmt.Sprintf(format, args...))
}

// tell notes what is done.
func (w *modelWorld) tell(format string, args ...any) {
	indent := ""
	if w.nested {
		indent = "    meanwhile "
	}
	w.log = append(w.log, fmt.Sprintf("%s%s %s", indent, w.now.Format("01-02 15:04:05"), fmt.Sprintf(format, args...)))
}

func (w *modelWorld) story() string { return strings.Join(w.log, "\n") }

// chance is true that many times of 100.
func (w *modelWorld) chance(percent int) bool { return w.random.IntN(100) < percent }

// pick returns one of several.
func pick[T any](w *modelWorld, of []T) T { return of[w.random.IntN(len(of))] }

func (w *modelWorld) masterKey(name string) *v1alpha1.MasterKey {
	o, _ := w.store.objects[objectKey{kindMasterKey, modelTenant, name}].(*v1alpha1.MasterKey)
	return o
}

func (w *modelWorld) request(name string) *v1alpha1.DataKeyRequest {
	o, _ := w.store.objects[objectKey{kindDataKeyRequest, modelTenant, name}].(*v1alpha1.DataKeyRequest)
	return o
}

func (w *modelWorld) secret(name string) *corev1.Secret {
	o, _ := w.store.objects[objectKey{kindSecret, modelTenant, name}].(*corev1.Secret)
	return o
}

// materials are the Secrets with material.
func (w *modelWorld) materials() []*corev1.Secret {
	var secrets []*corev1.Secret
	for _, object := range w.store.objects.all(kindSecret) {
		if secret := object.(*corev1.Secret); secret.Type == v1alpha1.SecretTypeMasterKey {
			secrets = append(secrets, secret)
		}
	}
	return secrets
}

// edit changes an object by hand, its status included.
func edit[T client.Object](w *modelWorld, object T, change func(T)) {
	changed := object.DeepCopyObject().(T)
	change(changed)
	w.store.replace(keyOf(object), changed)
}

// reconciled are all objects that a manager works on.
func (w *modelWorld) reconciled() []objectKey {
	var keys []objectKey
	for _, kind := range []string{kindMasterKey, kindDataKeyRequest} {
		for _, object := range w.store.objects.all(kind) {
			keys = append(keys, keyOf(object))
		}
	}
	for _, secret := range w.materials() {
		keys = append(keys, keyOf(secret))
	}
	return keys
}

// run does some steps, lets everything settle, and checks what came of it.
func (w *modelWorld) run(steps int) {
	for range 5 {
		w.happen([]operation{{1, (*modelWorld).createMasterKey}, {2, (*modelWorld).createRequest}})
	}
	for range steps {
		w.step()
		if len(w.failures) > 0 {
			return
		}
	}
	w.settle()
}

// settleRounds is after how many rounds everything must have been done.
const settleRounds = 16

// settle sets the clocks right, lets both managers work on everything in turns until nothing is written any more, and checks the end.
func (w *modelWorld) settle() {
	w.tell("everything settles")
	for _, m := range w.managers {
		m.clock.set(0)
	}
	w.quieten()
	w.checkEnd()
	remembers := w.managers[0].remembers || w.managers[1].remembers
	w.tell("the managers start anew")
	for _, m := range w.managers {
		m.start()
	}
	switch wrote := w.round(w.managers[0]); {
	case wrote == "" || len(w.failures) > 0:
	case remembers: // versions that a restored backup does not have, and that stood in the way of a rotation
		w.quieten()
		w.checkEnd()
	default:
		w.failf("a manager that starts anew finds something to write: %s", wrote)
	}
}

// quieten lets the managers work on everything in turns until neither finds anything to write.
func (w *modelWorld) quieten() {
	quiet, last := 0, ""
	for round := range settleRounds {
		wrote := w.round(w.managers[round%len(w.managers)])
		if len(w.failures) > 0 {
			return
		}
		if quiet++; wrote != "" {
			quiet, last = 0, wrote
		}
		if quiet == len(w.managers) {
			return
		}
	}
	w.failf("nothing settles: the last round still wrote: %s", last)
}

// round lets a manager work on everything, and says what it wrote.
func (w *modelWorld) round(m *modelManager) string {
	var wrote []string
	for _, key := range w.reconciled() {
		w.now = w.now.Add(time.Second)
		m.refresh(cachedKinds()...)
		before, objects := len(m.faults.Writes()), maps.Clone(w.store.objects)
		err := m.reconcile(key)
		if writes := m.faults.Writes()[before:]; len(writes) > 0 {
			said := fmt.Sprintf("%s on %s: %s (%v)", m.name, key, strings.Join(writes, ", "), err)
			wrote = append(wrote, said)
			w.tell("%s%s", said, differences(objects, w.store.objects))
		}
	}
	return strings.Join(wrote, "; ")
}

// differences names the conditions of the objects that differ.
func differences(before, after snapshot) string {
	var out strings.Builder
	for key, object := range after {
		if before[key] == object {
			continue
		}
		for _, c := range conditionsOf(object) {
			fmt.Fprintf(&out, "\n        %s: %s=%s %s: %s", key, c.Type, c.Status, c.Reason, c.Message)
		}
	}
	return out.String()
}

func conditionsOf(object client.Object) []metav1.Condition {
	switch o := object.(type) {
	case *v1alpha1.MasterKey:
		return o.Status.Conditions
	case *v1alpha1.DataKeyRequest:
		return o.Status.Conditions
	default:
		return nil
	}
}
