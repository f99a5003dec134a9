package controllers_test

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// A backup tool restores a MasterKey with its status, and so owns the fields of it. What is no longer true goes all the same.
func TestAStatusThatABackupToolWroteIsPutRight(t *testing.T) {
	l := newLifetime(t, masterKey(func(k *v1alpha1.MasterKey) {
		k.Spec.State = v1alpha1.MasterKeyStatePendingDeletion
		k.Spec.Aliases = []string{"prod", "test"}
		k.Spec.Rotation.Interval = &metav1.Duration{Duration: 24 * time.Hour}
	}))
	l.settle(t)
	edit(t, l, l.key(t), func(k *v1alpha1.MasterKey) { k.Spec.State = v1alpha1.MasterKeyStateEnabled })
	l.settle(t)
	edit(t, l, l.key(t), func(k *v1alpha1.MasterKey) { k.Spec.State = v1alpha1.MasterKeyStatePendingDeletion })
	l.settle(t)
	backup := l.key(t)
	backup.Status.NextRotationTime = now
	if err := l.direct.Delete(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	backup.UID, backup.ResourceVersion, backup.ManagedFields = otherUID, "", nil
	restored := backup.DeepCopy()
	if err := l.direct.Create(t.Context(), restored, client.FieldOwner("backup")); err != nil {
		t.Fatal(err)
	}
	backup.ResourceVersion = restored.ResourceVersion
	if err := l.direct.Status().Update(t.Context(), backup, client.FieldOwner("backup")); err != nil {
		t.Fatal(err)
	}
	l.settle(t)
	edit(t, l, l.key(t), func(k *v1alpha1.MasterKey) {
		k.Spec.State, k.Spec.Rotation, k.Spec.Aliases = v1alpha1.MasterKeyStateEnabled, v1alpha1.MasterKeyRotation{}, []string{"prod"}
	})
	l.settle(t)
	status := l.key(t).Status
	expect(t, "Ready", condition(status.Conditions, "Ready"), "True Ready")
	expect(t, "the aliases", status.Aliases, []string{"prod"})
	expect(t, "Rotated", condition(status.Conditions, "Rotated"), "")
	expect(t, "no deletion time", status.DeletionTime.IsZero(), true)
	expect(t, "no next rotation", status.NextRotationTime.IsZero(), true)
}
