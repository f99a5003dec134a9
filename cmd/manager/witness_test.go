package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// A moment is what is durable in a place at one time: the objects of a tenant and the Secrets of its managers.
type moment map[string]client.Object

func nameOf(object client.Object) string {
	return fmt.Sprintf("%T %s/%s", object, object.GetNamespace(), object.GetName())
}

// put takes in what a watch says, and returns what was there before and is there now, nil for none.
func (m moment) put(e watch.Event) (before, after client.Object) {
	object := e.Object.(client.Object)
	before = m[nameOf(object)]
	if e.Type == watch.Deleted {
		delete(m, nameOf(object))
		return before, nil
	}
	m[nameOf(object)] = object
	return before, object
}

// of returns the object of a name, nil where there is none.
func of[T client.Object](m moment, namespace, name string) T {
	var none T
	object, _ := m[fmt.Sprintf("%T %s/%s", none, namespace, name)].(T)
	return object
}

// all returns the objects of a kind in a namespace, by name.
func all[T client.Object](m moment, namespace string) []T {
	var found []T
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if o, ok := m[name].(T); ok && o.GetNamespace() == namespace {
			found = append(found, o)
		}
	}
	return found
}

// versionOf is the resourceVersion, by which changes of all kinds have one order.
func versionOf(object client.Object) uint64 {
	version, err := strconv.ParseUint(object.GetResourceVersion(), 10, 64)
	if err != nil {
		panic(err) // no API server says anything else
	}
	return version
}

// A witness sees every state that is durable in a place, however briefly, holds each change of an object to what may follow upon
// what, and knows all of them in the end.
type witness struct {
	*place

	laws laws

	mu      sync.Mutex
	events  []watch.Event
	now     moment
	broken  error         // the first change that must not be
	changed chan struct{} // closed with the next change
	lasts   int
	// newest is the newest state of each object that was seen, and deletions how often it was seen to be gone.
	newest    map[string]uint64
	deletions map[string]int
}

// theEnd is the name of the last objects that a witness sees.
const theEnd = "the-end"

// newWitness is to be made before anything happens.
func newWitness(t *testing.T, p *place, l laws) *witness {
	t.Helper()
	w := &witness{
		place: p, laws: l, now: moment{}, changed: make(chan struct{}), newest: map[string]uint64{}, deletions: map[string]int{},
	}
	for _, of := range w.watched() {
		watcher, err := p.client.Watch(context.Background(), of.list, client.InNamespace(of.last.GetNamespace()))
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for e := range watcher.ResultChan() {
				w.see(e)
			}
		}()
		t.Cleanup(func() {
			watcher.Stop()
			<-done
		})
	}
	return w
}

// watched are what a witness watches, and the last object that it sees there.
func (w *witness) watched() []struct {
	list client.ObjectList
	last client.Object
} {
	inTenant, inSystem := metav1.ObjectMeta{Namespace: w.tenant, Name: theEnd}, metav1.ObjectMeta{Namespace: w.system, Name: theEnd}
	return []struct {
		list client.ObjectList
		last client.Object
	}{
		{&corev1.SecretList{}, &corev1.Secret{ObjectMeta: inTenant}},
		{&corev1.SecretList{}, &corev1.Secret{ObjectMeta: inSystem}},
		{&v1alpha1.MasterKeyList{}, &v1alpha1.MasterKey{ObjectMeta: inTenant}},
		{&v1alpha1.DataKeyRequestList{}, &v1alpha1.DataKeyRequest{ObjectMeta: inTenant, Spec: w.request(theEnd, theEnd).Spec}},
	}
}

func (w *witness) see(e watch.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	object, ok := e.Object.(client.Object)
	switch {
	case !ok: // an API server ends the watch of whom it cannot tell of every state
		w.broken = cmp.Or(w.broken, fmt.Errorf("the watch ended, and with it the history: %+v", e.Object))
	case object.GetName() == theEnd:
		w.lasts++
	default:
		w.events = append(w.events, e)
		before, after := w.now.put(e)
		if w.newest[nameOf(object)] = versionOf(object); after == nil {
			w.deletions[nameOf(object)]++
		}
		if w.broken == nil {
			if err := w.laws.check(before, after); err != nil {
				w.broken = fmt.Errorf("%s: %w", nameOf(object), err)
			}
		}
	}
	close(w.changed)
	w.changed = make(chan struct{})
}

