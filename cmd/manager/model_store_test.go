package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
)

// A modelStore is an API server in memory, for what managers ask of one: resourceVersions that no two states share, UIDs,
// generations, finalizers, preconditions, and the status as a subresource that is applied as a whole. A write takes microseconds, and
// milliseconds with the fake client of controller-runtime, whose resourceVersions and UIDs also let through what an API server does not.
type modelStore struct {
	client.WithWatch // nil: nobody calls what is not implemented here

	scheme  *runtime.Scheme
	now     func() time.Time
	objects snapshot
	// version is the last resourceVersion.
	version, uids int
	// changed is shown every write that took effect. Either object may be nil.
	changed func(key objectKey, before, after client.Object)
}

func (s *modelStore) Scheme() *runtime.Scheme { return s.scheme }

func (s *modelStore) GroupVersionKindFor(object runtime.Object) (schema.GroupVersionKind, error) {
	return apiutil.GVKForObject(object, s.scheme)
}

func notFound(key objectKey) error {
	return apierrors.NewNotFound(schema.GroupResource{Resource: key.kind}, key.name)
}

func conflict(key objectKey, format string, args ...any) error {
	return apierrors.NewConflict(schema.GroupResource{Resource: key.kind}, key.name, fmt.Errorf(format, args...))
}

// serverIndexes are the fields that an API server selects by.
var serverIndexes = []controllers.Index{
	{Object: &corev1.Secret{}, Name: "type", Values: func(o client.Object) []string { return []string{string(o.(*corev1.Secret).Type)} }},
}

func (s *modelStore) Get(_ context.Context, name client.ObjectKey, into client.Object, _ ...client.GetOption) error {
	return s.objects.read(asked(name, into), into)
}

func (s *modelStore) List(_ context.Context, list client.ObjectList, options ...client.ListOption) error {
	return s.objects.list(list, serverIndexes, options)
}

func (s *modelStore) Create(_ context.Context, object client.Object, _ ...client.CreateOption) error {
	key := keyOf(object)
	if s.objects[key] != nil {
		return apierrors.NewAlreadyExists(schema.GroupResource{Resource: key.kind}, key.name)
	}
	made := object.DeepCopyObject().(client.Object)
	setStatus(made, nil)
	s.insert(made)
	return s.objects.read(key, object)
}

// insert puts an object there, as a new one.
func (s *modelStore) insert(object client.Object) {
	s.uids++
	object.SetUID(types.UID(fmt.Sprintf("%08d-0000-4000-8000-000000000000", s.uids)))
	object.SetCreationTimestamp(metav1.NewTime(s.now()).Rfc3339Copy())
	object.SetGeneration(1)
	s.put(keyOf(object), object)
}

func (s *modelStore) Update(_ context.Context, object client.Object, _ ...client.UpdateOption) error {
	key := keyOf(object)
	stored := s.objects[key]
	if err := fits(key, stored, object.GetUID(), object.GetResourceVersion()); err != nil {
		return err
	}
	changed := object.DeepCopyObject().(client.Object)
	setStatus(changed, stored)
	s.replace(key, changed)
	return s.objects.read(key, object)
}

// fits returns an error unless there is the object, with that UID and resourceVersion where these are stated.
func fits(key objectKey, stored client.Object, uid types.UID, version string) error {
	switch {
	case stored == nil:
		return notFound(key)
	case uid != "" && uid != stored.GetUID():
		return conflict(key, "it has the UID %s and not %s", stored.GetUID(), uid)
	case version != "" && version != stored.GetResourceVersion():
		return conflict(key, "it has the resourceVersion %s and not %s", stored.GetResourceVersion(), version)
	}
	return nil
}

// setStatus gives an object the status of another one, or none.
func setStatus(object, of client.Object) {
	switch o := object.(type) {
	case *v1alpha1.MasterKey:
		o.Status = v1alpha1.MasterKeyStatus{}
		if of != nil {
			of.(*v1alpha1.MasterKey).Status.DeepCopyInto(&o.Status)
		}
	case *v1alpha1.DataKeyRequest:
		o.Status = v1alpha1.DataKeyRequestStatus{}
		if of != nil {
			of.(*v1alpha1.DataKeyRequest).Status.DeepCopyInto(&o.Status)
		}
	}
}

