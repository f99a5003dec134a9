package v1alpha1

import (
	"strconv"
	"strings"
)

// Labels and annotations of the project. Every one that is read or written anywhere stands here.
const (
	// AnnotationKeyID on a MasterKey is its key ID: the object's first metadata.uid, written by the controller. It lets a
	// restored object, whose UID is new, find its material again. Setting or changing it needs the verb "restore" on
	// masterkeys.
	AnnotationKeyID = "datakeys.io/key-id"

	// MaxRequestedAt is how many bytes of the value of an annotation that asks for something count.
	MaxRequestedAt = 256

	// LabelInject on a pod, with the value "true", asks for the sidecar.
	LabelInject = "datakeys.io/inject"
	// LabelInjected on a pod, with the value "true", is set with the sidecar. It lets the API server select the pods that asked and did
	// not get it.
	LabelInjected = "datakeys.io/injected"
	// AnnotationDataKeys on a pod names, separated by commas, the DataKeyRequests of the pod's namespace whose data keys
	// the sidecar issues.
	AnnotationDataKeys = "datakeys.io/data-keys"
	// AnnotationContainers on a pod names, separated by commas, the containers (init containers included) that get the
	// socket. Without it all of them do.
	AnnotationContainers = "datakeys.io/containers"
	// AnnotationWait on a pod, with the value "false", starts the application without waiting for its data keys.
	AnnotationWait = "datakeys.io/wait"
	// AnnotationLoopbackPort on a pod is the port of 127.0.0.1, MinLoopbackPort to 65535, on which the sidecar serves AWS KMS and
	// Alibaba Cloud KMS to clients that cannot dial a socket. Without it there is none.
	AnnotationLoopbackPort = "datakeys.io/loopback-port"
	// AnnotationLeaseDuration on a pod is for how long its sidecar issues a data key without having it renewed, such as 10s: at
	// least MinLeaseDuration, and at most what the cluster allows, which is the default.
	AnnotationLeaseDuration = "datakeys.io/lease-duration"
	// AnnotationCoastTime on a pod is for how long its sidecar goes on while the key service cannot be reached, such as 10m: 0s or
	// more, and at most what the cluster allows, which is the default.
	AnnotationCoastTime = "datakeys.io/coast-time"

	// AnnotationRotateRequestedAt, with any new value, asks for a rotation: on a MasterKey and on a DataKeyRequest of it, on the
	// Secret of the sealing keys of these.
	AnnotationRotateRequestedAt = "datakeys.io/rotate-requested-at"
	// AnnotationRewrapRequestedAt on a DataKeyRequest, with any new value, asks that the data key be wrapped anew by the primary
	// version of its master key. It is needed only where rewrapPolicy is Manual.
	AnnotationRewrapRequestedAt = "datakeys.io/rewrap-requested-at"
	// AnnotationAllowDeletion on a MasterKey, with the value "true", lets the object be deleted, alone or with its namespace,
	// although its material is not destroyed. The material is kept for the waiting period, and the verb "restore" brings the key back.
	AnnotationAllowDeletion = "datakeys.io/allow-deletion"

	// LabelMasterKey on a sealed-material Secret holds the name of its MasterKey, shortened to the length of a label.
	// It is for people: the binding that counts is authenticated inside the material.
	LabelMasterKey = "datakeys.io/master-key"
	// LabelManagedBy marks the Secrets that this project writes.
	LabelManagedBy = "app.kubernetes.io/managed-by"
	// ManagedBy is the value of LabelManagedBy.
	ManagedBy = "datakeys"
)

