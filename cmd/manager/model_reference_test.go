package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
)

// minKeptGeneration is for how long a superseded generation is kept at least, less what the clocks may be apart.
const minKeptGeneration = 24*time.Hour - 5*time.Minute

// A modelReference is what must be true of an installation, whatever happens to it. It is shown every write that takes effect, and knows
// of each material and each data key that was ever durable, by opening them with nothing of the managers but the sealing keys.
type modelReference struct {
	world *modelWorld
	// keyring has the sealing keys.
	keyring *seal.Keyring
	// keys are the master keys by key ID.
	keys map[string]*modelKey
	// materials are all that there ever were.
	materials map[envelope.MaterialID]modelMaterial
	// dataKeys are the data keys by the name of their request.
	dataKeys map[string]*modelDataKey
}

// A modelMaterial is the material of one version of a master key.
type modelMaterial struct {
	keyID    envelope.KeyID
	version  uint32
	material envelope.Material
}

// A modelKey is a master key.
type modelKey struct {
	id, namespace, name string
	// versions are those of the present history: it ends where a backup is restored.
	versions map[uint32]envelope.MaterialID
	record   modelRecord
	// wanted is since when the key is to be destroyed, zero where it is not.
	wanted time.Time
	// periods are the waiting periods that its MasterKey ever stated.
	periods map[time.Duration]bool
}

// modelRecord is the entry "record" of a material.
type modelRecord struct {
	Primary           uint32          `json:"primary"`
	RotateRequestedAt string          `json:"rotateRequestedAt"`
	WaitingPeriod     string          `json:"waitingPeriod"`
	OrphanDataKeys    bool            `json:"orphanDataKeys"`
	Deletion          *modelDeletion  `json:"deletion"`
	Destroyed         json.RawMessage `json:"destroyed"`
}

type modelDeletion struct {
	BeganAt time.Time `json:"beganAt"`
	DueAt   time.Time `json:"dueAt"`
}

// A modelDataKey is the data key of one DataKeyRequest name.
type modelDataKey struct {
	// plaintexts are its generations that were ever durable and are not lost by what was done by hand.
	plaintexts map[int32]envelope.Plaintext
	// superseded is when a newer generation than this one was durable first.
	superseded map[int32]time.Time
	// blobs are what is known of all blobs.
	blobs map[string]modelBlob
	// old are blobs that the Secret had.
	old [][]byte
	// asked is a request to wrap the data key anew, and the version that was the primary one then.
	asked   string
	primary int32
}

// A modelBlob is a blob of a data key. The zero modelBlob does not open.
type modelBlob struct {
	generation, version int32
	keyID               envelope.KeyID
	material            envelope.MaterialID
}

func newModelReference(w *modelWorld, keyring *seal.Keyring) *modelReference {
	r := &modelReference{
		world: w, keyring: keyring,
		keys: map[string]*modelKey{}, materials: map[envelope.MaterialID]modelMaterial{}, dataKeys: map[string]*modelDataKey{},
	}
	for _, request := range modelRequests() {
		r.dataKeys[request.Name] = &modelDataKey{
			plaintexts: map[int32]envelope.Plaintext{}, superseded: map[int32]time.Time{}, blobs: map[string]modelBlob{},
		}
	}
	return r
}

// changed is shown a write. It was made by a manager, or by hand where manager is nil.
func (r *modelReference) changed(manager *modelManager, key objectKey, before, after client.Object) {
	switch {
	case key.kind == kindMasterKey:
		if o, ok := after.(*v1alpha1.MasterKey); ok {
			k := r.key(o.KeyID())
			k.periods[modelWaitingPeriod(o)] = true
		}
	case key.kind == kindSecret && key.namespace == modelSystem:
		if envelopeKeyID(key.name) != nil {
			b, _ := before.(*corev1.Secret)
			a, _ := after.(*corev1.Secret)
			r.materialChanged(manager, r.key(key.name), b, a)
		}
	default:
		r.dataKeyChanged(manager, key, before, after)
	}
	for _, k := range r.keys {
		switch wanted := k.toBeDestroyed(r.world.store.objects); {
		case wanted && k.wanted.IsZero():
			k.wanted = r.world.now
		case !wanted && k.record.Deletion == nil:
			k.wanted = time.Time{}
		}
	}
}

func envelopeKeyID(text string) *envelope.KeyID {
	id, err := envelope.ParseKeyID(text)
	if err != nil {
		return nil
	}
	return &id
}