// replace puts an object in the place of what it was, and removes it if nothing holds it any more. Where nothing differs, nothing is
// written.
func (s *modelStore) replace(key objectKey, object client.Object) {
	stored := s.objects[key]
	object.SetResourceVersion(stored.GetResourceVersion())
	object.SetUID(stored.GetUID())
	object.SetGeneration(stored.GetGeneration())
	switch o := object.(type) {
	case *v1alpha1.MasterKey:
		if !equality.Semantic.DeepEqual(o.Spec, stored.(*v1alpha1.MasterKey).Spec) {
			o.Generation++
		}
	case *v1alpha1.DataKeyRequest:
		if !equality.Semantic.DeepEqual(o.Spec, stored.(*v1alpha1.DataKeyRequest).Spec) {
			o.Generation++
		}
	}
	switch {
	case !object.GetDeletionTimestamp().IsZero() && len(object.GetFinalizers()) == 0:
		s.remove(key)
	case !equality.Semantic.DeepEqual(object, stored):
		s.put(key, object)
	}
}

func (s *modelStore) put(key objectKey, object client.Object) {
	s.version++
	object.SetResourceVersion(strconv.Itoa(s.version))
	before := s.objects[key]
	s.objects[key] = object
	s.changed(key, before, object)
}

func (s *modelStore) remove(key objectKey) {
	s.version++
	before := s.objects[key]
	delete(s.objects, key)
	s.changed(key, before, nil)
}

func (s *modelStore) Patch(_ context.Context, object client.Object, patch client.Patch, _ ...client.PatchOption) error {
	key := keyOf(object)
	stored := s.objects[key]
	patched, change, err := patchedBy(stored, object, patch)
	if err != nil {
		return err
	}
	if err := fits(key, stored, "", change.ResourceVersion); err != nil {
		return err
	}
	setStatus(patched, stored)
	s.replace(key, patched)
	if s.objects[key] == nil {
		return nil // its last finalizer is gone
	}
	return s.objects.read(key, object)
}

// patchedBy is what a merge patch makes of what is stored, be it nothing, and what the patch says of the metadata.
func patchedBy(stored, object client.Object, patch client.Patch) (patched client.Object, change metav1.ObjectMeta, err error) {
	data, err := patch.Data(object)
	if err != nil {
		return nil, change, err
	}
	of := struct {
		Metadata *metav1.ObjectMeta `json:"metadata"`
	}{&change}
	if err := json.Unmarshal(data, &of); err != nil {
		return nil, change, err
	}
	var into, from map[string]any
	if err := roundTrip(stored, &into); err != nil {
		return nil, change, err
	}
	if err := json.Unmarshal(data, &from); err != nil {
		return nil, change, err
	}
	patched = object.DeepCopyObject().(client.Object)
	switch o := patched.(type) {
	case *v1alpha1.MasterKey:
		*o = v1alpha1.MasterKey{}
	case *v1alpha1.DataKeyRequest:
		*o = v1alpha1.DataKeyRequest{}
	}
	return patched, change, roundTrip(mergeJSON(into, from), patched)
}

// mergeJSON is a merge patch (RFC 7396).
func mergeJSON(into, from map[string]any) map[string]any {
	if into == nil {
		into = map[string]any{}
	}
	for name, value := range from {
		switch value := value.(type) {
		case nil:
			delete(into, name)
		case map[string]any:
			inner, _ := into[name].(map[string]any)
			into[name] = mergeJSON(inner, value)
		default:
			into[name] = value
		}
	}
	return into
}

func roundTrip(from, into any) error {
	data, err := json.Marshal(from)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

func (s *modelStore) Delete(_ context.Context, object client.Object, options ...client.DeleteOption) error {
	var o client.DeleteOptions
	o.ApplyOptions(options)
	key := keyOf(object)
	stored := s.objects[key]
	var uid types.UID
	var version string
	if p := o.Preconditions; p != nil {
		if p.UID != nil {
			uid = *p.UID
		}
		if p.ResourceVersion != nil {
			version = *p.ResourceVersion
		}
	}
	if err := fits(key, stored, uid, version); err != nil {
		return err
	}
	if len(stored.GetFinalizers()) == 0 {
		s.remove(key)
		return nil
	}
	deleted := stored.DeepCopyObject().(client.Object)
	if deleted.GetDeletionTimestamp().IsZero() {
		now := metav1.NewTime(s.now()).Rfc3339Copy()
		deleted.SetDeletionTimestamp(&now)
		s.put(key, deleted)
	}
	return nil
}

// SubResource is that of the status.
func (s *modelStore) SubResource(string) client.SubResourceClient { return modelStatus{store: s} }

type modelStatus struct {
	client.SubResourceClient // nil: nobody calls what is not implemented here

	store *modelStore
}

// Update writes a status.
func (s modelStatus) Update(_ context.Context, object client.Object, _ ...client.SubResourceUpdateOption) error {
	key := keyOf(object)
	stored := s.store.objects[key]
	if err := fits(key, stored, object.GetUID(), object.GetResourceVersion()); err != nil {
		return err
	}
	changed := stored.DeepCopyObject().(client.Object)
	setStatus(changed, object)
	s.store.replace(key, changed)
	return s.store.objects.read(key, object)
}
