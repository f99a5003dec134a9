package kmsgrpc_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
)

// limited returns a world with those limits, and the blob of a data key in it.
func limited(t *testing.T, l kms.Limits) (*kmstest.World, []byte) {
	t.Helper()
	w := kmstest.Settled(t)
	w.Limits = l
	blob := w.Sealed(t, orders())
	return w.Replica(t), blob
}

// Calls that wait for their turn are counted when it comes: otherwise all that come at once get past the limit. And a pod that is
// throttled from its first call on is told so, however much it sends.
func TestManyCallsAtOnceDoNotGetPastTheLimit(t *testing.T) {
	w, blob := limited(t, kms.Limits{Calls: 1e6, CallsBurst: 1e6, Refusals: 1, RefusalsBurst: 500})
	item := &kmsv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: map[string]string{"another": strings.Repeat("x", 500)}, Door: kmsv1.Door_DOOR_AWS}
	batch := &kmsv1.BatchDecryptRequest{Requests: slices.Repeat([]*kmsv1.DecryptRequest{item}, 100)}
	for _, c := range []struct {
		connection  string
		least, most int64
	}{
		{"the first", 5, 5 + 8}, // what is allowed, and what had its turn when that was used up
		{"another, throttled from its start", 0, 0},
	} {
		t.Run(c.connection, func(t *testing.T) {
			client := kmsv1.NewKeyServiceClient(serve(t, w))
			var answered atomic.Int64
			var g errgroup.Group
			for range 64 {
				g.Go(func() error {
					_, err := client.BatchDecrypt(as(t, app), batch)
					if err == nil {
						answered.Add(1)
					}
					if status.Code(err) == codes.ResourceExhausted {
						return nil
					}
					return err
				})
			}
			if err := g.Wait(); err != nil {
				t.Error(err)
			}
			if got := answered.Load(); got < c.least || got > c.most {
				t.Errorf("%d batches of 100 refusals were answered, want %d to %d: 500 refusals are allowed", got, c.least, c.most)
			}
		})
	}
}

// A connection whose calls have no valid token costs a review a second at most, and stops nobody on another connection.
func TestAConnectionWithoutAValidTokenIsThrottled(t *testing.T) {
	w, blob := limited(t, kms.Limits{})
	client := kmsv1.NewKeyServiceClient(serve(t, w))
	req := &kmsv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext, Door: kmsv1.Door_DOOR_AWS}
	call := func(token string) *status.Status {
		_, err := client.Decrypt(as(t, token), req)
		return status.Convert(err)
	}
	for range 30 { // good calls do not count
		if s := call(app); s.Code() != codes.OK {
			t.Fatal(s)
		}
	}
	for i := range 20 {
		if s := call(fmt.Sprintf("stolen-%d", i)); s.Code() != codes.Unauthenticated {
			t.Fatalf("call %d: got %v, want Unauthenticated", i, s)
		}
	}
	reviews := w.Tokens.Calls()
	for i := range 100 {
		s := call(fmt.Sprintf("stolen-again-%d", i))
		if s.Code() != codes.ResourceExhausted || len(s.Details()) != 1 || s.Details()[0].(*errdetails.ErrorInfo).GetReason() != kmsv1.ReasonThrottled {
			t.Fatalf("got %v %v, want ResourceExhausted", s, s.Details())
		}
	}
	if got := w.Tokens.Calls() - reviews; got > 0 {
		t.Errorf("a throttled connection cost %d reviews", got)
	}
	other := kmsv1.NewKeyServiceClient(serve(t, w))
	if _, err := other.Decrypt(as(t, app), req); err != nil {
		t.Errorf("another connection: %v", err)
	}
	w.Later(time.Second)
	if s := call(app); s.Code() != codes.OK {
		t.Errorf("a second later, with a good token: %v", s)
	}
	if s := call("stolen"); s.Code() != codes.Unauthenticated {
		t.Errorf("a second later: %v", s)
	}
	if s := call("stolen"); s.Code() != codes.ResourceExhausted {
		t.Errorf("and once more: %v", s)
	}
	// Many at once are answered, and paid for within a minute.
	w.Later(time.Hour)
	var all sync.WaitGroup
	for range 60 {
		all.Go(func() { call("stolen") })
	}
	all.Wait()
	w.Later(time.Minute + time.Second)
	if s := call(app); s.Code() != codes.OK {
		t.Errorf("a minute later: %v", s)
	}
}

// TestWhatApplicationsAskForEndsNoLease: one that asks for too much, or for too much that it is refused, is throttled. The data keys of its
// pod, which others may use, go on to be renewed.
func TestWhatApplicationsAskForEndsNoLease(t *testing.T) {
	limits := kms.Limits{Calls: 10, CallsBurst: 200, Refusals: 1, RefusalsBurst: 50}
	for name, refused := range map[string][]byte{"too many calls": nil, "too many refusals": []byte("no blob")} {
		t.Run(name, func(t *testing.T) {
			w, blob := limited(t, limits)
			client := kmsv1.NewKeyServiceClient(serve(t, w))
			request := &kmsv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext, Door: kmsv1.Door_DOOR_AWS}
			if refused != nil {
				request.CiphertextBlob = refused
			}
			for range limits.CallsBurst + 1 {
				if _, err := client.Decrypt(as(t, app), request); status.Code(err) == codes.ResourceExhausted {
					break
				}
			}
			if _, err := client.Decrypt(as(t, app), request); status.Code(err) != codes.ResourceExhausted {
				t.Fatalf("got %v, want ResourceExhausted", err)
			}
			renewals := &kmsv1.RenewRequest{DataKeys: []*kmsv1.RenewDataKey{renewMessage(t, blob)}}
			got, err := client.Renew(as(t, app), renewals)
			if err != nil || got.GetResults()[0].GetRenewal() == nil {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}