// A condition says what a moment lacks; nil: it is there.
type condition func(l *life, m moment) error

// await waits until a condition holds. The error says what was never there, or what must not be and was seen meanwhile.
func (w *witness) await(ctx context.Context, holds func(moment) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		w.mu.Lock()
		lacks, broken, changed := holds(w.now), w.broken, w.changed
		w.mu.Unlock()
		if broken != nil || lacks == nil {
			return broken
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waited in vain: %w", lacks)
		}
	}
}

// end returns every change, in order, and what is there at last. No manager may run any more.
func (w *witness) end(t *testing.T) ([]watch.Event, moment) {
	t.Helper()
	watched := w.watched()
	for _, of := range watched {
		w.create(t, of.last)
	}
	for {
		w.mu.Lock()
		lasts, changed := w.lasts, w.changed
		w.mu.Unlock()
		if lasts == len(watched) {
			break
		}
		select {
		case <-changed:
		case <-t.Context().Done():
			t.Fatal("the watches did not come to their end")
		}
	}
	order := func(e watch.Event) uint64 { return versionOf(e.Object.(client.Object)) }
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.SortStableFunc(w.events, func(a, b watch.Event) int { return cmp.Compare(order(a), order(b)) })
	return w.events, w.now
}

// laws say which state of an object may follow upon which. They remember what was there once.
type laws struct {
	clock clock.PassiveClock
	// versions and generations are how many of them somebody asks for: a rotation that is done twice makes one more.
	versions, generations int
	// gone are the key IDs whose material was destroyed.
	gone map[string]bool
	// dropped are the generations that the status of each DataKeyRequest let go.
	dropped map[types.UID]map[int32]bool
}

func newLaws(c clock.PassiveClock, versions, generations int) laws {
	return laws{c, max(versions, 1), max(generations, 1), map[string]bool{}, map[types.UID]map[int32]bool{}}
}

func (l *laws) check(before, after client.Object) error {
	switch o := cmp.Or(after, before).(type) {
	case *corev1.Secret:
		before, _ := before.(*corev1.Secret)
		after, _ := after.(*corev1.Secret)
		if o.Type == v1alpha1.SecretTypeMasterKey {
			return l.checkMaterial(before, after)
		}
		if o.Type == v1alpha1.SecretTypeDataKey && after != nil && !spoilt(after) {
			_, err := blobsIn(after)
			return err
		}
	case *v1alpha1.DataKeyRequest:
		if before, ok := before.(*v1alpha1.DataKeyRequest); ok && after != nil && before.UID == o.UID {
			return l.checkStatus(before, o)
		}
		return l.checkStatus(&v1alpha1.DataKeyRequest{}, o)
	}
	return nil
}

// A materialState is what a Secret with master key material says.
type materialState struct {
	versions map[uint32][]byte // sealed
	record   struct {
		Primary           uint32
		RotateRequestedAt string
		WaitingPeriod     string
		OrphanDataKeys    bool
		Deletion          *struct{ BeganAt, DueAt time.Time }
		Destroyed         *struct{ At time.Time }
	}
}

