package main

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// damages are what is done by hand to what managers wrote. Of the two copies of a data key one stays whole.
func damages() []operation {
	return []operation{
		{4, (*modelWorld).damageSecret},
		{4, (*modelWorld).damageStatus},
		{2, (*modelWorld).damageMasterKeyStatus},
		{1, (*modelWorld).removeRetained},
	}
}

func restores() []operation {
	return []operation{
		{4, (*modelWorld).takeBackup},
		{2, (*modelWorld).restore},
		{1, (*modelWorld).removeMaterial},
		{2, (*modelWorld).putMaterialBack},
	}
}

// holds reports whether one place has every generation that another one has.
func (w *modelWorld) holds(name string, whole, other client.Object) bool {
	all := w.reference.copies(name, nil, nil)
	for _, object := range []client.Object{whole, other} {
		switch o := object.(type) {
		case *corev1.Secret:
			maps.Copy(all, w.reference.copies(name, nil, o))
		case *v1alpha1.DataKeyRequest:
			maps.Copy(all, w.reference.copies(name, o, nil))
		}
	}
	var has map[int32]bool
	switch o := whole.(type) {
	case *corev1.Secret:
		has = w.reference.copies(name, nil, o)
	case *v1alpha1.DataKeyRequest:
		has = w.reference.copies(name, o, nil)
	}
	return len(has) > 0 && len(has) == len(all)
}

func (w *modelWorld) damageSecret() string {
	request := w.anyRequest()
	if request == nil || !request.DeletionTimestamp.IsZero() {
		return ""
	}
	secret := w.secret(request.Name)
	if secret == nil || !w.holds(request.Name, request, secret) {
		return ""
	}
	entries := slices.Sorted(maps.Keys(blobsOf(secret)))
	if len(entries) == 0 {
		return ""
	}
	entry, old := pick(w, entries), w.reference.dataKeys[request.Name].old
	var what string
	change := func(do func(*corev1.Secret)) { edit(w, secret, do) }
	switch w.random.IntN(5) {
	case 0:
		what = "delete it"
		w.store.remove(keyOf(secret))
	case 1:
		what = "garbage in " + entry
		change(func(s *corev1.Secret) { s.Data[entry] = []byte("garbage") })
	case 2:
		what = "an older blob in " + entry
		change(func(s *corev1.Secret) { s.Data[entry] = pick(w, old) })
	case 3:
		what = "take " + entry + " away"
		change(func(s *corev1.Secret) { delete(s.Data, entry) })
	default:
		what = "another entry, and no label"
		change(func(s *corev1.Secret) { s.Data["other"], s.Labels = []byte(w.count()), nil })
	}
	return fmt.Sprintf("edit Secret %s by hand: %s", secret.Name, what)
}

func (w *modelWorld) damageStatus() string {
	request := w.anyRequest()
	if request == nil || !request.DeletionTimestamp.IsZero() || len(request.Status.Generations) == 0 {
		return ""
	}
	if secret := w.secret(request.Name); secret == nil || !w.holds(request.Name, secret, request) {
		return ""
	}
	what, i := "", w.random.IntN(len(request.Status.Generations))
	edit(w, request, func(o *v1alpha1.DataKeyRequest) {
		s := &o.Status
		switch w.random.IntN(6) {
		case 0:
			what, *s = "all of it is gone", v1alpha1.DataKeyRequestStatus{}
		case 1:
			what, s.Generations = "no generations", nil
		case 2:
			what, s.Generations = fmt.Sprintf("generation %d is gone", s.Generations[i].Generation), slices.Delete(s.Generations, i, i+1)
		case 3:
			what, s.Generations[i].CiphertextBlob = fmt.Sprintf("garbage for generation %d", s.Generations[i].Generation), []byte("garbage")
		case 4:
			what, s.Generations[i].KeyVersion, s.KeyVersion = "wrong versions", 77, new(int32(78))
		default:
			what, s.Conditions = "no conditions", nil
		}
	})
	return fmt.Sprintf("edit the status of DataKeyRequest %s by hand: %s", request.Name, what)
}

