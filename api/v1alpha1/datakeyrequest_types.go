package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Data key specs, named as in AWS KMS.
const (
	DataKeySpecAES256 DataKeySpec = "AES_256"
	DataKeySpecAES128 DataKeySpec = "AES_128"
)

// DataKeySpec is the length of a data key by the name of the cipher that it is for.
//
// +kubebuilder:validation:Enum=AES_256;AES_128
type DataKeySpec string

// Key pair specs, named as in AWS KMS.
const (
	KeyPairSpecRSA2048          KeyPairSpec = "RSA_2048"
	KeyPairSpecRSA3072          KeyPairSpec = "RSA_3072"
	KeyPairSpecRSA4096          KeyPairSpec = "RSA_4096"
	KeyPairSpecNISTP256         KeyPairSpec = "ECC_NIST_P256"
	KeyPairSpecNISTP384         KeyPairSpec = "ECC_NIST_P384"
	KeyPairSpecNISTP521         KeyPairSpec = "ECC_NIST_P521"
	KeyPairSpecSECGP256K1       KeyPairSpec = "ECC_SECG_P256K1"
	KeyPairSpecNISTEdwards25519 KeyPairSpec = "ECC_NIST_EDWARDS25519"
)

// KeyPairSpec is a kind of key pair.
//
// +kubebuilder:validation:Enum=RSA_2048;RSA_3072;RSA_4096;ECC_NIST_P256;ECC_NIST_P384;ECC_NIST_P521;ECC_SECG_P256K1;ECC_NIST_EDWARDS25519
type KeyPairSpec string

// KeyPairSpecs are all key pair specs.
func KeyPairSpecs() []KeyPairSpec {
	return []KeyPairSpec{
		KeyPairSpecRSA2048, KeyPairSpecRSA3072, KeyPairSpecRSA4096,
		KeyPairSpecNISTP256, KeyPairSpecNISTP384, KeyPairSpecNISTP521,
		KeyPairSpecSECGP256K1, KeyPairSpecNISTEdwards25519,
	}
}

// Deletion policies of a DataKeyRequest.
const (
	// DeletionPolicyRetain keeps the Secret when the request is deleted.
	DeletionPolicyRetain DeletionPolicy = "Retain"
	// DeletionPolicyDelete deletes the Secret with the request. What was encrypted with the data key is lost then.
	DeletionPolicyDelete DeletionPolicy = "Delete"
)

// Rewrap policies of a DataKeyRequest.
const (
	// RewrapPolicyAutomatic wraps the data key anew after each rotation of its master key.
	RewrapPolicyAutomatic RewrapPolicy = "Automatic"
	// RewrapPolicyManual does so on demand only.
	RewrapPolicyManual RewrapPolicy = "Manual"
)

// MaxGenerations is the most generations that a data key may have.
const MaxGenerations = 100

// EncryptionContextValue is a value of an encryption context. It has a type so that the schema can bound it.
//
// +kubebuilder:validation:MaxLength=4096
type EncryptionContextValue string

// DeletionPolicy says what becomes of the Secret when its DataKeyRequest is deleted.
//
// +kubebuilder:validation:Enum=Retain;Delete
type DeletionPolicy string

// RewrapPolicy says when a data key is wrapped anew.
//
// +kubebuilder:validation:Enum=Automatic;Manual
type RewrapPolicy string

