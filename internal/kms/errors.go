package kms

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// Code is the class of an error of the key service. The zero Code is invalid.
type Code uint8

const (
	// CodeInvalidArgument means: a field breaks its rule, or a blob does not open.
	CodeInvalidArgument Code = iota + 1
	// CodeUnauthenticated means: the token is missing, not valid, or bound to no pod.
	CodeUnauthenticated
	// CodeDenied means: RBAC or the blob's scope does not allow it.
	CodeDenied
	// CodeNotFound means: the key or its version is not known.
	CodeNotFound
	// CodeFailedPrecondition means: the key is in a state that does not allow it, or it was a dry run that would have
	// succeeded.
	CodeFailedPrecondition
	// CodeThrottled means: too many calls of one pod.
	CodeThrottled
	// CodeUnavailable means: try again.
	CodeUnavailable
	// CodeInternal means: a fault of the key service.
	CodeInternal
)

// codeTable has the name of each code, and the reason of an error that names no other.
var codeTable = [...]struct{ name, reason string }{
	CodeInvalidArgument:    {"InvalidArgument", kmsv1.ReasonInvalid},
	CodeUnauthenticated:    {"Unauthenticated", kmsv1.ReasonUnauthenticated},
	CodeDenied:             {"Denied", kmsv1.ReasonDenied},
	CodeNotFound:           {"NotFound", kmsv1.ReasonKeyNotFound},
	CodeFailedPrecondition: {"FailedPrecondition", kmsv1.ReasonKeyUnavailable},
	CodeThrottled:          {"Throttled", kmsv1.ReasonThrottled},
	CodeUnavailable:        {"Unavailable", kmsv1.ReasonUnavailable},
	CodeInternal:           {"Internal", kmsv1.ReasonInternal},
}

// String returns the name of the code, as in audit records and metrics.
func (c Code) String() string {
	if c == 0 || int(c) >= len(codeTable) {
		return fmt.Sprintf("Code(%d)", uint8(c))
	}
	return codeTable[c].name
}

// Error is what every operation of a Service returns instead of a result.
type Error struct {
	Code Code
	// Reason tells errors of one Code apart: kmsv1.ReasonInvalidCiphertext, ... Empty: the usual one of the Code.
	Reason string
	// Message names the field or the object, the rule and the way out. It is for the caller, and says nothing of key
	// material nor of what the caller may not know.
	Message string
	// Namespace and KeyID are, where the state of a key is why, those of that key. The caller may know of it and is told its ARN.
	Namespace, KeyID string
	// Err is the cause, for the log alone. It may be nil.
	Err error
}

func (e *Error) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("%v: %s", e.Code, e.Message)
	}
	return fmt.Sprintf("%v: %s: %v", e.Code, e.Message, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

var _ error = (*Error)(nil)

// CodeOf returns the code of an error: CodeInternal for one that is no *Error, and 0 for nil.
func CodeOf(err error) Code {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return CodeInternal
}

// ReasonOf returns the reason of an error, one of kmsv1.Reason...: ReasonInternal for one that is no *Error, and "" for nil.
func ReasonOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok && e.Reason != "" {
		return e.Reason
	}
	if c := CodeOf(err); int(c) < len(codeTable) {
		return codeTable[c].reason
	}
	return kmsv1.ReasonInternal
}