// readMaterial returns an error unless there is exactly one primary version, whose material is in the same Secret, or the key is
// destroyed.
func readMaterial(secret *corev1.Secret) (materialState, error) {
	m := materialState{versions: map[uint32][]byte{}}
	for entry, sealed := range secret.Data {
		if number, ok := seal.ParseVersionEntry(entry); ok {
			m.versions[number] = sealed
		}
	}
	if record, found := secret.Data["record"]; !found {
		m.record.Primary = 1
		if len(m.versions) != 1 {
			return m, fmt.Errorf("nothing says which of %d versions is the primary one", len(m.versions))
		}
	} else if err := json.Unmarshal(record, &m.record); err != nil {
		return m, fmt.Errorf("the record: %w", err)
	}
	newest := uint32(len(m.versions))
	switch {
	case m.record.Destroyed != nil && newest > 0:
		return m, fmt.Errorf("%d versions of a destroyed key are there", newest)
	case m.record.Destroyed != nil:
		return m, nil
	case m.versions[m.record.Primary] == nil:
		return m, fmt.Errorf("the primary version is %d, which is not there", m.record.Primary)
	case newest > m.record.Primary+1:
		return m, fmt.Errorf("the primary version is %d, and there are %d", m.record.Primary, newest)
	}
	for number := range newest {
		if m.versions[number+1] == nil {
			return m, fmt.Errorf("version %d of %d is not there", number+1, newest)
		}
	}
	return m, nil
}

// checkMaterial says that versions stay, and what they are, until they are destroyed when they are due; that the primary version only
// grows, to one that was there before; and that the end of a waiting period never comes nearer.
func (l *laws) checkMaterial(before, after *corev1.Secret) error {
	var was, is materialState
	var err error
	if before != nil {
		if was, err = readMaterial(before); err != nil {
			return err
		}
	}
	if after == nil {
		if l.gone[before.Name] = true; was.record.Destroyed == nil {
			return errors.New("material is gone that was not destroyed")
		}
		return nil
	}
	if is, err = readMaterial(after); err != nil {
		return err
	}
	destroyed, began := is.record.Destroyed, was.record.Deletion
	switch {
	case len(is.versions) > l.versions:
		return fmt.Errorf("there are %d versions, though nobody asked for more than %d", len(is.versions), l.versions)
	case before == nil && l.gone[after.Name]:
		return errors.New("material of a destroyed key is there again")
	case before == nil && (len(is.versions) != 1 || is.record.Deletion != nil || destroyed != nil):
		return errors.New("material begins otherwise than with version 1")
	case before == nil:
		return nil
	case was.record.Destroyed != nil && destroyed == nil:
		return errors.New("a destroyed key is there again")
	case was.record.Destroyed != nil:
		return nil
	case destroyed != nil:
		waiting, err := time.ParseDuration(was.record.WaitingPeriod)
		switch {
		case err != nil || began == nil || began.DueAt.Sub(began.BeganAt) < waiting || waiting < 168*time.Hour:
			return fmt.Errorf("destroyed without its waiting period: %s, %+v (%w)", was.record.WaitingPeriod, began, err)
		case l.clock.Now().Before(began.DueAt):
			return errors.New("destroyed before it was due")
		}
		return nil
	}
	for number, sealed := range was.versions {
		if !bytes.Equal(is.versions[number], sealed) {
			return fmt.Errorf("version %d is gone, or is another one", number)
		}
	}
	primary, goes := was.record.Primary, is.record.Deletion
	switch {
	case is.record.Primary < primary:
		return fmt.Errorf("the primary version goes back from %d to %d", primary, is.record.Primary)
	case is.record.Primary > primary && was.versions[is.record.Primary] == nil:
		return fmt.Errorf("version %d is the primary one before it was read back", is.record.Primary)
	case began != nil && goes != nil && (!goes.BeganAt.Equal(began.BeganAt) || goes.DueAt.Before(began.DueAt)):
		return fmt.Errorf("the waiting period %+v became %+v", began, goes)
	}
	return nil
}

