package controllers_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/controllers/controllerstest"
)

// Who asks, beside the administrator of the cluster.
const (
	// editor has the role datakeys-edit, and may delete namespaces.
	editor = "editor"
	// restorer has the verb restore too.
	restorer = "restorer"
	// reader has the role datakeys-view.
	reader              = "reader"
	namespaceController = "system:serviceaccount:kube-system:namespace-controller"
	controllerManager   = "system:kube-controller-manager"
	garbageCollector    = "system:serviceaccount:kube-system:generic-garbage-collector"
)

// guarded is an API server of its own, with the policies and the roles for people of config/. Other tests delete MasterKeys that
// no policy would let go.
type guarded struct {
	config *rest.Config
	client client.Client
}

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	config, stop, err := controllerstest.StartAPIServer("../config/crd/bases")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	g := &guarded{config: config}
	g.client = g.as(t, "")

	objects := readObjects(t, "../config/rbac/roles_for_people.yaml")
	var policy struct{ Resources []string }
	text, err := os.ReadFile("../config/policy/kustomization.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, &policy); err != nil {
		t.Fatal(err)
	}
	for _, file := range policy.Resources {
		objects = append(objects, readObjects(t, filepath.Join("../config/policy", file))...)
	}
	for _, object := range objects {
		if err := g.client.Create(t.Context(), object); err != nil {
			t.Fatalf("%s %s: %v", object.GetKind(), object.GetName(), err)
		}
	}
	g.grant(t, editor, "datakeys-edit")
	g.grant(t, editor, "namespace-deleter", rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"namespaces"}, Verbs: []string{"delete"}})
	g.grant(t, restorer, "datakeys-edit")
	g.grant(t, restorer, "datakeys-restorer", rbacv1.PolicyRule{APIGroups: []string{v1alpha1.GroupName}, Resources: []string{"masterkeys"}, Verbs: []string{"restore"}})
	g.grant(t, reader, "datakeys-view")
	return g
}

// readObjects reads the objects of a file of YAML.
func readObjects(t *testing.T, file string) []*unstructured.Unstructured {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var objects []*unstructured.Unstructured
	for decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096); ; {
		object := &unstructured.Unstructured{}
		switch err := decoder.Decode(&object.Object); {
		case errors.Is(err, io.EOF):
			return objects
		case err != nil:
			t.Fatalf("%s: %v", file, err)
		case len(object.Object) > 0:
			objects = append(objects, object)
		}
	}
}

// grant binds a ClusterRole, which it makes where there are rules, for the whole cluster.
func (g *guarded) grant(t *testing.T, user, role string, rules ...rbacv1.PolicyRule) {
	t.Helper()
	if len(rules) > 0 {
		if err := g.client.Create(t.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: role}, Rules: rules}); err != nil {
			t.Fatal(err)
		}
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: user + "-" + role},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user}},
	}
	if err := g.client.Create(t.Context(), binding); err != nil {
		t.Fatal(err)
	}
}

