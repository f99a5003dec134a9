package controllers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// firstGeneration is the generation of a data key that was never rotated.
const firstGeneration = 1

// dataKeyRequestReconciler sees to it that every DataKeyRequest has one data key of each generation, ever, and a Secret that holds its
// blobs, and that these are wrapped anew after a rotation of the master key.
type dataKeyRequestReconciler struct {
	client     client.Client // reads from the cache
	reader     client.Reader // reads from the API server
	recent     client.Reader // reads from the API server, or gives what it read a moment ago
	keyService KeyService
	clocks     clocks
	recorder   events.EventRecorder
	rewraps    *spacing
	settled    *settled
}

// The Secret of a request stands in the request's namespace, which may be any: hence the rule for the whole cluster. Secrets
// are watched metadata only and read one at a time, by name, where a request of that name exists; RBAC has no narrower words
// for either, and none for the type of a Secret. Only Secrets of the type datakeys.io/data-key are ever updated or deleted.
//
// +kubebuilder:rbac:groups=datakeys.io,resources=datakeyrequests,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=datakeys.io,resources=datakeyrequests/status,verbs=update
// +kubebuilder:rbac:groups=datakeys.io,resources=masterkeys,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get;list;watch;create;update;delete
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Reconcile brings one DataKeyRequest to its Secret.
func (r *dataKeyRequestReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	result, object, told, err := r.reconcile(ctx, req)
	return result, finish(ctx, r.client, r.recorder, object, told, err)
}

// dataKeyView is what was found of a data key, and what became of it.
type dataKeyView struct {
	key DataKey
	// generations are those that belong into the status.
	generations generations
	// primary is the primary version of the master key, as its status has it: a hint.
	primary int32
	// next is when the next generation is due, and look when else to look again; zero for never.
	next, look time.Time
	// rotateRequestedAt and rewrapRequestedAt are the requests that are served.
	rotateRequestedAt, rewrapRequestedAt string
	findings                             []finding
	told                                 []notice
	// failed is what went wrong with a rotation or with wrapping anew: what is there opens as before.
	failed error
}

func (r *dataKeyRequestReconciler) reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, client.Object, []notice, error) {
	request := &v1alpha1.DataKeyRequest{}
	if err := r.client.Get(ctx, req.NamespacedName, request); err != nil {
		r.rewraps.forget(req)
		r.settled.forget(req.NamespacedName)
		return ctrl.Result{}, nil, nil, client.IgnoreNotFound(err) // gone: done
	}
	if !request.DeletionTimestamp.IsZero() {
		told, err := r.reconcileDeletion(ctx, request)
		return ctrl.Result{}, nil, told, err // being deleted: done, or requeue with back-off
	}
	if err := r.reconcileFinalizer(ctx, request); err != nil {
		return ctrl.Result{}, nil, nil, err // requeue with back-off
	}

	view, err := r.reconcileDataKey(ctx, request)
	if isPassing(err) {
		return ctrl.Result{}, nil, nil, nil // wait for the watch
	}
	problem, err := explain(err)
	if err != nil && problem == nil {
		return ctrl.Result{}, nil, nil, err // requeue with back-off
	}

	status, changed := r.status(request, view, problem)
	told := view.told
	if problem != nil {
		told = nil // it kept what they tell of from being done
	}
	if changed && len(told) == 0 {
		told = append(told, readyEvent(request, problem, readyDataKey(view)))
	}
	told = append(told, troubles(request, request.Status.Conditions, status.Conditions)...)
	if err == nil {
		err = view.failed // write status, requeue with back-off
	}
	result := ctrl.Result{RequeueAfter: pause(r.clocks.Now(), view.next, view.look)}
	if err != nil {
		result = ctrl.Result{} // the back-off of the error
	}
	if equality.Semantic.DeepEqual(status, request.Status) {
		return result, nil, told, err // nothing changed: done
	}
	request.Status = status
	return result, request, told, err // write status, done or as explain says
}

