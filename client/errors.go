package client

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
)

// Reasons that this package gives. Those that the sidecar gives, too, mean the same. It gives more: docs/native-api.md has them.
const (
	// ReasonUnreachable: the sidecar does not answer, or its answer is cut off. It may be starting.
	ReasonUnreachable = "Unreachable"
	// ReasonInvalidAnswer: what answers does not speak as a sidecar does.
	ReasonInvalidAnswer = "InvalidAnswer"
	// ReasonClosed: the AEAD is closed.
	ReasonClosed = "Closed"

	// ReasonUnknownDataKey: the pod has no data key of that name.
	ReasonUnknownDataKey = "UnknownDataKey"
	// ReasonUnknownGeneration: the data key has no such generation here. It is dropped, or it is new and on its way to this pod, which
	// takes some minutes.
	ReasonUnknownGeneration = "UnknownGeneration"
	// ReasonUnsuitableDataKey: the data key is a key pair, or too short, and so nothing to encrypt with.
	ReasonUnsuitableDataKey = "UnsuitableDataKey"
	// ReasonInvalidParameter: an argument breaks a rule, which the detail names.
	ReasonInvalidParameter = "InvalidParameter"
	// ReasonBodyTooLarge: more than is encrypted at once, which is 64 KiB in the sidecar and 1 MiB in this process.
	ReasonBodyTooLarge = "BodyTooLarge"
	// ReasonUnknownFormat: the ciphertext is of another format, or of a version of it that is not known here.
	ReasonUnknownFormat = "UnknownFormat"
	// ReasonCiphertextBroken: the ciphertext is damaged, or was made with another data key or other associated data.
	ReasonCiphertextBroken = "CiphertextBroken"
)

// Error is why the sidecar, or this package in its place, did not do what was asked. It holds nothing that is secret.
//
// What it does not stand for: an end of the caller's context, whose cause (context.Cause) is returned as it is.
type Error struct {
	// Status is the HTTP status of the sidecar's answer, 0 where this package says no by itself.
	Status int
	// Reason says what it is. Reasons are stable: programs may decide by them.
	Reason string
	// Detail says it for people.
	Detail string
	// RetryAfter is after how long the sidecar suggests to try again, 0 where it suggests nothing.
	RetryAfter time.Duration

	cause error
}

// Error implements error.
func (e *Error) Error() string {
	if e.Detail == "" {
		return "datakeys: " + e.Reason
	}
	return "datakeys: " + e.Reason + ": " + e.Detail
}

// Unwrap returns what failed under it, such as a dial.
func (e *Error) Unwrap() error { return e.cause }

// Temporary reports whether the same call may succeed soon with nothing changed by anybody: the sidecar is starting, or cannot reach the
// key service now. Any other error is final, until somebody mends what it says; but ReasonUnknownGeneration passes within minutes if the
// generation is new, which this package cannot tell.
func (e *Error) Temporary() bool {
	return e.Status == http.StatusServiceUnavailable || e.RetryAfter > 0 || e.Reason == ReasonUnreachable
}

// temporary is Temporary of any error.
func temporary(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Temporary()
}

func unreachable(err error) *Error {
	return &Error{Reason: ReasonUnreachable, Detail: err.Error(), cause: err}
}

func invalidAnswer(format string, args ...any) *Error {
	return refusal(ReasonInvalidAnswer, "this is no sidecar: "+format, args...)
}

// refusal is an error of this package in place of the sidecar.
func refusal(reason, format string, args ...any) *Error {
	return &Error{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// checkName refuses what is no name of a DataKeyRequest, and would be another path.
func checkName(name string) error {
	if !envelope.IsSubdomain(name) {
		return refusal(ReasonUnknownDataKey, "%q is no name of a data key: it must be a lower-case DNS subdomain (RFC 1123) of at most %d bytes",
			name[:min(len(name), envelope.MaxSubdomain)], envelope.MaxSubdomain)
	}
	return nil
}

func checkAssociated(associatedData []byte) error {
	if n := len(associatedData); n > envelope.MaxRawSize {
		return refusal(ReasonInvalidParameter, "associated data of %d bytes: must be at most %d", n, envelope.MaxRawSize)
	}
	return nil
}
