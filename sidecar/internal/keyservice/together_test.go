package keyservice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

// flightTime is no time after which others do not wait any more.
const flightTime = slowFlight / 2

// slowService is a key service whose calls take flightTime. The plaintext of a blob is its bytes in upper case.
type slowService struct {
	kmsv1.KeyServiceClient

	mu    sync.Mutex
	calls []string
	// plaintexts are all that were given, as they are now.
	plaintexts [][]byte
	// fails is the error of the calls with a blob in it.
	fails map[string]error
	short bool // BatchDecrypt leaves the first answer out
}

func (s *slowService) call(ctx context.Context, what string) error {
	s.mu.Lock()
	s.calls = append(s.calls, what)
	s.mu.Unlock()
	select {
	case <-time.After(flightTime):
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

func (s *slowService) open(blob []byte) *kmsv1.DecryptResponse {
	plaintext := bytes.ToUpper(blob)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plaintexts = append(s.plaintexts, plaintext)
	return &kmsv1.DecryptResponse{KeyId: "arn", Plaintext: plaintext}
}

func (s *slowService) Decrypt(ctx context.Context, r *kmsv1.DecryptRequest, _ ...grpc.CallOption) (*kmsv1.DecryptResponse, error) {
	blob := string(r.GetCiphertextBlob())
	if err := s.call(ctx, blob); err != nil {
		return nil, err
	}
	if err := s.fails[blob]; err != nil {
		return nil, err
	}
	return s.open(r.GetCiphertextBlob()), nil
}

func (s *slowService) BatchDecrypt(
	ctx context.Context, r *kmsv1.BatchDecryptRequest, _ ...grpc.CallOption,
) (*kmsv1.BatchDecryptResponse, error) {
	var blobs []string
	for _, request := range r.GetRequests() {
		blobs = append(blobs, string(request.GetCiphertextBlob()))
	}
	if err := s.call(ctx, strings.Join(blobs, "+")); err != nil {
		return nil, err
	}
	response := &kmsv1.BatchDecryptResponse{}
	for _, blob := range blobs {
		result := &kmsv1.BatchDecryptResult{}
		switch err := s.fails[blob]; {
		case err != nil && hasReason(err):
			told := status.Convert(err)
			var info *errdetails.ErrorInfo
			for _, d := range told.Details() {
				info = d.(*errdetails.ErrorInfo)
			}
			result.Result = &kmsv1.BatchDecryptResult_Refusal{Refusal: &kmsv1.Refusal{
				Code: int32(told.Code()), Message: told.Message(), Reason: info.GetReason(), Key: info.GetMetadata()[kmsv1.MetadataKey],
			}}
		case err != nil:
			return nil, err // as a whole
		case blob == "empty":
		default:
			result.Result = &kmsv1.BatchDecryptResult_Response{Response: s.open([]byte(blob))}
		}
		response.Results = append(response.Results, result)
	}
	if s.short {
		response.Results = response.GetResults()[1:]
	}
	return response, nil
}

// decryptAll decrypts each blob, the first before the second and so on, all before the first flight lands, and returns what each
// got and when, in flightTimes.
func decryptAll(t *testing.T, service kmsv1.KeyServiceClient, blobs ...string) []string {
	t.Helper()
	got := make([]string, len(blobs))
	start := time.Now()
	var all sync.WaitGroup
	for i, blob := range blobs {
		all.Go(func() {
			response, err := service.Decrypt(t.Context(), &kmsv1.DecryptRequest{CiphertextBlob: []byte(blob)})
			got[i] = fmt.Sprintf("%s %s at %d", response.GetPlaintext(), describe(err), time.Since(start)/flightTime)
		})
		synctest.Wait() // it is under way, or waits
	}
	all.Wait()
	return got
}

// describe is a status error with its reason, "OK" for none.
func describe(err error) string {
	s := status.Convert(err)
	if s == nil {
		return codes.OK.String()
	}
	for _, d := range s.Details() {
		info := d.(*errdetails.ErrorInfo)
		why := strings.TrimSpace(info.GetReason() + " " + info.GetMetadata()[kmsv1.MetadataKey])
		return fmt.Sprintf("%v(%s/%s): %s", s.Code(), info.GetDomain(), why, s.Message())
	}
	return fmt.Sprintf("%v: %s", s.Code(), s.Message())
}

func TestDecryptsTravelTogether(t *testing.T) {
	denied := newRefusal(codes.PermissionDenied, kmsv1.ReasonDenied, "not for you", "")
	for name, test := range map[string]struct {
		service   *slowService
		blobs     []string
		want      []string
		wantCalls []string
	}{
		"one waits for nobody": {
			blobs: []string{"a"}, want: []string{"A OK at 1"}, wantCalls: []string{"a"},
		},
		"two wait for nobody": {
			blobs: []string{"a", "b"}, want: []string{"A OK at 1", "B OK at 1"}, wantCalls: []string{"a", "b"},
		},
		"the third waits, and travels alone": {
			blobs: []string{"a", "b", "c"}, want: []string{"A OK at 1", "B OK at 1", "C OK at 2"},
			wantCalls: []string{"a", "b", "c"},
		},
		"all that wait travel together, and each has its own answer": {
			service: &slowService{fails: map[string]error{"d": denied}},
			blobs:   []string{"a", "b", "c", "d", "e"},
			want: []string{"A OK at 1", "B OK at 1", "C OK at 2",
				" PermissionDenied(datakeys.io/DENIED): not for you at 2", "E OK at 2"},
			wantCalls: []string{"a", "b", "c+d+e"},
		},
		"a key whose state does not allow it is named": {
			service: &slowService{fails: map[string]error{"c": newRefusal(codes.FailedPrecondition, kmsv1.ReasonKeyDisabled, "Disabled", "arn")}},
			blobs:   []string{"a", "b", "c", "d"},
			want: []string{"A OK at 1", "B OK at 1", " FailedPrecondition(datakeys.io/KEY_DISABLED arn): Disabled at 2",
				"D OK at 2"},
			wantCalls: []string{"a", "b", "c+d"},
		},
		"an outage is everybody's": {
			service: &slowService{fails: map[string]error{"c": status.Error(codes.Unavailable, "no connection")}},
			blobs:   []string{"a", "b", "c", "d"},
			want: []string{"A OK at 1", "B OK at 1", " Unavailable: no connection at 2",
				" Unavailable: no connection at 2"},
			wantCalls: []string{"a", "b", "c+d"},
		},
		"an error of the key service is no reason to ask again": {
			service:   &slowService{fails: map[string]error{"odd": newRefusal(codes.Internal, kmsv1.ReasonInternal, "internal error", "")}},
			blobs:     []string{"a", "b", "odd", "d"},
			want:      []string{"A OK at 1", "B OK at 1", " Internal(datakeys.io/INTERNAL): internal error at 2", "D OK at 2"},
			wantCalls: []string{"a", "b", "odd+d"},
		},
		"one that cannot be sent spoils it for nobody else": {
			service: &slowService{fails: map[string]error{"c": status.Error(codes.Internal, "invalid UTF-8")}},
			blobs:   []string{"a", "b", "c", "d"},
			want:    []string{"A OK at 1", "B OK at 1", " Internal: invalid UTF-8 at 3", "D OK at 3"},
		},
		"an answer with nothing in it is an error": {
			blobs:     []string{"a", "b", "empty", "d"},
			want:      []string{"A OK at 1", "B OK at 1", " Internal: the key service gave an empty answer at 2", "D OK at 2"},
			wantCalls: []string{"a", "b", "empty+d"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				service := test.service
				if service == nil {
					service = &slowService{}
				}
				together := newTogether(service)
				if diff := cmp.Diff(test.want, decryptAll(t, together, test.blobs...)); diff != "" {
					t.Errorf("answers (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(test.wantCalls, service.calls); diff != "" && test.wantCalls != nil {
					t.Errorf("calls (-want +got):\n%s", diff)
				}
				synctest.Wait()
				if together.flights != 0 || len(together.waiting) != 0 {
					t.Errorf("%d flights are left, %d wait", together.flights, len(together.waiting))
				}
			})
		})
	}
}

// TestAnswersToOthersAreDropped: answers that cannot be told apart are nobody's, and are wiped.
func TestAnswersToOthersAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &slowService{short: true} // what it leaves out is the answer to c
		got := decryptAll(t, newTogether(service), "a", "b", "c", "d")
		const want = " Internal: the key service gave 1 answers to 2 requests at 2"
		if diff := cmp.Diff([]string{"A OK at 1", "B OK at 1", want, want}, got); diff != "" {
			t.Errorf("answers (-want +got):\n%s", diff)
		}
		if slices.ContainsFunc(service.plaintexts, func(p []byte) bool { return string(p) == "D" }) {
			t.Error("the plaintext is not wiped")
		}
	})
}

