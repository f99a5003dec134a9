package main

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/kms"
)

const (
	podToken = "the.pods.token"
	podUID   = "33333333-3333-4333-8333-333333333333"
)

func podReview(change func(*authenticationv1.TokenReviewStatus)) authenticationv1.TokenReviewStatus {
	status := authenticationv1.TokenReviewStatus{
		Authenticated: true,
		Audiences:     []string{v1alpha1.TokenAudience},
		User: authenticationv1.UserInfo{
			Username: "system:serviceaccount:team-a:app",
			UID:      "account-uid",
			Groups:   []string{"system:serviceaccounts"},
			Extra: map[string]authenticationv1.ExtraValue{
				"authentication.kubernetes.io/pod-name":  {"app-1"},
				"authentication.kubernetes.io/pod-uid":   {podUID},
				"authentication.kubernetes.io/node-name": {"node-1"},
			},
		},
	}
	if change != nil {
		change(&status)
	}
	return status
}

func TestAuthenticate(t *testing.T) {
	errOutage := errors.New("no API server")
	for name, test := range map[string]struct {
		review  authenticationv1.TokenReviewStatus
		err     error
		refused bool
	}{
		"a pod's token":                              {review: podReview(nil)},
		"a token that is not known":                  {review: podReview(func(s *authenticationv1.TokenReviewStatus) { s.Authenticated = false }), refused: true},
		"a token for another audience":               {review: podReview(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = []string{"https://kubernetes.default.svc"} }), refused: true},
		"an API server that checks no audience":      {review: podReview(func(s *authenticationv1.TokenReviewStatus) { s.Audiences = nil }), refused: true},
		"a token that is bound to no pod":            {review: podReview(func(s *authenticationv1.TokenReviewStatus) { delete(s.User.Extra, extraPodUID) }), refused: true},
		"a person's token":                           {review: podReview(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "jane" }), refused: true},
		"a user with a name like a ServiceAccount's": {review: podReview(func(s *authenticationv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:team-a" }), refused: true},
		"an API server that does not answer":         {err: errOutage},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			set := fake.NewClientset()
			set.PrependReactor("create", "tokenreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
				asked++
				review := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
				if review.Spec.Token != podToken || !cmp.Equal(review.Spec.Audiences, []string{v1alpha1.TokenAudience}) {
					t.Errorf("asked for %+v", review.Spec.Audiences)
				}
				return true, &authenticationv1.TokenReview{Status: test.review}, test.err
			})
			reviewer := newTokenReviewer(set.AuthenticationV1().TokenReviews())
			now := clocktesting.NewFakePassiveClock(time.Unix(0, 0))
			reviewer.cache.clock, reviewer.refused.clock = now, now
			ask := func() {
				t.Helper()
				caller, err := reviewer.Authenticate(t.Context(), podToken)
				switch {
				case test.refused && !errors.Is(err, kms.ErrUnauthenticated):
					t.Errorf("got %v, want a refusal", err)
				case test.err != nil && (!errors.Is(err, test.err) || errors.Is(err, kms.ErrUnauthenticated)):
					t.Errorf("got %v, want an outage and no refusal", err)
				case !test.refused && test.err == nil:
					want := kms.Caller{
						Namespace: "team-a", ServiceAccount: "app", PodName: "app-1", PodUID: podUID, Node: "node-1",
						Username: "system:serviceaccount:team-a:app", UID: "account-uid", Groups: []string{"system:serviceaccounts"},
						Extra: map[string][]string{extraPodName: {"app-1"}, extraPodUID: {podUID}, extraNodeName: {"node-1"}},
					}
					if diff := cmp.Diff(want, caller); err != nil || diff != "" {
						t.Errorf("got error %v and (-want +got)\n%s", err, diff)
					}
				}
			}
			for _, step := range []struct {
				after                  time.Duration
				yes, refusal, noAnswer int // how often the API server was asked so far
			}{
				{0, 1, 1, 1},
				{0, 1, 1, 2},
				{refusedTTL - 1, 1, 1, 3},
				{refusedTTL, 1, 2, 4},
				{reviewTTL - 1, 1, 3, 5},
				{reviewTTL, 2, 3, 6},
			} {
				now.SetTime(time.Unix(0, 0).Add(step.after))
				ask()
				want := step.yes
				switch {
				case test.refused:
					want = step.refusal
				case test.err != nil:
					want = step.noAnswer
				}
				if asked != want {
					t.Errorf("after %v the API server was asked %d times, want %d", step.after, asked, want)
				}
			}
		})
	}
}

