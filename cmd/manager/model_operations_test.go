package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers/controllerstest"
)

// An operation is something that happens. It says what, and "" where it cannot happen now.
type operation struct {
	weight int
	do     func(*modelWorld) string
}

// operations are what may happen in one sequence: each sequence has its own mind of what happens often, and what never.
func (w *modelWorld) operations() []operation {
	all := slices.Concat(userOperations(), damages(), restores())
	for i := range all {
		all[i].weight *= pick(w, []int{0, 1, 1, 4})
	}
	return slices.Concat(managerOperations(), all)
}

func managerOperations() []operation {
	return []operation{
		{90, (*modelWorld).reconcile},
		{6, (*modelWorld).reconcileAll},
		{6, (*modelWorld).refresh},
		{1, (*modelWorld).restart},
		{3, (*modelWorld).jump},
	}
}

func userOperations() []operation {
	return []operation{
		{6, (*modelWorld).createMasterKey},
		{8, (*modelWorld).createRequest},
		{6, (*modelWorld).askForMasterKeyRotation},
		{9, (*modelWorld).askForRequest},
		{6, (*modelWorld).changeState},
		{4, (*modelWorld).changeMasterKey},
		{4, (*modelWorld).changeRequest},
		{2, (*modelWorld).deleteMasterKey},
		{3, (*modelWorld).deleteRequest},
		{12, (*modelWorld).wait},
	}
}

// step lets one thing happen.
func (w *modelWorld) step() {
	w.now = w.now.Add(time.Duration(w.random.IntN(2000)) * time.Millisecond)
	w.happen(w.usual)
}

// happen lets one of several operations happen.
func (w *modelWorld) happen(of []operation) {
	total := 0
	for _, o := range of {
		total += o.weight
	}
	for range 50 { // some cannot
		n := w.random.IntN(total)
		for _, o := range of {
			if n -= o.weight; n < 0 {
				at := len(w.log)
				w.tell("")
				if what := o.do(w); what != "" {
					w.log[at] += what
					return
				}
				w.log = slices.Delete(w.log, at, at+1)
				break
			}
		}
	}
}

// faults are those that a write may meet.
var modelFaults = []controllerstest.Fault{
	controllerstest.FailBefore, controllerstest.FailAfter, controllerstest.DieBefore, controllerstest.DieAfter, controllerstest.Conflict,
}

func (w *modelWorld) reconcile() string {
	keys := w.reconciled()
	if len(keys) == 0 {
		return ""
	}
	m, key := pick(w, w.managers), pick(w, keys)
	if w.nested {
		if m = w.idle(); m == nil {
			return ""
		}
	}
	what := fmt.Sprintf("%s works on %s", m.name, key)
	if w.chance(60) {
		m.refresh(cachedKinds()...)
		what += " with a fresh cache"
	}
	if w.chance(25) {
		what += m.meet(w.random.IntN(3), pick(w, modelFaults))
	}
	if !w.nested && w.chance(20) {
		m.before, m.preempted = w.random.IntN(10), func() {
			w.nested = true
			w.happen(slices.Concat(managerOperations()[:1], userOperations()[:9], damages()))
			w.nested = false
		}
	}
	before := w.store.version
	m.busy = true
	err := m.reconcile(key)
	m.busy = false
	return fmt.Sprintf("%s: %d writes, %v", what, w.store.version-before, err)
}

// idle is the manager that is not in the middle of something, nil where there is none.
func (w *modelWorld) idle() *modelManager {
	for _, m := range w.managers {
		if !m.busy {
			return m
		}
	}
	return nil
}

func (w *modelWorld) reconcileAll() string {
	m := pick(w, w.managers)
	for _, key := range w.reconciled() {
		m.refresh(cachedKinds()...)
		_ = m.reconcile(key) // it is tried again
	}
	return m.name + " works on everything"
}

func (w *modelWorld) refresh() string {
	m, kind := pick(w, w.managers), pick(w, cachedKinds())
	m.refresh(kind)
	return fmt.Sprintf("%s hears of every %s", m.name, kind)
}

func (w *modelWorld) restart() string {
	m := pick(w, w.managers)
	m.start()
	return m.name + " starts anew"
}

// jump lets a clock jump, or sets it right where it did.
func (w *modelWorld) jump() string {
	m := pick(w, w.managers)
	right := m.clock.offsets[0]
	if m.clock.offsets[len(m.clock.offsets)-1] != right {
		m.clock.set(right)
		return "the clock of " + m.name + " is set right"
	}
	by := pick(w, []time.Duration{365 * 24 * time.Hour, -24 * time.Hour})
	m.clock.set(right + by)
	return fmt.Sprintf("the clock of %s jumps by %s", m.name, by)
}

