package main

import (
	"cmp"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers"
)

// The kinds of objects of a modelStore.
const (
	kindMasterKey      = "MasterKey"
	kindDataKeyRequest = "DataKeyRequest"
	kindSecret         = "Secret"
)

// objectKey names an object of a modelStore.
type objectKey struct{ kind, namespace, name string }

func (k objectKey) String() string { return k.kind + " " + k.name }

// snapshot is a set of objects, none of which is ever changed.
type snapshot map[objectKey]client.Object

func keyOf(object client.Object) objectKey {
	key := objectKey{namespace: object.GetNamespace(), name: object.GetName()}
	key.kind = kindOf(object)
	return key
}

func kindOf(object any) string {
	switch o := object.(type) {
	case *v1alpha1.MasterKey, *v1alpha1.MasterKeyList:
		return kindMasterKey
	case *v1alpha1.DataKeyRequest, *v1alpha1.DataKeyRequestList:
		return kindDataKeyRequest
	case *corev1.Secret, *corev1.SecretList, *metav1.PartialObjectMetadata, *metav1.PartialObjectMetadataList: // metadata is read of Secrets alone
		return kindSecret
	default:
		panic(fmt.Sprintf("the model has no objects of type %T", o))
	}
}

// asked names the object that a reader asks for.
func asked(name client.ObjectKey, into client.Object) objectKey {
	return objectKey{kindOf(into), name.Namespace, name.Name}
}

// read copies an object, nil where there is none, into another one.
func (s snapshot) read(key objectKey, into client.Object) error {
	object := s[key]
	if object == nil {
		return notFound(key)
	}
	switch out := into.(type) {
	case *v1alpha1.MasterKey:
		object.(*v1alpha1.MasterKey).DeepCopyInto(out)
	case *v1alpha1.DataKeyRequest:
		object.(*v1alpha1.DataKeyRequest).DeepCopyInto(out)
	case *corev1.Secret:
		object.(*corev1.Secret).DeepCopyInto(out)
	case *metav1.PartialObjectMetadata:
		object.(*corev1.Secret).ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	}
	return nil
}

// all returns the objects of a kind, sorted by their names.
func (s snapshot) all(kind string) []client.Object {
	var objects []client.Object
	for key, object := range s {
		if key.kind == kind {
			objects = append(objects, object)
		}
	}
	slices.SortFunc(objects, func(a, b client.Object) int {
		return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
	})
	return objects
}

// list copies the objects that the options select into a list. The indexes say what fields there are.
func (s snapshot) list(list client.ObjectList, indexes []controllers.Index, options []client.ListOption) error {
	var o client.ListOptions
	o.ApplyOptions(options)
	kind := kindOf(list)
	var selected []client.Object
	for _, object := range s.all(kind) {
		if o.Namespace != "" && o.Namespace != object.GetNamespace() || !matches(object, kind, o, indexes) {
			continue
		}
		selected = append(selected, object)
	}
	switch out := list.(type) {
	case *v1alpha1.MasterKeyList:
		out.Items = nil
		for _, object := range selected {
			out.Items = append(out.Items, *object.(*v1alpha1.MasterKey).DeepCopy())
		}
	case *v1alpha1.DataKeyRequestList:
		out.Items = nil
		for _, object := range selected {
			out.Items = append(out.Items, *object.(*v1alpha1.DataKeyRequest).DeepCopy())
		}
	case *corev1.SecretList:
		out.Items = nil
		for _, object := range selected {
			out.Items = append(out.Items, *object.(*corev1.Secret).DeepCopy())
		}
	case *metav1.PartialObjectMetadataList:
		out.Items = nil
		for _, object := range selected {
			out.Items = append(out.Items, metav1.PartialObjectMetadata{ObjectMeta: *object.(*corev1.Secret).ObjectMeta.DeepCopy()})
		}
	}
	return nil
}

func matches(object client.Object, kind string, o client.ListOptions, indexes []controllers.Index) bool {
	if o.FieldSelector == nil {
		return true
	}
	for _, wanted := range o.FieldSelector.Requirements() {
		i := slices.IndexFunc(indexes, func(index controllers.Index) bool {
			_, metadata := index.Object.(*metav1.PartialObjectMetadata) // of pods, of which there are none
			return index.Name == wanted.Field && !metadata && kindOf(index.Object) == kind
		})
		if i < 0 {
			panic("there is no index " + wanted.Field + " of " + kind)
		}
		if !slices.Contains(indexes[i].Values(object), wanted.Value) {
			return false
		}
	}
	return true
}