func TestAuthorize(t *testing.T) {
	caller := kms.Caller{PodUID: podUID, Username: "system:serviceaccount:team-a:app", UID: "account-uid", Groups: []string{"g"}, Extra: map[string][]string{"k": {"v"}}}
	access := kms.Access{Verb: "decrypt", Resource: "datakeyrequests", Namespace: "team-a", Name: "orders"}
	for name, test := range map[string]struct {
		review  authorizationv1.SubjectAccessReviewStatus
		err     error
		allowed bool
		wantErr bool
		asked   int
	}{
		"RBAC allows it":                            {review: authorizationv1.SubjectAccessReviewStatus{Allowed: true}, allowed: true, asked: 1},
		"RBAC does not allow it":                    {review: authorizationv1.SubjectAccessReviewStatus{}, asked: 1},
		"an authorizer denies what another allows":  {review: authorizationv1.SubjectAccessReviewStatus{Allowed: true, Denied: true}, asked: 1},
		"an authorizer that failed has not said no": {review: authorizationv1.SubjectAccessReviewStatus{EvaluationError: "webhook down"}, wantErr: true, asked: 2},
		"an API server that does not answer":        {err: errors.New("no API server"), wantErr: true, asked: 2},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			set := fake.NewClientset()
			set.PrependReactor("create", "subjectaccessreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
				asked++
				want := authorizationv1.SubjectAccessReviewSpec{
					User: caller.Username, UID: caller.UID, Groups: caller.Groups, Extra: map[string]authorizationv1.ExtraValue{"k": {"v"}},
					ResourceAttributes: &authorizationv1.ResourceAttributes{
						Group: v1alpha1.GroupName, Verb: "decrypt", Resource: "datakeyrequests", Namespace: "team-a", Name: "orders",
					},
				}
				got := action.(clienttesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview).Spec
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("asked for (-want +got)\n%s", diff)
				}
				return true, &authorizationv1.SubjectAccessReview{Status: test.review}, test.err
			})
			reviewer := newAccessReviewer(set.AuthorizationV1().SubjectAccessReviews())
			for range 2 {
				allowed, err := reviewer.Authorize(t.Context(), caller, access)
				if allowed != test.allowed || (err != nil) != test.wantErr {
					t.Errorf("got %v, %v", allowed, err)
				}
			}
			if asked != test.asked {
				t.Errorf("the API server was asked %d times, want %d", asked, test.asked)
			}
		})
	}
}

