package v1alpha1

import (
	"cmp"
	"regexp"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// MasterKeySpecAES256 is a symmetric key of 256 bits, the only key spec of a MasterKey today. Its name is the one of AWS KMS
// and Alibaba Cloud KMS key specs.
const MasterKeySpecAES256 MasterKeyKeySpec = "AES_256"

// States of a MasterKey that its spec may ask for, in the words of AWS KMS.
const (
	// MasterKeyStateEnabled lets the key be used.
	MasterKeyStateEnabled MasterKeyState = "Enabled"
	// MasterKeyStateDisabled refuses every use of the key until it is enabled again. It is not rotated meanwhile.
	MasterKeyStateDisabled MasterKeyState = "Disabled"
	// MasterKeyStatePendingDeletion refuses every use of the key, and destroys its material once the waiting period is over.
	MasterKeyStatePendingDeletion MasterKeyState = "PendingDeletion"
	// MasterKeyStateDestroyed, in a status only: the material is destroyed. Only a backup has it.
	MasterKeyStateDestroyed MasterKeyState = "Destroyed"
)

// MasterKeyState says what a MasterKey may be used for.
type MasterKeyState string

// States of a version of a master key.
const (
	// VersionStatePending: the version is made and not read back yet. It wraps nothing.
	VersionStatePending MasterKeyVersionState = "Pending"
	// VersionStatePrimary: it wraps new data keys.
	VersionStatePrimary MasterKeyVersionState = "Primary"
	// VersionStatePrevious: it opens what it wrapped, and wraps nothing any more.
	VersionStatePrevious MasterKeyVersionState = "Previous"
)

// MasterKeyVersionState says what a version of a master key is for.
//
// +kubebuilder:validation:Enum=Pending;Primary;Previous
type MasterKeyVersionState string

// Limits of the lifecycle of a MasterKey.
const (
	// DefaultWaitingPeriod is the waiting period of a MasterKey that states none.
	DefaultWaitingPeriod = 720 * time.Hour
	// MaxMasterKeyVersions is the most versions that a MasterKey may have.
	MaxMasterKeyVersions = 1000
)

// MasterKeyKeySpec is the kind of key material that a MasterKey holds.
//
// +kubebuilder:validation:Enum=AES_256
type MasterKeyKeySpec string

// MasterKey is a symmetric key with numbered versions that wraps data keys. Its material never leaves the key service.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=mk,categories=datakeys
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Primary",type=integer,JSONPath=`.status.primaryVersion`
// +kubebuilder:printcolumn:name="Data Keys",type=integer,JSONPath=`.status.dataKeys`
// +kubebuilder:printcolumn:name="Behind",type=integer,JSONPath=`.status.dataKeysBehind`
// +kubebuilder:printcolumn:name="Rotation",type=string,JSONPath=`.status.conditions[?(@.type=="Rotated")].reason`
// +kubebuilder:printcolumn:name="Rotated",type=date,JSONPath=`.status.lastRotationTime`
// +kubebuilder:printcolumn:name="Next Rotation",type=string,JSONPath=`.status.nextRotationTime`
// +kubebuilder:printcolumn:name="Deletion",type=string,JSONPath=`.status.deletionTime`,priority=1
// +kubebuilder:printcolumn:name="Key ID",type=string,JSONPath=`.status.keyID`,priority=1
// +kubebuilder:printcolumn:name="Aliases",type=string,JSONPath=`.status.aliases`,priority=1
// +kubebuilder:printcolumn:name="Aliases Held",type=string,JSONPath=`.status.conditions[?(@.type=="AliasesHeld")].reason`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type MasterKey struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the standard object's metadata.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitzero"`
	// spec is the desired master key.
	// +optional
	// +kubebuilder:default={keySpec: AES_256}
	Spec MasterKeySpec `json:"spec,omitzero"`
	// status is what is known of the master key.
	// +optional
	Status MasterKeyStatus `json:"status,omitzero"`
}

