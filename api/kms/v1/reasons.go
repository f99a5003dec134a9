// Package kmsv1 is the contract between the key service and the sidecars: kms.proto, what is generated from it, and the reasons of
// refusals.
package kmsv1

// ErrorDomain is the domain of the google.rpc.ErrorInfo that statuses of the key service carry.
const ErrorDomain = "datakeys.io"

// MetadataKey is the metadata of an ErrorInfo with the ARN of the key whose state does not allow the operation. Other refusals
// have none.
const MetadataKey = "key"

// Reasons of a google.rpc.ErrorInfo of the domain ErrorDomain. A front door maps each to its own vocabulary.
const (
	// ReasonInvalid (INVALID_ARGUMENT): a field breaks its rule.
	ReasonInvalid = "INVALID"
	// ReasonInvalidKeyName (INVALID_ARGUMENT): key_id is no key ID, ARN, name or alias.
	ReasonInvalidKeyName = "INVALID_KEY_NAME"
	// ReasonInvalidMarker (INVALID_ARGUMENT): marker is not one that a list returned.
	ReasonInvalidMarker = "INVALID_MARKER"
	// ReasonInvalidCiphertext (INVALID_ARGUMENT): the blob is malformed, damaged, of another door, or does not open with this
	// associated data or IV.
	ReasonInvalidCiphertext = "INVALID_CIPHERTEXT"
	// ReasonIncorrectKey (INVALID_ARGUMENT): the blob is of another key than the request names.
	ReasonIncorrectKey = "INCORRECT_KEY"
	// ReasonUnsupported (INVALID_ARGUMENT): what is asked for is not offered by this build or installation.
	ReasonUnsupported = "UNSUPPORTED"
	// ReasonUnauthenticated (UNAUTHENTICATED): the token proves nothing.
	ReasonUnauthenticated = "UNAUTHENTICATED"
	// ReasonDenied (PERMISSION_DENIED): not allowed.
	ReasonDenied = "DENIED"
	// ReasonKeyNotFound (NOT_FOUND): the key, its alias, or the key or version of a blob is not known, or the key is destroyed.
	ReasonKeyNotFound = "KEY_NOT_FOUND"
	// ReasonKeyDisabled (FAILED_PRECONDITION): the key is Disabled.
	ReasonKeyDisabled = "KEY_DISABLED"
	// ReasonKeyPendingDeletion (FAILED_PRECONDITION): the key is PendingDeletion.
	ReasonKeyPendingDeletion = "KEY_PENDING_DELETION"
	// ReasonKeyUnavailable (FAILED_PRECONDITION): the material of the key is missing or damaged.
	ReasonKeyUnavailable = "KEY_UNAVAILABLE"
	// ReasonDryRun (FAILED_PRECONDITION): a dry run that would have succeeded.
	ReasonDryRun = "DRY_RUN"
	// ReasonThrottled (RESOURCE_EXHAUSTED): too many calls of one pod.
	ReasonThrottled = "THROTTLED"
	// ReasonUnavailable (UNAVAILABLE): try again.
	ReasonUnavailable = "UNAVAILABLE"
	// ReasonInternal (INTERNAL): a fault of the key service.
	ReasonInternal = "INTERNAL"
)
