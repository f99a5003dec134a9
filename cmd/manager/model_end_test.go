package main

import (
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/seal"
)

// checkEnd checks what must be so when everything has settled.
func (w *modelWorld) checkEnd() {
	claimed := map[string]types.UID{}
	for _, object := range w.store.objects.all(kindMasterKey) {
		key := object.(*v1alpha1.MasterKey)
		w.checkMasterKey(key)
		if w.material(key.KeyID()) == nil {
			continue // what was edited by hand stays in the status until there is material to look at
		}
		for _, alias := range key.Status.Aliases {
			if claimed[alias] != "" || !slices.Contains(key.Spec.Aliases, alias) {
				w.failf("MasterKey %s has the alias %s, which is another's or not in its spec", key.Name, alias)
			}
			claimed[alias] = key.UID
		}
	}
	for _, object := range w.store.objects.all(kindMasterKey) {
		key := object.(*v1alpha1.MasterKey)
		for _, alias := range key.Spec.Aliases {
			if claimed[alias] == "" && w.reasonOfMasterKey(key) == v1alpha1.ReasonReady && len(w.removed) == 0 {
				w.failf("nobody has the alias %s, which MasterKey %s claims", alias, key.Name)
			}
		}
	}
	for _, object := range w.store.objects.all(kindDataKeyRequest) {
		w.checkDataKeyRequest(object.(*v1alpha1.DataKeyRequest))
	}
	for _, secret := range w.materials() {
		k := w.reference.keys[secret.Name]
		if k.object(w.store.objects) == nil && k.destroyed() {
			w.failf("what is left of key %s stays, although it is destroyed and its MasterKey is gone", k.id)
		}
		if k.object(w.store.objects) == nil && !k.destroyed() && k.record.Deletion == nil {
			w.failf("MasterKey %s of key %s is gone, and its waiting period did not begin", k.name, k.id)
		}
	}
}

// material is the Secret with the material of a key ID.
func (w *modelWorld) material(keyID string) *corev1.Secret {
	o, _ := w.store.objects[objectKey{kindSecret, modelSystem, keyID}].(*corev1.Secret)
	return o
}

// reasonOfMasterKey is the reason that the Ready condition of a MasterKey has to have.
func (w *modelWorld) reasonOfMasterKey(o *v1alpha1.MasterKey) string {
	k := w.reference.keys[o.KeyID()]
	switch {
	case w.material(o.KeyID()) == nil:
		return v1alpha1.ReasonMaterialMissing
	case k.name != o.Name:
		return v1alpha1.ReasonMaterialConflict
	case k.destroyed():
		return v1alpha1.ReasonDestroyed
	}
	switch o.Spec.State {
	case v1alpha1.MasterKeyStateDisabled:
		return v1alpha1.ReasonDisabled
	case v1alpha1.MasterKeyStatePendingDeletion:
		if d := k.record.Deletion; d != nil && !w.now.Before(d.DueAt) {
			return v1alpha1.ReasonDeletionBlocked
		}
		return v1alpha1.ReasonPendingDeletion
	default:
		return v1alpha1.ReasonReady
	}
}

func (w *modelWorld) checkMasterKey(o *v1alpha1.MasterKey) {
	ready := meta.FindStatusCondition(o.Status.Conditions, v1alpha1.ConditionReady)
	want := w.reasonOfMasterKey(o)
	k := w.reference.keys[o.KeyID()]
	switch {
	case ready == nil || ready.ObservedGeneration != o.Generation || ready.Reason != want:
		w.failf("MasterKey %s must have the reason %s, and has %+v", o.Name, want, ready)
	case o.Annotations[v1alpha1.AnnotationKeyID] != o.Status.KeyID:
		w.failf("MasterKey %s is key %s by its annotation, and key %s by its status", o.Name, o.Annotations[v1alpha1.AnnotationKeyID], o.Status.KeyID)
	case want == v1alpha1.ReasonDeletionBlocked && (k.orphans(w.store.objects) || !w.named(k) && k.needed(w.store.objects) == ""):
		w.failf("the deletion of MasterKey %s is blocked by nothing", o.Name)
	case want == v1alpha1.ReasonReady && (o.Status.PrimaryVersion == nil || *o.Status.PrimaryVersion != int32(k.record.Primary)):
		w.failf("MasterKey %s does not say that version %d is the primary one", o.Name, k.record.Primary)
	case want == v1alpha1.ReasonReady && k.record.Deletion != nil:
		w.failf("the waiting period of MasterKey %s goes on, although nobody wants it destroyed", o.Name)
	}
}

// named reports whether anything says that it needs a key, be that so or not.
func (w *modelWorld) named(k *modelKey) bool {
	for _, request := range modelRequests() {
		if o := w.request(request.Name); o != nil && o.Status.KeyID == k.id {
			return true
		}
		if secret := w.secret(request.Name); secret != nil && string(secret.Data[v1alpha1.SecretKeyKeyID]) == k.id {
			return true
		}
	}
	return false
}

// lies reports whether the version that wraps a blob lies in the material that there is.
func (w *modelWorld) lies(blob modelBlob) bool {
	secret := w.material(blob.keyID.String())
	if secret == nil {
		return false
	}
	k := w.reference.keys[secret.Name]
	return k.versions[uint32(blob.version)] == blob.material
}