func (w *modelWorld) damageMasterKeyStatus() string {
	key := w.masterKey(pick(w, modelMasterKeys))
	if key == nil || key.Annotations[v1alpha1.AnnotationKeyID] == "" {
		return ""
	}
	what := ""
	edit(w, key, func(o *v1alpha1.MasterKey) {
		s := &o.Status
		switch w.random.IntN(6) {
		case 0:
			what, *s = "all of it is gone", v1alpha1.MasterKeyStatus{}
		case 1:
			what, s.PrimaryVersion, s.VersionCount = "a wrong version", new(int32(77)), new(int32(78))
		case 2:
			what, s.Aliases = "the aliases of another", modelAliases
		case 3:
			what, s.State = "it is Destroyed", v1alpha1.MasterKeyStateDestroyed
		case 4:
			what, s.KeyID = "another key ID", "99999999-9999-4999-8999-999999999999"
		default:
			what, s.DeletionTime = "it is due", metav1.NewTime(w.now.Add(-1)).Rfc3339Copy()
		}
	})
	return fmt.Sprintf("edit the status of MasterKey %s by hand: %s", key.Name, what)
}

// removeRetained deletes a Secret whose DataKeyRequest is gone.
func (w *modelWorld) removeRetained() string {
	name := pick(w, modelRequests()).Name
	secret := w.secret(name)
	if secret == nil || w.request(name) != nil {
		return ""
	}
	w.store.remove(keyOf(secret))
	return "delete Secret " + name + ", which has no DataKeyRequest"
}

// isBackedUp reports whether backups have an object.
func isBackedUp(key objectKey) bool {
	return key.namespace == modelTenant || envelopeKeyID(key.name) != nil
}

func (w *modelWorld) takeBackup() string {
	w.backup = maps.Clone(w.store.objects)
	maps.DeleteFunc(w.backup, func(key objectKey, _ client.Object) bool { return !isBackedUp(key) })
	return fmt.Sprintf("take a backup of %d objects", len(w.backup))
}

// restore puts a backup in the place of what there is.
func (w *modelWorld) restore() string {
	if len(w.backup) == 0 {
		return ""
	}
	how := pick(w, []string{"all of etcd", "object by object", "object by object, without status", "the material alone", "all but the Secrets of data keys"})
	of := func(key objectKey) bool {
		switch {
		case how == "the material alone":
			return isBackedUp(key) && key.namespace == modelSystem
		case how == "all but the Secrets of data keys":
			return isBackedUp(key) && (key.namespace == modelSystem || key.kind != kindSecret)
		}
		return isBackedUp(key)
	}
	for _, kind := range []string{kindDataKeyRequest, kindMasterKey, kindSecret} {
		for _, object := range w.store.objects.all(kind) {
			// Material that is newer than the backup stays where that is of the material alone.
			if key := keyOf(object); of(key) && (how != "the material alone" || w.backup[key] != nil) {
				w.store.remove(key)
			}
		}
	}
	for _, kind := range []string{kindSecret, kindMasterKey, kindDataKeyRequest} {
		for _, object := range w.backup.all(kind) {
			if !of(keyOf(object)) {
				continue
			}
			o := object.DeepCopyObject().(client.Object)
			if how == "all of etcd" {
				w.store.put(keyOf(o), o)
				continue
			}
			if o.SetDeletionTimestamp(nil); how == "object by object, without status" {
				setStatus(o, nil)
			}
			w.store.insert(o)
		}
	}
	for _, d := range w.reference.dataKeys {
		d.asked = ""
	}
	for id, k := range w.reference.keys {
		if o := w.masterKey(k.name); w.material(id) == nil && (o == nil || o.Annotations[v1alpha1.AnnotationKeyID] != id) {
			w.reference.keys[id] = &modelKey{id: id, periods: k.periods} // it was not made yet
		}
	}
	for _, m := range w.managers {
		m.remembers = true
		if m.refresh(cachedKinds()...); how == "all of etcd" || w.chance(50) {
			m.start()
			how += ", and " + m.name + " starts anew"
		}
	}
	return "restore the backup: " + how
}

func (w *modelWorld) removeMaterial() string {
	secrets := w.materials()
	if len(secrets) == 0 {
		return ""
	}
	secret := pick(w, secrets)
	k := w.reference.keys[secret.Name]
	// An object without the annotation never had this material, as far as anybody can tell.
	if o := w.masterKey(k.name); o == nil || o.Annotations[v1alpha1.AnnotationKeyID] != k.id || k.destroyed() {
		return ""
	}
	w.removed[keyOf(secret)] = secret
	w.store.remove(keyOf(secret))
	return "delete the material of key " + secret.Name
}

func (w *modelWorld) putMaterialBack() string {
	for _, object := range w.removed.all(kindSecret) {
		delete(w.removed, keyOf(object))
		if w.store.objects[keyOf(object)] == nil {
			w.store.insert(object.DeepCopyObject().(client.Object))
			return "put the material of key " + object.GetName() + " back"
		}
	}
	return ""
}
