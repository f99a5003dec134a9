//go:build e2e

package e2e

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

const appImage = "datakeys/demo-reader:dev"

func masterKey(namespace, name string) *v1alpha1.MasterKey {
	return &v1alpha1.MasterKey{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       v1alpha1.MasterKeySpec{Description: "A key of the end-to-end tests."},
	}
}

func dataKeyRequest(namespace, name string) *v1alpha1.DataKeyRequest {
	return &v1alpha1.DataKeyRequest{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: v1alpha1.DataKeyRequestSpec{
			MasterKeyRef:      v1alpha1.MasterKeyReference{Name: "orders"},
			KeySpec:           v1alpha1.DataKeySpecAES256,
			EncryptionContext: map[string]v1alpha1.EncryptionContextValue{"app": v1alpha1.EncryptionContextValue(name)},
		},
	}
}

// decrypter makes a ServiceAccount that may have the data keys of the named requests, and no other.
func decrypter(namespace, name string, requests ...string) []client.Object {
	return append([]client.Object{&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}},
		permission(namespace, name, requests...)...)
}

// permission lets a ServiceAccount have the data keys of the named requests.
func permission(namespace, serviceAccount string, requests ...string) []client.Object {
	meta := metav1.ObjectMeta{Namespace: namespace, Name: serviceAccount + "-" + strings.Join(requests, "-")}
	return []client.Object{
		&rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
			APIGroups:     []string{v1alpha1.GroupName},
			Resources:     []string{v1alpha1.ResourceDataKeyRequests},
			ResourceNames: requests,
			Verbs:         []string{v1alpha1.VerbDecrypt},
		}}},
		&rbacv1.RoleBinding{
			ObjectMeta: meta,
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: meta.Name},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: serviceAccount}},
		},
	}
}

// pod is a pod whose application sleeps beside the sidecar with the given data keys. It meets the restricted Pod Security
// Standard.
func pod(namespace, name string, dataKeys ...string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:   namespace,
			Name:        name,
			Labels:      map[string]string{v1alpha1.LabelInject: "true"},
			Annotations: map[string]string{v1alpha1.AnnotationDataKeys: strings.Join(dataKeys, ",")},
		},
		Spec: podSpec("sleep"),
	}
}

func podSpec(args ...string) corev1.PodSpec {
	return corev1.PodSpec{
		ServiceAccountName:            "app",
		AutomountServiceAccountToken:  new(false),
		TerminationGracePeriodSeconds: new(int64(5)),
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot:   new(true),
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{container("app", args...)},
	}
}

func container(name string, args ...string) corev1.Container {
	return corev1.Container{
		Name:            name,
		Image:           appImage,
		ImagePullPolicy: corev1.PullIfNotPresent,
		Args:            args,
		SecurityContext: &corev1.SecurityContext{
			AllowPrivilegeEscalation: new(false),
			ReadOnlyRootFilesystem:   new(true),
			Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		},
	}
}

// tenant makes a namespace with a MasterKey, a Ready DataKeyRequest for each name, and the ServiceAccount app that may have
// their data keys.
func tenant(t *testing.T, standard string, requests ...string) string {
	t.Helper()
	namespace := kube.namespace(t, standard)
	kube.create(t, masterKey(namespace, "orders"))
	kube.create(t, decrypter(namespace, "app", requests...)...)
	for _, name := range requests {
		kube.create(t, dataKeyRequest(namespace, name))
	}
	for _, name := range requests {
		waitRequestReady(t, namespace, name)
	}
	return namespace
}

func waitRequestReady(t *testing.T, namespace, name string) *v1alpha1.DataKeyRequest {
	t.Helper()
	return kube.waitFor(t, &v1alpha1.DataKeyRequestList{}, namespace, "DataKeyRequest "+name+" Ready", func(o client.Object) bool {
		request := o.(*v1alpha1.DataKeyRequest)
		for _, condition := range request.Status.Conditions {
			if request.Name == name && condition.Type == v1alpha1.ConditionReady {
				return condition.Status == metav1.ConditionTrue && condition.ObservedGeneration == request.Generation
			}
		}
		return false
	}).(*v1alpha1.DataKeyRequest)
}

// sha256Of asks the pod's socket for the SHA-256 of a data key.
func sha256Of(t *testing.T, namespace, pod, container, dataKey string) string {
	t.Helper()
	stdout, stderr, err := kube.exec(t.Context(), namespace, pod, container, "/reader", "sha256", dataKey)
	if err != nil {
		t.Fatalf("read data key %s in pod %s: %v: %s", dataKey, pod, err, stderr)
	}
	return strings.TrimSpace(string(stdout))
}