// TestBatchesAreBounded: in number, and in bytes, where one that is larger than all travels alone.
func TestBatchesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &slowService{}
		large := strings.Repeat("l", maxBatchSize)
		half := strings.Repeat("h", maxBatchSize/2)
		blobs := append([]string{"a", "b"}, slices.Repeat([]string{"s"}, 150)...)
		decryptAll(t, newTogether(service), append(blobs, half, half, large, "z")...)
		got := map[string]int{}
		for _, call := range service.calls {
			got[fmt.Sprintf("%.1s to %s", call, call[len(call)-1:])] = strings.Count(call, "+") + 1
		}
		want := map[string]int{"a to a": 1, "b to b": 1, "s to s": 100, "s to h": 51, "h to h": 1, "l to l": 1, "z to z": 1}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("requests in each call (-want +got):\n%s", diff)
		}
	})
}

func TestWhoLeavesTakesNobodyAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := &slowService{}
		together := newTogether(service)
		flying, land := context.WithCancel(t.Context())
		waiting, leave := context.WithCancel(t.Context())
		type answer struct {
			plaintext string
			err       error
		}
		answers := map[string]chan answer{}
		ask := func(ctx context.Context, blob string) {
			c := make(chan answer, 1)
			answers[blob] = c
			go func() {
				response, err := together.Decrypt(ctx, &kmsv1.DecryptRequest{CiphertextBlob: []byte(blob)})
				c <- answer{string(response.GetPlaintext()), err}
			}()
			synctest.Wait()
		}
		ask(flying, "a")
		ask(t.Context(), "b")
		ask(waiting, "c")
		ask(t.Context(), "d")
		leave() // before there is a flight for c
		synctest.Wait()
		land()
		for _, blob := range []string{"a", "c"} {
			if got := <-answers[blob]; status.Code(got.err) != codes.Canceled {
				t.Errorf("%s: got %v, want Canceled", blob, got.err)
			}
		}
		// The flight of the one who left has landed, and the next is not ended with it.
		waiting, leave = context.WithCancel(t.Context())
		synctest.Wait()
		ask(waiting, "e")
		ask(t.Context(), "f")
		for _, blob := range []string{"b", "d"} {
			if got := <-answers[blob]; got.err != nil || got.plaintext != strings.ToUpper(blob) {
				t.Errorf("%s: got %q, %v", blob, got.plaintext, got.err)
			}
		}
		synctest.Wait()
		leave() // e is in the air with f
		if got := <-answers["e"]; status.Code(got.err) != codes.Canceled {
			t.Errorf("e: got %v, want Canceled", got.err)
		}
		if got := <-answers["f"]; got.err != nil || got.plaintext != "F" {
			t.Errorf("f: got %q, %v", got.plaintext, got.err)
		}
		synctest.Wait()
		if diff := cmp.Diff([]string{"a", "b", "d", "e+f"}, service.calls); diff != "" {
			t.Errorf("calls (-want +got):\n%s", diff)
		}
		if slices.ContainsFunc(service.plaintexts, func(p []byte) bool { return string(p) == "E" }) {
			t.Error("the plaintext that nobody waits for is not wiped")
		}
		if together.flights != 0 {
			t.Errorf("%d flights are left", together.flights)
		}
	})
}

func TestDoorCallsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &countedConn{takes: 7 * time.Second}
		c := &doorConn{connection: conn, turns: make(chan struct{}, doorCalls)}
		start := time.Now()
		var got []string
		var mu sync.Mutex
		var all sync.WaitGroup
		ask := func(ctx context.Context, name string) {
			all.Go(func() {
				err := c.Invoke(ctx, name, nil, nil)
				mu.Lock()
				defer mu.Unlock()
				got = append(got, fmt.Sprintf("%s %s after %v", name, describe(err), time.Since(start)))
			})
			synctest.Wait()
		}
		for i := range doorCalls {
			ask(t.Context(), fmt.Sprint("first ", i))
		}
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		ask(impatient, "impatient")
		for i := range doorCalls {
			ask(t.Context(), fmt.Sprint("second ", i))
		}
		ask(t.Context(), "too late")
		all.Wait()
		if conn.most != doorCalls {
			t.Errorf("%d calls at once, want %d", conn.most, doorCalls)
		}
		want := []string{
			"impatient DeadlineExceeded: context deadline exceeded after 1s",
			"too late ResourceExhausted(datakeys.io/THROTTLED): 6 calls of this pod wait for the key service, and this one waited for too long " +
				"after 10s",
		}
		for i := range doorCalls {
			want = append(want, fmt.Sprintf("first %d OK after 7s", i), fmt.Sprintf("second %d OK after 14s", i))
		}
		slices.Sort(want)
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// countedConn is a connection on which every call takes as long.
type countedConn struct {
	connection
	takes time.Duration

	mu        sync.Mutex
	now, most int
}