func modelWaitingPeriod(o *v1alpha1.MasterKey) time.Duration {
	if o.Spec.Deletion.WaitingPeriod == nil {
		return v1alpha1.DefaultWaitingPeriod
	}
	return o.Spec.Deletion.WaitingPeriod.Duration
}

func (r *modelReference) key(id string) *modelKey {
	k := r.keys[id]
	if k == nil {
		k = &modelKey{id: id, periods: map[time.Duration]bool{}}
		r.keys[id] = k
	}
	return k
}

// object is the MasterKey that material belongs to, nil where it is gone.
func (k *modelKey) object(objects snapshot) *v1alpha1.MasterKey {
	o, _ := objects[objectKey{kindMasterKey, k.namespace, k.name}].(*v1alpha1.MasterKey)
	if o == nil || o.KeyID() != k.id {
		return nil
	}
	return o
}

// toBeDestroyed reports whether somebody wants a key destroyed: by its state, or by deleting its object.
func (k *modelKey) toBeDestroyed(objects snapshot) bool {
	if k.name == "" {
		return false // it never had material
	}
	o := k.object(objects)
	return o == nil || o.Spec.State == v1alpha1.MasterKeyStatePendingDeletion
}

// orphans reports whether the data keys of a key may be lost with it.
func (k *modelKey) orphans(objects snapshot) bool {
	if o := k.object(objects); o != nil {
		return o.Spec.Deletion.OrphanDataKeys != nil && *o.Spec.Deletion.OrphanDataKeys
	}
	return k.record.OrphanDataKeys
}

// needed names something that needs a key, and is empty where nothing does.
func (k *modelKey) needed(objects snapshot) string {
	for key, object := range objects {
		if key.namespace != k.namespace {
			continue
		}
		for _, blob := range blobsOf(object) {
			if b, err := envelope.Parse(blob); err == nil && b.Header.KeyID.String() == k.id {
				return key.String()
			}
		}
		if o, ok := object.(*v1alpha1.DataKeyRequest); ok && o.Spec.MasterKeyRef.Name == k.name && o.Status.KeyID == "" && k.object(objects) != nil {
			return key.String()
		}
	}
	return ""
}

// blobsOf returns all blobs in a DataKeyRequest or its Secret.
func blobsOf(object client.Object) map[string][]byte {
	blobs := map[string][]byte{}
	switch o := object.(type) {
	case *v1alpha1.DataKeyRequest:
		if o == nil {
			return nil
		}
		for i, g := range o.Status.Generations {
			blobs[fmt.Sprintf("generation %d at %d", g.Generation, i)] = g.CiphertextBlob
		}
	case *corev1.Secret:
		if o == nil || o.Type != v1alpha1.SecretTypeDataKey {
			return nil
		}
		for entry, value := range o.Data {
			if entry == v1alpha1.SecretKeyCiphertextBlob || strings.HasPrefix(entry, v1alpha1.SecretKeyCiphertextBlob+".") {
				blobs[entry] = value
			}
		}
	}
	return blobs
}

// materialChanged is shown a write of the Secret with the material of a key.
func (r *modelReference) materialChanged(manager *modelManager, k *modelKey, before, after *corev1.Secret) {
	versions := map[uint32]envelope.MaterialID{}
	var record modelRecord
	if after != nil {
		for entry, sealed := range after.Data {
			if number, ok := seal.ParseVersionEntry(entry); ok {
				versions[number] = r.unseal(k, number, sealed)
			}
		}
		if err := json.Unmarshal(after.Data["record"], &record); err != nil {
			r.world.failf("the record of key %s: %v", k.id, err)
			return
		}
	}
	switch {
	case manager == nil && after == nil: // by hand: none may be made in its place
		return
	case manager == nil: // restored: another history begins
		if record.Deletion != nil {
			k.wanted = record.Deletion.BeganAt
		}
	case after == nil:
		if !k.destroyed() || k.object(manager.seen) != nil && k.object(r.world.store.objects) != nil {
			r.world.failf("%s removed the material of key %s", manager.name, k.id)
		}
		return
	case before == nil && k.name != "" && len(k.versions)+len(k.record.Destroyed) > 0:
		r.world.failf("%s made key %s a second time", manager.name, k.id)
	case len(record.Destroyed) > 0 && !k.destroyed():
		r.checkDestruction(manager, k)
	default:
		r.checkVersions(manager, k, versions, record)
		r.checkDeletion(manager, k, record)
	}
	k.versions, k.record = versions, record
}

func (k *modelKey) destroyed() bool { return len(k.record.Destroyed) > 0 }

