package keyservice

import (
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// newRefusal is the status error by which the key service refuses a call of its own.
func newRefusal(code codes.Code, reason, message, key string) error {
	told := status.New(code, message)
	info := &errdetails.ErrorInfo{Domain: kmsv1.ErrorDomain, Reason: reason}
	if key != "" {
		info.Metadata = map[string]string{kmsv1.MetadataKey: key}
	}
	if detailed, err := told.WithDetails(info); err == nil {
		told = detailed
	}
	return told.Err()
}

// hasReason reports whether it was the key service itself that refused, and not what is between.
func hasReason(err error) bool {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == kmsv1.ErrorDomain {
			return true
		}
	}
	return false
}

// refusalError is the error that a call of its own would have given.
func refusalError(r *kmsv1.Refusal) error {
	code := codes.Code(r.GetCode()) // any number is a code; one that is not known is an outage
	if code == codes.OK {
		code = codes.Internal
	}
	return newRefusal(code, r.GetReason(), r.GetMessage(), r.GetKey())
}
