package controllers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// secretEntries are the entries of a Secret that are ours. All others are their owner's and stay as they are.
var secretEntries = []string{
	v1alpha1.SecretKeyCiphertextBlob,
	v1alpha1.SecretKeyIV,
	v1alpha1.SecretKeyAlgorithm,
	v1alpha1.SecretKeyEncryptionContext,
	v1alpha1.SecretKeyAAD,
	v1alpha1.SecretKeyPublicKey,
	v1alpha1.SecretKeyKeyID,
	v1alpha1.SecretKeyKeyVersion,
	v1alpha1.SecretKeyGeneration,
}

// buildSecret is the Secret of a DataKeyRequest. It has no owner reference: the Secret of a request that is gone is kept
// unless the deletion policy says otherwise.
func buildSecret(key DataKey, sealed SealedDataKey) (*corev1.Secret, error) {
	data, err := secretData(key, sealed)
	if err != nil {
		return nil, err
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: key.Namespace,
			Name:      key.Name,
			Labels:    map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedBy},
		},
		Type: v1alpha1.SecretTypeDataKey,
		Data: data,
	}, nil
}

// repairSecret returns the Secret as it has to be, and whether that differs from what it is. Entries, labels and annotations
// that are not ours are kept.
func repairSecret(secret *corev1.Secret, key DataKey, sealed SealedDataKey) (*corev1.Secret, bool, error) {
	data, err := secretData(key, sealed)
	if err != nil {
		return nil, false, err
	}
	repaired := secret.DeepCopy()
	differs := false
	for _, entry := range secretEntries {
		want, wanted := data[entry]
		have, found := secret.Data[entry]
		if wanted == found && bytes.Equal(want, have) {
			continue
		}
		differs = true
		delete(repaired.Data, entry)
	}
	if secret.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedBy {
		differs = true
		metav1.SetMetaDataLabel(&repaired.ObjectMeta, v1alpha1.LabelManagedBy, v1alpha1.ManagedBy)
	}
	if repaired.Data == nil {
		repaired.Data = map[string][]byte{}
	}
	maps.Copy(repaired.Data, data)
	return repaired, differs, nil
}

func secretData(key DataKey, sealed SealedDataKey) (map[string][]byte, error) {
	data := map[string][]byte{
		v1alpha1.SecretKeyCiphertextBlob: sealed.CiphertextBlob,
		v1alpha1.SecretKeyIV:             sealed.IV,
		v1alpha1.SecretKeyAlgorithm:      []byte(v1alpha1.AlgorithmAESGCM),
		v1alpha1.SecretKeyKeyID:          []byte(key.MasterKey.KeyID),
		v1alpha1.SecretKeyKeyVersion:     strconv.AppendInt(nil, int64(sealed.KeyVersion), 10),
		v1alpha1.SecretKeyGeneration:     strconv.AppendInt(nil, int64(key.Generation), 10),
	}
	if len(key.AAD) > 0 {
		data[v1alpha1.SecretKeyAAD] = key.AAD
	}
	if len(sealed.PublicKey) > 0 {
		data[v1alpha1.SecretKeyPublicKey] = sealed.PublicKey
	}
	if len(key.EncryptionContext) > 0 {
		encryptionContext, err := canonicalJSON(key.EncryptionContext)
		if err != nil {
			return nil, fmt.Errorf("write the encryption context: %w", err)
		}
		data[v1alpha1.SecretKeyEncryptionContext] = encryptionContext
	}
	return data, nil
}

// canonicalJSON writes a map in one way only: sorted keys, no white space, and no escapes but those that JSON asks for.
func canonicalJSON(pairs map[string]string) ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(pairs); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

// blobState is what a blob was found to be.
type blobState int

const (
	// blobAbsent: there is no blob, and nothing says that there ever was one.
	blobAbsent blobState = iota + 1
	// blobOpens: it opens as this data key.
	blobOpens
	// blobRefused: it does not open as this data key, or something says that there was one and it is gone.
	blobRefused
	// blobOfOtherKey, in a status: it does not open, and was wrapped by another master key than the one of that name now.
	blobOfOtherKey
	// blobForeign, in a Secret: the Secret has another type. Types cannot be changed, so it can never become ours.
	blobForeign
)

// action is what is to be done about a data key.
type action int

const (
	// actionCreate makes a data key. It is the only way to one, and open only where no blob is or was.
	actionCreate action = iota + 1
	// actionRecreate writes the Secret again from the status.
	actionRecreate
	// actionKeep holds the Secret to what the status says.
	actionKeep
	// actionAdopt takes the data key from the Secret.
	actionAdopt
	// actionConflict leaves a Secret alone that is in the way.
	actionConflict
	// actionChanged leaves everything alone: the MasterKey is another one.
	actionChanged
	// actionBroken leaves everything alone: there is nothing left that opens.
	actionBroken
)

// decide says what to do, from what the blobs in the status and in the Secret were found to be. A status that opens wins over
// the Secret: whoever may edit the Secret could put an older blob of the same scope there.
func decide(status, secret blobState) action {
	switch {
	case status == blobOfOtherKey:
		return actionChanged
	case status == blobOpens && secret == blobAbsent:
		return actionRecreate
	case status == blobOpens && secret == blobForeign:
		return actionConflict
	case status == blobOpens:
		return actionKeep
	case secret == blobOpens:
		return actionAdopt
	case status == blobAbsent && secret == blobAbsent:
		return actionCreate
	case status == blobAbsent:
		return actionConflict
	default:
		return actionBroken
	}
}