// unseal opens a sealed version and remembers its material.
func (r *modelReference) unseal(k *modelKey, number uint32, sealed []byte) envelope.MaterialID {
	of, id, material, err := r.keyring.Unseal(context.Background(), *envelopeKeyID(k.id), number, sealed)
	if err != nil {
		r.world.failf("version %d of key %s does not open: %v", number, k.id, err)
		return envelope.MaterialID{}
	}
	k.namespace, k.name = of.Namespace, of.Name
	if _, found := r.materials[id]; found {
		material.Destroy()
	} else {
		r.materials[id] = modelMaterial{*envelopeKeyID(k.id), number, material}
	}
	return id
}

// checkVersions makes sure that versions come one by one and never change, and that one becomes the primary one when it is durable.
func (r *modelReference) checkVersions(manager *modelManager, k *modelKey, versions map[uint32]envelope.MaterialID, record modelRecord) {
	for number, id := range k.versions {
		if versions[number] != id {
			r.world.failf("%s replaced or lost version %d of key %s", manager.name, number, k.id)
		}
	}
	if _, found := versions[record.Primary]; !found || record.Primary < k.record.Primary {
		r.world.failf("%s made version %d of key %s the primary one, after version %d of %d", manager.name, record.Primary, k.id, k.record.Primary, len(versions))
	}
	if _, durable := k.versions[record.Primary]; len(k.versions) > 0 && !durable {
		r.world.failf("%s made version %d of key %s the primary one before it was durable", manager.name, record.Primary, k.id)
	}
	seen, _ := manager.seen[objectKey{kindSecret, modelSystem, k.id}].(*corev1.Secret)
	asked := record.RotateRequestedAt != k.record.RotateRequestedAt || seen != nil && len(sealedVersions(seen)) > int(k.record.Primary)
	if record.Primary > k.record.Primary && len(k.versions) > 0 && !asked && manager.clock.jumped() {
		r.world.failf("%s rotated key %s by a clock that jumped", manager.name, k.id)
	}
	for number := range versions {
		if number > record.Primary+1 {
			r.world.failf("%s made version %d of key %s, whose primary version is %d", manager.name, number, k.id, record.Primary)
		}
	}
}

// checkDeletion makes sure that a waiting period has its whole length and never gets shorter.
func (r *modelReference) checkDeletion(manager *modelManager, k *modelKey, record modelRecord) {
	before, after := k.record.Deletion, record.Deletion
	if after == nil {
		return
	}
	period, err := time.ParseDuration(record.WaitingPeriod)
	switch {
	case err != nil || !k.periods[period]:
		r.world.failf("%s gave key %s a waiting period of %s, which its MasterKey never stated", manager.name, k.id, record.WaitingPeriod)
	case before != nil && after.DueAt.Before(before.DueAt):
		r.world.failf("%s brought the end of the waiting period of key %s nearer, from %s to %s", manager.name, k.id, before.DueAt, after.DueAt)
	case before == nil && after.BeganAt.Before(r.world.now.Truncate(time.Second)):
		r.world.failf("%s began the waiting period of key %s in the past, at %s", manager.name, k.id, after.BeganAt)
	case after.DueAt.Sub(after.BeganAt) < period:
		r.world.failf("%s lets the waiting period of key %s, of %s, end after %s", manager.name, k.id, period, after.DueAt.Sub(after.BeganAt))
	}
	if k.wanted.IsZero() {
		k.wanted = r.world.now // by a cache that lags
	}
}

// checkDestruction makes sure that a manager may destroy a key now. What was true when its step began counts too: nobody can look at
// everything in one moment.
func (r *modelReference) checkDestruction(manager *modelManager, k *modelKey) {
	fail := func(format string, args ...any) {
		r.world.failf("%s destroyed key %s %s", manager.name, k.id, fmt.Sprintf(format, args...))
	}
	seen, now := manager.seen, r.world.store.objects
	if !k.toBeDestroyed(seen) && !k.toBeDestroyed(now) {
		fail("although nobody wants that")
	}
	if !k.orphans(seen) && !k.orphans(now) && k.needed(seen) != "" && k.needed(now) != "" {
		fail("although %s needs it", k.needed(now))
	}
	shortest := time.Duration(0)
	for period := range k.periods {
		if shortest == 0 || period < shortest {
			shortest = period
		}
	}
	switch d := k.record.Deletion; {
	case d == nil:
		fail("without a waiting period")
	case r.world.now.Before(d.DueAt):
		fail("at %s, before %s", r.world.now, d.DueAt)
	case r.world.now.Before(k.wanted.Add(shortest)):
		fail("at %s, which is wanted since %s", r.world.now, k.wanted)
	}
}
