//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// masterKeyIsDeleted deletes a MasterKey, which takes two steps. A pod that comes then is refused its data key until who may do so
// restores the MasterKey.
func masterKeyIsDeleted(t *testing.T) {
	d := newDrill(t)
	backup := d.backup(t, true, "MasterKeyList")
	key := &v1alpha1.MasterKey{ObjectMeta: metav1.ObjectMeta{Namespace: d.namespace, Name: "orders"}}
	err := kube.client.Delete(t.Context(), key)
	wantRefusal(t, err, "MasterKey orders still has its key material", "datakeys.io/allow-deletion=true", d.keyID)
	annotate(t, key, d.namespace, "orders", v1alpha1.AnnotationAllowDeletion, "true")
	if err := kube.client.Delete(t.Context(), key); err != nil {
		t.Fatalf("delete the MasterKey after it was allowed: %v", err)
	}
	d.waitOrphaned(t)
	said := startServing(t, d.namespace, "orders")
	t.Log(said.waitLine(t, "a refusal", func(line string) bool { return strings.HasPrefix(line, "HTTP 403 Forbidden: MasterKeyNotFound: ") }))
	for name := range d.want {
		d.waitNotReady(t, name)
	}

	wantRefusal(t, d.restore(t, impersonate(t, d.namespace, "editor", "get", "create"), backup, true), "editor may not set, change or remove the key ID")
	if err := d.restore(t, impersonate(t, d.namespace, "restorer", "get", "create", "restore"), backup, false); err != nil {
		t.Fatal(err)
	}
	d.check(t)
	said.waitLine(t, "the data key", func(line string) bool { return line == digests(d.want["orders"])[1] })
}

// namespaceIsDeleted deletes a namespace with all its keys, which takes two steps, makes it again, and restores the objects as they were,
// status and all.
func namespaceIsDeleted(t *testing.T) {
	d := newDrill(t)
	backup := d.backup(t, true, "SecretList", "MasterKeyList", "DataKeyRequestList")
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: d.namespace}}
	err := kube.client.Delete(t.Context(), namespace)
	wantRefusal(t, err, "namespace "+d.namespace+" holds MasterKey orders, which still has its key material", "datakeys.io/allow-deletion=true")
	if err := kube.deleteNamespace(t.Context(), d.namespace); err != nil {
		t.Fatal(err)
	}
	kube.waitGone(t, &corev1.NamespaceList{}, namespace)
	d.waitOrphaned(t)

	kube.create(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: d.namespace, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"},
	}})
	kube.create(t, decrypter(d.namespace, "app", "orders", "payments")...)
	if err := d.restore(t, kube.client, backup, true); err != nil {
		t.Fatal(err)
	}
	d.check(t)
}

// definitionsAreDeleted deletes the custom resource definitions, which asks no policy and takes every MasterKey and DataKeyRequest of the
// cluster with them, installs them again as an upgrade does, and restores the objects of one namespace without their status, the
// DataKeyRequests first.
func definitionsAreDeleted(t *testing.T) {
	d := newDrill(t)
	backup := d.backup(t, false, "DataKeyRequestList", "MasterKeyList")
	err := run(t.Context(), kube.state, "go", "run", "./hack/cluster", "kubectl", "delete", "crd",
		"masterkeys.datakeys.io", "datakeyrequests.datakeys.io", "--timeout=2m")
	if err != nil {
		t.Fatal(err)
	}
	d.waitOrphaned(t)
	install(t, "--reset-values")
	if err := d.restore(t, kube.client, backup, false); err != nil {
		t.Fatal(err)
	}
	d.check(t)
}

// drill is a namespace with a MasterKey that was rotated and two data keys, one of which was rotated too.
type drill struct {
	namespace  string
	keyID, arn string
	// want are the data keys by DataKeyRequest and generation.
	want map[string]map[int32][]byte
}

func newDrill(t *testing.T) *drill {
	t.Helper()
	namespace := tenant(t, "restricted", "orders", "payments")
	requestRotation(t, &v1alpha1.DataKeyRequest{}, namespace, "payments", "once")
	waitRotated(t, namespace, "payments", 1, 2)
	requestRotation(t, &v1alpha1.MasterKey{}, namespace, "orders", "once")
	waitRotated(t, namespace, "orders", 2, 1)
	waitRotated(t, namespace, "payments", 2, 2)
	key := waitKeyReady(t, namespace)
	return &drill{namespace, key.Status.KeyID, key.Status.ARN, map[string]map[int32][]byte{
		"orders": plaintextsOf(t, namespace, "orders"), "payments": plaintextsOf(t, namespace, "payments"),
	}}
}

func waitKeyReady(t *testing.T, namespace string) *v1alpha1.MasterKey {
	t.Helper()
	return kube.waitFor(t, &v1alpha1.MasterKeyList{}, namespace, "MasterKey orders Ready", func(o client.Object) bool {
		return o.(*v1alpha1.MasterKey).Ready()
	}).(*v1alpha1.MasterKey)
}

// backup reads the objects of the namespace as a backup tool does: all of each kind, without what belongs to this one life of theirs.
func (d *drill) backup(t *testing.T, withStatus bool, lists ...string) []*unstructured.Unstructured {
	t.Helper()
	var objects []*unstructured.Unstructured
	for _, kind := range lists {
		list := &unstructured.UnstructuredList{}
		list.SetGroupVersionKind(v1alpha1.SchemeGroupVersion.WithKind(kind))
		if kind == "SecretList" {
			list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind(kind))
		}
		if err := kube.client.List(t.Context(), list, client.InNamespace(d.namespace)); err != nil {
			t.Fatal(err)
		}
		if len(list.Items) == 0 {
			t.Fatalf("there is nothing in the %s of namespace %s", kind, d.namespace)
		}
		for i := range list.Items {
			o := &list.Items[i]
			for _, field := range []string{"uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"} {
				unstructured.RemoveNestedField(o.Object, "metadata", field)
			}
			if !withStatus {
				unstructured.RemoveNestedField(o.Object, "status")
			}
			objects = append(objects, o)
		}
	}
	return objects
}