// reconcileDataKey finds or makes the data key of a request, brings the Secret to it, and then brings the data key to where its
// master key and the time want it. What is new goes into the status first, which is the record from then on; the Secret follows when the
// status is there.
func (r *dataKeyRequestReconciler) reconcileDataKey(ctx context.Context, request *v1alpha1.DataKeyRequest) (dataKeyView, error) {
	var view dataKeyView
	masterKey, err := usableMasterKey(ctx, r.client, request)
	if err != nil {
		return view, err
	}
	view.key = dataKeyOf(request, masterKeyRef(masterKey))
	view.primary = ptr.Deref(masterKey.Status.PrimaryVersion, 0)
	view.rotateRequestedAt, view.rewrapRequestedAt = request.Status.RotateRequestedAt, request.Status.RewrapRequestedAt
	inStatus, err := r.judgeStatus(ctx, view.key, &request.Status)
	if err != nil {
		return view, err
	}
	if inStatus.state == blobAbsent {
		// A data key that is made is as new as anybody can have asked for, and of one that is adopted nobody knows what was served: a
		// restored request is not rotated for that.
		view.rotateRequestedAt = v1alpha1.RequestedAt(request.Annotations[v1alpha1.AnnotationRotateRequestedAt])
	}
	for round := range 2 { // the second round meets a Secret that another manager made after the first one looked
		secret, inSecret, err := r.lookAtSecret(ctx, request, view.key, inStatus, round > 0)
		if err != nil {
			return view, err
		}
		view.told = nil
		err = r.act(ctx, request, &view, inStatus, inSecret, secret)
		if err == nil {
			r.advance(ctx, request, &view)
			return view, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return view, err
		}
	}
	return view, fmt.Errorf("the Secret %q comes and goes", view.key.Name)
}

// lookAtSecret finds what is in the Secret. It does not read it where the cache, which has no bodies, has none of that name, or the one that
// was last brought to these generations: a Secret that the cache has not heard of yet stands in the way of its Create.
func (r *dataKeyRequestReconciler) lookAtSecret(
	ctx context.Context, request *v1alpha1.DataKeyRequest, key DataKey, inStatus found, live bool,
) (*corev1.Secret, found, error) {
	if !live {
		cached := newSecretMetadata()
		err := r.client.Get(ctx, client.ObjectKeyFromObject(request), cached)
		if apierrors.IsNotFound(err) {
			return nil, found{state: blobAbsent}, nil
		}
		if err != nil {
			return nil, found{}, err
		}
		if inStatus.state == blobOpens && len(inStatus.broken) == 0 {
			entries, err := secretData(key, inStatus.generations)
			if err == nil && r.settled.is(cached, entries) {
				return nil, inStatus, nil
			}
		}
	}
	secret, there, err := readSecret(ctx, r.reader, request)
	if err != nil || !there {
		return nil, found{state: blobAbsent}, err
	}
	inSecret, err := r.judgeSecret(ctx, key, secret, inStatus.generations)
	return secret, inSecret, err
}