func (c *countedConn) Invoke(context.Context, string, any, any, ...grpc.CallOption) error {
	c.mu.Lock()
	c.now++
	c.most = max(c.most, c.now)
	c.mu.Unlock()
	<-time.After(c.takes)
	c.mu.Lock()
	c.now--
	c.mu.Unlock()
	return nil
}

// TestDoorCallsOutliveTheirConnection: one that is lost is waited for a moment, and the call made once more.
func TestDoorCallsOutliveTheirConnection(t *testing.T) {
	lost := status.Error(codes.Unavailable, "connection reset")
	const outage = "Unavailable: connection reset"
	for name, test := range map[string]struct {
		conn *brokenConn
		want string
	}{
		"where there is another one at once": {
			&brokenConn{answers: []error{lost, nil}, state: connectivity.Ready}, "OK after 0s, 2 calls",
		},
		"where there is another one soon": {
			&brokenConn{answers: []error{lost, nil}, ready: 900 * time.Millisecond}, "OK after 900ms, 2 calls",
		},
		"not for longer than that": {
			&brokenConn{answers: []error{lost}, ready: time.Minute}, outage + " after 1s, 1 calls",
		},
		"once": {
			&brokenConn{answers: []error{lost, lost}, state: connectivity.Ready}, outage + " after 0s, 2 calls",
		},
		"not when the sidecar ends": {
			&brokenConn{answers: []error{lost}, state: connectivity.Shutdown}, outage + " after 0s, 1 calls",
		},
		"not where the key service itself cannot answer": {
			&brokenConn{answers: []error{newRefusal(codes.Unavailable, kmsv1.ReasonUnavailable, "no", "")}, state: connectivity.Ready},
			"Unavailable(datakeys.io/UNAVAILABLE): no after 0s, 1 calls",
		},
		"nor where it refuses": {
			&brokenConn{answers: []error{newRefusal(codes.PermissionDenied, kmsv1.ReasonDenied, "no", "")}, state: connectivity.Ready},
			"PermissionDenied(datakeys.io/DENIED): no after 0s, 1 calls",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				err := (&doorConn{connection: test.conn, turns: make(chan struct{}, doorCalls)}).Invoke(t.Context(), "name", nil, nil)
				got := fmt.Sprintf("%s after %v, %d calls", describe(err), time.Since(start), test.conn.calls)
				if got != test.want {
					t.Errorf("got %q, want %q", got, test.want)
				}
			})
		})
	}
}

