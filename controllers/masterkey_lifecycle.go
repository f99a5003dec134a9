package controllers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// termsOf are the terms of deletion that a MasterKey states.
func termsOf(key *v1alpha1.MasterKey) DeletionTerms {
	terms := DeletionTerms{WaitingPeriod: v1alpha1.DefaultWaitingPeriod}
	if stated := key.Spec.Deletion.WaitingPeriod; stated != nil {
		terms.WaitingPeriod = stated.Duration
	}
	if stated := key.Spec.Deletion.OrphanDataKeys; stated != nil {
		terms.OrphanDataKeys = *stated
	}
	return terms
}

// reconcileDeletion keeps the record of deletion in the material, and destroys the material when it is due. The error is what the Ready
// condition says of a key that must not be used.
func (r *masterKeyReconciler) reconcileDeletion(ctx context.Context, key *v1alpha1.MasterKey, view *masterKeyView) error {
	ref, terms, state := masterKeyRef(key), termsOf(key), key.WantedState()
	pending, began := state == v1alpha1.MasterKeyStatePendingDeletion, !view.info.DeletionTime.IsZero()
	if pending != began || terms != view.info.Terms {
		var from time.Time
		if pending {
			var err error
			if _, from, err = r.clocks.both(ctx); err != nil {
				return err
			}
		}
		info, err := r.keyService.RecordDeletion(ctx, ref, terms, from)
		if err != nil {
			return masterKeyError(ref, err)
		}
		info.Created, view.info = view.info.Created, info
		if began && !pending {
			view.told = append(view.told, newNotice(key, corev1.EventTypeNormal, v1alpha1.ReasonDeletionCancelled,
				"master key %s is not to be destroyed any more", ref.KeyID))
		}
	}
	switch state {
	case v1alpha1.MasterKeyStateDisabled:
		return pendingError{Reason: v1alpha1.ReasonDisabled, Message: "spec.state is Disabled: the key is not used until it is Enabled", Wanted: true}
	case v1alpha1.MasterKeyStatePendingDeletion:
		return r.destroyWhenDue(ctx, key, view)
	default:
		return nil
	}
}

// destroyWhenDue says how far the deletion of a MasterKey is, and destroys its material at the end of the waiting period.
func (r *masterKeyReconciler) destroyWhenDue(ctx context.Context, key *v1alpha1.MasterKey, view *masterKeyView) error {
	ref, due := masterKeyRef(key), view.info.DeletionTime
	if r.clocks.Now().Before(due) {
		unless := ""
		if !view.info.Terms.OrphanDataKeys {
			unless = ", unless a DataKeyRequest or its Secret still refers to the key then"
		}
		return pendingError{Reason: v1alpha1.ReasonPendingDeletion, Wanted: true, Message: fmt.Sprintf(
			"the material is destroyed at %s%s; set spec.state to Enabled or Disabled before then to keep it", due.UTC().Format(time.RFC3339), unless)}
	}
	destroyed, err := destroy(ctx, r.keyService, r.reader, r.clocks, ref, view.info, func() error {
		// The cache may be older than a change of mind.
		live := &v1alpha1.MasterKey{}
		if err := r.reader.Get(ctx, client.ObjectKeyFromObject(key), live); err != nil {
			return fmt.Errorf("read the MasterKey again: %w", err)
		}
		if live.UID != key.UID || live.Generation != key.Generation || live.KeyID() != ref.KeyID {
			return errors.New("the MasterKey is another one than the cache says: its material is not destroyed")
		}
		return nil
	})
	if err != nil {
		return err
	}
	if destroyed {
		view.info = MasterKeyInfo{}
		return masterKeyError(ref, ErrMaterialDestroyed)
	}
	return pendingError{Reason: v1alpha1.ReasonPendingDeletion, Wanted: true,
		Message: "the waiting period is over by the clock of the manager, but not by that of the API server"}
}

// destroy destroys material whose waiting period is over by both clocks, unless something needs it. The error is a pendingError where
// that waits. What wanted looks at is looked at last: to find what needs the key takes a while, and what follows cannot be undone.
func destroy(
	ctx context.Context, keyService KeyService, reader client.Reader, clocks clocks, ref MasterKeyRef, info MasterKeyInfo, wanted func() error,
) (bool, error) {
	now, _, err := clocks.both(ctx)
	if err != nil || now.Before(info.DeletionTime) {
		return false, err
	}
	if !info.Terms.OrphanDataKeys {
		in, err := references(ctx, reader, ref)
		if err != nil {
			return false, err
		}
		if in != "" {
			return false, pendingError{Reason: v1alpha1.ReasonDeletionBlocked, Message: fmt.Sprintf(
				"the waiting period ended at %s, but the key is still referred to by %s: "+
					"delete them, each DataKeyRequest with its Secret; or set spec.state to Enabled or Disabled to keep the key, "+
					"or spec.deletion.orphanDataKeys to true to lose their data keys",
				info.DeletionTime.UTC().Format(time.RFC3339), in)}
		}
	}
	if err := wanted(); err != nil {
		return false, err
	}
	if err := keyService.DestroyMasterKey(ctx, ref, now); err != nil {
		return false, masterKeyError(ref, err)
	}
	return true, nil
}

