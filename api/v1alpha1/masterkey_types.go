package v1alpha1

import (
	"regexp"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// MasterKeySpecAES256 is a symmetric key of 256 bits, the only key spec of a MasterKey today. Its name is the one of AWS KMS
// and Alibaba Cloud KMS key specs.
const MasterKeySpecAES256 MasterKeyKeySpec = "AES_256"

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
// +kubebuilder:printcolumn:name="Primary",type=integer,JSONPath=`.status.primaryVersion`
// +kubebuilder:printcolumn:name="Key ID",type=string,JSONPath=`.status.keyID`,priority=1
// +kubebuilder:printcolumn:name="Aliases",type=string,JSONPath=`.spec.aliases`,priority=1
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
	// An alias names one key of its namespace. Of several MasterKeys that claim it, the oldest has it.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=50
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=250
	// +kubebuilder:validation:XValidation:rule="self.all(a, a.matches('^[a-zA-Z0-9/_-]+$'))",message="an alias has letters, digits, slashes, underscores and dashes only"
	// +kubebuilder:validation:XValidation:rule="!self.exists(a, a.startsWith('aws/') || a.startsWith('alias/'))",message="an alias is written without alias/ in front, and does not begin with aws/"
	Aliases []string `json:"aliases,omitempty"`
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

// Ready says whether the key can be used.
func (k *MasterKey) Ready() bool { return ready(k.Status.Conditions, k.Generation) }