// checkStatus says that a status lets go no generation but one that its spec lets go, once, and that what it has is what the blobs
// say.
func (l *laws) checkStatus(before, after *v1alpha1.DataKeyRequest) error {
	is := map[int32]v1alpha1.DataKeyGeneration{}
	for _, g := range after.Status.Generations {
		blob, err := envelope.Parse(g.CiphertextBlob)
		switch {
		case err != nil:
			return err
		case blob.Header.Scope != scopeOf(after, g.Generation) || blob.Header.KeyVersion != uint32(g.KeyVersion):
			return fmt.Errorf("generation %d, of version %d, has a blob of %+v, version %d", g.Generation, g.KeyVersion, blob.Header.Scope, blob.Header.KeyVersion)
		case int(g.Generation) > l.generations:
			return fmt.Errorf("there is generation %d, though nobody asked for more than %d", g.Generation, l.generations)
		case l.dropped[after.UID][g.Generation]:
			return fmt.Errorf("generation %d, which was dropped, is there again", g.Generation)
		}
		is[g.Generation] = g
	}
	for i, was := range before.Status.Generations {
		now, there := is[was.Generation]
		switch {
		case there && now.KeyVersion < was.KeyVersion:
			return fmt.Errorf("generation %d is wrapped by version %d after version %d", was.Generation, now.KeyVersion, was.KeyVersion)
		case there:
			continue
		case after.Spec.Rotation.Keep == nil || i < int(*after.Spec.Rotation.Keep) ||
			l.clock.Now().Before(before.Status.Generations[i-1].CreatedAt.Add(24*time.Hour)):
			return fmt.Errorf("generation %d is gone, which is to be kept", was.Generation)
		}
		if l.dropped[after.UID] == nil {
			l.dropped[after.UID] = map[int32]bool{}
		}
		l.dropped[after.UID][was.Generation] = true
	}
	return nil
}

func scopeOf(object client.Object, generation int32) envelope.Scope {
	return envelope.Scope{Namespace: object.GetNamespace(), Name: object.GetName(), Generation: uint32(generation)}
}

// spoil is what somebody writes into a Secret who should not.
var spoil = []byte("spoilt")

func spoilt(secret *corev1.Secret) bool {
	return slices.ContainsFunc(slices.Collect(maps.Values(secret.Data)), func(v []byte) bool { return bytes.Equal(v, spoil) })
}

// blobsIn returns the blobs in the Secret of a DataKeyRequest by generation, and an error unless it is as one has to be.
func blobsIn(secret *corev1.Secret) (map[int32][]byte, error) {
	blobs, newest := map[int32][]byte{}, int32(0)
	for entry, bytes := range secret.Data {
		name, suffix, _ := strings.Cut(entry, ".")
		if name != v1alpha1.SecretKeyCiphertextBlob {
			continue
		}
		blob, err := envelope.Parse(bytes)
		if err != nil {
			return nil, fmt.Errorf("entry %s: %w", entry, err)
		}
		h := blob.Header
		generation := int32(h.Scope.Generation)
		if suffix == "" {
			suffix, newest = string(secret.Data[v1alpha1.SecretKeyGeneration]), generation
		} else {
			suffix = "." + suffix
		}
		version := secret.Data[strings.Replace(entry, name, v1alpha1.SecretKeyKeyVersion, 1)]
		if h.Scope != scopeOf(secret, generation) || strings.TrimPrefix(suffix, ".") != strconv.Itoa(int(generation)) ||
			string(version) != strconv.Itoa(int(h.KeyVersion)) || h.KeyID.String() != string(secret.Data[v1alpha1.SecretKeyKeyID]) {
			return nil, fmt.Errorf("entry %s has a blob of %+v, version %d", entry, h.Scope, h.KeyVersion)
		}
		blobs[generation] = bytes
	}
	if newest == 0 || newest != slices.Max(slices.Collect(maps.Keys(blobs))) {
		return nil, fmt.Errorf("generation %d stands for the newest of %v", newest, slices.Sorted(maps.Keys(blobs)))
	}
	return blobs, nil
}

// checkAgree says that the Secret and the status of a DataKeyRequest hold the same.
func checkAgree(secret *corev1.Secret, request *v1alpha1.DataKeyRequest) error {
	if secret == nil {
		return errors.New("there is no Secret")
	}
	blobs, err := blobsIn(secret)
	if err != nil {
		return fmt.Errorf("the Secret: %w", err)
	}
	for _, g := range request.Status.Generations {
		if !bytes.Equal(blobs[g.Generation], g.CiphertextBlob) {
			return fmt.Errorf("the Secret has another blob of generation %d than the status", g.Generation)
		}
	}
	if len(blobs) != len(request.Status.Generations) {
		return fmt.Errorf("the Secret has %d generations, the status %d", len(blobs), len(request.Status.Generations))
	}
	return nil
}