func (w *modelWorld) wait() string {
	by := pick(w, []time.Duration{
		time.Duration(1+w.random.IntN(90)) * time.Minute,
		time.Duration(1+w.random.IntN(30)) * time.Hour,
		time.Duration(1+w.random.IntN(80)) * 12 * time.Hour,
	})
	w.now = w.now.Add(by)
	return by.String() + " pass"
}

// count is a value that nobody had before.
func (w *modelWorld) count() string {
	w.serial++
	return fmt.Sprint(w.serial)
}

func (w *modelWorld) createMasterKey() string {
	name := pick(w, modelMasterKeys)
	if w.masterKey(name) != nil {
		return ""
	}
	key := &v1alpha1.MasterKey{ObjectMeta: metav1.ObjectMeta{Namespace: modelTenant, Name: name}}
	key.Spec.KeySpec, key.Spec.State = v1alpha1.MasterKeySpecAES256, v1alpha1.MasterKeyStateEnabled
	w.vary(key)
	if w.chance(70) {
		for _, secret := range w.materials() {
			if w.reference.keys[secret.Name].name == name {
				metav1.SetMetaDataAnnotation(&key.ObjectMeta, v1alpha1.AnnotationKeyID, secret.Name)
			}
		}
	}
	w.store.insert(key)
	return fmt.Sprintf("create MasterKey %s %v %s", name, key.Annotations, describe(key))
}

func describe(key *v1alpha1.MasterKey) string {
	s := key.Spec
	return fmt.Sprintf("state %s, rotation %+v, waiting period %s, orphans %t, aliases %s",
		s.State, s.Rotation, modelWaitingPeriod(key), s.Deletion.OrphanDataKeys != nil && *s.Deletion.OrphanDataKeys, s.Aliases)
}

// vary changes something that may be changed of a MasterKey.
func (w *modelWorld) vary(key *v1alpha1.MasterKey) {
	hours := func(n int) *metav1.Duration { return &metav1.Duration{Duration: time.Duration(n) * time.Hour} }
	spec := &key.Spec
	switch w.random.IntN(5) {
	case 0:
		spec.Rotation = pick(w, []v1alpha1.MasterKeyRotation{
			{}, {Interval: hours(24)}, {Interval: hours(720)}, {Schedule: "0 3 * * *", TimeZone: "Europe/Berlin"}, {Schedule: "0 3 31 2 *"},
			{Interval: hours(24), Suspend: new(true)},
		})
	case 1:
		spec.Deletion.WaitingPeriod = pick(w, []*metav1.Duration{nil, hours(168), hours(168), hours(240)})
	case 2:
		spec.Deletion.OrphanDataKeys = pick(w, []*bool{nil, new(true), new(false)})
	default:
		spec.Aliases = pick(w, [][]string{nil, modelAliases[:1], modelAliases[1:], modelAliases})
	}
}

func (w *modelWorld) changeMasterKey() string {
	key := w.masterKey(pick(w, modelMasterKeys))
	if key == nil {
		return ""
	}
	edit(w, key, w.vary)
	return fmt.Sprintf("change MasterKey %s: %s", key.Name, describe(w.masterKey(key.Name)))
}

func (w *modelWorld) changeState() string {
	key := w.masterKey(pick(w, modelMasterKeys))
	if key == nil {
		return ""
	}
	state := pick(w, []v1alpha1.MasterKeyState{
		v1alpha1.MasterKeyStateEnabled, v1alpha1.MasterKeyStateEnabled, v1alpha1.MasterKeyStateDisabled, v1alpha1.MasterKeyStatePendingDeletion,
	})
	if state == key.Spec.State {
		return ""
	}
	edit(w, key, func(key *v1alpha1.MasterKey) { key.Spec.State = state })
	return fmt.Sprintf("set MasterKey %s to %s", key.Name, state)
}

func (w *modelWorld) askForMasterKeyRotation() string {
	key := w.masterKey(pick(w, modelMasterKeys))
	if key == nil {
		return ""
	}
	value := w.count()
	edit(w, key, func(key *v1alpha1.MasterKey) {
		metav1.SetMetaDataAnnotation(&key.ObjectMeta, v1alpha1.AnnotationRotateRequestedAt, value)
	})
	return fmt.Sprintf("ask for a rotation of MasterKey %s: %s", key.Name, value)
}