// DataKeyRequest asks for a data key. It becomes a Secret of the same name that holds only ciphertext: the data key,
// encrypted under the primary version of a master key.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=dkr,categories=datakeys
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Master Key",type=string,JSONPath=`.spec.masterKeyRef.name`
// +kubebuilder:printcolumn:name="Version",type=integer,JSONPath=`.status.keyVersion`
// +kubebuilder:printcolumn:name="Generation",type=integer,JSONPath=`.status.generation`
// +kubebuilder:printcolumn:name="Rewrap",type=string,JSONPath=`.status.conditions[?(@.type=="Rewrapped")].reason`,priority=1
// +kubebuilder:printcolumn:name="Rotation",type=string,JSONPath=`.status.conditions[?(@.type=="Rotated")].reason`,priority=1
// +kubebuilder:printcolumn:name="Rotated",type=date,JSONPath=`.status.lastRotationTime`,priority=1
// +kubebuilder:printcolumn:name="Next Rotation",type=string,JSONPath=`.status.nextRotationTime`,priority=1
// +kubebuilder:printcolumn:name="Key Pair",type=string,JSONPath=`.spec.keyPairSpec`,priority=1
// +kubebuilder:printcolumn:name="Key ID",type=string,JSONPath=`.status.keyID`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type DataKeyRequest struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the standard object's metadata.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitzero"`
	// spec is the desired data key.
	// +required
	Spec DataKeyRequestSpec `json:"spec,omitzero"`
	// status is what is known of the data key.
	// +optional
	Status DataKeyRequestStatus `json:"status,omitzero"`
}

// DataKeyRequestSpec is the desired state of a DataKeyRequest.
//
// +kubebuilder:validation:XValidation:rule="[has(self.keySpec), has(self.numberOfBytes), has(self.keyPairSpec)].filter(x, x).size() == 1",message="exactly one of keySpec, numberOfBytes and keyPairSpec is required"
// +kubebuilder:validation:XValidation:rule="has(self.keySpec) == has(oldSelf.keySpec) && has(self.numberOfBytes) == has(oldSelf.numberOfBytes) && has(self.keyPairSpec) == has(oldSelf.keyPairSpec)",message="keySpec, numberOfBytes and keyPairSpec are immutable: make another DataKeyRequest instead"
// +kubebuilder:validation:XValidation:rule="!(has(self.encryptionContext) && has(self.aad))",message="at most one of encryptionContext and aad is allowed"
// +kubebuilder:validation:XValidation:rule="has(self.encryptionContext) == has(oldSelf.encryptionContext)",message="encryptionContext is immutable: make another DataKeyRequest instead"
// +kubebuilder:validation:XValidation:rule="has(self.aad) == has(oldSelf.aad)",message="aad is immutable: make another DataKeyRequest instead"
type DataKeyRequestSpec struct {
	// masterKeyRef names the MasterKey whose primary version wraps the data key. It cannot be changed.
	// +required
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="masterKeyRef is immutable: make another DataKeyRequest instead"
	MasterKeyRef MasterKeyReference `json:"masterKeyRef,omitzero"`

	// keySpec is the length of the data key: AES_256 (32 bytes) or AES_128 (16 bytes). Exactly one of keySpec, numberOfBytes
	// and keyPairSpec is required. It cannot be changed.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="keySpec is immutable: make another DataKeyRequest instead"
	KeySpec DataKeySpec `json:"keySpec,omitempty"`

	// numberOfBytes is the length of the data key in bytes, 1 to 1024. Exactly one of keySpec, numberOfBytes and keyPairSpec
	// is required. It cannot be changed.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1024
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="numberOfBytes is immutable: make another DataKeyRequest instead"
	NumberOfBytes *int32 `json:"numberOfBytes,omitempty"`

	// keyPairSpec asks for a key pair instead of a symmetric data key: RSA_2048, RSA_3072, RSA_4096, ECC_NIST_P256,
	// ECC_NIST_P384, ECC_NIST_P521, ECC_SECG_P256K1 (not in a FIPS build) or ECC_NIST_EDWARDS25519. The blob holds the private
	// key, PKCS #8 in DER (RFC 5958); the entry publicKey of the Secret is the public key, SubjectPublicKeyInfo in DER
	// (RFC 5280). An RSA key takes some seconds to make. Exactly one of keySpec, numberOfBytes and keyPairSpec is required. It
	// cannot be changed.
	// +optional
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="keyPairSpec is immutable: make another DataKeyRequest instead"
	KeyPairSpec KeyPairSpec `json:"keyPairSpec,omitempty"`

	// encryptionContext are non-secret pairs that are bound to the blob as associated data: whoever decrypts the blob
	// has to state the same pairs. At most 64 pairs and 8192 bytes (UTF-8) in all; a key has
	// 1 to 1024 bytes, a value at most 4096. Excludes aad. It cannot be changed.
	// +optional
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=64
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="encryptionContext is immutable: make another DataKeyRequest instead"
	// +kubebuilder:validation:XValidation:rule="self.all(k, size(k) >= 1 && size(bytes(k)) <= 1024)",message="a key of encryptionContext has 1 to 1024 bytes"
	// +kubebuilder:validation:XValidation:rule="self.all(k, size(bytes(self[k])) <= 4096)",message="a value of encryptionContext has at most 4096 bytes"
	// +kubebuilder:validation:XValidation:rule="self.map(k, size(bytes(k)) + size(bytes(self[k]))).sum() <= 8192",message="encryptionContext has at most 8192 bytes in all"
	EncryptionContext map[string]EncryptionContextValue `json:"encryptionContext,omitempty"`

	// aad is non-secret additional authenticated data, base64 of 1 to 8192 bytes, that is bound to the blob as it is: for
	// systems that have no map. Whoever decrypts the blob has to state the same bytes. Excludes encryptionContext. It cannot be
	// changed.
	// ---
	// The schema does not say "format: byte": Kubernetes reads such a field into CEL by the base64 alphabet of URLs, so that
	// any rule on it refuses every value with a plus or a slash.
	// +optional
	// +kubebuilder:validation:Format=""
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=10924
	// +kubebuilder:validation:XValidation:rule="self.matches('^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$')",message="aad must be base64 with padding (RFC 4648, section 4)"
	// +kubebuilder:validation:XValidation:rule="size(self) < 10924 || self.endsWith('=')",message="aad has at most 8192 bytes"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="aad is immutable: make another DataKeyRequest instead"
	AAD []byte `json:"aad,omitempty"`

	// deletionPolicy says what becomes of the Secret when this request is deleted. Retain, the default, keeps it, and the
	// same request applied again adopts it; Delete deletes it, and what was encrypted with the data key is lost.
	// +optional
	// +kubebuilder:default=Retain
	DeletionPolicy DeletionPolicy `json:"deletionPolicy,omitempty"`

	// rewrapPolicy says when the data key is wrapped anew, the same data key in a new blob, under the primary version of its master
	// key. Automatic, the default, does so after each rotation of the master key; Manual waits for any new value of the annotation
	// datakeys.io/rewrap-requested-at. Old blobs go on to open.
	// +optional
	// +kubebuilder:default=Automatic
	RewrapPolicy RewrapPolicy `json:"rewrapPolicy,omitempty"`

	// rotation says when a new generation of the data key is made, other random bytes than before. Without it that is done on demand
	// only, by any new value of the annotation datakeys.io/rotate-requested-at, and all generations are kept, at most 100.
	// +optional
	Rotation DataKeyRotation `json:"rotation,omitzero"`
}