// A retelling goes through all states of a place, one after the other, and opens in each of them all that there ever was, with a key
// service that has only what is durable then.
type retelling struct {
	*place

	now     moment
	store   *sealtest.Store
	objects *kmstest.MasterKeys
	// blobs are all that were ever seen, and first the data key that each scope had first.
	blobs     map[string]envelope.Header
	first     map[envelope.Scope]envelope.Plaintext
	specs     map[string]v1alpha1.DataKeyRequestSpec
	destroyed map[string]bool // by key ID
	opened    int
}

// retell returns an error of every state in which something that there ever was did not open as what it was first, unless its master
// key was destroyed, as nothing referred to it any more or its terms allowed that.
func (p *place) retell(ctx context.Context, events []watch.Event) (*retelling, error) {
	r := &retelling{
		place: p, now: moment{}, store: &sealtest.Store{}, objects: &kmstest.MasterKeys{}, blobs: map[string]envelope.Header{},
		first: map[envelope.Scope]envelope.Plaintext{}, specs: map[string]v1alpha1.DataKeyRequestSpec{}, destroyed: map[string]bool{},
	}
	var errs []error
	for _, e := range events {
		before, after := r.now.put(e)
		if err := r.next(ctx, before, after); err != nil {
			errs = append(errs, fmt.Errorf("%s %s, version %s: %w", e.Type, nameOf(e.Object.(client.Object)), e.Object.(client.Object).GetResourceVersion(), err))
		}
	}
	return r, errors.Join(errs...)
}

func (r *retelling) next(ctx context.Context, before, after client.Object) error {
	switch o := cmp.Or(after, before).(type) {
	case *corev1.Secret:
		if o.Namespace == r.system {
			return r.nextMaterial(ctx, before, after)
		}
		if o.Type != v1alpha1.SecretTypeDataKey || after == nil || spoilt(o) {
			return nil
		}
		blobs, err := blobsIn(o)
		if err != nil {
			return err
		}
		return r.meet(ctx, slices.Collect(maps.Values(blobs)))
	case *v1alpha1.DataKeyRequest:
		r.specs[o.Name] = o.Spec
		var blobs [][]byte
		for _, g := range o.Status.Generations {
			blobs = append(blobs, g.CiphertextBlob)
		}
		return r.meet(ctx, blobs)
	}
	return nil
}

func (r *retelling) nextMaterial(ctx context.Context, before, after client.Object) error {
	if after == nil {
		r.store.Delete(before.GetName())
		return r.open(ctx, r.blobs)
	}
	secret := after.(*corev1.Secret)
	r.store.Put(seal.Secret{Name: secret.Name, Type: string(secret.Type), Data: secret.Data})
	if secret.Type == v1alpha1.SecretTypeMasterKey {
		r.objects.Put(kms.MasterKey{KeyID: secret.Name, Namespace: r.tenant, Name: secret.Labels[v1alpha1.LabelMasterKey]})
		if m, err := readMaterial(secret); err == nil && m.record.Destroyed != nil {
			r.destroyed[secret.Name] = true
			if err := r.checkUnreferenced(secret.Name); err != nil && !m.record.OrphanDataKeys {
				return err
			}
		}
	}
	if old, ok := before.(*corev1.Secret); ok && maps.EqualFunc(old.Data, secret.Data, bytes.Equal) {
		return nil
	}
	return r.open(ctx, r.blobs)
}