// TestWhoWaitsForAConnectionHasNoTurn: an outage is told to all who call at once, and not to six a second.
func TestWhoWaitsForAConnectionHasNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const callers = 10 * doorCalls
		lost := status.Error(codes.Unavailable, "connection refused")
		c := &doorConn{connection: &lostConn{err: lost}, turns: make(chan struct{}, doorCalls)}
		start := time.Now()
		var all sync.WaitGroup
		for range callers {
			all.Go(func() {
				if err := c.Invoke(t.Context(), "name", nil, nil); !errors.Is(err, lost) {
					t.Errorf("got %v", err)
				}
			})
		}
		all.Wait()
		if took := time.Since(start); took > reconnectWait {
			t.Errorf("the last of %d was told after %v", callers, took)
		}
	})
}

// lostConn is no connection any more.
type lostConn struct {
	connection
	err error
}

func (c *lostConn) Invoke(context.Context, string, any, any, ...grpc.CallOption) error { return c.err }

func (*lostConn) GetState() connectivity.State { return connectivity.TransientFailure }

func (*lostConn) WaitForStateChange(ctx context.Context, _ connectivity.State) bool {
	<-ctx.Done()
	return false
}

// brokenConn is a connection with an answer for each call. If it is idle, it takes a while to be ready.
type brokenConn struct {
	connection
	answers []error
	calls   int
	state   connectivity.State
	ready   time.Duration
}

func (c *brokenConn) Invoke(context.Context, string, any, any, ...grpc.CallOption) error {
	c.calls++
	return c.answers[c.calls-1]
}

func (c *brokenConn) GetState() connectivity.State { return c.state }

func (c *brokenConn) Connect() { c.state = connectivity.Connecting }

func (c *brokenConn) WaitForStateChange(ctx context.Context, from connectivity.State) bool {
	if from == connectivity.Idle {
		return true
	}
	select {
	case <-time.After(c.ready):
		c.state = connectivity.Ready
		return true
	case <-ctx.Done():
		return false
	}
}