// act does what decide says.
func (r *dataKeyRequestReconciler) act(
	ctx context.Context, request *v1alpha1.DataKeyRequest, view *dataKeyView, inStatus, inSecret found, secret *corev1.Secret,
) error {
	key := view.key
	all, lost := merge(inStatus, inSecret)
	if err := r.date(ctx, all); err != nil {
		return err
	}
	tell := func(reason, format string, args ...any) {
		view.told = append(view.told, newNotice(request, corev1.EventTypeNormal, reason, format, args...))
	}
	switch decide(inStatus.state, inSecret.state, len(lost) > 0) {
	case actionCreate:
		// The cache may be older than a status that has a data key already.
		if err := r.checkCurrent(ctx, request); err != nil {
			return err
		}
		key.Generation = firstGeneration
		one, err := r.generate(ctx, request, key)
		if err != nil {
			return err
		}
		if view.generations, err = r.createSecret(ctx, key, generations{one}); err != nil {
			return err
		}
		view.rewrapRequestedAt = v1alpha1.RequestedAt(request.Annotations[v1alpha1.AnnotationRewrapRequestedAt])
		tell(v1alpha1.ReasonCreated, "made generation %d of the data key, under version %d of master key %s",
			one.number(), one.sealed.KeyVersion, key.MasterKey.KeyID)
		return nil
	case actionRecreate, actionKeep:
		if err := r.checkStatusIsNew(ctx, request, inStatus, inSecret); err != nil {
			return err
		}
		view.generations = r.drop(ctx, request, view, all)
		if len(view.generations) > v1alpha1.MaxGenerations {
			oldest := view.generations[len(view.generations)-1].number()
			return permanentError{v1alpha1.ReasonTooManyGenerations, fmt.Sprintf(
				"the status and the Secret %q have %d generations together, and a data key may have %d: take the oldest ones out of the Secret, its entries %s and so on; nothing was touched",
				key.Name, len(view.generations), v1alpha1.MaxGenerations, v1alpha1.SecretKeyOf(v1alpha1.SecretKeyCiphertextBlob, oldest))}
		}
		return r.follow(ctx, request, view, inStatus, inSecret, secret, tell)
	case actionConflict:
		return secretConflict(secret, key)
	case actionChanged:
		return permanentError{v1alpha1.ReasonMasterKeyChanged, fmt.Sprintf(
			"this data key was wrapped by master key %s, but MasterKey %s/%s is master key %s now: nothing was touched; restore the MasterKey with its annotation %s",
			request.Status.KeyID, key.MasterKey.Namespace, key.MasterKey.Name, key.MasterKey.KeyID, v1alpha1.AnnotationKeyID)}
	case actionBroken:
		if len(inStatus.missing)+len(inSecret.missing) > 0 {
			return permanentError{v1alpha1.ReasonKeyVersionMissing, fmt.Sprintf(
				"the material of master key %s does not have the version that wraps %s: restore a newer backup of the Secret %q in the namespace of the manager; nothing was touched",
				key.MasterKey.KeyID, numbers(lost), key.MasterKey.KeyID)}
		}
		return permanentError{v1alpha1.ReasonDataKeyBroken, fmt.Sprintf(
			"neither the status nor the Secret %q holds a blob that opens as %s of this data key under master key %s: restore the Secret; a new data key is never made in its place",
			key.Name, numbers(lost), key.MasterKey.KeyID)}
	default:
		return errors.New("internal error: no action")
	}
}

// checkStatusIsNew returns an error where the Secret says more than the status because the cache has not heard of a status yet that the
// Secret was brought to: nothing is to go back to an older blob.
func (r *dataKeyRequestReconciler) checkStatusIsNew(ctx context.Context, request *v1alpha1.DataKeyRequest, inStatus, inSecret found) error {
	ahead := slices.ContainsFunc(inSecret.generations, func(g generation) bool {
		same := inStatus.generations.find(g.number())
		return same != nil && g.sealed.KeyVersion > same.sealed.KeyVersion
	})
	if !ahead && inStatus.state != blobAbsent {
		return nil
	}
	return r.checkCurrent(ctx, request)
}

// checkCurrent returns an error where the API server has the request in another version than the cache.
func (r *dataKeyRequestReconciler) checkCurrent(ctx context.Context, request *v1alpha1.DataKeyRequest) error {
	live := &v1alpha1.DataKeyRequest{}
	if err := r.reader.Get(ctx, client.ObjectKeyFromObject(request), live); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	if live.ResourceVersion != request.ResourceVersion {
		return pendingError{Reason: v1alpha1.ReasonKeyServiceUnavailable, Passing: true, Message: "the request has changed"}
	}
	return nil
}

// follow brings the Secret to the generations of the view.
func (r *dataKeyRequestReconciler) follow(
	ctx context.Context, request *v1alpha1.DataKeyRequest, view *dataKeyView, inStatus, inSecret found, secret *corev1.Secret,
	tell func(reason, format string, args ...any),
) error {
	name := view.key.Name
	if inSecret.state == blobAbsent {
		_, err := r.createSecret(ctx, view.key, view.generations)
		tell(v1alpha1.ReasonRepaired, "wrote Secret %q again, which was gone", name)
		return err
	}
	if inStatus.state != blobOpens {
		tell(v1alpha1.ReasonAdopted, "took the data key from Secret %q, which was there before", name)
	}
	if secret == nil && len(view.generations) < len(inSecret.generations) { // it is settled, but lets a generation go
		var err error
		if secret, _, err = readSecret(ctx, r.reader, request); err != nil {
			return err
		}
	}
	if secret == nil {
		return nil
	}
	repaired, err := r.updateSecret(ctx, secret, view.key, view.generations)
	if repaired && len(view.told) == 0 && !inSecret.precedes(view.generations) {
		tell(v1alpha1.ReasonRepaired, "repaired Secret %q, which had been changed", name)
	}
	return err
}