// listPage is how many objects are read at once where all of a namespace have to be looked at. A Secret may have a megabyte, whoever made it.
const listPage = 20

// maxNamed is how many of the objects that block a deletion a message names.
const maxNamed = 5

// references says which DataKeyRequests and Secrets of the key's namespace refer to a key, and "" where none does. Only those of its own
// namespace can: no other may use it. It reads from the API server, because what depends on it cannot be undone.
func references(ctx context.Context, reader client.Reader, ref MasterKeyRef) (string, error) {
	var requests, secrets []string
	for list, more := (&v1alpha1.DataKeyRequestList{}), true; more; more = list.Continue != "" {
		if err := reader.List(ctx, list, client.InNamespace(ref.Namespace), client.Limit(listPage), client.Continue(list.Continue)); err != nil {
			return "", fmt.Errorf("list the DataKeyRequests of namespace %s: %w", ref.Namespace, err)
		}
		for i := range list.Items {
			request := &list.Items[i]
			if namespace, name := masterKeyName(request); request.Status.KeyID == ref.KeyID ||
				request.Status.KeyID == "" && namespace == ref.Namespace && name == ref.Name {
				requests = append(requests, request.Name)
			}
		}
	}
	for list, more := (&corev1.SecretList{}), true; more; more = list.Continue != "" {
		if err := reader.List(ctx, list, client.InNamespace(ref.Namespace), client.MatchingFields{"type": v1alpha1.SecretTypeDataKey},
			client.Limit(listPage), client.Continue(list.Continue)); err != nil {
			return "", fmt.Errorf("list the Secrets of namespace %s: %w", ref.Namespace, err)
		}
		for i := range list.Items {
			if secret := &list.Items[i]; string(secret.Data[v1alpha1.SecretKeyKeyID]) == ref.KeyID && !slices.Contains(requests, secret.Name) {
				secrets = append(secrets, secret.Name)
			}
		}
	}
	var named []string
	for _, of := range []struct {
		kind  string
		names []string
	}{{"DataKeyRequest", requests}, {"Secret", secrets}} {
		if len(of.names) > 0 {
			named = append(named, name(of.kind, of.names))
		}
	}
	return strings.Join(named, " and "), nil
}

// name names some objects of a kind, and says how many there are.
func name(kind string, names []string) string {
	if len(names) == 1 {
		return kind + " " + names[0]
	}
	text := fmt.Sprintf("%d %ss (%s", len(names), kind, strings.Join(names[:min(len(names), maxNamed)], ", "))
	if len(names) > maxNamed {
		text += ", ..."
	}
	return text + ")"
}

// overduePause is how long after a look at a deletion that is due and has to wait the next one comes: nothing tells of the last Secret that
// goes, nor of a clock that is set right.
const overduePause = time.Minute

// looksAgain is when the deletion of a key has to be looked at again, zero for a key that is not to be destroyed.
func looksAgain(now time.Time, info MasterKeyInfo) time.Time {
	if due := info.DeletionTime; due.IsZero() || now.Before(due) {
		return due
	}
	return now.Add(overduePause)
}

// reconcileRotation rotates a key where that is due. A failure leaves the key as it is, and usable: the condition Rotated tells of it,
// and view.failed has it tried again.
func (r *masterKeyReconciler) reconcileRotation(ctx context.Context, key *v1alpha1.MasterKey, view *masterKeyView) {
	view.rotation = planRotation(key, view.info, r.clocks.Now())
	if !view.rotation.due && !view.rotation.asked {
		return
	}
	failed := func(reason, format string, args ...any) {
		view.rotation.finding = finding{v1alpha1.ConditionRotated, false, reason, fmt.Sprintf(format, args...)}
	}
	// The cache may be older than a request that was served since, and would ask for the one before it.
	current, err := r.isCurrent(ctx, key)
	if err == nil && !current {
		return // wait for the watch
	}
	if err == nil && !view.rotation.asked {
		err = r.clocks.agree(ctx)
	}
	var info MasterKeyInfo
	if err == nil {
		request := cmp.Or(v1alpha1.RequestedAt(key.Annotations[v1alpha1.AnnotationRotateRequestedAt]), view.info.RotateRequestedAt)
		info, err = r.keyService.RotateMasterKey(ctx, masterKeyRef(key), view.info.PrimaryVersion, request)
	}
	switch {
	case err == nil:
		if info.Created {
			view.told = append(view.told, newNotice(key, corev1.EventTypeNormal, v1alpha1.ReasonRotated,
				"version %d of master key %s is the primary version now", info.PrimaryVersion, key.KeyID()))
		}
		view.info = info
		view.rotation = planRotation(key, info, r.clocks.Now())
	case errors.Is(err, ErrTooManyVersions):
		failed(v1alpha1.ReasonTooManyVersions, "the key has %d versions, the most that it may have: make another MasterKey for new data keys",
			v1alpha1.MaxMasterKeyVersions)
		view.rotation.next = time.Time{}
	case errors.Is(err, errClocksDisagree):
		failed(v1alpha1.ReasonClocksDisagree, "a rotation is due by the clock of the manager, but that of the API server is apart from it: set the wrong one right")
		view.failed = err
	case errors.Is(err, ErrMaterialBroken):
		failed(v1alpha1.ReasonRotationFailed, "the material is damaged or older than what this manager knows of it: "+
			"restore a newer backup of the Secret %q in the namespace of the manager, and restart no manager before: its memory may be all that opens some data keys",
			key.KeyID())
		view.failed = err
	default:
		failed(v1alpha1.ReasonRotationFailed, "a rotation is due and failed; it is tried again")
		view.failed = err
	}
}

