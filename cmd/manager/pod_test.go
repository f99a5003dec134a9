package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/certs"
)

// A pod of the tenant may decrypt, and asks managers as its sidecar would.
type pod struct {
	token string
	tls   *tls.Config
}

// newPod makes a pod with a token. A manager must have run.
func (p *place) newPod(t *testing.T) *pod {
	t.Helper()
	const name = "app"
	in := metav1.ObjectMeta{Namespace: p.tenant, Name: name}
	account := &corev1.ServiceAccount{ObjectMeta: in}
	object := &corev1.Pod{ObjectMeta: in, Spec: corev1.PodSpec{
		ServiceAccountName: name, Containers: []corev1.Container{{Name: name, Image: "app"}},
	}}
	p.create(t, account, object,
		&rbacv1.Role{ObjectMeta: in, Rules: []rbacv1.PolicyRule{{
			Verbs: []string{v1alpha1.VerbDecrypt}, APIGroups: []string{v1alpha1.GroupName}, Resources: []string{v1alpha1.ResourceMasterKeys},
		}}},
		&rbacv1.RoleBinding{
			ObjectMeta: in, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: p.tenant, Name: name}},
		})
	token := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		Audiences:      []string{v1alpha1.TokenAudience},
		BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: name, UID: object.UID},
	}}
	if err := p.client.SubResource("token").Create(t.Context(), account, token); err != nil {
		t.Fatal(err)
	}
	var roots corev1.Secret
	if err := p.client.Get(t.Context(), client.ObjectKey{Namespace: p.system, Name: certs.SecretName}, &roots); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots.Data["root-1.crt"]) {
		t.Fatal("there is no root certificate")
	}
	return &pod{token: token.Status.Token, tls: &tls.Config{
		RootCAs: pool, ServerName: certs.ServiceDNSNames("datakeys-key-service", p.system)[2], MinVersion: tls.VersionTLS13,
	}}
}

// opens asks the manager at an address for data keys, once it answers. The error is nil where each is as it was first.
func (d *pod) opens(ctx context.Context, address string, kept []keptKey) error {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(d.tls)))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+d.token), time.Minute)
	defer cancel()
	request := &kmsv1.BatchDecryptRequest{}
	for _, k := range kept {
		request.Requests = append(request.Requests, &kmsv1.DecryptRequest{CiphertextBlob: k.blob, Aad: k.aad})
	}
	response, err := kmsv1.NewKeyServiceClient(conn).BatchDecrypt(ctx, request, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("the pod gets no answer: %w", err)
	}
	if got := len(response.GetResults()); got != len(kept) {
		return fmt.Errorf("the pod gets %d answers to %d requests", got, len(kept))
	}
	for i, k := range kept {
		if refusal := response.GetResults()[i].GetRefusal(); refusal != nil {
			return fmt.Errorf("the pod is refused %s: %s", k.name, refusal.GetMessage())
		}
		if !k.is(response.GetResults()[i].GetResponse().GetPlaintext()) {
			return fmt.Errorf("the pod gets another data key %s than before", k.name)
		}
	}
	return nil
}
