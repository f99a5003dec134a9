package main

import (
	"context"
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/kms"
)

// accessReviewer authorizes the callers of the key service by SubjectAccessReview, so that Kubernetes RBAC decides and
// `kubectl auth can-i` tells the truth.
type accessReviewer struct {
	client authorizationclient.SubjectAccessReviewInterface
	cache  *answerCache[accessQuestion, bool]
}

// accessQuestion is what a review depends on. The pod's UID stands for the whole user: a token of one pod has one
// ServiceAccount, and its groups follow from it.
type accessQuestion struct {
	podUID, username, uid string
	access                kms.Access
}

func newAccessReviewer(client authorizationclient.SubjectAccessReviewInterface) *accessReviewer {
	return &accessReviewer{client: client, cache: newAnswerCache[accessQuestion, bool](reviewTTL, reviewCacheSize)}
}

// Authorize says whether RBAC allows the access. An error means that it could not be found out.
func (r *accessReviewer) Authorize(ctx context.Context, caller kms.Caller, access kms.Access) (bool, error) {
	question := accessQuestion{podUID: caller.PodUID, username: caller.Username, uid: caller.UID, access: access}
	if allowed, found := r.cache.get(question); found {
		return allowed, nil
	}
	asked := r.cache.clock.Now()
	extra := make(map[string]authorizationv1.ExtraValue, len(caller.Extra))
	for k, v := range caller.Extra {
		extra[k] = v
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	review, err := r.client.Create(ctx, &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:   caller.Username,
		UID:    caller.UID,
		Groups: caller.Groups,
		Extra:  extra,
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Group:     v1alpha1.GroupName,
			Resource:  access.Resource,
			Verb:      access.Verb,
			Namespace: access.Namespace,
			Name:      access.Name,
		},
	}}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("review the access: %w", err)
	}
	allowed := review.Status.Allowed && !review.Status.Denied
	if !allowed && review.Status.EvaluationError != "" {
		// An authorizer that failed has not said no.
		return false, fmt.Errorf("review the access: %s", review.Status.EvaluationError)
	}
	r.cache.add(question, allowed, asked)
	return allowed, nil
}
