package controllers

import (
	"errors"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// A permanentError is returned when only a change of the object, or of what the message names, helps: those are watched, so
// nothing is tried again before. It becomes the Ready condition.
type permanentError struct {
	// Reason is the reason of the Ready condition.
	Reason string
	// Message says what is wrong and the way out. It is shown to everybody who may read the object.
	Message string
}

var _ error = permanentError{}

func (e permanentError) Error() string { return e.Reason + ": " + e.Message }

// A pendingError is not a failure: the object waits for another one, which is watched. It becomes the Ready condition.
type pendingError struct {
	// Reason is the reason of the Ready condition.
	Reason string
	// Message names what is waited for.
	Message string
	// Passing says that the other object was not looked at yet, as where both are made at once. It is about to be, which wakes this one:
	// nothing is told.
	Passing bool
	// Wanted says that it is what the spec asks for: no warning.
	Wanted bool
}

var _ error = pendingError{}

func (e pendingError) Error() string { return e.Reason + ": " + e.Message }

// A keyServiceError is returned when the key service could not do what it was asked, or the API server refuses a Secret. It is tried
// again with back-off. Err is for the log; of the key service the Ready condition says the same to everybody, whatever Err is.
type keyServiceError struct {
	// Reason is the reason of the Ready condition.
	Reason string
	// Message is the message of the Ready condition.
	Message string
	Err     error
}

var _ error = keyServiceError{}

func (e keyServiceError) Error() string { return fmt.Sprintf("%s: %v", e.Reason, e.Err) }

func (e keyServiceError) Unwrap() error { return e.Err }

// problem is what the Ready condition says of an error.
type problem struct {
	reason, message string
	// wanted: it is what the spec asks for, and nothing to warn of.
	wanted bool
}

// isPassing reports whether an error is to be waited for in silence.
func isPassing(err error) bool {
	pending, ok := errors.AsType[pendingError](err)
	return ok && pending.Passing
}

// explain sorts an error by its fate. The problem is nil where the error says nothing of the object, as when the API server
// does not answer; the returned error is what Reconcile is to return.
func explain(err error) (*problem, error) {
	if permanent, ok := errors.AsType[permanentError](err); ok {
		return &problem{reason: permanent.Reason, message: permanent.Message}, reconcile.TerminalError(err) // write status, done
	}
	if pending, ok := errors.AsType[pendingError](err); ok {
		return &problem{pending.Reason, pending.Message, pending.Wanted}, nil // write status, wait for the watch
	}
	if service, ok := errors.AsType[keyServiceError](err); ok {
		return &problem{reason: service.Reason, message: service.Message}, err // write status, requeue with back-off
	}
	return nil, err // requeue with back-off
}
