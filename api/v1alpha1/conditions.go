package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Condition types. Every one is positive: True is the good state.
const (
	// ConditionReady says that the object can be used: of a MasterKey, that its primary version's material is durable
	// and opens; of a DataKeyRequest, that its Secret holds a blob that opens. It is always present once the object was
	// looked at.
	ConditionReady = "Ready"
	// ConditionRotated, on both kinds, says that no rotation is due that was not done. It is not there where nobody asks for one.
	ConditionRotated = "Rotated"
	// ConditionRewrapped says that no data key is behind its master key: of a MasterKey, that its primary version wraps every
	// generation of all its DataKeyRequests; of a DataKeyRequest, all of its own.
	ConditionRewrapped = "Rewrapped"
	// ConditionAliasesHeld, on a MasterKey that claims aliases, says that it has all of them.
	ConditionAliasesHeld = "AliasesHeld"
)

// Reasons of ConditionReady on both kinds. An event has the reason of the condition that it tells of.
const (
	// ReasonReady: the object can be used.
	ReasonReady = "Ready"
	// ReasonKeyServiceUnavailable: the key service cannot work now, for example because its root key cannot be reached.
	// It is tried again with back-off.
	ReasonKeyServiceUnavailable = "KeyServiceUnavailable"
)

// Reasons of ConditionReady on a MasterKey.
const (
	// ReasonInvalidKeyID: the annotation datakeys.io/key-id is not a UUID in canonical form.
	ReasonInvalidKeyID = "InvalidKeyID"
	// ReasonMaterialMissing: the annotation names a key ID for which there is no material. A new key is never made in
	// its place; the Secret with the material has to be restored.
	ReasonMaterialMissing = "MaterialMissing"
	// ReasonMaterialConflict: the material of that key ID belongs to a MasterKey of another namespace or name.
	ReasonMaterialConflict = "MaterialConflict"
	// ReasonMaterialBroken: the material does not open under the sealing keys of this installation.
	ReasonMaterialBroken = "MaterialBroken"
	// ReasonDisabled: spec.state is Disabled.
	ReasonDisabled = "Disabled"
	// ReasonPendingDeletion: the deletion of the key began, by its spec.state; the message says when the material is destroyed.
	ReasonPendingDeletion = "PendingDeletion"
	// ReasonDeletionBlocked: the waiting period is over, and what the message names still refers to the key.
	ReasonDeletionBlocked = "DeletionBlocked"
	// ReasonDestroyed: the material is destroyed. Only a backup has it.
	ReasonDestroyed = "Destroyed"
)

// Reasons of ConditionRotated.
const (
	// ReasonRotated: the last rotation that was due is done.
	ReasonRotated = "Rotated"
	// ReasonSuspended: spec.rotation.suspend leaves out rotations by time.
	ReasonSuspended = "Suspended"
	// ReasonNotEnabled: a rotation is asked for that waits until the key is Enabled.
	ReasonNotEnabled = "NotEnabled"
	// ReasonInvalidSchedule: spec.rotation.schedule or timeZone is not what it has to be, as the message says.
	ReasonInvalidSchedule = "InvalidSchedule"
	// ReasonTooManyVersions: the key has as many versions as it may have.
	ReasonTooManyVersions = "TooManyVersions"
	// ReasonTooManyGenerations: the data key has as many generations as it may have. Of ConditionReady: its status and its Secret have
	// more together.
	ReasonTooManyGenerations = "TooManyGenerations"
	// ReasonClocksDisagree: the clocks of the manager and of the API server are apart, so nothing is done by time.
	ReasonClocksDisagree = "ClocksDisagree"
	// ReasonRotationFailed: the rotation failed, and is tried again.
	ReasonRotationFailed = "RotationFailed"
)

// Reasons of ConditionRewrapped.
const (
	// ReasonRewrapped: the primary version wraps everything.
	ReasonRewrapped = "Rewrapped"
	// ReasonRewrapping: what is behind is being wrapped anew.
	ReasonRewrapping = "Rewrapping"
	// ReasonManual: what is behind waits for the annotation datakeys.io/rewrap-requested-at.
	ReasonManual = "Manual"
)

