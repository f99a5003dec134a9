package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	authenticationclient "k8s.io/client-go/kubernetes/typed/authentication/v1"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/kms"
)

// reviewTTL is how long the answer of a TokenReview or SubjectAccessReview is used again. A permission that is taken away
// bites after at most this long.
const reviewTTL = 10 * time.Second

// refusedTTL is how long the refusal of a token is used again, so that one that is sent again and again costs one review in
// that time. A token that becomes valid is taken this much later.
const refusedTTL = 2 * time.Second

// refusedCacheSize bounds the memory of refused tokens. They have a cache of their own, so that no amount of them drives
// out what is known of good ones.
const refusedCacheSize = 1024

// reviewCacheSize bounds the memory of each review cache. An entry takes about 1 KiB.
const reviewCacheSize = 8192

// reviewTimeout bounds one review, so that an API server that hangs turns into "unavailable" and not into a hang of ours.
const reviewTimeout = 5 * time.Second

// Names of the extra fields that the API server gives to the user of a projected token.
const (
	extraPodName  = "authentication.kubernetes.io/pod-name"
	extraPodUID   = "authentication.kubernetes.io/pod-uid"
	extraNodeName = "authentication.kubernetes.io/node-name"
)

// tokenReviewer authenticates the callers of the key service by TokenReview.
//
// The delegating authenticator of k8s.io/apiserver is not used because it returns one kind of error for a token that is
// refused and for an API server that cannot be reached. A sidecar must tell them apart: the first ends its keys, the second
// must not.
type tokenReviewer struct {
	client  authenticationclient.TokenReviewInterface
	cache   *answerCache[tokenHash, kms.Caller]
	refused *answerCache[tokenHash, error]
}

// tokenHash stands for a token: the caches must not be stores of tokens.
type tokenHash [sha256.Size]byte

func newTokenReviewer(client authenticationclient.TokenReviewInterface) *tokenReviewer {
	return &tokenReviewer{
		client:  client,
		cache:   newAnswerCache[tokenHash, kms.Caller](reviewTTL, reviewCacheSize),
		refused: newAnswerCache[tokenHash, error](refusedTTL, refusedCacheSize),
	}
}

// Authenticate returns the pod behind a token, or kms.ErrUnauthenticated.
func (r *tokenReviewer) Authenticate(ctx context.Context, token string) (kms.Caller, error) {
	hash := tokenHash(sha256.Sum256([]byte(token)))
	if caller, found := r.cache.get(hash); found {
		return caller, nil
	}
	if err, found := r.refused.get(hash); found {
		return kms.Caller{}, err
	}
	asked := r.cache.clock.Now()
	// A review that was begun is ended and remembered: who hangs up and asks again shall not cost another.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reviewTimeout)
	defer cancel()
	review, err := r.client.Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{
		Token:     token,
		Audiences: []string{v1alpha1.TokenAudience},
	}}, metav1.CreateOptions{})
	if err != nil {
		return kms.Caller{}, fmt.Errorf("review the token: %w", err)
	}
	caller, err := callerOf(&review.Status)
	if err != nil {
		r.refused.add(hash, err, asked)
		return kms.Caller{}, err
	}
	r.cache.add(hash, caller, asked)
	return caller, nil
}

// callerOf reads the caller out of a review. A token that is bound to no pod is refused: it would outlive every pod and
// could be used from anywhere.
func callerOf(status *authenticationv1.TokenReviewStatus) (kms.Caller, error) {
	if !status.Authenticated {
		return kms.Caller{}, fmt.Errorf("%w: the API server does not know the token", kms.ErrUnauthenticated)
	}
	if !slices.Contains(status.Audiences, v1alpha1.TokenAudience) {
		return kms.Caller{}, fmt.Errorf("%w: the token is not for the audience %q", kms.ErrUnauthenticated, v1alpha1.TokenAudience)
	}
	account, isServiceAccount := strings.CutPrefix(status.User.Username, "system:serviceaccount:")
	namespace, name, ok := strings.Cut(account, ":")
	if !isServiceAccount || !ok || namespace == "" || name == "" {
		return kms.Caller{}, fmt.Errorf("%w: the token is not a ServiceAccount's", kms.ErrUnauthenticated)
	}
	extra := make(map[string][]string, len(status.User.Extra))
	for k, v := range status.User.Extra {
		extra[k] = v
	}
	first := func(key string) string {
		if v := extra[key]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
	if first(extraPodUID) == "" {
		return kms.Caller{}, fmt.Errorf("%w: the token is not bound to a pod: use a projected token", kms.ErrUnauthenticated)
	}
	return kms.Caller{
		Namespace:      namespace,
		ServiceAccount: name,
		PodName:        first(extraPodName),
		PodUID:         first(extraPodUID),
		Node:           first(extraNodeName),
		Username:       status.User.Username,
		UID:            status.User.UID,
		Groups:         status.User.Groups,
		Extra:          extra,
	}, nil
}