// reasonsOfRequest are the reasons of which the Ready condition of a DataKeyRequest has to have one.
func (w *modelWorld) reasonsOfRequest(o *v1alpha1.DataKeyRequest) []string {
	key := w.masterKey(o.Spec.MasterKeyRef.Name)
	switch {
	case key == nil:
		return []string{v1alpha1.ReasonMasterKeyNotFound}
	case w.reasonOfMasterKey(key) != v1alpha1.ReasonReady:
		return []string{v1alpha1.ReasonMasterKeyNotReady}
	}
	there, opens, others := map[int32]bool{}, map[int32]bool{}, false
	secret := w.secret(o.Name)
	// Without a status the Secret is all there is.
	broken := len(o.Status.Generations) == 0 && o.Status.Generation == nil && secret != nil && len(blobsOf(secret)) == 0
	for _, blobs := range []map[string][]byte{blobsOf(o), blobsOf(secret)} {
		for _, blob := range blobs {
			info := w.reference.open(o.Name, blob)
			if info.generation == 0 {
				broken = broken || len(o.Status.Generations) == 0 && o.Status.Generation == nil
				continue
			}
			there[info.generation] = true
			if info.keyID.String() != key.KeyID() {
				others = true
			} else if w.lies(info) {
				opens[info.generation] = true
			}
		}
	}
	switch {
	case others:
		return []string{v1alpha1.ReasonMasterKeyChanged, v1alpha1.ReasonSecretConflict, v1alpha1.ReasonDataKeyBroken}
	case broken:
		return []string{v1alpha1.ReasonSecretConflict, v1alpha1.ReasonDataKeyBroken}
	case len(opens) < len(there):
		return []string{v1alpha1.ReasonKeyVersionMissing, v1alpha1.ReasonSecretConflict}
	default:
		return []string{v1alpha1.ReasonReady}
	}
}

func (w *modelWorld) checkDataKeyRequest(o *v1alpha1.DataKeyRequest) {
	ready := meta.FindStatusCondition(o.Status.Conditions, v1alpha1.ConditionReady)
	want := w.reasonsOfRequest(o)
	switch {
	case !o.DeletionTimestamp.IsZero():
		w.failf("DataKeyRequest %s is not let go", o.Name)
		return
	case ready == nil || ready.ObservedGeneration != o.Generation || !slices.Contains(want, ready.Reason):
		w.failf("DataKeyRequest %s must have the reason %s, and has %+v", o.Name, want, ready)
		return
	case ready.Reason != v1alpha1.ReasonReady:
		return
	}
	primary := int32(w.reference.keys[o.Status.KeyID].record.Primary)
	rewrapped := meta.FindStatusCondition(o.Status.Conditions, v1alpha1.ConditionRewrapped)
	secret, d := w.secret(o.Name), w.reference.dataKeys[o.Name]
	all := w.reference.copies(o.Name, o, secret)
	if secret == nil || secret.Type != v1alpha1.SecretTypeDataKey || len(o.Status.Generations) != len(all) {
		w.failf("DataKeyRequest %s is Ready and lacks its Secret, or one of %d generations", o.Name, len(all))
		return
	}
	for i, g := range o.Status.Generations {
		info := w.reference.open(o.Name, g.CiphertextBlob)
		entry := v1alpha1.SecretKeyCiphertextBlob
		if i > 0 {
			entry = v1alpha1.SecretKeyOf(entry, g.Generation)
		}
		switch {
		case info.generation != g.Generation || info.version != g.KeyVersion || !w.lies(info):
			w.failf("DataKeyRequest %s is Ready, and its generation %d does not open as that", o.Name, g.Generation)
		case string(secret.Data[entry]) != string(g.CiphertextBlob):
			w.failf("the Secret of DataKeyRequest %s does not have generation %d as its status has it", o.Name, g.Generation)
		case g.KeyVersion < primary && rewrapped != nil && rewrapped.Status == "True":
			w.failf("DataKeyRequest %s says that it is wrapped anew, and version %d of %d wraps its generation %d", o.Name, g.KeyVersion, primary, g.Generation)
		case g.KeyVersion < primary && o.Spec.RewrapPolicy != v1alpha1.RewrapPolicyManual:
			w.failf("version %d of %d wraps generation %d of DataKeyRequest %s", g.KeyVersion, primary, g.Generation, o.Name)
		case i == 0 && string(secret.Data[v1alpha1.SecretKeyGeneration]) != strconv.Itoa(int(g.Generation)):
			w.failf("the Secret of DataKeyRequest %s does not say that its generation is %d", o.Name, g.Generation)
		}
		if _, remembered := d.plaintexts[g.Generation]; !remembered {
			w.failf("nobody knows of generation %d of DataKeyRequest %s", g.Generation, o.Name)
		}
	}
}

// sealedVersions are the numbers of the versions in a Secret with material.
func sealedVersions(secret *corev1.Secret) (numbers []uint32) {
	for entry := range secret.Data {
		if number, ok := seal.ParseVersionEntry(entry); ok {
			numbers = append(numbers, number)
		}
	}
	return numbers
}

// destroy lets go what the reference holds.
func (r *modelReference) destroy() {
	for _, m := range r.materials {
		m.material.Destroy()
	}
	for _, d := range r.dataKeys {
		for _, p := range d.plaintexts {
			p.Destroy()
		}
	}
}
