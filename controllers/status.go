package controllers

import (
	"context"
	"errors"
	"fmt"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	metav1ac "k8s.io/client-go/applyconfigurations/meta/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// fieldOwner owns the fields of a status that the controllers apply.
const fieldOwner = client.FieldOwner("datakeys-manager")

// maxMessage bounds the messages of conditions and events, in bytes. The note of an event may have 1024.
const maxMessage = 1024

// setReady sets the Ready condition: True where there is no problem. It returns whether anything but the generation changed,
// so that an event is due.
func setReady(conditions *[]metav1.Condition, clock clock.PassiveClock, generation int64, problem *problem, readyMessage string) bool {
	ready := metav1.Condition{
		Type:               v1alpha1.ConditionReady,
		Status:             metav1.ConditionTrue,
		Reason:             v1alpha1.ReasonReady,
		Message:            truncate(readyMessage),
		ObservedGeneration: generation,
		LastTransitionTime: metav1.NewTime(clock.Now()).Rfc3339Copy(),
	}
	if problem != nil {
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, problem.reason, truncate(problem.message)
	}
	before := meta.FindStatusCondition(*conditions, v1alpha1.ConditionReady)
	changed := before == nil || before.Status != ready.Status || before.Reason != ready.Reason || before.Message != ready.Message
	meta.SetStatusCondition(conditions, ready)
	return changed
}

// applyReady is the Ready condition as an apply configuration. Conditions of other types belong to whoever set them.
func applyReady(conditions []metav1.Condition) *metav1ac.ConditionApplyConfiguration {
	ready := meta.FindStatusCondition(conditions, v1alpha1.ConditionReady)
	return metav1ac.Condition().
		WithType(ready.Type).
		WithStatus(ready.Status).
		WithObservedGeneration(ready.ObservedGeneration).
		WithLastTransitionTime(ready.LastTransitionTime).
		WithReason(ready.Reason).
		WithMessage(ready.Message)
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

// readyEvent tells of a change of the Ready condition.
func readyEvent(object runtime.Object, problem *problem, readyMessage string) notice {
	if problem != nil {
		kind := corev1.EventTypeWarning
		if problem.passing {
			kind = corev1.EventTypeNormal
		}
		return newNotice(object, kind, problem.reason, "%s", problem.message)
	}
	return newNotice(object, corev1.EventTypeNormal, v1alpha1.ReasonReady, "%s", readyMessage)
}

// finish writes the status, even after an error, and then emits the events. With nil for patch there is no status to write.
// The resourceVersion in the patch makes a status that was decided from an older reading fail instead of overwriting a newer
// one; taking fields over from other owners is safe for the same reason.
func finish(ctx context.Context, c client.Client, recorder events.EventRecorder, patch runtime.ApplyConfiguration, told []notice, err error) error {
	if patch != nil {
		switch patchErr := c.Status().Apply(ctx, patch, fieldOwner, client.ForceOwnership); {
		case apierrors.IsNotFound(patchErr):
			return nil // deleted meanwhile: done
		case patchErr != nil && errors.Is(err, reconcile.TerminalError(nil)):
			return patchErr // requeue with back-off: what is wrong for good is still to be told
		case patchErr != nil:
			return errors.Join(err, patchErr) // requeue with back-off
		}
	}
	for _, n := range told {
		recorder.Eventf(n.object, n.related, n.kind, n.reason, "Reconcile", "%s", truncate(n.message))
	}
	return err
}

// truncate cuts a message to maxMessage bytes, at the boundary of a character.
func truncate(message string) string {
	if len(message) <= maxMessage {
		return message
	}
	const ellipsis = "..."
	end := maxMessage - len(ellipsis)
	for !utf8.RuneStart(message[end]) {
		end--
	}
	return message[:end] + ellipsis
}