// Reasons of ConditionAliasesHeld.
const (
	// ReasonAliasesHeld: the key has all the aliases that it claims.
	ReasonAliasesHeld = "AliasesHeld"
	// ReasonAliasConflict: another MasterKey of the namespace has one of them.
	ReasonAliasConflict = "AliasConflict"
)

// Reasons of ConditionReady on a DataKeyRequest.
const (
	// ReasonMasterKeyNotFound: there is no MasterKey of that name; the request waits for it.
	ReasonMasterKeyNotFound = "MasterKeyNotFound"
	// ReasonMasterKeyNotReady: the MasterKey is not Ready; the request waits for it.
	ReasonMasterKeyNotReady = "MasterKeyNotReady"
	// ReasonMasterKeyChanged: the MasterKey of that name is another key than the one that wraps this data key.
	ReasonMasterKeyChanged = "MasterKeyChanged"
	// ReasonCrossNamespaceReference: masterKeyRef names another namespace, which is not allowed.
	ReasonCrossNamespaceReference = "CrossNamespaceReference"
	// ReasonUnsupported: keyPairSpec is a kind of key pair that this installation does not offer.
	ReasonUnsupported = "Unsupported"
	// ReasonSecretConflict: a Secret of the request's name exists that does not hold this request's data key. It is not
	// touched.
	ReasonSecretConflict = "SecretConflict"
	// ReasonSecretRefused: the API server refuses the Secret, as for a ResourceQuota or by an admission policy. It is tried again with
	// back-off.
	ReasonSecretRefused = "SecretRefused"
	// ReasonKeyVersionMissing: a generation is wrapped by a version of the master key that its material does not have, as after an
	// older backup of it was restored. A newer one has to be.
	ReasonKeyVersionMissing = "KeyVersionMissing"
	// ReasonDataKeyBroken: neither the Secret nor the status holds a blob that opens. A new data key is never made in
	// its place; the Secret or the status has to be restored.
	ReasonDataKeyBroken = "DataKeyBroken"
)

// Reasons of events that are no condition's.
const (
	// ReasonCreated: a master key's first version, or a data key's first generation, was made.
	ReasonCreated = "Created"
	// ReasonAdopted: a DataKeyRequest found its data key in a Secret that was there before it.
	ReasonAdopted = "Adopted"
	// ReasonRepaired: a Secret that was deleted or edited was written again from what is durable.
	ReasonRepaired = "Repaired"
	// ReasonDropped: a generation of a data key was dropped, as spec.rotation.keep says.
	ReasonDropped = "Dropped"
	// ReasonDeletionCancelled: the material of a master key is no longer to be destroyed.
	ReasonDeletionCancelled = "DeletionCancelled"
	// ReasonOrphaned, on a Secret with material: its MasterKey is gone, and the waiting period began.
	ReasonOrphaned = "Orphaned"
	// ReasonWaitingForDataKeys, on a pod: a DataKeyRequest that the pod names is missing or not Ready.
	ReasonWaitingForDataKeys = "WaitingForDataKeys"
	// ReasonSidecarMissing, on a pod: it asks for data keys by its label, and has no sidecar.
	ReasonSidecarMissing = "SidecarMissing"
	// ReasonSidecarBlocks, on a pod: its sidecar has lost restartPolicy: Always, so that the kubelet waits for it to end.
	ReasonSidecarBlocks = "SidecarBlocks"
	// ReasonDataKeyDenied, on a pod: the key service refused a data key to the pod.
	ReasonDataKeyDenied = "DataKeyDenied"
	// ReasonInitialVersionUsed, on a MasterKey: a pod had something encrypted under its version 1, although it was rotated since.
	// Rotation does not reach that.
	ReasonInitialVersionUsed = "InitialVersionUsed"
)

// ready says whether an object is Ready, and whether it says so of its present spec: a condition about an older generation does
// not count.
func ready(conditions []metav1.Condition, generation int64) bool {
	condition := meta.FindStatusCondition(conditions, ConditionReady)
	return condition != nil && condition.Status == metav1.ConditionTrue && condition.ObservedGeneration == generation
}
