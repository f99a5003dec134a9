package controllers

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// drop lets the generations go that spec.rotation.keep says. The Secret lets them go before the status: what is in the Secret alone would
// be taken over again.
func (r *dataKeyRequestReconciler) drop(ctx context.Context, request *v1alpha1.DataKeyRequest, view *dataKeyView, all generations) generations {
	dropped, next := all.droppable(request.Spec.Rotation.Keep, r.clocks.Now())
	view.look = next
	if len(dropped) == 0 {
		return all
	}
	if err := r.clocks.agree(ctx); err != nil {
		view.failed = err
		return all
	}
	view.told = append(view.told, newNotice(request, corev1.EventTypeNormal, v1alpha1.ReasonDropped,
		"dropped %s of the data key, as spec.rotation.keep says", numbers(dropped)))
	return all.without(dropped)
}

// advance wraps a data key anew, and makes its next generation, where that is due. Both are durable with the status that the view becomes.
func (r *dataKeyRequestReconciler) advance(ctx context.Context, request *v1alpha1.DataKeyRequest, view *dataKeyView) {
	rewrapped := r.rewrap(ctx, request, view)
	rotated := r.rotate(ctx, request, view)
	view.findings = []finding{rotated, rewrapped}
}

// rewrap wraps the generations anew that are behind, if the policy says so.
func (r *dataKeyRequestReconciler) rewrap(ctx context.Context, request *v1alpha1.DataKeyRequest, view *dataKeyView) finding {
	f := finding{kind: v1alpha1.ConditionRewrapped}
	asked := v1alpha1.RequestedAt(request.Annotations[v1alpha1.AnnotationRewrapRequestedAt])
	behind := view.generations.behind(view.primary)
	say := func(reason, format string, args ...any) finding {
		f.reason, f.message = reason, fmt.Sprintf(format, args...)
		return f
	}
	if behind > 0 && request.Spec.RewrapPolicy == v1alpha1.RewrapPolicyManual && (asked == "" || asked == view.rewrapRequestedAt) {
		return say(v1alpha1.ReasonManual, "%d of %d generations are wrapped by an older version than the primary version %d: set the annotation %s to any new value",
			behind, len(view.generations), view.primary, v1alpha1.AnnotationRewrapRequestedAt)
	}
	// The key service knows the primary version itself: what is asked for does not depend on what the cache says of it.
	if behind > 0 || asked != "" && asked != view.rewrapRequestedAt {
		if wait := r.rewraps.wait(ctrl.Request{NamespacedName: client.ObjectKeyFromObject(request)}); wait > 0 {
			// The turn is near, and to tell of the wait would be one more write for each of thousands. The MasterKey tells of all.
			view.look = r.clocks.Now().Add(wait)
			return findingOf(request.Status.Conditions, v1alpha1.ConditionRewrapped)
		}
		anew, changed := slices.Clone(view.generations), false
		for i := range anew {
			sealed, err := r.keyService.RewrapDataKey(ctx, keyOfGeneration(view.key, anew[i].number()), anew[i].sealed.CiphertextBlob)
			if err != nil {
				view.failed = err
				return say(v1alpha1.ReasonRewrapping, "%d of %d generations could not be wrapped anew now; it is tried again", behind, len(view.generations))
			}
			changed = changed || !bytes.Equal(sealed.CiphertextBlob, anew[i].sealed.CiphertextBlob)
			anew[i].sealed = sealed
		}
		if anew.behind(view.primary) > 0 { // another manager rotated the key, and the key service has not heard of it yet
			view.look = r.clocks.Now().Add(time.Second)
			return say(v1alpha1.ReasonRewrapping, "%d of %d generations wait to be wrapped anew", behind, len(view.generations))
		}
		if changed && request.Spec.RewrapPolicy == v1alpha1.RewrapPolicyManual { // of the others the MasterKey tells, all at once
			view.told = append(view.told, newNotice(request, corev1.EventTypeNormal, v1alpha1.ReasonRewrapped,
				"wrapped the data key anew, under version %d of master key %s", anew.newest().sealed.KeyVersion, view.key.MasterKey.KeyID))
		}
		view.generations = anew
	}
	view.rewrapRequestedAt = asked
	f.holds = true
	return say(v1alpha1.ReasonRewrapped, "no generation is behind version %d of the master key", view.generations.oldestVersion())
}

// rotate makes the next generation where that is due.
func (r *dataKeyRequestReconciler) rotate(ctx context.Context, request *v1alpha1.DataKeyRequest, view *dataKeyView) finding {
	f := finding{kind: v1alpha1.ConditionRotated}
	newest, now := view.generations.newest(), r.clocks.Now()
	asked := v1alpha1.RequestedAt(request.Annotations[v1alpha1.AnnotationRotateRequestedAt])
	next := func() time.Time {
		if interval := request.Spec.Rotation.Interval; interval != nil {
			return intervalEnd(newest.createdAt, interval.Duration, request.Namespace+"/"+request.Name)
		}
		return time.Time{}
	}
	view.next = next()
	say := func(reason, format string, args ...any) finding {
		f.reason, f.message = reason, fmt.Sprintf(format, args...)
		return f
	}
	done := func() finding {
		if view.next.IsZero() && asked == "" {
			return f // nobody asks for rotations
		}
		f.holds = true
		return say(v1alpha1.ReasonRotated, "generation %d is the newest since %s", newest.number(), newest.createdAt.UTC().Format(time.RFC3339))
	}
	isAsked := asked != "" && asked != view.rotateRequestedAt
	switch due := passed(now, view.next, newest.createdAt); {
	case !isAsked && !due:
		return done()
	case len(view.generations) >= v1alpha1.MaxGenerations:
		view.next = time.Time{}
		wayOut := "set spec.rotation.keep"
		if request.Spec.Rotation.Keep != nil {
			wayOut = "it waits until spec.rotation.keep drops the oldest, 24 hours after that was superseded"
		}
		return say(v1alpha1.ReasonTooManyGenerations, "there are %d generations, the most that a data key may have: %s", len(view.generations), wayOut)
	case !isAsked:
		if err := r.clocks.agree(ctx); err != nil {
			view.failed = err
			return say(v1alpha1.ReasonClocksDisagree,
				"a rotation is due by the clock of the manager, but that of the API server is apart from it: set the wrong one right")
		}
	}
	one, err := r.generate(ctx, request, keyOfGeneration(view.key, newest.number()+1))
	if isPassing(err) {
		return done() // wait for the watch
	}
	if err != nil {
		view.failed = err
		return say(v1alpha1.ReasonRotationFailed, "a rotation is due and failed; it is tried again")
	}
	view.told = append(view.told, newNotice(request, corev1.EventTypeNormal, v1alpha1.ReasonRotated,
		"made generation %d of the data key, under version %d of master key %s", one.number(), one.sealed.KeyVersion, view.key.MasterKey.KeyID))
	view.generations, view.rotateRequestedAt, newest = view.generations.with(one), asked, one
	view.next = next()
	return done()
}

func keyOfGeneration(key DataKey, number int32) DataKey {
	key.Generation = number
	return key
}
