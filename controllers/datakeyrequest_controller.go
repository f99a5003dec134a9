package controllers

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/datakeys/datakeys/api/v1alpha1"
	v1alpha1ac "github.com/datakeys/datakeys/api/v1alpha1/applyconfiguration/api/v1alpha1"
)

// firstGeneration is the generation of a data key that was never rotated.
const firstGeneration = 1

// dataKeyRequestReconciler sees to it that every DataKeyRequest has one data key, ever, and a Secret that holds its blob.
type dataKeyRequestReconciler struct {
	client     client.Client // reads from the cache
	reader     client.Reader // reads from the API server
	keyService KeyService
	clock      clock.PassiveClock
	recorder   events.EventRecorder
}

// The Secret of a request stands in the request's namespace, which may be any: hence the rule for the whole cluster. Secrets
// are watched metadata only and read one at a time, by name, where a request of that name exists; RBAC has no narrower words
// for either, and none for the type of a Secret. Only Secrets of the type datakeys.io/data-key are ever updated or deleted.
//
// +kubebuilder:rbac:groups=datakeys.io,resources=datakeyrequests,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=datakeys.io,resources=datakeyrequests/status,verbs=patch
// +kubebuilder:rbac:groups=datakeys.io,resources=masterkeys,verbs=get;list;watch
// +kubebuilder:rbac:groups="",resources=secrets,verbs=get;list;watch;create;update;delete
// +kubebuilder:rbac:groups=events.k8s.io,resources=events,verbs=create;patch

// Reconcile brings one DataKeyRequest to its Secret.
func (r *dataKeyRequestReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	patch, told, err := r.reconcile(ctx, req)
	return ctrl.Result{}, finish(ctx, r.client, r.recorder, patch, told, err)
}

func (r *dataKeyRequestReconciler) reconcile(ctx context.Context, req ctrl.Request) (runtime.ApplyConfiguration, []notice, error) {
	request := &v1alpha1.DataKeyRequest{}
	if err := r.client.Get(ctx, req.NamespacedName, request); err != nil {
		return nil, nil, client.IgnoreNotFound(err) // gone: done
	}
	if len(request.Status.Generations) == 0 {
		// What follows may make a data key. The cache may be older than a status that has one already.
		if err := r.reader.Get(ctx, req.NamespacedName, request); err != nil {
			return nil, nil, client.IgnoreNotFound(err) // gone: done
		}
	}
	if !request.DeletionTimestamp.IsZero() {
		told, err := r.reconcileDeletion(ctx, request)
		return nil, told, err // being deleted: done, or requeue with back-off
	}
	if err := r.reconcileFinalizer(ctx, request); err != nil {
		return nil, nil, err // requeue with back-off
	}

	dataKey, sealed, told, err := r.reconcileDataKey(ctx, request)
	problem, err := explain(err)
	if err != nil && problem == nil {
		return nil, told, err // requeue with back-off
	}

	status, changed := r.status(request, dataKey, sealed, problem)
	if changed && len(told) == 0 {
		told = append(told, readyEvent(request, problem, readyDataKey(dataKey, sealed)))
	}
	if equality.Semantic.DeepEqual(status, request.Status) {
		return nil, told, err // nothing changed: done
	}
	return applyDataKeyRequestStatus(request, status), told, err // apply patch, done or as explain says
}

// reconcileDataKey finds or makes the data key of a request and brings the Secret to it.
func (r *dataKeyRequestReconciler) reconcileDataKey(ctx context.Context, request *v1alpha1.DataKeyRequest) (DataKey, SealedDataKey, []notice, error) {
	masterKey, err := usableMasterKey(ctx, r.client, request)
	if err != nil {
		return DataKey{}, SealedDataKey{}, nil, err
	}
	key := dataKeyOf(request, masterKeyRef(masterKey))
	fromStatus, err := r.judgeStatus(ctx, key, &request.Status)
	if err != nil {
		return key, SealedDataKey{}, nil, err
	}
	for range 2 { // the second round meets a Secret that another manager made after the first one looked
		secret, found, err := readSecret(ctx, r.reader, request)
		if err != nil {
			return key, SealedDataKey{}, nil, err
		}
		fromSecret := judgement{state: blobAbsent}
		if found {
			if fromSecret, err = r.judgeSecret(ctx, key, secret); err != nil {
				return key, SealedDataKey{}, nil, err
			}
		}
		sealed, told, err := r.act(ctx, request, key, fromStatus, fromSecret, secret)
		if err == nil {
			return key, sealed, told, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return key, SealedDataKey{}, nil, err
		}
	}
	return key, SealedDataKey{}, nil, fmt.Errorf("the Secret %q comes and goes", key.Name)
}