// checkUnreferenced returns an error if something needs a key that was destroyed.
func (r *retelling) checkUnreferenced(keyID string) error {
	for _, request := range all[*v1alpha1.DataKeyRequest](r.now, r.tenant) {
		if request.Status.KeyID == keyID {
			return fmt.Errorf("destroyed while DataKeyRequest %s refers to it", request.Name)
		}
	}
	for _, secret := range all[*corev1.Secret](r.now, r.tenant) {
		if string(secret.Data[v1alpha1.SecretKeyKeyID]) == keyID {
			return fmt.Errorf("destroyed while Secret %s refers to it", secret.Name)
		}
	}
	return nil
}

// meet opens the blobs that were not there before.
func (r *retelling) meet(ctx context.Context, blobs [][]byte) error {
	anew := map[string]envelope.Header{}
	for _, b := range blobs {
		if _, known := r.blobs[string(b)]; known {
			continue
		}
		blob, err := envelope.Parse(b)
		if err != nil {
			return err
		}
		anew[string(b)] = blob.Header
	}
	maps.Copy(r.blobs, anew)
	return r.open(ctx, anew)
}

// open opens blobs with what is durable.
func (r *retelling) open(ctx context.Context, blobs map[string]envelope.Header) error {
	if len(blobs) == 0 {
		return nil
	}
	service, done, err := openService(ctx, seal.Config{RootKey: r.seal.RootKey, Store: readOnly{r.store}}, r.objects)
	if err != nil {
		return err
	}
	defer done()
	var errs []error
	for blob, h := range blobs {
		if r.destroyed[h.KeyID.String()] {
			continue
		}
		spec := r.specs[h.Scope.Name]
		opened, err := service.Decrypt(ctx, r.caller(), kms.DecryptRequest{
			CiphertextBlob: []byte(blob), AAD: spec.AAD, EncryptionContext: spec.Context(),
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("generation %d of %s, under version %d, does not open: %w", h.Scope.Generation, h.Scope.Name, h.KeyVersion, err))
			continue
		}
		r.opened++
		if first, known := r.first[h.Scope]; !known {
			r.first[h.Scope] = opened.Plaintext
		} else if !first.Equal(opened.Plaintext) {
			errs = append(errs, fmt.Errorf("generation %d of %s is another data key than it was first", h.Scope.Generation, h.Scope.Name))
		}
	}
	return errors.Join(errs...)
}

// checkReady says that whatever is Ready in the last state opens as the request asks for, with its public key, and that its Secret
// and its status agree.
func (r *retelling) checkReady(ctx context.Context) error {
	service, done, err := openService(ctx, seal.Config{RootKey: r.seal.RootKey, Store: readOnly{r.store}}, r.objects)
	if err != nil {
		return err
	}
	defer done()
	for _, request := range all[*v1alpha1.DataKeyRequest](r.now, r.tenant) {
		if !meta.IsStatusConditionTrue(request.Status.Conditions, v1alpha1.ConditionReady) {
			continue
		}
		secret, spec := of[*corev1.Secret](r.now, r.tenant, request.Name), request.Spec
		if err := checkAgree(secret, request); err != nil {
			return fmt.Errorf("%s is Ready: %w", request.Name, err)
		}
		for _, g := range request.Status.Generations {
			sealed, err := service.OpenDataKey(ctx, kms.DataKey{
				MasterKey: kms.MasterKeyRef{KeyID: request.Status.KeyID, Namespace: r.tenant, Name: spec.MasterKeyRef.Name},
				Namespace: r.tenant, Name: request.Name, Generation: g.Generation,
				Length: spec.Length(), KeyPairSpec: string(spec.KeyPairSpec), EncryptionContext: spec.Context(), AAD: spec.AAD,
			}, g.CiphertextBlob)
			if err != nil {
				return fmt.Errorf("%s is Ready: %w", request.Name, err)
			}
			entry := v1alpha1.SecretKeyPublicKey
			if g.Generation != request.Status.Generations[0].Generation {
				entry = v1alpha1.SecretKeyOf(entry, g.Generation)
			}
			if !bytes.Equal(secret.Data[entry], sealed.PublicKey) {
				return fmt.Errorf("%s is Ready: entry %s is not of the private key in the blob", request.Name, entry)
			}
		}
	}
	return nil
}
