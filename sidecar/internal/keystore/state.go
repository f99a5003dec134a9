package keystore

import "google.golang.org/grpc/codes"

// State is what can be said of one data key.
type State string

// States of a data key.
const (
	// StatePending: not yet there, or the key service has not answered yet. It is tried again.
	StatePending State = "Pending"
	// StateRefused: refused for a reason that waiting alone does not mend. It is tried again now and then.
	StateRefused State = "Refused"
	// StateIssued: the plaintext can be had.
	StateIssued State = "Issued"
)

// Reasons why a data key is not issued. They are stable: programs may decide by them.
const (
	// ReasonStarting: the sidecar has not asked for it yet.
	ReasonStarting = "Starting"
	// ReasonStopping: the sidecar is about to exit.
	ReasonStopping = "Stopping"
	// ReasonSecretNotFound: its Secret is not mounted yet.
	ReasonSecretNotFound = "SecretNotFound"
	// ReasonSecretUnreadable: its Secret is mounted, but cannot be read.
	ReasonSecretUnreadable = "SecretUnreadable"
	// ReasonKeyServiceUnavailable: the key service cannot be reached or cannot answer now.
	ReasonKeyServiceUnavailable = "KeyServiceUnavailable"
	// ReasonLeaseExpired: the key service has not renewed it in time. It was issued before.
	ReasonLeaseExpired = "LeaseExpired"

	// ReasonBlobInvalid: its Secret holds no blob, or the blob of another data key.
	ReasonBlobInvalid = "BlobInvalid"
	// ReasonAccessDenied: the pod's ServiceAccount may not decrypt it.
	ReasonAccessDenied = "AccessDenied"
	// ReasonUnauthenticated: the key service does not take the pod's token.
	ReasonUnauthenticated = "Unauthenticated"
	// ReasonMasterKeyNotFound: the master key, or the version of it, that the blob names is not known.
	ReasonMasterKeyNotFound = "MasterKeyNotFound"
	// ReasonMasterKeyState: the master key is in a state that allows no decryption.
	ReasonMasterKeyState = "MasterKeyState"
	// ReasonBlobRefused: the blob does not open under its master key with its encryption context.
	ReasonBlobRefused = "BlobRefused"
)

// RefusalReason returns the reason that a code of the key service stands for, and whether the code says no. Any other is an outage.
// kms.proto documents the codes.
func RefusalReason(code codes.Code) (reason string, refused bool) {
	switch code {
	case codes.PermissionDenied:
		return ReasonAccessDenied, true
	case codes.Unauthenticated:
		return ReasonUnauthenticated, true
	case codes.NotFound:
		return ReasonMasterKeyNotFound, true
	case codes.FailedPrecondition:
		return ReasonMasterKeyState, true
	case codes.InvalidArgument:
		return ReasonBlobRefused, true
	default:
		return "", false
	}
}