// judgement is what a blob was found to be and, where it opens, what it is.
type judgement struct {
	state  blobState
	sealed SealedDataKey
}

// act does what decide says.
func (r *dataKeyRequestReconciler) act(
	ctx context.Context, request *v1alpha1.DataKeyRequest, key DataKey, fromStatus, fromSecret judgement, secret *corev1.Secret,
) (SealedDataKey, []notice, error) {
	normal := func(reason, format string, args ...any) []notice {
		return []notice{newNotice(request, corev1.EventTypeNormal, reason, format, args...)}
	}
	switch decide(fromStatus.state, fromSecret.state) {
	case actionCreate:
		sealed, err := r.createDataKey(ctx, request, key)
		return sealed, normal(v1alpha1.ReasonCreated, "made generation %d of the data key, under version %d of master key %s",
			key.Generation, sealed.KeyVersion, key.MasterKey.KeyID), err
	case actionRecreate:
		sealed, err := r.createSecret(ctx, key, fromStatus.sealed)
		return sealed, normal(v1alpha1.ReasonRepaired, "wrote Secret %q again, which was gone", key.Name), err
	case actionKeep:
		repaired, err := r.updateSecret(ctx, secret, key, fromStatus.sealed)
		if !repaired {
			return fromStatus.sealed, nil, err
		}
		return fromStatus.sealed, normal(v1alpha1.ReasonRepaired, "repaired Secret %q, which had been changed", key.Name), err
	case actionAdopt:
		_, err := r.updateSecret(ctx, secret, key, fromSecret.sealed)
		return fromSecret.sealed, normal(v1alpha1.ReasonAdopted, "took the data key from Secret %q, which was there before", key.Name), err
	case actionConflict:
		return SealedDataKey{}, nil, secretConflict(secret, key)
	case actionChanged:
		return SealedDataKey{}, nil, permanentError{v1alpha1.ReasonMasterKeyChanged, fmt.Sprintf(
			"this data key was wrapped by master key %s, but MasterKey %s/%s is master key %s now: nothing was touched; restore the MasterKey with its annotation %s",
			request.Status.KeyID, key.MasterKey.Namespace, key.MasterKey.Name, key.MasterKey.KeyID, v1alpha1.AnnotationKeyID)}
	case actionBroken:
		return SealedDataKey{}, nil, permanentError{v1alpha1.ReasonDataKeyBroken, fmt.Sprintf(
			"neither the status nor the Secret %q holds a blob that opens as generation %d of this data key under master key %s: restore the Secret; a new data key is never made in its place",
			key.Name, key.Generation, key.MasterKey.KeyID)}
	default:
		return SealedDataKey{}, nil, errors.New("internal error: no action")
	}
}

// createDataKey makes a data key. It is durable with the Secret's Create, which only one of two managers can win; what the
// other one made is forgotten.
func (r *dataKeyRequestReconciler) createDataKey(ctx context.Context, request *v1alpha1.DataKeyRequest, key DataKey) (SealedDataKey, error) {
	// The cache may be older than a change of the MasterKey, and a data key under a key that is gone would be lost.
	live, err := usableMasterKey(ctx, r.reader, request)
	if err != nil {
		return SealedDataKey{}, err
	}
	if masterKeyRef(live) != key.MasterKey || !live.Ready() {
		return SealedDataKey{}, notLookedAt(live.Namespace, live.Name)
	}
	sealed, err := r.keyService.GenerateDataKeyWithoutPlaintext(ctx, key)
	if err != nil {
		return SealedDataKey{}, dataKeyError(key, err)
	}
	return r.createSecret(ctx, key, sealed)
}