// DataKeyRotation says when a data key gets a new generation, and what becomes of the old ones.
//
// +kubebuilder:validation:MinProperties=1
type DataKeyRotation struct {
	// interval is the age at which the newest generation is superseded: 1h to 87600h in whole hours, minutes and seconds, plus
	// up to a tenth of it and at most an hour, different for each data key. Without it that is done on demand only.
	// +optional
	// +kubebuilder:validation:MaxLength=16
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:XValidation:rule="self.matches('^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$') && self != '' && duration(self) >= duration('1h') && duration(self) <= duration('87600h')",message="interval is 1h to 87600h, in whole hours, minutes and seconds, such as 2160h or 1h30m"
	Interval *metav1.Duration `json:"interval,omitempty"`

	// keep is how many generations are kept, the newest included, 2 to 99. A generation is dropped when keep newer ones are there,
	// though not before it was superseded for 24 h. What is still encrypted with it is lost then. Without keep all are kept, and
	// at 100 there is no further rotation.
	// +optional
	// +kubebuilder:validation:Minimum=2
	// +kubebuilder:validation:Maximum=99
	Keep *int32 `json:"keep,omitempty"`
}

// MasterKeyReference names a MasterKey.
type MasterKeyReference struct {
	// namespace is the namespace of the MasterKey. The default is the namespace of the referring object, and the only
	// one that is allowed today.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="namespace must be a lower-case DNS label (RFC 1123)"
	Namespace string `json:"namespace,omitempty"`

	// name is the name of the MasterKey.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",message="name must be a lower-case DNS subdomain (RFC 1123)"
	Name string `json:"name,omitempty"`
}