// isCurrent reports whether the API server has a MasterKey in the version that it was read in.
func (r *masterKeyReconciler) isCurrent(ctx context.Context, key *v1alpha1.MasterKey) (bool, error) {
	live := &v1alpha1.MasterKey{}
	err := r.reader.Get(ctx, client.ObjectKeyFromObject(key), live)
	return err == nil && live.ResourceVersion == key.ResourceVersion, client.IgnoreNotFound(err)
}

// destroyedFindings are what a MasterKey says whose material is destroyed.
func destroyedFindings(key *v1alpha1.MasterKey) []finding {
	rotated := finding{kind: v1alpha1.ConditionRotated}
	if request := v1alpha1.RequestedAt(key.Annotations[v1alpha1.AnnotationRotateRequestedAt]); request != "" && request != key.Status.RotateRequestedAt {
		rotated.reason, rotated.message = v1alpha1.ReasonDestroyed, "a rotation was asked for, but the material of the key is destroyed: make another MasterKey"
	}
	return []finding{rotated, {kind: v1alpha1.ConditionRewrapped}, {kind: v1alpha1.ConditionAliasesHeld}}
}

// wrapped says which versions of a master key wrap its data keys.
type wrapped struct {
	// requests is the number of DataKeyRequests with a data key, behind that of those which an older than the primary version wraps
	// in part, and manual that of those among them which wait to be asked for. missing is that of those with a generation of a version that
	// the material does not have, as after an older backup of it was restored.
	requests, behind, manual, missing int32
	byVersion                         map[int32]int32
}

// look finds what a MasterKey says of its data keys and aliases. It reads from the cache: nothing is decided by it.
func (r *masterKeyReconciler) look(ctx context.Context, key *v1alpha1.MasterKey, view *masterKeyView) error {
	var requests v1alpha1.DataKeyRequestList
	err := r.client.List(ctx, &requests, client.MatchingFields{indexMasterKey: key.Namespace + "/" + key.Name}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return err
	}
	view.wrapped = countWrapped(requests.Items, key.KeyID(), view.info)
	if view.aliases, err = r.heldAliases(ctx, key); err != nil {
		return err
	}
	view.findings = []finding{view.rotation.finding, view.wrapped.finding(), aliasFinding(key, view.aliases)}
	return nil
}

func countWrapped(requests []v1alpha1.DataKeyRequest, keyID string, info MasterKeyInfo) wrapped {
	w := wrapped{byVersion: map[int32]int32{}}
	newest := info.PrimaryVersion
	if len(info.Versions) > 0 {
		newest = info.Versions[0].Version
	}
	for i := range requests {
		request := &requests[i]
		if request.Status.KeyID != keyID || len(request.Status.Generations) == 0 {
			continue
		}
		w.requests++
		versions := map[int32]bool{}
		for _, generation := range request.Status.Generations {
			versions[generation.KeyVersion] = true
		}
		behind, missing := false, false
		for version := range versions {
			w.byVersion[version]++
			behind = behind || version < info.PrimaryVersion
			missing = missing || version > newest
		}
		if missing {
			w.missing++
		}
		if behind {
			w.behind++
			if request.Spec.RewrapPolicy == v1alpha1.RewrapPolicyManual {
				w.manual++
			}
		}
	}
	return w
}

func (w wrapped) finding() finding {
	f := finding{kind: v1alpha1.ConditionRewrapped}
	switch {
	case w.requests == 0: // there is nothing to tell
	case w.missing > 0:
		f.reason = v1alpha1.ReasonKeyVersionMissing
		f.message = fmt.Sprintf("%d of %d DataKeyRequests have a generation of a version that the material does not have: restore a newer backup of its Secret",
			w.missing, w.requests)
	case w.behind == 0:
		f.holds, f.reason = true, v1alpha1.ReasonRewrapped
		f.message = fmt.Sprintf("the primary version wraps the data keys of all %d DataKeyRequests", w.requests)
	case w.behind == w.manual:
		f.reason = v1alpha1.ReasonManual
		f.message = fmt.Sprintf("%d of %d DataKeyRequests are behind, with rewrapPolicy Manual: each waits for any new value of its annotation %s",
			w.behind, w.requests, v1alpha1.AnnotationRewrapRequestedAt)
	default:
		f.reason = v1alpha1.ReasonRewrapping
		f.message = fmt.Sprintf("%d of %d DataKeyRequests are behind; %d of these have rewrapPolicy Manual", w.behind, w.requests, w.manual)
	}
	return f
}