// createSecret makes the Secret and opens what the API server says that it stored.
func (r *dataKeyRequestReconciler) createSecret(ctx context.Context, key DataKey, sealed SealedDataKey) (SealedDataKey, error) {
	secret, err := buildSecret(key, sealed)
	if err != nil {
		return SealedDataKey{}, err
	}
	if err := r.client.Create(ctx, secret); err != nil {
		return SealedDataKey{}, fmt.Errorf("create Secret %q: %w", key.Name, err)
	}
	stored, err := r.judgeSecret(ctx, key, secret)
	if err == nil && stored.state != blobOpens {
		err = fmt.Errorf("the Secret %q was changed while it was created", key.Name)
	}
	return stored.sealed, err
}

// updateSecret brings a Secret to a blob that opens, and says whether that took a write. The Secret's resourceVersion makes an
// Update fail that would overwrite what nobody has looked at.
func (r *dataKeyRequestReconciler) updateSecret(ctx context.Context, secret *corev1.Secret, key DataKey, sealed SealedDataKey) (bool, error) {
	repaired, differs, err := repairSecret(secret, key, sealed)
	if err != nil || !differs {
		return false, err
	}
	if ptr.Deref(secret.Immutable, false) && !equality.Semantic.DeepEqual(secret.Data, repaired.Data) {
		return false, permanentError{v1alpha1.ReasonSecretConflict, fmt.Sprintf(
			"Secret %q does not hold this data key as it has to and is immutable: delete it, and it is written again", key.Name)}
	}
	if err := r.client.Update(ctx, repaired); err != nil {
		return false, fmt.Errorf("repair Secret %q: %w", key.Name, err)
	}
	return true, nil
}

// judgeStatus opens the newest blob in the status, which is not trusted until then.
func (r *dataKeyRequestReconciler) judgeStatus(ctx context.Context, key DataKey, status *v1alpha1.DataKeyRequestStatus) (judgement, error) {
	if len(status.Generations) == 0 && status.Generation == nil {
		return judgement{state: blobAbsent}, nil
	}
	var blob []byte
	if len(status.Generations) > 0 {
		blob = status.Generations[0].CiphertextBlob
	}
	judged, err := r.open(ctx, key, blob)
	if judged.state == blobRefused && status.KeyID != "" && status.KeyID != key.MasterKey.KeyID {
		judged.state = blobOfOtherKey
	}
	return judged, err
}

// judgeSecret opens the blob in a Secret.
func (r *dataKeyRequestReconciler) judgeSecret(ctx context.Context, key DataKey, secret *corev1.Secret) (judgement, error) {
	if secret.Type != v1alpha1.SecretTypeDataKey {
		return judgement{state: blobForeign}, nil
	}
	return r.open(ctx, key, secret.Data[v1alpha1.SecretKeyCiphertextBlob])
}

func (r *dataKeyRequestReconciler) open(ctx context.Context, key DataKey, blob []byte) (judgement, error) {
	if len(blob) == 0 {
		return judgement{state: blobRefused}, nil
	}
	sealed, err := r.keyService.OpenDataKey(ctx, key, blob)
	switch {
	case errors.Is(err, ErrBlobRefused):
		return judgement{state: blobRefused}, nil
	case err != nil:
		return judgement{}, dataKeyError(key, err)
	default:
		return judgement{blobOpens, sealed}, nil
	}
}