// MasterKeySpec is the desired state of a MasterKey.
//
// +kubebuilder:validation:MinProperties=1
type MasterKeySpec struct {
	// description says, for people, what the key is for. At most 8192 characters.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=8192
	Description string `json:"description,omitempty"`

	// keySpec is the kind of the key's material. The default is AES_256, a symmetric key of 256 bits. It cannot be changed.
	// +optional
	// +kubebuilder:default=AES_256
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="keySpec is immutable: make another MasterKey instead"
	KeySpec MasterKeyKeySpec `json:"keySpec,omitempty"`

	// aliases are other names of the key: the alias orders is named alias/orders in calls of the key service. At most 50, each of 1 to
	// 250 letters, digits, slashes, underscores and dashes, without the "alias/" in front (AWS KMS, CreateAlias and its
	// quotas), and not beginning with "aws/", which AWS KMS keeps for itself. A colon, which the pattern of AWS KMS allows,
	// would end the field of an ARN. They may change at any time: what a key made opens under its every name.
	//
	// An alias names one key of its namespace. Of several MasterKeys that claim it, the one that has it keeps it, as
	// status.aliases shows; where none has it yet, the oldest gets it. The others say so by the condition AliasesHeld.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=50
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=250
	// +kubebuilder:validation:XValidation:rule="self.all(a, a.matches('^[a-zA-Z0-9/_-]+$'))",message="an alias has letters, digits, slashes, underscores and dashes only"
	// +kubebuilder:validation:XValidation:rule="!self.exists(a, a.startsWith('aws/') || a.startsWith('alias/'))",message="an alias is written without alias/ in front, and does not begin with aws/"
	Aliases []string `json:"aliases,omitempty"`

	// state says what the key may be used for. Enabled, the default, allows everything. Disabled refuses every use until it is
	// Enabled again. PendingDeletion refuses every use too, and begins the waiting period after which the material is destroyed;
	// any other state set before then cancels that.
	// +optional
	// +kubebuilder:default=Enabled
	// +kubebuilder:validation:Enum=Enabled;Disabled;PendingDeletion
	State MasterKeyState `json:"state,omitempty"`

	// deletion says how the material is destroyed, be it that state asks for it or that this object is gone.
	// +optional
	Deletion MasterKeyDeletion `json:"deletion,omitzero"`

	// rotation says when a new primary version is made. Without it that is done on demand only: by any new value of the annotation
	// datakeys.io/rotate-requested-at. Old versions stay, for what they wrapped. A key that is not Enabled is not rotated; what
	// was missed is made up for once.
	// +optional
	Rotation MasterKeyRotation `json:"rotation,omitzero"`
}

// MasterKeyDeletion says how the material of a master key is destroyed.
//
// +kubebuilder:validation:MinProperties=1
type MasterKeyDeletion struct {
	// waitingPeriod is how long the material is kept, and the key can be had back, after its deletion began: 168h to 8784h in
	// whole hours, minutes and seconds, 720h (30 days) by default. A later, shorter period does not bring the end of one that has
	// begun nearer.
	// +optional
	// +kubebuilder:default="720h"
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$') && self != '' && duration(self) >= duration('168h') && duration(self) <= duration('8784h')",message="waitingPeriod is 168h to 8784h, in whole hours, minutes and seconds, such as 720h"
	WaitingPeriod *metav1.Duration `json:"waitingPeriod,omitempty"`

	// orphanDataKeys says, if true, that the material is destroyed although DataKeyRequests or Secrets still refer to it. Their data
	// keys are lost then, and whatever was encrypted with them. The default, false, waits until none is left.
	// +optional
	OrphanDataKeys *bool `json:"orphanDataKeys,omitempty"` //nolint:kubeapilinter // there is no third answer
}

// MasterKeyRotation says when a master key gets a new primary version.
//
// +kubebuilder:validation:MinProperties=1
// +kubebuilder:validation:XValidation:rule="has(self.interval) != has(self.schedule)",message="exactly one of interval and schedule is required"
// +kubebuilder:validation:XValidation:rule="!has(self.timeZone) || has(self.schedule)",message="timeZone is for a schedule: leave it out, or use schedule in place of interval"
type MasterKeyRotation struct {
	// interval is the age at which the primary version is replaced: 1h to 87600h in whole hours, minutes and seconds, plus up to
	// a tenth of it and at most an hour, different for each key, so that not all keys of a cluster rotate at once.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$') && self != '' && duration(self) >= duration('1h') && duration(self) <= duration('87600h')",message="interval is 1h to 87600h, in whole hours, minutes and seconds, such as 2160h or 1h30m"
	Interval *metav1.Duration `json:"interval,omitempty"`

	// schedule is a cron schedule of five fields, as of a CronJob: minute, hour, day of the month, the month and day of the week. At
	// each of its times, or up to five minutes later, different for each key, a key is rotated that was not since. Two of its times
	// must be an hour apart or more. Times that a change of the clocks leaves out are left out; those
	// that come twice count once.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:XValidation:rule="self.matches('^[-0-9A-Za-z*/,?]+( +[-0-9A-Za-z*/,?]+){4}$')",message="schedule has five fields (minute, hour, day of the month, the month, day of the week), such as 0 3 1 */3 *; a time zone stands in timeZone"
	Schedule string `json:"schedule,omitempty"`

	// timeZone is the time zone of schedule, a name of the IANA database such as Europe/Berlin. The default is Etc/UTC. Local, the
	// zone of whatever machine the manager runs on, is none.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self.matches('^[A-Za-z][-+_0-9A-Za-z]*(/[A-Za-z][-+_0-9A-Za-z]*)*$') && self.lowerAscii() != 'local'",message="timeZone is a name of the IANA time zone database, such as Europe/Berlin or Etc/UTC"
	TimeZone string `json:"timeZone,omitempty"`

	// suspend leaves out, if true, interval and schedule. What was missed is made up for once when it is taken away.
	// +optional
	Suspend *bool `json:"suspend,omitempty"` //nolint:kubeapilinter // as a CronJob has it
}

