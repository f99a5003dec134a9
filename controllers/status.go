package controllers

import (
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// fieldOwner owns the fields of a status that the controllers write.
const fieldOwner = client.FieldOwner("datakeys-manager")

// maxMessage bounds the messages of conditions and events, in bytes. The note of an event may have 1024.
const maxMessage = 1024

// A finding is what a condition is to say.
type finding struct {
	kind            string // the type of the condition
	holds           bool
	reason, message string
}

// setConditions sets the Ready condition, True where there is no problem, and what else was found. It returns whether an event is due
// about the Ready condition.
func setConditions(
	conditions *[]metav1.Condition, clock clock.PassiveClock, generation int64, problem *problem, readyMessage string, findings []finding,
) bool {
	ready := finding{v1alpha1.ConditionReady, true, v1alpha1.ReasonReady, readyMessage}
	if problem != nil {
		ready.holds, ready.reason, ready.message = false, problem.reason, problem.message
	}
	changed := setCondition(conditions, clock, generation, ready)
	for _, f := range findings {
		setCondition(conditions, clock, generation, f)
	}
	return changed
}

// setCondition sets a condition, and returns whether that is worth an event. A finding without a reason removes it.
func setCondition(conditions *[]metav1.Condition, clock clock.PassiveClock, generation int64, f finding) bool {
	if f.reason == "" {
		return meta.RemoveStatusCondition(conditions, f.kind)
	}
	next := metav1.Condition{
		Type:               f.kind,
		Status:             metav1.ConditionFalse,
		Reason:             f.reason,
		Message:            truncate(f.message),
		ObservedGeneration: generation,
		LastTransitionTime: metav1.NewTime(clock.Now()).Rfc3339Copy(),
	}
	if f.holds {
		next.Status = metav1.ConditionTrue
	}
	before := meta.FindStatusCondition(*conditions, f.kind)
	// A good state that is told in other words is no news.
	changed := before == nil || before.Status != next.Status || before.Reason != next.Reason || !f.holds && before.Message != next.Message
	meta.SetStatusCondition(conditions, next)
	return changed
}

// findingOf is the finding that a condition was made of: it stays as it is.
func findingOf(conditions []metav1.Condition, kind string) finding {
	c := meta.FindStatusCondition(conditions, kind)
	if c == nil {
		return finding{kind: kind}
	}
	return finding{kind: kind, holds: c.Status == metav1.ConditionTrue, reason: c.Reason, message: c.Message}
}

// A notice is an event to be: what is told of an object once the status that says the same is written.
type notice struct {
	object  runtime.Object
	kind    string // corev1.EventTypeNormal or EventTypeWarning
	reason  string
	message string
	// related is another object that the event is about, nil for none. Events that agree in all but the message, the
	// resourceVersions of both objects included, are one event with the first message for some minutes.
	related runtime.Object
}

// newNotice is what a controller tells of the object that it works on.
func newNotice(object runtime.Object, kind, reason, format string, args ...any) notice {
	return notice{object: object, kind: kind, reason: reason, message: fmt.Sprintf(format, args...)}
}

// Of one kind of object, at most eventBurst events come at once, and eventRate a second after that.
const (
	eventBurst = 100
	eventRate  = 1
)

// rationed leaves events out where there would be too many: the conditions of the objects say the same. So many objects that become Ready
// at once do not cost half as many writes again, and do not hide a warning.
type rationed struct {
	events.EventRecorder

	normal, warning *rate.Limiter
}

func newRationed(recorder events.EventRecorder) rationed {
	return rationed{recorder, rate.NewLimiter(eventRate, eventBurst), rate.NewLimiter(eventRate, eventBurst)}
}

// Eventf emits an event, or does not.
func (r rationed) Eventf(regarding, related runtime.Object, kind, reason, action, note string, args ...any) {
	limiter := r.normal
	if kind == corev1.EventTypeWarning {
		limiter = r.warning
	}
	if limiter.Allow() {
		r.EventRecorder.Eventf(regarding, related, kind, reason, action, note, args...)
	}
}

// readyEvent tells of a change of the Ready condition.
func readyEvent(object runtime.Object, problem *problem, readyMessage string) notice {
	if problem != nil {
		kind := corev1.EventTypeWarning
		if problem.wanted {
			kind = corev1.EventTypeNormal
		}
		return newNotice(object, kind, problem.reason, "%s", problem.message)
	}
	return newNotice(object, corev1.EventTypeNormal, v1alpha1.ReasonReady, "%s", readyMessage)
}

// troubles tells of what went wrong beside Ready: a rotation that cannot be done, an alias that another has. Once, and again for another
// reason.
func troubles(object runtime.Object, before, after []metav1.Condition) []notice {
	var told []notice
	for _, kind := range []string{v1alpha1.ConditionRotated, v1alpha1.ConditionAliasesHeld} {
		was, is := meta.FindStatusCondition(before, kind), meta.FindStatusCondition(after, kind)
		if is != nil && is.Status == metav1.ConditionFalse && (was == nil || was.Status != is.Status || was.Reason != is.Reason) {
			told = append(told, newNotice(object, corev1.EventTypeWarning, is.Reason, "%s", is.Message))
		}
	}
	return told
}

// finish writes the status of the object, even after an error, and then emits the events. With nil for the object there is no status to
// write. It is written whole, as the object was read but for it: what it leaves out is removed, whoever wrote it, as a backup tool did that
// restored the object with its status. The resourceVersion makes a status that was decided from an older reading fail instead of overwriting
// a newer one.
func finish(ctx context.Context, c client.Client, recorder events.EventRecorder, object client.Object, told []notice, err error) error {
	if object != nil {
		switch writeErr := c.Status().Update(ctx, object, fieldOwner); {
		case apierrors.IsNotFound(writeErr):
			return nil // deleted meanwhile: done
		case writeErr != nil && errors.Is(err, reconcile.TerminalError(nil)):
			return writeErr // requeue with back-off: what is wrong for good is still to be told
		case writeErr != nil:
			return errors.Join(err, writeErr) // requeue with back-off
		}
	}
	for _, n := range told {
		recorder.Eventf(n.object, n.related, n.kind, n.reason, "Reconcile", "%s", truncate(n.message))
	}
	return err
}

// truncate cuts a message to maxMessage bytes, at the boundary of a character.
func truncate(message string) string {
	const ellipsis = "..."
	if len(message) <= maxMessage {
		return message
	}
	return truncateTo(message, maxMessage-len(ellipsis)) + ellipsis
}

// truncateTo cuts a text to that many bytes, at the boundary of a character.
func truncateTo(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most]
}