// status is the next status of a request, and whether its Ready condition changed. Whatever happened, it keeps the blobs: they
// are the second copy of the data key.
func (r *dataKeyRequestReconciler) status(request *v1alpha1.DataKeyRequest, key DataKey, sealed SealedDataKey, problem *problem) (v1alpha1.DataKeyRequestStatus, bool) {
	next := *request.Status.DeepCopy()
	if problem == nil {
		next.KeyID = key.MasterKey.KeyID
		next.KeyVersion = new(sealed.KeyVersion)
		next.Generation = new(key.Generation)
		if len(next.Generations) == 0 || !bytes.Equal(next.Generations[0].CiphertextBlob, sealed.CiphertextBlob) {
			next.Generations = []v1alpha1.DataKeyGeneration{{
				CreatedAt:      metav1.NewTime(r.clock.Now()).Rfc3339Copy(),
				CiphertextBlob: sealed.CiphertextBlob,
			}}
		}
		next.Generations = next.Generations[:1] // there is one generation today
		next.Generations[0].Generation, next.Generations[0].KeyVersion = key.Generation, sealed.KeyVersion
	}
	next.ObservedGeneration = new(request.Generation)
	changed := setReady(&next.Conditions, r.clock, request.Generation, problem, readyDataKey(key, sealed))
	return next, changed
}

func readyDataKey(key DataKey, sealed SealedDataKey) string {
	return fmt.Sprintf("generation %d is wrapped by version %d of master key %s", key.Generation, sealed.KeyVersion, key.MasterKey.KeyID)
}

// applyDataKeyRequestStatus is the whole status as an apply configuration: a field that is left out would be removed.
func applyDataKeyRequestStatus(request *v1alpha1.DataKeyRequest, status v1alpha1.DataKeyRequestStatus) *v1alpha1ac.DataKeyRequestApplyConfiguration {
	apply := v1alpha1ac.DataKeyRequestStatus().
		WithConditions(applyReady(status.Conditions)).
		WithObservedGeneration(*status.ObservedGeneration)
	if status.KeyID != "" {
		apply.WithKeyID(status.KeyID)
	}
	apply.KeyVersion, apply.Generation = status.KeyVersion, status.Generation
	for _, generation := range status.Generations {
		apply.WithGenerations(v1alpha1ac.DataKeyGeneration().
			WithGeneration(generation.Generation).
			WithKeyVersion(generation.KeyVersion).
			WithCreatedAt(generation.CreatedAt).
			WithCiphertextBlob(generation.CiphertextBlob...))
	}
	return v1alpha1ac.DataKeyRequest(request.Name, request.Namespace).
		WithUID(request.UID).
		WithResourceVersion(request.ResourceVersion).
		WithStatus(apply)
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
			return nil, pending(v1alpha1.ReasonMasterKeyNotFound, "does not exist")
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
	return pendingError{v1alpha1.ReasonMasterKeyNotReady, fmt.Sprintf("MasterKey %s/%s has a change that the manager has not worked on yet", namespace, name), true}
}

// masterKeyName is the namespace and name of the MasterKey that a request refers to.
func masterKeyName(request *v1alpha1.DataKeyRequest) (namespace, name string) {
	ref := request.Spec.MasterKeyRef
	if ref.Namespace == "" {
		return request.Namespace, ref.Name
	}
	return ref.Namespace, ref.Name
}

// dataKeyOf is the data key of a request, wrapped by that master key.
func dataKeyOf(request *v1alpha1.DataKeyRequest, masterKey MasterKeyRef) DataKey {
	return DataKey{
		MasterKey:         masterKey,
		Namespace:         request.Namespace,
		Name:              request.Name,
		Generation:        firstGeneration,
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
		why = fmt.Sprintf("holds no blob that opens as generation %d of this data key under master key %s", key.Generation, key.MasterKey.KeyID)
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
	for _, unusable := range []error{ErrInvalidKeyID, ErrMaterialMissing, ErrMaterialConflict, ErrMaterialBroken} {
		if errors.Is(err, unusable) {
			return keyServiceError{v1alpha1.ReasonMasterKeyNotReady, fmt.Sprintf("MasterKey %s/%s: %v", key.MasterKey.Namespace, key.MasterKey.Name, unusable), err}
		}
	}
	return keyServiceError{v1alpha1.ReasonKeyServiceUnavailable, "the key service cannot work on this data key now; it is tried again", err}
}