// precedes reports whether a Secret is as it was before its data key was rotated or wrapped anew.
func (in *found) precedes(now generations) bool {
	if in.state != blobOpens {
		return false
	}
	before, same := in.generations.newest(), now.find(in.generations.newest().number())
	return before.number() < now.newest().number() || same != nil && before.sealed.KeyVersion < same.sealed.KeyVersion
}

// generate makes a generation of a data key. It is durable with what the caller writes, which only one of two managers can: what the
// other one made is forgotten.
func (r *dataKeyRequestReconciler) generate(ctx context.Context, request *v1alpha1.DataKeyRequest, key DataKey) (generation, error) {
	// The cache may be older than a change of the MasterKey, and a data key under a key that is gone would be lost. Many requests ask of
	// one MasterKey at once. What was read a moment ago may say yes; only what is read now may say no.
	if r.checkUsable(ctx, r.recent, request, key) != nil {
		if err := r.checkUsable(ctx, r.reader, request, key); err != nil {
			return generation{}, err
		}
	}
	sealed, err := r.keyService.GenerateDataKeyWithoutPlaintext(ctx, key)
	if err != nil {
		return generation{}, dataKeyError(key, err)
	}
	one := generations{{sealed: sealed}}
	err = r.date(ctx, one)
	return one[0], err
}

// checkUsable returns an error unless the MasterKey of a request is the master key of its data key, and fit for a new one.
func (*dataKeyRequestReconciler) checkUsable(ctx context.Context, reader client.Reader, request *v1alpha1.DataKeyRequest, key DataKey) error {
	masterKey, err := usableMasterKey(ctx, reader, request)
	if err != nil {
		return err
	}
	if masterKeyRef(masterKey) != key.MasterKey || !masterKey.Ready() {
		return notLookedAt(masterKey.Namespace, masterKey.Name)
	}
	return nil
}

// date dates the generations that have no date yet, by the later of the two clocks: one that is dated too early would let older ones be
// dropped before their time. The date of a first generation keeps nothing, and asks nobody.
func (r *dataKeyRequestReconciler) date(ctx context.Context, of generations) error {
	var now time.Time
	for i := range of {
		switch {
		case !of[i].createdAt.IsZero():
			continue
		case !now.IsZero():
		case len(of) == 1 && of[i].number() == firstGeneration:
			now = r.clocks.Now()
		default:
			var err error
			if _, now, err = r.clocks.both(ctx); err != nil {
				return err
			}
		}
		of[i].createdAt = now
	}
	return nil
}

// createSecret makes the Secret and opens what the API server says that it stored.
func (r *dataKeyRequestReconciler) createSecret(ctx context.Context, key DataKey, of generations) (generations, error) {
	secret, err := buildSecret(key, of)
	if err != nil {
		return nil, err
	}
	if err := r.client.Create(ctx, secret); err != nil {
		return nil, secretError("create", key, err)
	}
	stored, err := r.judgeSecret(ctx, key, secret, nil)
	if err == nil {
		r.settled.set(secret, secret.Data)
	}
	if err == nil && len(stored.generations) != len(of) {
		err = fmt.Errorf("the Secret %q was changed while it was created", key.Name)
	}
	all := slices.Clone(of)
	for i := range all {
		if g := stored.generations.find(all[i].number()); g != nil {
			all[i].sealed = g.sealed
		}
	}
	return all, err
}

// secretError tells of a write of a Secret that failed. That the API server refuses it, for a quota or another admission, is for who made the
// request to see. In a namespace that is going nobody is left to see it.
func secretError(verb string, key DataKey, err error) error {
	failure := fmt.Errorf("%s Secret %q: %w", verb, key.Name, err)
	refused := apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsBadRequest(err)
	if !refused || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return failure
	}
	return keyServiceError{v1alpha1.ReasonSecretRefused, fmt.Sprintf("the API server refuses Secret %q, and is asked again: %v", key.Name, err), failure}
}