// as is the client of a user, of the cluster's administrator without a name.
func (g *guarded) as(t *testing.T, user string) client.Client {
	t.Helper()
	config := rest.CopyConfig(g.config)
	config.Impersonate.UserName = user
	c, err := client.New(config, client.Options{Scheme: newScheme(t)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// eventually calls a function until it says that it is done. The API server tells nobody when it has taken in a policy, or an object
// that a policy looks at.
func eventually(t *testing.T, what string, done func(ctx context.Context) bool) {
	t.Helper()
	ctx := deadline(t)
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for !done(ctx) {
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// A guardedKey is a MasterKey as a policy meets it.
type guardedKey struct {
	name        string
	annotations map[string]string
	spec        v1alpha1.MasterKeySpec
	status      v1alpha1.MasterKeyStatus
}

const guardedKeyID = "8a6d5c1e-1f8f-4f0e-9d3b-0a1b2c3d4e5f"

// withMaterial has the annotations of a key that has material, and more of them.
func withMaterial(more ...string) map[string]string {
	annotations := map[string]string{v1alpha1.AnnotationKeyID: guardedKeyID}
	for i := 0; i < len(more); i += 2 {
		annotations[more[i]] = more[i+1]
	}
	return annotations
}

func (g *guarded) makeKey(t *testing.T, namespace string, key guardedKey) *v1alpha1.MasterKey {
	t.Helper()
	object := &v1alpha1.MasterKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: key.name, Annotations: key.annotations},
		Spec:       key.spec,
	}
	if err := g.client.Create(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	if key.status.KeyID != "" || key.status.State != "" {
		object.Status = key.status
		if err := g.client.Status().Update(t.Context(), object); err != nil {
			t.Fatal(err)
		}
	}
	return object
}

// allowDeletion annotates a key, as the message of the policies says.
func (g *guarded) allowDeletion(t *testing.T, user string, key *v1alpha1.MasterKey) {
	t.Helper()
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:"true"}}}`, v1alpha1.AnnotationAllowDeletion)
	if err := g.as(t, user).Patch(t.Context(), key, client.RawPatch(types.MergePatchType, []byte(patch))); err != nil {
		t.Fatal(err)
	}
}

// waitForPolicies waits until the API server has taken in all of them, and who may do what.
func (g *guarded) waitForPolicies(t *testing.T) {
	t.Helper()
	eventually(t, "every user has his roles", func(ctx context.Context) bool {
		return g.allowed(ctx, t, editor, "delete masterkeys") && g.allowed(ctx, t, restorer, "delete masterkeys") &&
			g.allowed(ctx, t, restorer, "restore masterkeys") && g.allowed(ctx, t, reader, "get masterkeys") &&
			g.allowed(ctx, t, garbageCollector, "delete masterkeys") && g.allowed(ctx, t, namespaceController, "deletecollection masterkeys")
	})
	namespace := controllerstest.NewNamespace(t, g.client)
	key := g.makeKey(t, namespace, guardedKey{name: "sentinel", annotations: withMaterial()})
	refusedBy := func(err error, policy string) bool {
		return apierrors.IsForbidden(err) && strings.Contains(err.Error(), policy)
	}
	eventually(t, "MasterKeys are guarded", func(ctx context.Context) bool {
		return refusedBy(g.client.Delete(ctx, key, client.DryRunAll), "datakeys-masterkey-deletion")
	})
	eventually(t, "namespaces are guarded", func(ctx context.Context) bool {
		return refusedBy(g.as(t, editor).Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, client.DryRunAll), "datakeys-namespace-deletion")
	})
	eventually(t, "key IDs are guarded", func(ctx context.Context) bool {
		other := &v1alpha1.MasterKey{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "other", Annotations: withMaterial()}}
		return refusedBy(g.as(t, editor).Create(ctx, other, client.DryRunAll), "datakeys-key-id")
	})
}

// checkForbidden fails the test unless an error is none where there is nothing to want, and else a refusal that says all of it.
func checkForbidden(t *testing.T, err error, want []string) {
	t.Helper()
	if len(want) == 0 {
		if err != nil {
			t.Errorf("got error %v, want none", err)
		}
		return
	}
	if !apierrors.IsForbidden(err) {
		t.Fatalf("got error %v, want a refusal", err)
	}
	for _, part := range want {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("got error %v, want it to say %s", err, part)
		}
	}
}

func TestPolicies(t *testing.T) {
	t.Parallel()
	g := newGuarded(t)
	g.waitForPolicies(t)
	t.Run("deletion of a MasterKey", g.testMasterKeyDeletion)
	t.Run("deletion of all MasterKeys", g.testMasterKeyCollection)
	t.Run("deletion of a namespace", g.testNamespaceDeletion)
	t.Run("a namespace goes with its keys", g.testNamespaceGoes)
	t.Run("a key ID", g.testKeyID)
	t.Run("roles for people", g.testRoles)
}

func (g *guarded) testMasterKeyDeletion(t *testing.T) {
	t.Parallel()
	due := metav1.NewTime(time.Date(2026, 12, 24, 18, 0, 0, 0, time.UTC))
	ways := []string{
		"datakeys-masterkey-deletion", "MasterKey orders still has its key material",
		"set its spec.state to PendingDeletion and wait until its status.state is Destroyed: status.deletionTime will say when its waiting period ends. Then delete it.",
		"annotate it first: kubectl annotate masterkey orders -n ", " datakeys.io/allow-deletion=true. ",
		"kept for the waiting period", "an account with the verb restore on masterkeys.datakeys.io applies the object again with its annotation datakeys.io/key-id: " + guardedKeyID + ".",
	}
	for name, tc := range map[string]struct {
		user string
		key  guardedKey
		want []string
	}{
		"a key with material stays":                    {editor, guardedKey{annotations: withMaterial()}, ways},
		"even for an administrator of the cluster":     {"", guardedKey{annotations: withMaterial()}, ways},
		"even for who may restore it":                  {restorer, guardedKey{annotations: withMaterial()}, ways},
		"even for the garbage collector":               {garbageCollector, guardedKey{annotations: withMaterial()}, ways},
		"a key whose status alone tells of material":   {editor, guardedKey{status: v1alpha1.MasterKeyStatus{KeyID: guardedKeyID}}, ways},
		"a disabled key":                               {editor, guardedKey{annotations: withMaterial(), spec: v1alpha1.MasterKeySpec{State: v1alpha1.MasterKeyStateDisabled}, status: v1alpha1.MasterKeyStatus{KeyID: guardedKeyID, State: v1alpha1.MasterKeyStateDisabled}}, ways},
		"a key with an empty key ID":                   {editor, guardedKey{annotations: withMaterial(v1alpha1.AnnotationKeyID, ""), status: v1alpha1.MasterKeyStatus{KeyID: guardedKeyID}}, ways[:3]},
		"a key with another word than true":            {editor, guardedKey{annotations: withMaterial(v1alpha1.AnnotationAllowDeletion, "yes")}, ways},
		"a key with true in capitals":                  {editor, guardedKey{annotations: withMaterial(v1alpha1.AnnotationAllowDeletion, "TRUE")}, ways},
		"a key whose annotation is empty":              {editor, guardedKey{annotations: withMaterial(v1alpha1.AnnotationAllowDeletion, "")}, ways},
		"a key that only its spec gives up":            {editor, guardedKey{annotations: withMaterial(), spec: v1alpha1.MasterKeySpec{State: v1alpha1.MasterKeyStatePendingDeletion}}, ways},
		"a key whose deletion was cancelled":           {editor, guardedKey{annotations: withMaterial(), status: v1alpha1.MasterKeyStatus{KeyID: guardedKeyID, State: v1alpha1.MasterKeyStatePendingDeletion, DeletionTime: due}}, ways},
		"a key within its waiting period":              {editor, guardedKey{annotations: withMaterial(), spec: v1alpha1.MasterKeySpec{State: v1alpha1.MasterKeyStatePendingDeletion}, status: v1alpha1.MasterKeyStatus{KeyID: guardedKeyID, State: v1alpha1.MasterKeyStatePendingDeletion, DeletionTime: due}}, []string{"wait until its status.state is Destroyed: its waiting period ends at 2026-12-24T18:00:00Z. Then delete it.", "datakeys.io/allow-deletion=true"}},
		"who may not delete it does not get that far":  {reader, guardedKey{annotations: withMaterial(v1alpha1.AnnotationAllowDeletion, "true")}, []string{`User "reader" cannot delete resource "masterkeys"`}},
		"a key that never had material goes":           {editor, guardedKey{}, nil},
		"a key that waits for its first material goes": {editor, guardedKey{annotations: map[string]string{"team": "a"}, status: v1alpha1.MasterKeyStatus{State: v1alpha1.MasterKeyStateEnabled}}, nil},
		"a destroyed key goes":                         {editor, guardedKey{annotations: withMaterial(), status: v1alpha1.MasterKeyStatus{KeyID: guardedKeyID, State: v1alpha1.MasterKeyStateDestroyed}}, nil},
		"a key that is let go goes":                    {editor, guardedKey{annotations: withMaterial(v1alpha1.AnnotationAllowDeletion, "true")}, nil},
		"the garbage collector takes what is let go":   {garbageCollector, guardedKey{annotations: withMaterial(v1alpha1.AnnotationAllowDeletion, "true")}, nil},
		"the namespace controller takes every key":     {namespaceController, guardedKey{annotations: withMaterial()}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.key.name = "orders"
			key := g.makeKey(t, controllerstest.NewNamespace(t, g.client), tc.key)
			checkForbidden(t, g.as(t, tc.user).Delete(t.Context(), key), tc.want)

			err := g.client.Get(t.Context(), client.ObjectKeyFromObject(key), &v1alpha1.MasterKey{})
			if gone := apierrors.IsNotFound(err); gone != (len(tc.want) == 0) {
				t.Errorf("gone: %v, want %v (%v)", gone, len(tc.want) == 0, err)
			}
		})
	}

	t.Run("the way in the message is one", func(t *testing.T) {
		t.Parallel()
		key := g.makeKey(t, controllerstest.NewNamespace(t, g.client), guardedKey{name: "orders", annotations: withMaterial()})
		if err := g.as(t, editor).Delete(t.Context(), key); !apierrors.IsForbidden(err) {
			t.Fatalf("got error %v, want a refusal", err)
		}
		g.allowDeletion(t, editor, key)
		if err := g.as(t, editor).Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		again := &v1alpha1.MasterKey{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Annotations: withMaterial()}}
		if err := g.as(t, editor).Create(t.Context(), again.DeepCopy()); !apierrors.IsForbidden(err) {
			t.Errorf("an account without the verb restore brings the key back: %v", err)
		}
		if err := g.as(t, restorer).Create(t.Context(), again); err != nil {
			t.Errorf("an account with the verb restore does not bring the key back: %v", err)
		}
	})
}

func (g *guarded) testMasterKeyCollection(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		user string
		want []string
		left []string
	}{
		"stops at a key with material":             {editor, []string{"datakeys-masterkey-deletion", "MasterKey kept still has its key material", "kubectl annotate masterkey kept -n "}, []string{"kept"}},
		"is done for the namespace controller":     {namespaceController, nil, nil},
		"stops for an administrator of everything": {"", []string{"MasterKey kept still has its key material"}, []string{"kept"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			namespace := controllerstest.NewNamespace(t, g.client)
			g.makeKey(t, namespace, guardedKey{name: "kept", annotations: withMaterial()})
			checkForbidden(t, g.as(t, tc.user).DeleteAllOf(t.Context(), &v1alpha1.MasterKey{}, client.InNamespace(namespace)), tc.want)
			keys := &v1alpha1.MasterKeyList{}
			if err := g.client.List(t.Context(), keys, client.InNamespace(namespace)); err != nil {
				t.Fatal(err)
			}
			if len(keys.Items) != len(tc.left) {
				t.Errorf("%d keys are left, want %v", len(keys.Items), tc.left)
			}
		})
	}
}

func (g *guarded) testNamespaceDeletion(t *testing.T) {
	t.Parallel()
	kept := guardedKey{name: "kept", annotations: withMaterial()}
	disabled := guardedKey{name: "disabled", annotations: withMaterial(), status: v1alpha1.MasterKeyStatus{KeyID: guardedKeyID, State: v1alpha1.MasterKeyStateDisabled}}
	destroyed := guardedKey{name: "destroyed", annotations: withMaterial(), status: v1alpha1.MasterKeyStatus{KeyID: guardedKeyID, State: v1alpha1.MasterKeyStateDestroyed}}
	letGo := guardedKey{name: "let-go", annotations: withMaterial(v1alpha1.AnnotationAllowDeletion, "true")}
	fresh := guardedKey{name: "fresh"}
	ways := func(name string) []string {
		return []string{
			"datakeys-namespace-deletion", " holds MasterKey " + name + ", which still has its key material, and maybe more like it.",
			"annotate all of them first: kubectl annotate masterkeys --all -n ", " datakeys.io/allow-deletion=true. ",
			"an account with the verb restore on masterkeys.datakeys.io", "set its spec.state to PendingDeletion",
		}
	}
	t.Run("that never had a key goes", func(t *testing.T) {
		t.Parallel()
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: controllerstest.NewNamespace(t, g.client)}}
		checkForbidden(t, g.as(t, editor).Delete(t.Context(), namespace), nil)
	})
	for name, tc := range map[string]struct {
		user string
		keys []guardedKey
		want []string
	}{
		"with a key that has material stays":                      {editor, []guardedKey{kept}, ways("kept")},
		"stays for an administrator of the cluster":               {"", []guardedKey{kept}, ways("kept")},
		"with a disabled key stays":                               {editor, []guardedKey{disabled}, ways("disabled")},
		"with one key to keep of several stays":                   {editor, []guardedKey{letGo, destroyed, kept, fresh}, ways("kept")},
		"who may not delete it does not get that far":             {reader, []guardedKey{letGo}, []string{`User "reader" cannot delete resource "namespaces"`}},
		"with nothing but the last key goes":                      {editor, nil, nil},
		"with a key that never had material goes":                 {editor, []guardedKey{fresh}, nil},
		"with a destroyed key goes":                               {editor, []guardedKey{destroyed}, nil},
		"with a key that is let go goes":                          {editor, []guardedKey{letGo}, nil},
		"with several keys, none of which is refused, goes":       {editor, []guardedKey{letGo, destroyed, fresh}, nil},
		"goes for the administrator with what the message wishes": {"", []guardedKey{letGo, destroyed, fresh}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			namespace := controllerstest.NewNamespace(t, g.client)
			for _, key := range tc.keys {
				g.makeKey(t, namespace, key)
			}
			object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}

			// The policy sees MasterKeys some time after they were made, and in that order. So it has seen the others when it
			// has seen the last, and what the last became.
			last := g.makeKey(t, namespace, guardedKey{name: "last", annotations: withMaterial()})
			eventually(t, "the policy sees the MasterKeys", func(ctx context.Context) bool {
				return apierrors.IsForbidden(g.client.Delete(ctx, object, client.DryRunAll))
			})
			g.allowDeletion(t, "", last)
			var err error
			eventually(t, "the policy sees that the last MasterKey is let go", func(ctx context.Context) bool {
				err = g.as(t, tc.user).Delete(ctx, object, client.DryRunAll)
				return err == nil || !strings.Contains(err.Error(), "MasterKey last,")
			})
			checkForbidden(t, err, tc.want)
		})
	}
}

// The way that the message names leads to a namespace that is gone with its keys, though there is no namespace controller here:
// the test does what it does.
func (g *guarded) testNamespaceGoes(t *testing.T) {
	t.Parallel()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: controllerstest.NewNamespace(t, g.client)}}
	keys := []*v1alpha1.MasterKey{
		g.makeKey(t, namespace.Name, guardedKey{name: "one", annotations: withMaterial()}),
		g.makeKey(t, namespace.Name, guardedKey{name: "two", annotations: withMaterial()}),
	}
	user := g.as(t, editor)
	eventually(t, "the deletion is refused", func(ctx context.Context) bool {
		return apierrors.IsForbidden(user.Delete(ctx, namespace, client.DryRunAll))
	})
	for _, key := range keys {
		g.allowDeletion(t, editor, key)
	}
	eventually(t, "the deletion begins", func(ctx context.Context) bool {
		return user.Delete(ctx, namespace) == nil
	})
	if err := g.client.Get(t.Context(), client.ObjectKeyFromObject(namespace), namespace); err != nil || namespace.Status.Phase != corev1.NamespaceTerminating {
		t.Fatalf("the namespace is %s (%v), want Terminating", namespace.Status.Phase, err)
	}
	// One key got its material after the namespace was asked about, and the annotation of the other was taken away. In some clusters the
	// namespace controller is not known by a ServiceAccount of its own.
	unset := fmt.Sprintf(`{"metadata":{"annotations":{%q:null}}}`, v1alpha1.AnnotationAllowDeletion)
	for _, key := range keys {
		if err := g.client.Patch(t.Context(), key, client.RawPatch(types.MergePatchType, []byte(unset))); err != nil {
			t.Fatal(err)
		}
	}
	g.grant(t, controllerManager, "masterkey-deleter", rbacv1.PolicyRule{
		APIGroups: []string{v1alpha1.GroupName}, Resources: []string{"masterkeys"}, Verbs: []string{"delete", "deletecollection", "list"},
	})
	for _, user := range []string{controllerManager, namespaceController} {
		var err error
		eventually(t, user+" may empty the namespace", func(ctx context.Context) bool {
			err = g.as(t, user).DeleteAllOf(ctx, &v1alpha1.MasterKey{}, client.InNamespace(namespace.Name))
			return err == nil || g.allowed(ctx, t, user, "deletecollection masterkeys") && apierrors.IsForbidden(err) && strings.Contains(err.Error(), "datakeys-masterkey-deletion")
		})
		if err != nil {
			t.Errorf("%s: %v", user, err)
		}
	}
	left := &v1alpha1.MasterKeyList{}
	if err := g.client.List(t.Context(), left, client.InNamespace(namespace.Name)); err != nil || len(left.Items) > 0 {
		t.Errorf("%d MasterKeys are left (%v)", len(left.Items), err)
	}
}

// Which key a MasterKey is, only who may restore decides.
func (g *guarded) testKeyID(t *testing.T) {
	t.Parallel()
	const other = "11111111-1111-4111-8111-111111111111"
	ways := []string{"datakeys-key-id", "metadata.annotations[datakeys.io/key-id]: editor may not set, change or remove the key ID of a MasterKey.", "an account that has the verb restore on masterkeys.datakeys.io"}
	for name, tc := range map[string]struct {
		user          string
		before, after map[string]string
		want          []string
	}{
		"is not set":                            {editor, nil, withMaterial(), ways},
		"is not changed":                        {editor, withMaterial(), withMaterial(v1alpha1.AnnotationKeyID, other), append(ways[:2:2], "at "+guardedKeyID)},
		"is not removed":                        {editor, withMaterial(), nil, append(ways[:2:2], "at "+guardedKeyID)},
		"is left as it is":                      {editor, withMaterial(), withMaterial("team", "a"), nil},
		"stays out":                             {editor, nil, map[string]string{"team": "a"}, nil},
		"is set by who may restore":             {restorer, nil, withMaterial(), nil},
		"is changed by who may restore":         {restorer, withMaterial(), withMaterial(v1alpha1.AnnotationKeyID, other), nil},
		"is removed by who may restore":         {restorer, withMaterial(), nil, nil},
		"is no matter of a deletion annotation": {editor, withMaterial(), withMaterial(v1alpha1.AnnotationAllowDeletion, "true"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			namespace := controllerstest.NewNamespace(t, g.client)
			key := g.makeKey(t, namespace, guardedKey{name: "orders", annotations: tc.before})
			key.Annotations = tc.after
			checkForbidden(t, g.as(t, tc.user).Update(t.Context(), key), tc.want)
			if tc.before == nil {
				created := &v1alpha1.MasterKey{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "created", Annotations: tc.after}}
				checkForbidden(t, g.as(t, tc.user).Create(t.Context(), created), tc.want)
			}
		})
	}
}

// What each role for people allows on MasterKeys, and that it allows no more: nobody's status, nobody's key ID.
func (g *guarded) testRoles(t *testing.T) {
	t.Parallel()
	seen := []string{"get", "list", "watch"}
	written := []string{"create", "update", "patch", "delete", "deletecollection"}
	served := []string{
		v1alpha1.VerbDecrypt, v1alpha1.VerbDescribeKey, v1alpha1.VerbEncrypt, v1alpha1.VerbGenerateDataKey, v1alpha1.VerbGenerateDataKeyPair,
		v1alpha1.VerbGenerateDataKeyPairWithoutPlaintext, v1alpha1.VerbGenerateDataKeyWithoutPlaintext, v1alpha1.VerbGenerateRandom,
		v1alpha1.VerbListAliases, v1alpha1.VerbListKeys, v1alpha1.VerbReEncryptFrom, v1alpha1.VerbReEncryptTo,
	}
	for role, allowed := range map[string][]string{
		"datakeys-user":  nil,
		"datakeys-view":  seen,
		"datakeys-edit":  written,
		"datakeys-admin": served,
	} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			user := "only-" + role
			g.grant(t, user, role)
			want := map[string]bool{}
			for _, subresource := range []string{"", "status", "finalizers", "scale"} {
				for _, verb := range slices.Concat(seen, written, served, []string{"restore", "bind", "escalate", "impersonate", "*"}) {
					want[strings.TrimSuffix(verb+" masterkeys/"+subresource, "/")] = subresource == "" && slices.Contains(allowed, verb)
				}
			}
			// The API server sees a binding some time after it was made, and all of its role at once. One that allows nothing here is
			// told from one that is not seen yet by what it allows elsewhere.
			eventually(t, "the role is bound", func(ctx context.Context) bool {
				return g.allowed(ctx, t, user, "get masterkeys") || g.allowed(ctx, t, user, "create masterkeys") || g.allowed(ctx, t, user, "decrypt datakeyrequests")
			})
			got := map[string]bool{}
			for what := range want {
				got[what] = g.allowed(t.Context(), t, user, what)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("what the role allows (-want +got):\n%s", diff)
			}
		})
	}
}

// allowed asks the API server's RBAC.
func (g *guarded) allowed(ctx context.Context, t *testing.T, user, what string) bool {
	t.Helper()
	verb, resource, _ := strings.Cut(what, " ")
	resource, subresource, _ := strings.Cut(resource, "/")
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: user,
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: "team-a", Name: "orders", Group: v1alpha1.GroupName, Version: "v1alpha1", Resource: resource, Subresource: subresource, Verb: verb,
		},
	}}
	if err := g.client.Create(ctx, review); err != nil {
		t.Fatal(err)
	}
	return review.Status.Allowed
}
