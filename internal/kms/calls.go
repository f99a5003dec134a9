package kms

import (
	"context"
	"errors"
	"time"
)

// What a server does with each call, beside Authenticate, Admit and the operation itself.

// Now is the time on the clock of the service.
func (s *Service) Now() time.Time { return s.clock.Now() }

// TurnedAway counts a call that did not come as far as its operation.
func (s *Service) TurnedAway(operation string, start time.Time, err error) {
	s.metrics.observe(operation, s.clock.Since(start), err)
}

// Unread counts a request that could not be read. Its pod has brought that upon itself.
func (s *Service) Unread(ctx context.Context, operation string, c Caller, err error) {
	s.done(ctx, operation, s.Now(), c, invalid("request", err))
}

// KeyOf returns the ARN of the key whose state is why an operation was refused, or nothing where that is not so.
func (s *Service) KeyOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok && e.KeyID != "" {
		return s.keyARN(e.Namespace, e.KeyID)
	}
	return ""
}