// updateSecret brings a Secret to the generations of a data key, and says whether that took a write. The Secret's resourceVersion makes an
// Update fail that would overwrite what nobody has looked at.
func (r *dataKeyRequestReconciler) updateSecret(ctx context.Context, secret *corev1.Secret, key DataKey, of generations) (bool, error) {
	entries, err := secretData(key, of)
	if err != nil {
		return false, err
	}
	repaired, differs := repairSecret(secret, entries)
	if !differs {
		r.settled.set(secret, entries)
		return false, nil
	}
	if ptr.Deref(secret.Immutable, false) && !equality.Semantic.DeepEqual(secret.Data, repaired.Data) {
		return false, permanentError{v1alpha1.ReasonSecretConflict, fmt.Sprintf(
			"Secret %q does not hold this data key as it has to and is immutable: delete it, and it is written again", key.Name)}
	}
	wanted := repaired.DeepCopy()
	if err := r.client.Update(ctx, repaired); err != nil {
		return false, secretError("repair", key, err)
	}
	if !maps.EqualFunc(repaired.Data, wanted.Data, bytes.Equal) {
		return true, fmt.Errorf("the Secret %q was changed while it was written", key.Name)
	}
	r.settled.set(repaired, entries)
	return true, nil
}

// status is the next status of a request, and whether its Ready condition changed. Whatever happened, it keeps the blobs: they
// are the second copy of the data key.
func (r *dataKeyRequestReconciler) status(request *v1alpha1.DataKeyRequest, view dataKeyView, problem *problem) (v1alpha1.DataKeyRequestStatus, bool) {
	next := *request.Status.DeepCopy()
	if problem == nil {
		newest := view.generations.newest()
		next.KeyID = view.key.MasterKey.KeyID
		next.KeyVersion = new(newest.sealed.KeyVersion)
		next.Generation = new(newest.number())
		next.Generations = view.generations.inStatus()
		next.LastRotationTime, next.NextRotationTime = timeOf(newest.createdAt), timeOf(view.next)
		next.RotateRequestedAt, next.RewrapRequestedAt = view.rotateRequestedAt, view.rewrapRequestedAt
	}
	next.ObservedGeneration = new(request.Generation)
	changed := setConditions(&next.Conditions, r.clocks, request.Generation, problem, readyDataKey(view), view.findings)
	return next, changed
}

func readyDataKey(view dataKeyView) string {
	if len(view.generations) == 0 {
		return ""
	}
	newest := view.generations.newest()
	return fmt.Sprintf("generation %d is wrapped by version %d of master key %s", newest.number(), newest.sealed.KeyVersion, view.key.MasterKey.KeyID)
}

// usableMasterKey reads the MasterKey of a request. That it is Ready may be said of an older spec of it: so a new description
// does not unsettle what exists, which is proved by opening it. A data key is made only under what is fresh.
func usableMasterKey(ctx context.Context, reader client.Reader, request *v1alpha1.DataKeyRequest) (*v1alpha1.MasterKey, error) {
	namespace, name := masterKeyName(request)
	if namespace != request.Namespace {
		return nil, permanentError{v1alpha1.ReasonCrossNamespaceReference, fmt.Sprintf(
			"spec.masterKeyRef.namespace is %q: a MasterKey of another namespace cannot be used; make a DataKeyRequest in that namespace, or a MasterKey in %q",
			namespace, request.Namespace)}
	}
	pending := func(reason, format string, args ...any) error {
		return pendingError{Reason: reason, Message: fmt.Sprintf("MasterKey %s/%s ", namespace, name) + fmt.Sprintf(format, args...)}
	}
	key := &v1alpha1.MasterKey{}
	if err := reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, key); err != nil {
		if apierrors.IsNotFound(err) {
			if last := request.Status.KeyID; last != "" {
				// The natural next step, to make the MasterKey again, would make another key.
				return nil, pending(v1alpha1.ReasonMasterKeyNotFound, "does not exist; this data key needs it with the annotation %s: %s",
					v1alpha1.AnnotationKeyID, last)
			}
			return nil, pending(v1alpha1.ReasonMasterKeyNotFound,
				"does not exist: make it, or make another DataKeyRequest, as spec.masterKeyRef cannot be changed")
		}
		return nil, err
	}
	ready := meta.FindStatusCondition(key.Status.Conditions, v1alpha1.ConditionReady)
	switch {
	case !key.DeletionTimestamp.IsZero():
		return nil, pending(v1alpha1.ReasonMasterKeyNotReady, "is being deleted")
	case ready == nil, ready.Status == metav1.ConditionTrue && key.Status.KeyID != key.Annotations[v1alpha1.AnnotationKeyID]:
		return nil, notLookedAt(namespace, name)
	case ready.Status != metav1.ConditionTrue:
		return nil, pending(v1alpha1.ReasonMasterKeyNotReady, "is not Ready: %s: %s", ready.Reason, ready.Message)
	}
	return key, nil
}

