package kms

import (
	"context"
	"errors"
	"fmt"
	"time"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
)

// Limits are what one pod may cost each replica. Replicas count by themselves.
type Limits struct {
	// Calls is how many calls a second a pod may make on and on, and CallsBurst how many at once. Each request of a batch
	// counts, and what takes the processor longer counts as more.
	Calls, CallsBurst int
	// Refusals is how many refused requests a second a pod may have on and on, and RefusalsBurst at once. Each of them
	// costs an audit record, and may cost reviews and reads of the API server that no cache answers.
	Refusals, RefusalsBurst int
}

// DefaultLimits are far from what an honest pod does.
//
// Calls: one processor opens about 10,000 blobs a second, so a pod gets one at most, for as long as it likes.
//
// Refusals: a sidecar asks for what it was refused every 10 seconds, so one with a hundred data keys that it may not have
// gets 10 refusals a second; twice that is allowed, and five batches of a hundred at once. It is some 12 KiB of audit
// records a second.
var DefaultLimits = LimitsOf(10_000, 20)

// LimitsOf returns limits of that many calls and refusals a second, with bursts in proportion.
func LimitsOf(calls, refusals int) Limits {
	return Limits{Calls: calls, CallsBurst: 2 * calls, Refusals: refusals, RefusalsBurst: 25 * refusals}
}

const (
	// maxDebt is how long a pod waits at most until it is heard again: it may owe what comes back in that time.
	maxDebt = time.Minute
	// maxPods is how many pods each budget remembers, about 100 bytes each. A budget of calls is full again 2 seconds after
	// the last call, so this is about pods that call at the same time.
	maxPods = 16 << 10
	// throttleNote is how often the audit log notes that a pod is throttled.
	throttleNote = time.Minute
)

// OperationThrottle in audit records: calls of the pod are refused because there are too many. The record stands for all of
// them for a minute.
const OperationThrottle = "Throttle"

// Costs of what takes longer than a call, in calls: a call is about 100 microseconds of one processor.
const (
	costRSA2048 = 2_500
	costRSA3072 = 10_000
	costRSA4096 = 20_000
	// costObjects is how many MasterKeys are listed at the cost of one call.
	costObjects = 100
)

// costOfKeyPair is what making a key pair costs beyond the call. Those on curves take no longer than the call.
func costOfKeyPair(spec string) int {
	switch v1alpha1.KeyPairSpec(spec) {
	case v1alpha1.KeyPairSpecRSA2048:
		return costRSA2048
	case v1alpha1.KeyPairSpecRSA3072:
		return costRSA3072
	case v1alpha1.KeyPairSpecRSA4096:
		return costRSA4096
	default:
		return 0
	}
}

// limits keep the budgets of pods.
type limits struct {
	calls, refusals, notes budgets
}

func newLimits(l Limits) *limits {
	rule := func(rate, burst int) budgetRule {
		return budgetRule{rate: float64(rate), burst: float64(burst), debt: float64(rate) * maxDebt.Seconds()}
	}
	return &limits{
		calls:    budgets{budgetRule: rule(l.Calls, l.CallsBurst), most: maxPods},
		refusals: budgets{budgetRule: rule(l.Refusals, l.RefusalsBurst), most: maxPods},
		notes:    budgets{budgetRule: budgetRule{rate: 1 / throttleNote.Seconds(), burst: 1}, most: maxPods},
	}
}

// payer is whose budgets an operation takes from. Renewals have budgets of their own: what applications ask for through the front doors,
// and are refused, does not end the leases of their pod.
func (c Caller) payer(operation string) string {
	if operation == OperationRenew || operation == OperationRenewDataKey {
		return c.PodUID + "/" + OperationRenew
	}
	return c.PodUID
}

// Admit counts a call of a pod, and returns an error where it has made too many, or had too many refused.
func (s *Service) Admit(ctx context.Context, operation string, c Caller) error {
	now := s.Now()
	l := s.limits
	payer := c.payer(operation)
	var message string
	switch {
	case !l.refusals.left(payer, now):
		message = fmt.Sprintf("too many requests of this pod were refused: %.0f a second are answered, so ask for less that is not allowed or not there", l.refusals.rate)
	case !l.calls.spend(payer, 1, now):
		message = s.tooManyCalls()
	default:
		return nil
	}
	if l.notes.spend(c.PodUID, 1, now) {
		r := AuditRecord{
			Time: now.UTC(), Operation: OperationThrottle, Decision: DecisionRefused, Code: CodeThrottled.String(), Reason: message, Caller: c.audited(),
		}
		if err := s.recordLate(ctx, r); err != nil {
			s.log.Error(err, "Could not record that a pod is throttled")
		}
	}
	return &Error{Code: CodeThrottled, Message: message}
}

// reserve counts what a call is going to cost beyond one, and returns an error where the pod has nothing left: calls that were let in
// at once are not all as dear as the first.
func (s *Service) reserve(c Caller, calls int) error {
	if calls == 0 || s.limits.calls.spend(c.PodUID, float64(calls), s.Now()) {
		return nil
	}
	return &Error{Code: CodeThrottled, Message: s.tooManyCalls()}
}

func (s *Service) tooManyCalls() string {
	return fmt.Sprintf("too many calls of this pod: %.0f a second are answered, so try again later", s.limits.calls.rate)
}

// charge counts what a call costs beyond one.
func (s *Service) charge(operation string, c Caller, calls int) {
	if calls > 0 {
		s.limits.calls.take(c.payer(operation), float64(calls), s.Now())
	}
}

// done counts an operation that came to an end, and its refusal if the pod has brought that upon itself. A caller who does not wait
// for the answer counts as refused: what it cost was done.
func (s *Service) done(ctx context.Context, operation string, start time.Time, c Caller, err error) {
	s.metrics.observe(operation, s.clock.Since(start), err)
	if err == nil {
		return
	}
	switch CodeOf(err) {
	case CodeInvalidArgument, CodeDenied, CodeNotFound, CodeFailedPrecondition:
		if ReasonOf(err) == kmsv1.ReasonDryRun {
			return
		}
	default: // an outage, or a fault of ours
		if ctx.Err() == nil || errors.Is(context.Cause(ctx), errOutOfTime) {
			return
		}
	}
	s.limits.refusals.take(c.payer(operation), 1, s.Now())
}