// Types of the Secrets that this project writes. They are untyped so that this package needs no more than apimachinery.
const (
	// SecretTypeDataKey is the type of the Secret of a DataKeyRequest. It holds ciphertext only.
	SecretTypeDataKey = "datakeys.io/data-key"
	// SecretTypeMasterKey is the type of the Secret, in the manager's namespace, with the sealed versions of one MasterKey.
	SecretTypeMasterKey = "datakeys.io/master-key"
	// SecretTypeSealingKeys is the type of the Secret, in the manager's namespace, with the sealing keys.
	SecretTypeSealingKeys = "datakeys.io/sealing-keys"
	// SecretTypeRootKey is the type of the Secret, in the manager's namespace, with the embedded root key.
	SecretTypeRootKey = "datakeys.io/root-key"
	// SecretTypeServingRoots is the type of the Secret, in the manager's namespace, with the roots of the serving
	// certificates.
	SecretTypeServingRoots = "datakeys.io/serving-roots"
)

// Entries of the Secret of a DataKeyRequest.
const (
	SecretKeyCiphertextBlob    = "ciphertextBlob"
	SecretKeyIV                = "iv"
	SecretKeyAlgorithm         = "algorithm"
	SecretKeyEncryptionContext = "encryptionContext"
	SecretKeyAAD               = "aad"
	SecretKeyPublicKey         = "publicKey"
	SecretKeyKeyID             = "keyId"
	SecretKeyKeyVersion        = "keyVersion"
	SecretKeyGeneration        = "generation"
)

// RequestedAt is what counts of the value of an annotation that asks for something: its first MaxRequestedAt bytes, without a character
// that is cut in the middle, which would not come back from JSON as it went in.
func RequestedAt(value string) string {
	return strings.ToValidUTF8(value[:min(len(value), MaxRequestedAt)], "")
}

// SecretKeyOf is the entry of a generation that is not the newest one: ciphertextBlob.3 is the blob of generation 3. There is one for
// each of SecretKeyCiphertextBlob, SecretKeyIV, SecretKeyKeyVersion and, of a key pair, SecretKeyPublicKey. The other entries are the
// same for all generations. The number is in decimal, without leading zeros.
func SecretKeyOf(entry string, generation int32) string {
	return entry + "." + strconv.FormatInt(int64(generation), 10)
}

// AlgorithmAESGCM is the value of the entry "algorithm", in the words of Alibaba Cloud KMS.
const AlgorithmAESGCM = "AES_GCM"

// TokenAudience is the audience of the tokens that the key service takes.
const TokenAudience = "datakeys.io"

// Verbs that the key service asks Kubernetes RBAC about, each the name of an operation in lower case. ReEncrypt has two: one for
// the key that the blob is of and one for the key that it shall be of.
const (
	VerbDecrypt                             = "decrypt"
	VerbEncrypt                             = "encrypt"
	VerbReEncryptFrom                       = "reencryptfrom"
	VerbReEncryptTo                         = "reencryptto"
	VerbGenerateDataKey                     = "generatedatakey"
	VerbGenerateDataKeyWithoutPlaintext     = "generatedatakeywithoutplaintext"
	VerbGenerateDataKeyPair                 = "generatedatakeypair"
	VerbGenerateDataKeyPairWithoutPlaintext = "generatedatakeypairwithoutplaintext"
	VerbDescribeKey                         = "describekey"
	VerbGenerateRandom                      = "generaterandom"
	VerbListKeys                            = "listkeys"
	VerbListAliases                         = "listaliases"
)

// What these verbs are asked on.
const (
	ResourceMasterKeys      = "masterkeys"
	ResourceDataKeyRequests = "datakeyrequests"
)

// Paths inside a pod.
const (
	// SocketDirectory is where the containers of a pod find the socket.
	SocketDirectory = "/run/datakeys"
	// SocketPath is the socket that issues data keys.
	SocketPath = SocketDirectory + "/datakeys.sock"
	// SocketEnv is the environment variable that holds SocketPath in the application's containers.
	SocketEnv = "DATAKEYS_SOCKET"
	// EndpointEnv is the environment variable by which clients of AWS KMS find the loopback port in the application's containers.
	EndpointEnv = "AWS_ENDPOINT_URL_KMS"
	// SidecarName is the name of the injected container.
	SidecarName = "datakeys"
)
