package alibaba

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/alibaba/internal/dkms"
)

// failure is an error in the words of Alibaba Cloud KMS: the text begins as its documentation has it for the code, and goes on with
// what is wrong here.
type failure struct {
	status     int
	code, text string
}

func (f *failure) Error() string { return f.code + ": " + f.text }

// message is what a client reads.
func (f *failure) message(requestID string) *dkms.Error {
	return &dkms.Error{StatusCode: int32(f.status), ErrorCode: f.code, ErrorMessage: f.text, RequestId: requestID}
}

// errTooLarge has no body at Alibaba's, for more than 3 MB; its SDK then has an error without a code.
var errTooLarge = &failure{http.StatusRequestEntityTooLarge, codeInvalidParameter,
	fmt.Sprintf("The specified parameter is not valid. The body must have at most %d bytes.", maxBody)}

const codeInvalidParameter = "InvalidParameter"

// invalid is the error of a parameter against its rule, which the text says in whole sentences.
func invalid(format string, args ...any) *failure {
	return &failure{http.StatusBadRequest, codeInvalidParameter, "The specified parameter is not valid. " + fmt.Sprintf(format, args...)}
}

// invalidParam is the error of a header.
func invalidParam(header string) *failure {
	return &failure{http.StatusBadRequest, "InvalidParam", fmt.Sprintf("The Param %s is invalid.", header)}
}

// missing is the error of a parameter that is required.
func missing(name string) *failure {
	return &failure{http.StatusBadRequest, "MissingParameter", fmt.Sprintf("Parameter %s does not exist in http header or body.", name)}
}

// unsupported is the error of what is not offered here.
func unsupported(why string) *failure {
	return &failure{http.StatusBadRequest, "UnsupportedOperation", "Rejected.UnsupportedOperation: " + why}
}

// rejected is the error of a key in a state that allows no use.
func rejected(state, why string) *failure {
	return &failure{http.StatusConflict, "Rejected." + state,
		fmt.Sprintf("The request was rejected because the key state is %s. %s", state, why)}
}

func internal(why string) *failure {
	return &failure{http.StatusInternalServerError, "InternalFailure", "Internal Failure. " + why}
}

// failure returns what the caller is told of an error: it is one, or came from the key service.
func (c *call) failure(err error) *failure {
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	s, ok := status.FromError(err)
	if !ok {
		s = status.FromContextError(err)
	}
	why := said(s.Message())
	return cmp.Or(c.failureFor(reasonGiven(s), why), c.failureFor(usualReason(s.Code()), why), internal(why))
}

// failureFor is nil for a reason that is not known here.
func (c *call) failureFor(reason, why string) *failure {
	switch reason {
	case kmsv1.ReasonInvalid, kmsv1.ReasonInvalidKeyName, kmsv1.ReasonInvalidCiphertext, kmsv1.ReasonIncorrectKey:
		return invalid("%s", why)
	case kmsv1.ReasonUnsupported:
		return unsupported(why)
	case kmsv1.ReasonDenied, kmsv1.ReasonUnauthenticated:
		return &failure{http.StatusForbidden, "Forbidden.NoPermission",
			fmt.Sprintf("This operation for %s is forbidden by permission system. %s", quote(cmp.Or(c.keyID, c.name)), why)}
	case kmsv1.ReasonKeyNotFound:
		return &failure{http.StatusNotFound, "Forbidden.KeyNotFound", "The specified key does not exist. " + why}
	case kmsv1.ReasonKeyDisabled:
		return rejected("Disabled", why)
	case kmsv1.ReasonKeyPendingDeletion:
		return rejected("PendingDeletion", why)
	case kmsv1.ReasonThrottled:
		return &failure{http.StatusTooManyRequests, "Rejected.Throttling", "QPS Limit Exceeded. " + why}
	case kmsv1.ReasonUnavailable, kmsv1.ReasonKeyUnavailable:
		return &failure{http.StatusServiceUnavailable, "ServiceUnavailableTemporary", "Service Unavailable Temporary. " + why}
	}
	return nil
}

// reasonGiven is the reason that the key service gives, empty where it is not the key service that refuses: gRPC has statuses of its own.
func reasonGiven(s *status.Status) string {
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == kmsv1.ErrorDomain {
			return info.GetReason()
		}
	}
	return ""
}

// usualReason is the usual one of a code, empty where it has none: for statuses of gRPC, and for a key service that is newer than this
// sidecar and has reasons that are not known here.
func usualReason(code codes.Code) string {
	switch code {
	case codes.InvalidArgument:
		return kmsv1.ReasonInvalid
	case codes.Unauthenticated:
		return kmsv1.ReasonUnauthenticated
	case codes.PermissionDenied:
		return kmsv1.ReasonDenied
	case codes.NotFound:
		return kmsv1.ReasonKeyNotFound
	case codes.ResourceExhausted:
		return kmsv1.ReasonThrottled
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return kmsv1.ReasonUnavailable
	case codes.Unimplemented: // a key service that is older than this sidecar
		return kmsv1.ReasonUnsupported
	default:
		return ""
	}
}

// said quotes a message of the key service, as protobuf takes it.
func said(message string) string {
	if message == "" {
		return ""
	}
	return "The key service says: " + strings.ToValidUTF8(message, "\uFFFD") + "."
}