func (w *modelWorld) deleteMasterKey() string {
	key := w.masterKey(pick(w, modelMasterKeys))
	if key == nil {
		return ""
	}
	w.store.remove(keyOf(key))
	return fmt.Sprintf("delete MasterKey %s, which is %s", key.Name, key.Spec.State)
}

func (w *modelWorld) createRequest() string {
	request := pick(w, modelRequests())
	if w.request(request.Name) != nil {
		return ""
	}
	request.Spec.DeletionPolicy, request.Spec.RewrapPolicy = v1alpha1.DeletionPolicyRetain, v1alpha1.RewrapPolicyAutomatic
	for range 4 {
		w.varyRequest(request)
	}
	w.store.insert(request)
	return fmt.Sprintf("create DataKeyRequest %s: %s", request.Name, describeRequest(request))
}

func describeRequest(request *v1alpha1.DataKeyRequest) string {
	s, keep := request.Spec, int32(0)
	if s.Rotation.Keep != nil {
		keep = *s.Rotation.Keep
	}
	return fmt.Sprintf("%s, %s, interval %v, keep %d", s.DeletionPolicy, s.RewrapPolicy, s.Rotation.Interval, keep)
}

// varyRequest changes something that may be changed of a DataKeyRequest.
func (w *modelWorld) varyRequest(request *v1alpha1.DataKeyRequest) {
	spec := &request.Spec
	switch w.random.IntN(4) {
	case 0:
		spec.DeletionPolicy = pick(w, []v1alpha1.DeletionPolicy{v1alpha1.DeletionPolicyRetain, v1alpha1.DeletionPolicyDelete})
	case 1:
		spec.RewrapPolicy = pick(w, []v1alpha1.RewrapPolicy{v1alpha1.RewrapPolicyAutomatic, v1alpha1.RewrapPolicyManual})
	case 2:
		spec.Rotation.Keep = pick(w, []*int32{nil, new(int32(2)), new(int32(2)), new(int32(3))})
	default:
		spec.Rotation.Interval = pick(w, []*metav1.Duration{nil, {Duration: 12 * time.Hour}, {Duration: 240 * time.Hour}})
	}
}

func (w *modelWorld) anyRequest() *v1alpha1.DataKeyRequest {
	return w.request(pick(w, modelRequests()).Name)
}

func (w *modelWorld) changeRequest() string {
	request := w.anyRequest()
	if request == nil {
		return ""
	}
	edit(w, request, w.varyRequest)
	return fmt.Sprintf("change DataKeyRequest %s: %s", request.Name, describeRequest(w.request(request.Name)))
}

// askForRequest asks for a rotation of a data key, or for wrapping it anew.
func (w *modelWorld) askForRequest() string {
	request := w.anyRequest()
	if request == nil {
		return ""
	}
	value, annotation := w.count(), pick(w, []string{
		v1alpha1.AnnotationRotateRequestedAt, v1alpha1.AnnotationRotateRequestedAt, v1alpha1.AnnotationRewrapRequestedAt,
	})
	if annotation == v1alpha1.AnnotationRewrapRequestedAt {
		d := w.reference.dataKeys[request.Name]
		d.asked, d.primary = value, 0
		k, key := w.reference.keys[request.Status.KeyID], w.masterKey(request.Spec.MasterKeyRef.Name)
		if k != nil && key != nil && key.Status.PrimaryVersion != nil {
			d.primary = min(int32(k.record.Primary), *key.Status.PrimaryVersion)
		}
	}
	edit(w, request, func(request *v1alpha1.DataKeyRequest) {
		metav1.SetMetaDataAnnotation(&request.ObjectMeta, annotation, value)
	})
	return fmt.Sprintf("set %s of DataKeyRequest %s: %s", strings.TrimPrefix(annotation, "datakeys.io/"), request.Name, value)
}

func (w *modelWorld) deleteRequest() string {
	request := w.anyRequest()
	if request == nil || !request.DeletionTimestamp.IsZero() {
		return ""
	}
	if len(request.Finalizers) == 0 {
		w.store.remove(keyOf(request))
	} else {
		deleted, now := request.DeepCopy(), metav1.NewTime(w.now).Rfc3339Copy()
		deleted.DeletionTimestamp = &now
		w.store.put(keyOf(request), deleted)
	}
	return fmt.Sprintf("delete DataKeyRequest %s, which is %s", request.Name, request.Spec.DeletionPolicy)
}
