package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// masterKey makes the MasterKey and waits until it can be used.
func (d *demo) masterKey(ctx context.Context) error {
	d.step("Declare a master key")
	if err := d.apply(ctx, "config/samples/namespace.yaml"); err != nil {
		return err
	}
	if err := d.apply(ctx, "config/samples/masterkey.yaml"); err != nil {
		return err
	}
	var key v1alpha1.MasterKey
	err := d.waitFor(ctx, time.Minute, "MasterKey orders is Ready", func(ctx context.Context) (string, bool, error) {
		err := d.get(ctx, &key, "masterkey", "orders")
		state, done := readiness(key.Status.Conditions)
		return "MasterKey orders: " + state, done, err
	})
	if err != nil {
		return err
	}
	d.say("The key service made 256 random bits, the first version of the master key, and stored them sealed. They never leave it.")
	d.say("  key ID %s", key.Status.KeyID)
	d.say("  ARN    %s", key.Status.ARN)
	return nil
}

// dataKey makes the DataKeyRequest, waits for its Secret and shows what is in it.
func (d *demo) dataKey(ctx context.Context) error {
	d.step("Ask for a data key")
	if err := d.apply(ctx, "config/samples/datakeyrequest.yaml"); err != nil {
		return err
	}
	var request v1alpha1.DataKeyRequest
	err := d.waitFor(ctx, time.Minute, "DataKeyRequest orders is Ready", func(ctx context.Context) (string, bool, error) {
		err := d.get(ctx, &request, "datakeyrequest", "orders")
		state, done := readiness(request.Status.Conditions)
		return "DataKeyRequest orders: " + state, done, err
	})
	if err != nil {
		return err
	}
	var secret corev1.Secret
	if err := d.get(ctx, &secret, "secret", "orders"); err != nil {
		return err
	}
	lines, err := describeSecret(secret.Data, request.Spec.Length())
	if err != nil {
		return err
	}
	d.say("It became a Secret of the same name, with these entries and no other:")
	for _, line := range lines {
		d.say("  %s", line)
	}
	d.say("Whoever reads this Secret, in the API, in etcd or in a backup, has ciphertext. The controller that wrote it never\nsaw the key.")
	return nil
}

// readiness is the condition Ready in words, and whether it is True.
func readiness(conditions []metav1.Condition) (string, bool) {
	ready := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
	switch {
	case ready == nil:
		return "not looked at yet", false
	case ready.Status == metav1.ConditionTrue:
		return "Ready", true
	default:
		return fmt.Sprintf("not Ready: %s (%s)", ready.Reason, ready.Message), false
	}
}

// describeSecret shows every entry of a data key's Secret: bytes as base64, all else as text. It is an error if an entry is
// unknown, or if a ciphertext is missing, or too short to be more than the bare key.
func describeSecret(data map[string][]byte, keyLength int) ([]string, error) {
	if _, found := data[v1alpha1.SecretKeyCiphertextBlob]; !found {
		return nil, fmt.Errorf("the Secret has no entry %q", v1alpha1.SecretKeyCiphertextBlob)
	}
	newest := map[string]string{} // the entry of the newest generation, by that of an older one, if the data key has been rotated
	generation, _ := strconv.ParseInt(string(data[v1alpha1.SecretKeyGeneration]), 10, 32)
	for older := int64(1); older < generation; older++ {
		for _, entry := range []string{v1alpha1.SecretKeyCiphertextBlob, v1alpha1.SecretKeyIV, v1alpha1.SecretKeyKeyVersion} {
			newest[v1alpha1.SecretKeyOf(entry, int32(older))] = entry
		}
	}
	var lines []string
	for _, entry := range slices.Sorted(maps.Keys(data)) {
		switch cmp.Or(newest[entry], entry) {
		case v1alpha1.SecretKeyCiphertextBlob:
			if len(data[entry]) <= keyLength {
				return nil, fmt.Errorf("entry %s has %d bytes, want more than the %d of the key: this is no ciphertext",
					entry, len(data[entry]), keyLength)
			}
			lines = append(lines, fmt.Sprintf("%-18s %d bytes of ciphertext for a key of %d bytes:", entry, len(data[entry]), keyLength))
			for chunk := range slices.Chunk([]byte(base64.StdEncoding.EncodeToString(data[entry])), 76) {
				lines = append(lines, "    "+string(chunk))
			}
		case v1alpha1.SecretKeyIV:
			lines = append(lines, fmt.Sprintf("%-18s %s (%d bytes, base64)", entry, base64.StdEncoding.EncodeToString(data[entry]), len(data[entry])))
		case v1alpha1.SecretKeyAlgorithm, v1alpha1.SecretKeyEncryptionContext, v1alpha1.SecretKeyKeyID,
			v1alpha1.SecretKeyKeyVersion, v1alpha1.SecretKeyGeneration:
			lines = append(lines, fmt.Sprintf("%-18s %s", entry, bytes.TrimSpace(data[entry])))
		default:
			return nil, fmt.Errorf("the Secret has an entry %q that the demo does not know", entry)
		}
	}
	return lines, nil
}

// lastLine is the last line that is not empty.
func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}
