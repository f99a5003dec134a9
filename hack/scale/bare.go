package main

import (
	"context"
	"crypto/rand"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// bare is a client that writes what the manager would write, of the same sizes, and does nothing else.
type bare struct {
	client   client.Client
	requests []*v1alpha1.DataKeyRequest
	secrets  []*corev1.Secret
}

// make writes the Secret of a request and its status.
func (b *bare) make(ctx context.Context, i int) error {
	blob, request := randomBlob(), b.requests[i]
	b.secrets[i] = &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: tenant, Name: request.Name, Labels: map[string]string{v1alpha1.LabelManagedBy: "bare"}},
		Type:       v1alpha1.SecretTypeDataKey,
		Data: map[string][]byte{
			v1alpha1.SecretKeyCiphertextBlob: blob, v1alpha1.SecretKeyIV: blob[:12], v1alpha1.SecretKeyAlgorithm: []byte(v1alpha1.AlgorithmAESGCM),
			v1alpha1.SecretKeyKeyID: []byte(request.UID), v1alpha1.SecretKeyKeyVersion: []byte("1"), v1alpha1.SecretKeyGeneration: []byte("1"),
			v1alpha1.SecretKeyEncryptionContext: []byte(`{"tenant":"a"}`),
		},
	}
	if err := b.client.Create(ctx, b.secrets[i]); err != nil {
		return err
	}
	return b.writeStatus(ctx, request, 1, blob)
}

// rewrap writes the status of a request and its Secret anew.
func (b *bare) rewrap(ctx context.Context, i int) error {
	blob := randomBlob()
	if err := b.writeStatus(ctx, b.requests[i], 2, blob); err != nil {
		return err
	}
	b.secrets[i].Data[v1alpha1.SecretKeyCiphertextBlob], b.secrets[i].Data[v1alpha1.SecretKeyKeyVersion] = blob, []byte("2")
	return b.client.Update(ctx, b.secrets[i])
}

func (b *bare) writeStatus(ctx context.Context, request *v1alpha1.DataKeyRequest, version int32, blob []byte) error {
	now := metav1.Now()
	request.Status = v1alpha1.DataKeyRequestStatus{
		ObservedGeneration: new(int64(1)), KeyID: string(request.UID), KeyVersion: new(version), Generation: new(int32(1)), LastRotationTime: now,
		Generations: []v1alpha1.DataKeyGeneration{{Generation: 1, KeyVersion: version, CreatedAt: now, CiphertextBlob: blob}},
	}
	for _, kind := range []string{v1alpha1.ConditionReady, v1alpha1.ConditionRewrapped} {
		request.Status.Conditions = append(request.Status.Conditions, metav1.Condition{
			Type: kind, Status: metav1.ConditionTrue, Reason: kind, ObservedGeneration: 1, LastTransitionTime: now,
			Message: fmt.Sprintf("generation 1 is wrapped by version %d of master key %s", version, request.UID),
		})
	}
	return b.client.Status().Update(ctx, request, client.FieldOwner("bare"))
}

// randomBlob is as long as a wrapped data key.
func randomBlob() []byte {
	blob := make([]byte, 270)
	_, _ = rand.Read(blob) // it never fails
	return blob
}