// notLookedAt is what a request waits for when its MasterKey, or the key ID in its annotation, is newer than its status.
func notLookedAt(namespace, name string) error {
	return pendingError{Reason: v1alpha1.ReasonMasterKeyNotReady, Passing: true,
		Message: fmt.Sprintf("MasterKey %s/%s has a change that the manager has not worked on yet", namespace, name)}
}

// masterKeyName is the namespace and name of the MasterKey that a request refers to.
func masterKeyName(request *v1alpha1.DataKeyRequest) (namespace, name string) {
	ref := request.Spec.MasterKeyRef
	if ref.Namespace == "" {
		return request.Namespace, ref.Name
	}
	return ref.Namespace, ref.Name
}

// dataKeyOf is the data key of a request, of whatever generation, wrapped by that master key.
func dataKeyOf(request *v1alpha1.DataKeyRequest, masterKey MasterKeyRef) DataKey {
	return DataKey{
		MasterKey:         masterKey,
		Namespace:         request.Namespace,
		Name:              request.Name,
		Length:            request.Spec.Length(),
		KeyPairSpec:       string(request.Spec.KeyPairSpec),
		EncryptionContext: request.Spec.Context(),
		AAD:               request.Spec.AAD,
	}
}

// readSecret reads the Secret of a request from the API server, and says whether there is one: bodies of Secrets are never
// cached.
func readSecret(ctx context.Context, reader client.Reader, request *v1alpha1.DataKeyRequest) (*corev1.Secret, bool, error) {
	secret := &corev1.Secret{}
	err := reader.Get(ctx, client.ObjectKeyFromObject(request), secret)
	switch {
	case apierrors.IsNotFound(err):
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("read Secret %q: %w", request.Name, err)
	default:
		return secret, true, nil
	}
}

// secretConflict says why a Secret is in the way.
func secretConflict(secret *corev1.Secret, key DataKey) error {
	why := fmt.Sprintf("has type %q", secret.Type)
	if secret.Type == v1alpha1.SecretTypeDataKey {
		why = fmt.Sprintf("holds no blob that opens as this data key under master key %s", key.MasterKey.KeyID)
	}
	return permanentError{v1alpha1.ReasonSecretConflict, fmt.Sprintf(
		"Secret %q exists and %s: it was not touched; delete it, or make a DataKeyRequest of another name", key.Name, why)}
}

// dataKeyError tells of an error of the key service. Material that cannot be used is its MasterKey's to tell of, which wakes
// this request too; until it does, it is tried again.
func dataKeyError(key DataKey, err error) error {
	if errors.Is(err, ErrUnsupported) {
		return permanentError{v1alpha1.ReasonUnsupported, fmt.Sprintf(
			"spec.keyPairSpec is %s, which this installation does not offer because it runs in FIPS 140-3 mode: make a DataKeyRequest with another keyPairSpec",
			key.KeyPairSpec)}
	}
	for _, unusable := range []error{ErrInvalidKeyID, ErrMaterialMissing, ErrMaterialConflict, ErrMaterialBroken, ErrMaterialDestroyed} {
		if errors.Is(err, unusable) {
			return keyServiceError{v1alpha1.ReasonMasterKeyNotReady, fmt.Sprintf("MasterKey %s/%s: %v", key.MasterKey.Namespace, key.MasterKey.Name, unusable), err}
		}
	}
	return keyServiceError{v1alpha1.ReasonKeyServiceUnavailable, "the key service cannot work on this data key now; it is tried again", err}
}
