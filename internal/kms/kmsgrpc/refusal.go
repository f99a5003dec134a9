package kmsgrpc

import (
	"context"
	"errors"

	"github.com/go-logr/logr"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/kms"
)

// Outward messages of the codes that tell nothing else.
const (
	messageUnauthenticated = "a token of a running pod, with the audience datakeys.io, is needed"
	messagePrecondition    = "the key is in a state that does not allow this: see the conditions of its MasterKey"
	messageUnavailable     = "the key service cannot answer now: try again"
	messageInternal        = "internal error"
)

// refusal turns an error of the service into what the caller is told, and logs the rest.
func refusal(log logr.Logger, err error) (codes.Code, string) {
	e, ok := errors.AsType[*kms.Error](err)
	if !ok {
		e = &kms.Error{Code: kms.CodeInternal, Message: messageInternal, Err: err}
	}
	switch e.Code {
	case kms.CodeInvalidArgument:
		log.V(1).Info("Refused a call", "error", err.Error())
		return codes.InvalidArgument, e.Message
	case kms.CodeDenied:
		log.V(1).Info("Refused a call", "error", err.Error())
		return codes.PermissionDenied, e.Message
	case kms.CodeNotFound:
		log.Info("Refused a call", "error", err.Error())
		return codes.NotFound, e.Message
	case kms.CodeUnauthenticated: // the log is not for strangers to fill
		log.V(1).Info("Refused a call", "error", err.Error())
		return codes.Unauthenticated, messageUnauthenticated
	case kms.CodeThrottled:
		log.V(1).Info("Refused a call", "error", err.Error())
		return codes.ResourceExhausted, e.Message
	case kms.CodeFailedPrecondition:
		if kms.ReasonOf(e) != kmsv1.ReasonKeyUnavailable { // somebody wanted it so
			log.V(1).Info("Refused a call", "error", err.Error())
			return codes.FailedPrecondition, e.Message
		}
		log.Error(err, "A key cannot be used")
		return codes.FailedPrecondition, messagePrecondition
	case kms.CodeUnavailable:
		if errors.Is(err, context.Canceled) { // by a caller who does not wait: no outage
			log.V(1).Info("A call was cancelled", "error", err.Error())
			return codes.Unavailable, messageUnavailable
		}
		log.Error(err, "Could not answer a call")
		return codes.Unavailable, messageUnavailable
	default:
		log.Error(err, "A call failed")
		return codes.Internal, messageInternal
	}
}

// refusalStatus is the status of a call that is refused.
func refusalStatus(service *kms.Service, log logr.Logger, err error) error {
	code, message := refusal(log, err)
	told := status.New(code, message)
	info := &errdetails.ErrorInfo{Domain: kmsv1.ErrorDomain, Reason: kms.ReasonOf(err)}
	if key := service.KeyOf(err); key != "" {
		info.Metadata = map[string]string{kmsv1.MetadataKey: key}
	}
	withReason, failed := told.WithDetails(info)
	if failed != nil {
		return told.Err()
	}
	return withReason.Err()
}
