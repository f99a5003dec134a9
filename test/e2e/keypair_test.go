//go:build e2e

package e2e

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// A pod reads a key pair, and a data key that is bound to raw associated data, from requests that are made by hand and not by
// tenant: their specs differ.
func keyPairAndAADAreRead(t *testing.T) {
	namespace := kube.namespace(t, "restricted")
	kube.create(t, masterKey(namespace, "orders"))
	kube.create(t, decrypter(namespace, "app", "signing", "bound")...)
	signing, bound := dataKeyRequest(namespace, "signing"), dataKeyRequest(namespace, "bound")
	signing.Spec.KeySpec, signing.Spec.KeyPairSpec = "", v1alpha1.KeyPairSpecNISTP256
	aad := []byte{0, '\n', 0xfb, 0xff} // base64 with a plus and a slash
	bound.Spec.EncryptionContext, bound.Spec.AAD = nil, aad
	kube.create(t, signing, bound)
	waitRequestReady(t, namespace, "signing")
	waitRequestReady(t, namespace, "bound")

	kube.create(t, pod(namespace, "app", "signing", "bound"))
	kube.waitPodReady(t, namespace, "app")
	for _, name := range []string{"signing", "bound"} {
		if got, want := sha256Of(t, namespace, "app", "app", name), plaintextSHA256(t, namespace, name); got != want {
			t.Errorf("the pod reads %s with SHA-256 %s, want %s", name, got, want)
		}
	}

	private := plaintextOf(t, namespace, "signing")
	key, err := x509.ParsePKCS8PrivateKey(private)
	if err != nil {
		t.Fatal("the private key of signing is no PKCS #8")
	}
	scalar, err := key.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	seenPlaintexts.Store("scalar of "+namespace+"/signing", scalar)
	public, err := x509.MarshalPKIXPublicKey(key.(crypto.Signer).Public())
	if err != nil {
		t.Fatal(err)
	}
	answered := answerOf(t, namespace, "signing")
	if !bytes.Equal(answered.Plaintext, private) || !bytes.Equal(answered.PublicKey, public) || answered.KeyPairSpec != "ECC_NIST_P256" {
		t.Errorf("the pod is told %s and the public key %x, want ECC_NIST_P256 and %x", answered.KeyPairSpec, answered.PublicKey, public)
	}
	if answered := answerOf(t, namespace, "bound"); !bytes.Equal(answered.AAD, aad) || answered.PublicKey != nil {
		t.Errorf("the pod is told the aad %x and the public key %x, want %x and none", answered.AAD, answered.PublicKey, aad)
	}

	// What somebody changes in the Secret is brought back.
	secret := &corev1.Secret{}
	if err := kube.client.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: "signing"}, secret); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(secret.Data[v1alpha1.SecretKeyPublicKey], public) {
		t.Errorf("the Secret has the public key %x, want %x", secret.Data[v1alpha1.SecretKeyPublicKey], public)
	}
	secret.Data[v1alpha1.SecretKeyPublicKey] = []byte("another's")
	if err := kube.client.Update(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	kube.waitFor(t, &corev1.SecretList{}, namespace, "Secret signing repaired", func(o client.Object) bool {
		return o.GetName() == "signing" && bytes.Equal(o.(*corev1.Secret).Data[v1alpha1.SecretKeyPublicKey], public)
	})
}

// keyAnswer is what an application needs of an answer of the socket.
type keyAnswer struct {
	KeyPairSpec               string
	Plaintext, PublicKey, AAD []byte
}

// answerOf asks the socket of the pod app for a data key as JSON. A failure does not show the answer, which holds the key.
func answerOf(t *testing.T, namespace, name string) keyAnswer {
	t.Helper()
	stdout, stderr, err := kube.exec(t.Context(), namespace, "app", "app", "/reader", "get", "/v1/data-keys/"+name)
	if err != nil {
		t.Fatalf("read data key %s: %v: %s", name, err, stderr)
	}
	_, body, _ := bytes.Cut(stdout, []byte("\n"))
	var answer keyAnswer
	if err := json.Unmarshal(body, &answer); err != nil {
		t.Fatalf("the answer for data key %s is not the JSON of one", name)
	}
	return answer
}