// restore creates what backup read, and writes the status, where it is asked for, as backup tools do that restore it: after the object.
func (d *drill) restore(t *testing.T, c client.Client, backup []*unstructured.Unstructured, withStatus bool) error {
	t.Helper()
	for _, saved := range backup {
		o := saved.DeepCopy()
		if err := c.Create(t.Context(), o); err != nil {
			return err
		}
		status, found := saved.Object["status"]
		if !withStatus || !found {
			continue
		}
		err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
			if err := c.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
				return err
			}
			o.Object["status"] = status
			return c.Status().Update(t.Context(), o)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// waitOrphaned waits until the material says that its deletion began, and an event tells it.
func (d *drill) waitOrphaned(t *testing.T) {
	t.Helper()
	d.waitDeletion(t, true)
	t.Log(kube.waitEvent(t, systemNamespace, d.keyID, "MasterKey "+d.namespace+"/orders is gone", v1alpha1.ReasonOrphaned).Note)
}

// waitDeletion waits until the material says that its deletion began, or does not say so.
func (d *drill) waitDeletion(t *testing.T, began bool) {
	t.Helper()
	what := map[bool]string{true: "material with a record of deletion", false: "material without a record of deletion"}[began]
	kube.waitFor(t, &corev1.SecretList{}, systemNamespace, what, func(o client.Object) bool {
		if o.GetName() != d.keyID {
			return false
		}
		var record struct {
			Deletion *struct{ BeganAt, DueAt metav1.Time }
		}
		if err := json.Unmarshal(o.(*corev1.Secret).Data["record"], &record); err != nil {
			t.Fatalf("read the record of the material: %v", err)
		}
		return began == (record.Deletion != nil)
	})
}

func (d *drill) waitNotReady(t *testing.T, request string) {
	t.Helper()
	kube.waitFor(t, &v1alpha1.DataKeyRequestList{}, d.namespace, "DataKeyRequest "+request+" not Ready", func(o client.Object) bool {
		return o.GetName() == request && !o.(*v1alpha1.DataKeyRequest).Ready()
	})
}

// check makes sure that everything is back: the key ID and the ARN, no record of deletion, and the bytes of every generation of every data
// key, also for a new pod.
func (d *drill) check(t *testing.T) {
	t.Helper()
	key := waitKeyReady(t, d.namespace)
	if key.Status.KeyID != d.keyID || key.Status.ARN != d.arn || *key.Status.PrimaryVersion != 2 {
		t.Errorf("the MasterKey came back as version %d of %s, want version 2 of %s", *key.Status.PrimaryVersion, key.Status.ARN, d.arn)
	}
	d.waitDeletion(t, false)
	for name := range d.want {
		waitRequestReady(t, d.namespace, name)
	}
	kube.create(t, pod(d.namespace, "fresh", "orders", "payments"))
	kube.waitPodReady(t, d.namespace, "fresh")
	for name, want := range d.want {
		waitRotated(t, d.namespace, name, 2, int32(len(want)))
		if diff := cmp.Diff(digests(want), digests(plaintextsOf(t, d.namespace, name))); diff != "" {
			t.Errorf("data key %s came back as another one: SHA-256 by generation (-want +got)\n%s", name, diff)
		}
		for generation, sum := range digests(want) {
			stdout, stderr, err := kube.exec(t.Context(), d.namespace, "fresh", "app", "/reader", "sha256", fmt.Sprintf("%s?generation=%d", name, generation))
			if got := strings.TrimSpace(string(stdout)); err != nil || got != sum {
				t.Errorf("a new pod reads generation %d of %s as %q, want %s: error %v: %s", generation, name, got, sum, err, stderr)
			}
		}
	}
}

// digests are the SHA-256 of each generation: what may be printed.
func digests(generations map[int32][]byte) map[int32]string {
	sums := map[int32]string{}
	for generation, key := range generations {
		sums[generation] = fmt.Sprintf("%x", sha256.Sum256(key))
	}
	return sums
}

// wantRefusal makes sure that an admission policy refused something with these words.
func wantRefusal(t *testing.T, err error, words ...string) {
	t.Helper()
	if !apierrors.IsForbidden(err) {
		t.Fatalf("got %v, want a refusal", err)
	}
	for _, text := range words {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the refusal does not say %q: %v", text, err)
		}
	}
}

// impersonate gives a user that may do just that to MasterKeys of the namespace, and a client that acts as this user.
func impersonate(t *testing.T, namespace, user string, verbs ...string) client.Client {
	t.Helper()
	meta := metav1.ObjectMeta{Namespace: namespace, Name: user}
	kube.create(t,
		&rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
			APIGroups: []string{v1alpha1.GroupName}, Resources: []string{v1alpha1.ResourceMasterKeys}, Verbs: verbs,
		}}},
		&rbacv1.RoleBinding{
			ObjectMeta: meta,
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: user},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: user}},
		})
	config := rest.CopyConfig(kube.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: user}
	c, err := client.New(config, client.Options{Scheme: kube.client.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