// TestDecryptThroughTheConnection goes through gRPC: a request that cannot be encoded, which none of the others notices, and a refusal.
func TestDecryptThroughTheConnection(t *testing.T) {
	service := sidecartest.NewKeyService(t)
	token := filepath.Join(t.TempDir(), "token")
	writeToken(t, token, "token")
	doors := newTestClient(t, service.Address, service.Roots, token).Doors()
	good := &kmsv1.DecryptRequest{CiphertextBlob: service.Seal(t, "orders", 1, testPlaintext, nil)}
	denied := &kmsv1.DecryptRequest{CiphertextBlob: service.Seal(t, "denied", 1, testPlaintext, nil)}
	service.Refuse("denied", codes.PermissionDenied, "not for you")

	var all sync.WaitGroup
	errs := make(chan error, 96)
	for i := range 96 {
		all.Go(func() {
			request, want := good, codes.OK
			switch i % 8 {
			case 3:
				request, want = denied, codes.PermissionDenied
			case 5:
				request, want = &kmsv1.DecryptRequest{CiphertextBlob: good.GetCiphertextBlob(), KeyId: "\xff"}, codes.Internal
			}
			response, err := doors.Decrypt(t.Context(), request)
			if status.Code(err) != want || (err == nil) != bytes.Equal(response.GetPlaintext(), testPlaintext) {
				errs <- fmt.Errorf("call %d: got %d bytes and %w, want %v", i, len(response.GetPlaintext()), errors.Join(err), want)
			}
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
}

// stuckService answers in a millisecond, but never to a call with the blob "stuck" in it.
type stuckService struct{ kmsv1.KeyServiceClient }

func (stuckService) open(ctx context.Context, r *kmsv1.DecryptRequest) (*kmsv1.DecryptResponse, error) {
	if string(r.GetCiphertextBlob()) == "stuck" {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	time.Sleep(time.Millisecond)
	return &kmsv1.DecryptResponse{KeyId: "arn", Plaintext: []byte("p")}, nil
}

func (s stuckService) Decrypt(ctx context.Context, r *kmsv1.DecryptRequest, _ ...grpc.CallOption) (*kmsv1.DecryptResponse, error) {
	return s.open(ctx, r)
}

func (s stuckService) BatchDecrypt(
	ctx context.Context, r *kmsv1.BatchDecryptRequest, _ ...grpc.CallOption,
) (*kmsv1.BatchDecryptResponse, error) {
	out := &kmsv1.BatchDecryptResponse{}
	for _, one := range r.GetRequests() {
		a, err := s.open(ctx, one)
		if err != nil {
			return nil, err
		}
		out.Results = append(out.Results, &kmsv1.BatchDecryptResult{Result: &kmsv1.BatchDecryptResult_Response{Response: a}})
	}
	return out, nil
}

// TestOneStuckDecryptHoldsUpNobodyElse: those that come while it waits are answered meanwhile.
func TestOneStuckDecryptHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		together := newTogether(stuckService{})
		var all sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		all.Go(func() { _, _ = together.Decrypt(ctx, &kmsv1.DecryptRequest{CiphertextBlob: []byte("stuck")}) })
		synctest.Wait()
		var mu sync.Mutex
		worst, failed := time.Duration(0), 0
		for range 8 {
			all.Go(func() {
				for range 20 {
					start := time.Now()
					ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
					_, err := together.Decrypt(ctx, &kmsv1.DecryptRequest{CiphertextBlob: []byte("fine")})
					cancel()
					mu.Lock()
					if worst = max(worst, time.Since(start)); err != nil {
						failed++
					}
					mu.Unlock()
				}
			})
		}
		all.Wait()
		if worst > time.Second || failed > 0 {
			t.Errorf("%d of 160 failed, and the slowest took %v, while one waited for its own", failed, worst)
		}
	})
}

// TestAFlightThatNobodyWaitsForEnds: it holds no place for as long as the key service takes.
func TestAFlightThatNobodyWaitsForEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		together := newTogether(stuckService{})
		ctx, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() { _, _ = together.Decrypt(ctx, &kmsv1.DecryptRequest{CiphertextBlob: []byte("stuck")}) })
			synctest.Wait()
		}
		time.Sleep(2 * slowFlight) // and now there are batches of them
		leave()
		all.Wait()
		synctest.Wait()
		together.mu.Lock()
		defer together.mu.Unlock()
		if together.flights != 0 {
			t.Errorf("%d flights are left", together.flights)
		}
	})
}

// TestAFlightIsBounded, so that the key service knows for how long its answers to the others are waited for.
func TestAFlightIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		together := newTogether(stuckService{})
		ctx, leave := context.WithCancel(t.Context())
		var first, all sync.WaitGroup
		for range decryptFlights {
			first.Go(func() { _, _ = together.Decrypt(ctx, &kmsv1.DecryptRequest{CiphertextBlob: []byte("stuck")}) })
			synctest.Wait()
		}
		start := time.Now()
		for _, blob := range []string{"stuck", "fine"} {
			all.Go(func() {
				if _, err := together.Decrypt(t.Context(), &kmsv1.DecryptRequest{CiphertextBlob: []byte(blob)}); err == nil {
					t.Errorf("%s: got an answer", blob)
				}
			})
			synctest.Wait()
		}
		all.Wait()
		if took := time.Since(start); took != slowFlight+CallTimeout {
			t.Errorf("it took %v", took)
		}
		leave()
		first.Wait()
	})
}