// What was allowed to one must not be remembered for another.
func TestAuthorizeKeepsQuestionsApart(t *testing.T) {
	set := fake.NewClientset()
	asked := 0
	set.PrependReactor("create", "subjectaccessreviews", func(clienttesting.Action) (bool, runtime.Object, error) {
		asked++
		return true, &authorizationv1.SubjectAccessReview{Status: authorizationv1.SubjectAccessReviewStatus{Allowed: asked == 1}}, nil
	})
	reviewer := newAccessReviewer(set.AuthorizationV1().SubjectAccessReviews())
	caller := kms.Caller{PodUID: podUID, Username: "a", UID: "1"}
	access := kms.Access{Verb: "decrypt", Resource: "masterkeys", Namespace: "n", Name: "o"}
	allow := func(caller kms.Caller, access kms.Access) bool {
		allowed, err := reviewer.Authorize(context.WithoutCancel(t.Context()), caller, access)
		if err != nil {
			t.Fatal(err)
		}
		return allowed
	}
	if !allow(caller, access) {
		t.Fatal("the first is not allowed")
	}
	for name, ask := range map[string]func() bool{
		"another pod":       func() bool { c := caller; c.PodUID = "other"; return allow(c, access) },
		"another account":   func() bool { c := caller; c.Username = "b"; return allow(c, access) },
		"another UID":       func() bool { c := caller; c.UID = "2"; return allow(c, access) },
		"another verb":      func() bool { a := access; a.Verb = "generatedatakey"; return allow(caller, a) },
		"another resource":  func() bool { a := access; a.Resource = "datakeyrequests"; return allow(caller, a) },
		"another namespace": func() bool { a := access; a.Namespace = "m"; return allow(caller, a) },
		"another name":      func() bool { a := access; a.Name = "p"; return allow(caller, a) },
	} {
		if ask() {
			t.Errorf("%s got the answer of the first", name)
		}
	}
}

// Whoever sends many bad tokens must not make the reviewer forget the good ones.
func TestRefusedTokensDriveOutNoGoodOnes(t *testing.T) {
	set := fake.NewClientset()
	asked := 0
	set.PrependReactor("create", "tokenreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
		asked++
		good := action.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview).Spec.Token == podToken
		return true, &authenticationv1.TokenReview{Status: podReview(func(s *authenticationv1.TokenReviewStatus) { s.Authenticated = good })}, nil
	})
	reviewer := newTokenReviewer(set.AuthenticationV1().TokenReviews())
	now := clocktesting.NewFakePassiveClock(time.Unix(0, 0))
	reviewer.cache.clock, reviewer.refused.clock = now, now
	authenticate := func(token string) error {
		_, err := reviewer.Authenticate(t.Context(), token)
		return err
	}
	if err := authenticate(podToken); err != nil {
		t.Fatal(err)
	}
	bad := 2 * refusedCacheSize
	for i := range bad {
		if err := authenticate("bad-" + strconv.Itoa(i)); !errors.Is(err, kms.ErrUnauthenticated) {
			t.Fatalf("got %v, want a refusal", err)
		}
	}
	if err := authenticate(podToken); err != nil || asked != 1+bad {
		t.Errorf("got %v after %d reviews, want %d", err, asked, 1+bad)
	}
	if got := len(reviewer.refused.recent) + len(reviewer.refused.older); got > refusedCacheSize {
		t.Errorf("%d refusals are remembered, want at most %d", got, refusedCacheSize)
	}
}

// The hot path of every call: what is remembered costs no allocation.
func TestRememberedReviewsAllocateNothing(t *testing.T) {
	set := fake.NewClientset()
	set.PrependReactor("create", "tokenreviews", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, &authenticationv1.TokenReview{Status: podReview(nil)}, nil
	})
	set.PrependReactor("create", "subjectaccessreviews", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, &authorizationv1.SubjectAccessReview{Status: authorizationv1.SubjectAccessReviewStatus{Allowed: true}}, nil
	})
	tokens := newTokenReviewer(set.AuthenticationV1().TokenReviews())
	accesses := newAccessReviewer(set.AuthorizationV1().SubjectAccessReviews())
	now := clocktesting.NewFakePassiveClock(time.Unix(0, 0))
	tokens.cache.clock, accesses.cache.clock = now, now
	caller, err := tokens.Authenticate(t.Context(), podToken)
	if err != nil {
		t.Fatal(err)
	}
	access := kms.Access{Verb: "decrypt", Resource: "datakeyrequests", Namespace: "team-a", Name: "orders"}
	for name, call := range map[string]func(){
		"Authenticate": func() { _, _ = tokens.Authenticate(t.Context(), podToken) },
		"Authorize":    func() { _, _ = accesses.Authorize(t.Context(), caller, access) },
	} {
		if got := testing.AllocsPerRun(100, call); got > 0 {
			t.Errorf("%s: %v allocations, want none", name, got)
		}
	}
}