// MasterKeyStatus is the observed state of a MasterKey. Nothing in it is trusted: the sealed material is the record.
//
// +kubebuilder:validation:MinProperties=1
type MasterKeyStatus struct {
	// conditions are the state of the master key; Ready is always among them.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// observedGeneration is the metadata.generation that this status speaks of.
	// +optional
	// +kubebuilder:validation:Minimum=1
	ObservedGeneration *int64 `json:"observedGeneration,omitempty"`

	// keyID is the key ID: the UUID by which blobs name this key. It survives a restore of the object.
	// +optional
	// +kubebuilder:validation:MinLength=36
	// +kubebuilder:validation:MaxLength=36
	KeyID string `json:"keyID,omitempty"`

	// arn is the full name of the key in calls of the key service, arn:datakeys:kms:<install>:<namespace>:key/<key ID>.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=2048
	ARN string `json:"arn,omitempty"`

	// primaryVersion is the version that wraps new data keys.
	// +optional
	// +kubebuilder:validation:Minimum=1
	PrimaryVersion *int32 `json:"primaryVersion,omitempty"`

	// versionCount is the number of versions of this key.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	VersionCount *int32 `json:"versionCount,omitempty"`

	// state is what the key may be used for now: Enabled, Disabled, PendingDeletion, or Destroyed, when its material is.
	// +optional
	// +kubebuilder:validation:Enum=Enabled;Disabled;PendingDeletion;Destroyed
	State MasterKeyState `json:"state,omitempty"`

	// aliases are those of spec.aliases that name this key.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=50
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=250
	Aliases []string `json:"aliases,omitempty"`

	// dataKeys is the number of DataKeyRequests whose data keys this key wraps.
	// +optional
	// +kubebuilder:validation:Minimum=0
	DataKeys *int32 `json:"dataKeys,omitempty"`

	// dataKeysBehind is how many of them have a generation that an older than the primary version wraps.
	// +optional
	// +kubebuilder:validation:Minimum=0
	DataKeysBehind *int32 `json:"dataKeysBehind,omitempty"`

	// lastRotationTime is when the primary version became the primary version.
	// +optional
	LastRotationTime metav1.Time `json:"lastRotationTime,omitzero"`

	// nextRotationTime is when spec.rotation makes the next version. It is not set while there is nothing to wait for: no rotation
	// by time, or one that is suspended, or a key that is not Enabled.
	// +optional
	NextRotationTime metav1.Time `json:"nextRotationTime,omitzero"`

	// rotateRequestedAt is the value of the annotation datakeys.io/rotate-requested-at that was served last, cut to 256 bytes.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	RotateRequestedAt string `json:"rotateRequestedAt,omitempty"`

	// deletionTime is when the waiting period ends, of a key whose deletion began.
	// +optional
	DeletionTime metav1.Time `json:"deletionTime,omitzero"`

	// versions are the newest 20 versions, the newest first.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=20
	Versions []MasterKeyVersion `json:"versions,omitempty"`
}

// MasterKeyVersion is one version of a master key.
type MasterKeyVersion struct {
	// version is the number of the version; the initial one is 1.
	// +required
	// +kubebuilder:validation:Minimum=1
	Version int32 `json:"version,omitempty"`

	// createdAt is when the version's material was made.
	// +required
	CreatedAt metav1.Time `json:"createdAt,omitzero"`

	// state says what the version is for: Primary wraps new data keys, Previous opens what it wrapped, Pending was made and is not
	// read back yet.
	// +optional
	State MasterKeyVersionState `json:"state,omitempty"`

	// dataKeys is the number of DataKeyRequests that have a generation wrapped by this version.
	// +optional
	// +kubebuilder:validation:Minimum=0
	DataKeys *int32 `json:"dataKeys,omitempty"`
}

// MasterKeyList is a list of MasterKeys.
//
// +kubebuilder:object:root=true
type MasterKeyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []MasterKey `json:"items"`
}

// KeyID is the key ID: the annotation where there is one, else the UID, which becomes the annotation.
func (k *MasterKey) KeyID() string {
	if keyID, found := k.Annotations[AnnotationKeyID]; found {
		return keyID
	}
	return string(k.UID)
}

// canonicalUUID has one spelling of each.
var canonicalUUID = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// IsKeyID reports whether a text is a key ID in the form in which it names material, a UUID in lower case. Whoever may edit a
// MasterKey may write another into its annotation.
func IsKeyID(text string) bool { return canonicalUUID.MatchString(text) }

// WantedState is the state that the spec asks for: Enabled where it states none.
func (k *MasterKey) WantedState() MasterKeyState { return cmp.Or(k.Spec.State, MasterKeyStateEnabled) }

// Ready says whether the key can be used.
func (k *MasterKey) Ready() bool { return ready(k.Status.Conditions, k.Generation) }
