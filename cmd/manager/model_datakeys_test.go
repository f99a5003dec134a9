package main

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
)

// dataKeyChanged is shown a write of a DataKeyRequest or of its Secret.
func (r *modelReference) dataKeyChanged(manager *modelManager, key objectKey, before, after client.Object) {
	d := r.dataKeys[key.name]
	if d == nil {
		return // no data key has that name
	}
	known := map[string]bool{}
	for _, blob := range blobsOf(before) {
		known[string(blob)] = true
	}
	blobs := blobsOf(after)
	for _, place := range slices.Sorted(maps.Keys(blobs)) {
		blob := blobs[place]
		info := r.open(key.name, blob)
		if manager != nil && !known[string(blob)] && info.generation == 0 {
			r.world.failf("%s wrote a blob of %s that does not open, %s", manager.name, key, place)
		}
		if info.generation != 0 && key.kind == kindSecret && !slices.ContainsFunc(d.old, func(old []byte) bool { return string(old) == string(blob) }) {
			d.old = append(d.old, blob)
		}
	}
	secret, request := r.world.secret(key.name), r.world.request(key.name)
	now := r.copies(key.name, request, secret)
	for generation := range now {
		if _, dated := d.superseded[generation]; !dated && now[generation+1] {
			d.superseded[generation] = r.world.now
		}
		if manager == nil && now[generation+1] { // a backup knows better
			d.superseded[generation] = createdAt(request, generation+1, d.superseded[generation])
		}
	}
	earlier, _ := before.(*v1alpha1.DataKeyRequest)
	if key.kind == kindSecret {
		if manager != nil && after == nil && !lets(request) && !lets(r.seen(manager, key.name)) {
			r.world.failf("%s deleted the Secret of %s, which nobody asked for", manager.name, key.name)
		}
		s, _ := before.(*corev1.Secret)
		secret = s
	} else {
		request = earlier
	}
	was := r.copies(key.name, request, secret)
	later, _ := after.(*v1alpha1.DataKeyRequest)
	if manager != nil && earlier != nil && later != nil && manager.clock.jumped() && later.Status.RotateRequestedAt == earlier.Status.RotateRequestedAt {
		for generation := range now {
			if !was[generation] {
				r.world.failf("%s rotated %s by a clock that jumped", manager.name, key.name)
			}
		}
	}
	for generation := range was {
		if now[generation] {
			continue
		}
		if manager != nil {
			r.checkDrop(manager, key.name, generation, request, now)
		}
		if manager == nil {
			d.forget(generation)
		}
	}
	for generation := range d.plaintexts {
		if r.world.request(key.name) == nil && !now[generation] {
			d.forget(generation)
		}
	}
	if manager != nil && later != nil {
		r.checkServed(manager, d, later, earlier)
	}
}

// createdAt is when a generation was made by the status of its request, and otherwise where that does not say so.
func createdAt(request *v1alpha1.DataKeyRequest, generation int32, otherwise time.Time) time.Time {
	if request != nil {
		for _, g := range request.Status.Generations {
			if g.Generation == generation && g.CreatedAt.Time.Before(otherwise) {
				return g.CreatedAt.Time
			}
		}
	}
	return otherwise
}

// forget lets another data key come in the place of a generation.
func (d *modelDataKey) forget(generation int32) {
	delete(d.plaintexts, generation)
	delete(d.superseded, generation)
}

// copies are the generations that open, of a DataKeyRequest and its Secret.
func (r *modelReference) copies(name string, request *v1alpha1.DataKeyRequest, secret *corev1.Secret) map[int32]bool {
	copies := map[int32]bool{}
	for _, object := range []client.Object{request, secret} {
		for _, blob := range blobsOf(object) {
			if info := r.open(name, blob); info.generation != 0 {
				copies[info.generation] = true
			}
		}
	}
	return copies
}

// open opens a blob by the materials that ever were, and makes sure that its generation is the data key that it always was.
func (r *modelReference) open(name string, data []byte) modelBlob {
	d := r.dataKeys[name]
	info, known := d.blobs[string(data)]
	if known {
		if _, remembered := d.plaintexts[info.generation]; remembered || info.generation == 0 {
			return info
		}
	}
	b, err := envelope.Parse(data)
	if err != nil {
		return info
	}
	h := b.Header
	m, found := r.materials[h.MaterialID]
	if !found || h.KeyID != m.keyID || h.KeyVersion != m.version || h.Scope.Name != name || h.Scope.Namespace != modelTenant {
		return info
	}
	spec := modelRequest(name).Spec
	p, err := m.material.Open(b, envelope.AssociatedData{Context: spec.Context(), Raw: spec.AAD})
	if err != nil {
		return info
	}
	info = modelBlob{int32(h.Scope.Generation), int32(h.KeyVersion), h.KeyID, h.MaterialID}
	if was, found := d.plaintexts[info.generation]; !found {
		d.plaintexts[info.generation] = p
	} else if !was.Equal(p) {
		r.world.failf("there are two different data keys of generation %d of %s", info.generation, name)
	}
	d.blobs[string(data)] = info
	return info
}

// seen is a DataKeyRequest as it was when the present step of a manager began.
func (r *modelReference) seen(manager *modelManager, name string) *v1alpha1.DataKeyRequest {
	o, _ := manager.seen[objectKey{kindDataKeyRequest, modelTenant, name}].(*v1alpha1.DataKeyRequest)
	return o
}

// lets reports whether a DataKeyRequest lets its data key go.
func lets(request *v1alpha1.DataKeyRequest) bool {
	return request != nil && !request.DeletionTimestamp.IsZero() && request.Spec.DeletionPolicy == v1alpha1.DeletionPolicyDelete
}

// checkDrop makes sure that a manager may take the last copy of a generation away.
func (r *modelReference) checkDrop(manager *modelManager, name string, generation int32, before *v1alpha1.DataKeyRequest, now map[int32]bool) {
	newer := int32(0)
	for other := range now {
		if other > generation {
			newer++
		}
	}
	if before != nil && r.world.request(name) == nil {
		return // somebody deleted the request; its Secret was kept, as far as that was up to managers
	}
	for _, request := range []*v1alpha1.DataKeyRequest{r.seen(manager, name), r.world.request(name)} {
		if request == nil {
			continue
		}
		if lets(request) {
			return
		}
		since := r.dataKeys[name].superseded[generation]
		if keep := request.Spec.Rotation.Keep; keep != nil && newer >= *keep && !since.IsZero() && r.world.now.Sub(since) >= minKeptGeneration {
			return
		}
	}
	r.world.failf("%s lost generation %d of %s, superseded at %s", manager.name, generation, name, r.dataKeys[name].superseded[generation])
}

// checkServed makes sure that a request to wrap a data key anew is served when it is said to be.
func (r *modelReference) checkServed(manager *modelManager, d *modelDataKey, after, before *v1alpha1.DataKeyRequest) {
	if d.asked == "" || after.Status.RewrapRequestedAt != d.asked || before != nil && before.Status.RewrapRequestedAt == d.asked {
		return
	}
	served := d.asked
	d.asked = ""
	for _, g := range after.Status.Generations {
		if g.KeyVersion < d.primary {
			r.world.failf("%s says that generation %d of %s is wrapped anew, as request %s asked for when version %d was the primary one, but it is wrapped by version %d",
				manager.name, g.Generation, after.Name, served, d.primary, g.KeyVersion)
		}
	}
}