// DataKeyRequestStatus is the observed state of a DataKeyRequest.
//
// +kubebuilder:validation:MinProperties=1
type DataKeyRequestStatus struct {
	// conditions are the state of the request; Ready is always among them.
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

	// keyID is the key ID of the master key that wraps the data key.
	// +optional
	// +kubebuilder:validation:MinLength=36
	// +kubebuilder:validation:MaxLength=36
	KeyID string `json:"keyID,omitempty"`

	// keyVersion is the version of the master key that wraps the newest generation.
	// +optional
	// +kubebuilder:validation:Minimum=1
	KeyVersion *int32 `json:"keyVersion,omitempty"`

	// generation is the newest generation of the data key; the first is 1.
	// +optional
	// +kubebuilder:validation:Minimum=1
	Generation *int32 `json:"generation,omitempty"`

	// lastRotationTime is when the newest generation was made, or adopted from a Secret.
	// +optional
	LastRotationTime metav1.Time `json:"lastRotationTime,omitzero"`

	// nextRotationTime is when spec.rotation makes the next generation.
	// +optional
	NextRotationTime metav1.Time `json:"nextRotationTime,omitzero"`

	// rotateRequestedAt is the value of the annotation datakeys.io/rotate-requested-at that was served last, cut to 256 bytes.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	RotateRequestedAt string `json:"rotateRequestedAt,omitempty"`

	// rewrapRequestedAt is the value of the annotation datakeys.io/rewrap-requested-at that was served last, cut to 256 bytes.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=256
	RewrapRequestedAt string `json:"rewrapRequestedAt,omitempty"`

	// generations are the generations of the data key, the newest first: a second copy of the ciphertext, from which a
	// Secret that was deleted or edited is repaired.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	Generations []DataKeyGeneration `json:"generations,omitempty"`
}

// DataKeyGeneration is one generation of a data key: other random bytes than any other generation's.
type DataKeyGeneration struct {
	// generation is the number of the generation; the first is 1.
	// +required
	// +kubebuilder:validation:Minimum=1
	Generation int32 `json:"generation,omitempty"`

	// keyVersion is the version of the master key that wraps this generation.
	// +required
	// +kubebuilder:validation:Minimum=1
	KeyVersion int32 `json:"keyVersion,omitempty"`

	// createdAt is when this generation was made, or adopted from a Secret.
	// +required
	CreatedAt metav1.Time `json:"createdAt,omitzero"`

	// ciphertextBlob is the encrypted data key. Its base64 form is the one that the Secret and the AWS CLI show.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=8192
	CiphertextBlob []byte `json:"ciphertextBlob,omitempty"`
}

// DataKeyRequestList is a list of DataKeyRequests.
//
// +kubebuilder:object:root=true
type DataKeyRequestList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []DataKeyRequest `json:"items"`
}

// Length is the length in bytes of the data key that the spec asks for, or 0 where it asks for a key pair or is not valid.
func (s *DataKeyRequestSpec) Length() int {
	switch {
	case s.KeyPairSpec != "":
		return 0
	case s.NumberOfBytes != nil && s.KeySpec == "":
		return int(*s.NumberOfBytes)
	case s.NumberOfBytes == nil && s.KeySpec == DataKeySpecAES256:
		return 32
	case s.NumberOfBytes == nil && s.KeySpec == DataKeySpecAES128:
		return 16
	default:
		return 0
	}
}

// Context is the encryption context as the key service takes it, nil where there is none.
func (s *DataKeyRequestSpec) Context() map[string]string {
	if len(s.EncryptionContext) == 0 {
		return nil
	}
	pairs := make(map[string]string, len(s.EncryptionContext))
	for key, value := range s.EncryptionContext {
		pairs[key] = string(value)
	}
	return pairs
}

// Ready says whether the Secret holds a blob that opens.
func (r *DataKeyRequest) Ready() bool { return ready(r.Status.Conditions, r.Generation) }
