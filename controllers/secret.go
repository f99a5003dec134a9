package controllers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// generationEntries are the entries of a Secret that each generation has. Those of the newest one have these very names, those of an
// older one its number behind them.
var generationEntries = []string{
	v1alpha1.SecretKeyCiphertextBlob,
	v1alpha1.SecretKeyIV,
	v1alpha1.SecretKeyKeyVersion,
	v1alpha1.SecretKeyPublicKey,
}

// commonEntries are the entries of a Secret that all generations share.
var commonEntries = []string{
	v1alpha1.SecretKeyAlgorithm,
	v1alpha1.SecretKeyEncryptionContext,
	v1alpha1.SecretKeyAAD,
	v1alpha1.SecretKeyKeyID,
	v1alpha1.SecretKeyGeneration,
}

// parseEntry takes the name of an entry of a generation apart. The number is 0 for the newest generation; the name is empty where it
// is no such entry.
func parseEntry(entry string) (name string, number int32) {
	name, suffix, older := strings.Cut(entry, ".")
	if !slices.Contains(generationEntries, name) {
		return "", 0
	}
	if !older {
		return name, 0
	}
	n, err := strconv.ParseInt(suffix, 10, 32)
	if err != nil || n < 1 || entry != v1alpha1.SecretKeyOf(name, int32(n)) {
		return "", 0
	}
	return name, int32(n)
}

// isOurs reports whether an entry of a Secret is ours. All others are their owner's and stay as they are.
func isOurs(entry string) bool {
	name, _ := parseEntry(entry)
	return name != "" || slices.Contains(commonEntries, entry)
}

// buildSecret is the Secret of a DataKeyRequest. It has no owner reference: the Secret of a request that is gone is kept
// unless the deletion policy says otherwise.
func buildSecret(key DataKey, of generations) (*corev1.Secret, error) {
	data, err := secretData(key, of)
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

// repairSecret returns the Secret with the entries that it has to have, and whether that differs from what it is. Entries, labels and annotations
// that are not ours are kept.
func repairSecret(secret *corev1.Secret, entries map[string][]byte) (*corev1.Secret, bool) {
	repaired := secret.DeepCopy()
	maps.DeleteFunc(repaired.Data, func(entry string, _ []byte) bool { return isOurs(entry) })
	if repaired.Data == nil {
		repaired.Data = map[string][]byte{}
	}
	maps.Copy(repaired.Data, entries)
	differs := !maps.EqualFunc(secret.Data, repaired.Data, bytes.Equal)
	if secret.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedBy {
		differs = true
		metav1.SetMetaDataLabel(&repaired.ObjectMeta, v1alpha1.LabelManagedBy, v1alpha1.ManagedBy)
	}
	return repaired, differs
}

// secretData are the entries that the Secret of a data key has to have.
func secretData(key DataKey, of generations) (map[string][]byte, error) {
	data := map[string][]byte{
		v1alpha1.SecretKeyAlgorithm:  []byte(v1alpha1.AlgorithmAESGCM),
		v1alpha1.SecretKeyKeyID:      []byte(key.MasterKey.KeyID),
		v1alpha1.SecretKeyGeneration: strconv.AppendInt(nil, int64(of.newest().number()), 10),
	}
	for i, g := range of {
		entry := func(name string) string {
			if i == 0 {
				return name
			}
			return v1alpha1.SecretKeyOf(name, g.number())
		}
		data[entry(v1alpha1.SecretKeyCiphertextBlob)] = g.sealed.CiphertextBlob
		data[entry(v1alpha1.SecretKeyIV)] = g.sealed.IV
		data[entry(v1alpha1.SecretKeyKeyVersion)] = strconv.AppendInt(nil, int64(g.sealed.KeyVersion), 10)
		if len(g.sealed.PublicKey) > 0 {
			data[entry(v1alpha1.SecretKeyPublicKey)] = g.sealed.PublicKey
		}
	}
	if len(key.AAD) > 0 {
		data[v1alpha1.SecretKeyAAD] = key.AAD
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

// newSecretMetadata is a Secret as the cache has it: metadata only.
func newSecretMetadata() *metav1.PartialObjectMetadata {
	secret := &metav1.PartialObjectMetadata{}
	secret.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Secret"))
	return secret
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

// blobState is what a blob, or what a place has of a data key, was found to be.
type blobState int

const (
	// blobAbsent: there is no blob, and nothing says that there ever was one.
	blobAbsent blobState = iota + 1
	// blobOpens: it opens as this data key; of a place, one does.
	blobOpens
	// blobRefused: it does not open as this data key, or something says that there was one and it is gone.
	blobRefused
	// blobOfMissingVersion: it is of a version of the master key that is not there.
	blobOfMissingVersion
	// blobOfOtherKey, in a status: it does not open, and was wrapped by another master key than the one of that name now.
	blobOfOtherKey
	// blobForeign, in a Secret: the Secret has another type. Types cannot be changed, so it can never become ours.
	blobForeign
)

// action is what is to be done about a data key.
type action int

const (
	// actionCreate makes a data key. It is the only way to a first generation, and open only where no blob is or was.
	actionCreate action = iota + 1
	// actionRecreate writes the Secret again from the status.
	actionRecreate
	// actionKeep holds the Secret and the status to what opens in either.
	actionKeep
	// actionConflict leaves a Secret alone that is in the way.
	actionConflict
	// actionChanged leaves everything alone: the MasterKey is another one.
	actionChanged
	// actionBroken leaves everything alone: there is nothing left that opens, or a generation is lost.
	actionBroken
)

// decide says what to do, from what was found in the status and in the Secret, and whether a generation opens in neither.
func decide(status, secret blobState, lost bool) action {
	switch {
	case status == blobOfOtherKey:
		return actionChanged
	case secret == blobForeign && (status == blobOpens || status == blobAbsent):
		return actionConflict
	case status == blobAbsent && secret == blobAbsent:
		return actionCreate
	case status == blobAbsent && secret == blobRefused:
		return actionConflict
	case lost, status != blobOpens && secret != blobOpens:
		return actionBroken
	case secret == blobAbsent:
		return actionRecreate
	default:
		return actionKeep
	}
}
