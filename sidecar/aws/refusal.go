package aws

import (
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// Messages of AWS KMS.
const (
	messageDryRun       = "The request would have succeeded, but the DryRun option is set."
	messageIncorrectKey = "The key ID in the request does not identify a CMK that can perform this operation."
	messageUnknownBlob  = "The ciphertext refers to a customer master key that does not exist, does not exist in this region, " +
		"or you are not allowed to access."
)

// refused puts what the key service refused into the words of AWS KMS.
func (x *exchange) refused(err error) *exception {
	x.cause = err
	s, ok := status.FromError(err)
	if !ok { // of a KeyService that is no client of gRPC
		s = status.FromContextError(err)
	}
	info := infoOf(s)
	switch info.GetReason() {
	case kmsv1.ReasonInvalidKeyName:
		return x.unknownName(s.Message())
	case kmsv1.ReasonInvalidMarker:
		return newException(invalidMarker, "Could not deserialize marker: it must be the NextMarker of the answer before")
	case kmsv1.ReasonInvalidCiphertext:
		return &exception{name: invalidCiphertext} // AWS KMS says no more either
	case kmsv1.ReasonIncorrectKey:
		return newException(incorrectKey, messageIncorrectKey)
	case kmsv1.ReasonUnsupported:
		return newException(unsupportedOperation, "%s", s.Message())
	case kmsv1.ReasonKeyNotFound:
		return x.notFound(s.Message())
	case kmsv1.ReasonKeyDisabled:
		return newException(disabled, "%s is disabled.", x.key(info))
	case kmsv1.ReasonKeyPendingDeletion:
		return newException(kmsInvalidState, "%s is pending deletion.", x.key(info))
	case kmsv1.ReasonKeyUnavailable:
		return newException(kmsInvalidState, "%s is unavailable.", x.key(info))
	case kmsv1.ReasonDryRun:
		return newException(dryRunOperation, messageDryRun)
	}
	return x.refusedByCode(s)
}

// refusedByCode is refused for a reason that says no more than its code, for one that is newer than this sidecar, and for what no key
// service has said: a connection that failed, a call that took too long.
func (x *exchange) refusedByCode(s *status.Status) *exception {
	switch s.Code() {
	case codes.InvalidArgument, codes.OutOfRange:
		return newException(validation, "%s", s.Message())
	case codes.NotFound:
		return x.notFound(s.Message())
	case codes.PermissionDenied:
		return newException(accessDenied, "%s", s.Message())
	case codes.Unauthenticated:
		return newException(unrecognizedClient, "the key service does not know this pod: %s", s.Message())
	case codes.FailedPrecondition:
		return newException(kmsInvalidState, "%s", s.Message())
	case codes.ResourceExhausted:
		return newException(throttling, "%s", s.Message())
	case codes.Unimplemented:
		return newException(unsupportedOperation, "%s is not offered by this key service, which is older than the sidecar", x.operation.name)
	case codes.DeadlineExceeded:
		return newException(dependencyTimeout, "the key service did not answer in %v: try again", x.operation.timeout())
	case codes.Unavailable, codes.Canceled, codes.Aborted:
		return newException(x.operation.unavailable, "the key service cannot be reached or cannot answer now: try again")
	default:
		return newException(kmsInternal, "the key service failed: try again")
	}
}

// infoOf returns what a status of the key service says beside its code, nil where it is of no key service.
func infoOf(s *status.Status) *errdetails.ErrorInfo {
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == kmsv1.ErrorDomain {
			return info
		}
	}
	return nil
}

// key names the key whose state forbids the operation: by its ARN, or where that is not told as the request does.
func (x *exchange) key(info *errdetails.ErrorInfo) string {
	if arn := info.GetMetadata()[kmsv1.MetadataKey]; arn != "" {
		return arn
	}
	if name := x.request.named(); name != "" {
		return shorten(name)
	}
	return "The key"
}

const arnRule = "arn:datakeys:kms:<install>:<namespace>:key/<key ID>, or alias/<name> at its end"

// named is the key that the request names to be used: that of a new blob, where it names that of an old one too.
func (r *request) named() string {
	if r.destinationKeyID != "" {
		return r.destinationKeyID
	}
	return r.keyID
}

// unknownName is for a name that can be none of a key. Where AWS KMS does not know of InvalidArnException, it is a key that is not there.
func (x *exchange) unknownName(message string) *exception {
	name := shorten(x.request.named())
	if strings.HasPrefix(message, "source_key_id:") {
		name = shorten(x.request.sourceKeyID)
	}
	isARN := strings.HasPrefix(name, "arn:")
	switch {
	case isARN && x.operation.invalidArn:
		return newException(invalidArn, "Invalid arn '%s': it must be %s", name, arnRule)
	case isARN:
		return newException(notFound, "Invalid arn '%s'", name)
	case strings.HasPrefix(name, "alias/"):
		return newException(notFound, "Alias %s is not found.", name)
	}
	return newException(notFound, "Invalid keyId '%s'", name)
}

// notFound is for a key that is not known. The message of the key service begins with the field that names it, or tells of its MasterKey.
func (x *exchange) notFound(message string) *exception {
	ofBlob := strings.HasPrefix(message, "ciphertext_blob:")
	ofField := ofBlob || strings.HasPrefix(message, "key_id:") || strings.HasPrefix(message, "destination_key_id:")
	name := shorten(x.request.named())
	switch {
	case ofBlob, x.operation.name == "Decrypt": // a client may not know of the key of a blob
		return newException(accessDenied, messageUnknownBlob)
	case !ofField && x.request.given(memberCiphertextBlob): // of one key or the other
		return newException(notFound, "%s", message)
	case !ofField:
		return newException(notFound, "Key '%s' does not exist: %s", name, message)
	case strings.HasPrefix(name, "alias/"), strings.Contains(name, ":alias/"):
		return newException(notFound, "Alias %s is not found.", name)
	}
	return newException(notFound, "Key '%s' does not exist", name)
}