// What controllers tell apart, with errors.Is. An error that is none of these may pass by itself: try again.
var (
	// ErrInvalidKeyID means: a key ID is not a UUID in canonical form.
	ErrInvalidKeyID = errors.New("the key ID must be a UUID in lower case")
	// ErrMaterialMissing means: there is no material of that key ID.
	ErrMaterialMissing = errors.New("there is no material of this key ID")
	// ErrMaterialConflict means: the material of that key ID belongs to a MasterKey of another namespace or name.
	ErrMaterialConflict = errors.New("the material of this key ID belongs to another MasterKey")
	// ErrMaterialBroken means: the material does not open under the sealing keys of this installation, or is incomplete.
	ErrMaterialBroken = errors.New("the material does not open")
	// ErrMaterialDestroyed means: the versions were destroyed at the end of the waiting period, and nothing but a record is left.
	ErrMaterialDestroyed = errors.New("the material is destroyed")
	// ErrNotDue means: the waiting period has not ended, or not begun.
	ErrNotDue = errors.New("the waiting period is not over")
	// ErrTooManyVersions means: the key has v1alpha1.MaxMasterKeyVersions versions.
	ErrTooManyVersions = errors.New("the key has as many versions as it may have")
	// ErrKeyVersionMissing means: the material can be read and is whole, but it lacks the version that a blob is of.
	ErrKeyVersionMissing = errors.New("the blob is of a version of the key that its material does not have")
	// ErrBlobRefused means: a blob is not that data key, or does not open.
	ErrBlobRefused = errors.New("the blob is not this data key")
)

// What the interfaces that a Service is given return.
var (
	// ErrUnauthenticated is what an Authenticator returns, wrapped, for a token that proves nothing.
	ErrUnauthenticated = errors.New("the token is not valid")
	// ErrMasterKeyNotFound is what MasterKeys returns, wrapped, where there is no MasterKey of that name.
	ErrMasterKeyNotFound = errors.New("there is no such MasterKey")
)

// invalid is the error of a field that breaks a rule.
func invalid(field string, rule error) *Error {
	return &Error{Code: CodeInvalidArgument, Message: fmt.Sprintf("%s: %v", field, rule)}
}

// unsupported is the error of a field that asks for what this build or installation does not offer.
func unsupported(field string, rule error) *Error {
	e := invalid(field, rule)
	e.Reason = kmsv1.ReasonUnsupported
	return e
}

// unavailable is the error of something that this service depends on and that did not answer.
func unavailable(err error, what string) *Error {
	if errors.Is(err, context.Canceled) {
		what = "the call was cancelled"
	}
	return &Error{Code: CodeUnavailable, Message: what, Err: err}
}

// absent reports whether a key cannot be had because its material is missing, destroyed or does not open. Without material it is
// not known which MasterKey it belongs to, so both are "no such key" to a caller; the log has the difference.
func absent(err error) bool {
	return errors.Is(err, ErrMaterialMissing) || errors.Is(err, ErrMaterialDestroyed) || errors.Is(err, ErrMaterialBroken)
}

// outward gives an error of the keyring its code. What is wrong with material is for the log and for the conditions of
// the MasterKey.
func outward(err error) error {
	if errors.Is(err, ErrMaterialDestroyed) {
		return &Error{Code: CodeNotFound, Message: "the key is Destroyed: what it encrypted opens no more; use another key", Err: err}
	}
	if absent(err) || errors.Is(err, ErrMaterialConflict) {
		return &Error{Code: CodeFailedPrecondition, Message: "the material of the key cannot be used: see the conditions of its MasterKey", Err: err}
	}
	if _, ok := errors.AsType[*Error](err); ok {
		return err
	}
	return unavailable(err, "the material of the key could not be read: try again")
}

// outwardOf is outward for a key that the caller may know of: he is told which one cannot be used.
func outwardOf(namespace, keyID string, err error) error {
	err = outward(err)
	if e, ok := errors.AsType[*Error](err); ok && ReasonOf(e) == kmsv1.ReasonKeyUnavailable {
		e.Namespace, e.KeyID = namespace, keyID
	}
	return err
}

// PanicError turns a panic into an error. It keeps the value only of the runtime's own panics: any other may hold
// anything.
func PanicError(p any) *Error {
	cause := fmt.Errorf("panic with a %T", p)
	if e, ok := p.(runtime.Error); ok {
		cause = fmt.Errorf("panic: %w", e)
	}
	return &Error{Code: CodeInternal, Message: "internal error", Err: cause}
}
