package kmsgrpc

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/datakeys/datakeys/internal/kms"
)

// plain are credentials that leave a connection as it is.
type plain struct {
	credentials.TransportCredentials
}

func (plain) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return raw, credentials.TLSInfo{State: tls.ConnectionState{Version: tls.VersionTLS13}}, nil
}

// connect returns both ends of a connection: the server's, and a client's, from which whatever the server sends is read.
func connect(t *testing.T, s *connections) (*connection, net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	conn, _, err := s.ServerHandshake(near)
	if err != nil {
		t.Fatal(err)
	}
	c := conn.(*connection)
	t.Cleanup(func() { _, _ = c.Close(), far.Close() })
	return c, far
}

// open reports whether the server's end still is.
func open(far net.Conn) bool {
	if err := far.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		return false
	}
	_, err := far.Read(make([]byte, 1))
	return !errors.Is(err, io.EOF)
}

func enter(t *testing.T, c *connection, pod string) (leave func()) {
	t.Helper()
	leave, err := c.enter(t.Context(), kms.OperationDecrypt, pod)
	if err != nil {
		t.Fatal(err)
	}
	return leave
}

func TestAStrangerIsNotReadForLong(t *testing.T) {
	for name, c := range map[string]struct {
		then func(t *testing.T, c *connection)
		want int64 // of the bytes that are sent
		err  error
	}{
		"and no longer":                      {then: func(*testing.T, *connection) { time.Sleep(callTimeout) }, want: maxStrangeBytes, err: errStrange},
		"but on, once a token was valid":     {then: func(t *testing.T, c *connection) { enter(t, c, "pod")() }, want: 1 << 20, err: io.EOF},
		"and ends with what is waited for":   {then: func(_ *testing.T, c *connection) { _ = c.Close() }, want: maxStrangeBytes, err: net.ErrClosed},
		"and makes way while it is not read": {then: func(_ *testing.T, c *connection) { c.all.mu.Lock(); c.makeWay(); c.all.mu.Unlock() }, want: maxStrangeBytes, err: net.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn, far := connect(t, newConnections(plain{}, time.Now))
				go func() {
					_, _ = far.Write(make([]byte, 1<<20))
					_ = far.Close()
				}()
				var n atomic.Int64
				var err error
				done := make(chan struct{})
				go func() {
					defer close(done)
					b := make([]byte, 5000)
					for err == nil {
						var m int
						m, err = conn.Read(b)
						n.Add(int64(m))
					}
				}()
				synctest.Wait()
				if got := n.Load(); got != maxStrangeBytes {
					t.Errorf("%d bytes were read before there was a token, want %d", got, maxStrangeBytes)
				}
				c.then(t, conn)
				<-done
				if got := n.Load(); got != c.want || !errors.Is(err, c.err) {
					t.Errorf("got %d bytes and %v, want %d and %v", got, err, c.want, c.err)
				}
			})
		})
	}
}

func TestTheOldestConnectionOfTooManyMakesWay(t *testing.T) {
	s := newConnections(plain{}, time.Now)
	mine, mineFar := connect(t, s)
	enter(t, mine, "pod")()

	_, first := connect(t, s)
	second, secondFar := connect(t, s)
	for range maxStrangers - 1 {
		_, far := connect(t, s)
		if !open(far) {
			t.Fatal("the newest connection was closed")
		}
	}
	if open(first) {
		t.Error("one stranger too many, and the oldest is still there")
	}
	if !open(secondFar) || !open(mineFar) {
		t.Error("another than the oldest stranger was closed")
	}
	enter(t, second, "pod")()
	if _, far := connect(t, s); !open(far) || !open(secondFar) {
		t.Error("a pod that has shown its token still counts among strangers")
	}

	for range maxPodConnections - 1 {
		c, far := connect(t, s)
		enter(t, c, "pod")()
		if !open(far) {
			t.Fatal("the newest connection was closed")
		}
	}
	if open(mineFar) {
		t.Error("one connection of the pod too many, and the oldest is still there")
	}
	if !open(secondFar) {
		t.Error("another than the oldest of the pod was closed")
	}
	if _, err := mine.enter(t.Context(), kms.OperationDecrypt, "pod"); kms.CodeOf(err) != kms.CodeUnavailable {
		t.Errorf("a call on a connection that made way: got %v, want Unavailable", err)
	}
}

func TestConnectionsThatEndAreForgotten(t *testing.T) {
	s := newConnections(plain{}, time.Now)
	for range 2 * maxStrangers {
		c, _ := connect(t, s)
		enter(t, c, "pod")()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		c, _ = connect(t, s)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.strangers.has) > 0 || len(s.pods) > 0 {
		t.Errorf("%d strangers and %d pods are kept", len(s.strangers.has), len(s.pods))
	}
}

// Each token of a stranger may cost a review, and nobody knows yet who has to answer for it.
func TestTokensOfStrangersAreReviewedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newConnections(plain{}, time.Now)
		c, _ := connect(t, s)
		in := make(chan func(), 3)
		ask := func(ctx context.Context, c *connection) {
			if reviewed, err := c.admit(ctx); err == nil {
				in <- reviewed
			}
		}
		for range 3 {
			go ask(t.Context(), c)
		}
		synctest.Wait()
		if len(in) != 1 {
			t.Fatalf("%d tokens of one connection are reviewed at once", len(in))
		}
		(<-in)()
		synctest.Wait()
		reviewed := <-in
		if len(in) > 0 {
			t.Error("when one was reviewed, more than one more is")
		}
		enter(t, c, "pod")()
		synctest.Wait()
		if len(in) != 1 {
			t.Error("who waits goes on waiting when a token was valid")
		}
		reviewed()
		(<-in)()

		var all []func()
		for range maxStrangeReviews {
			c, _ := connect(t, s)
			reviewed, err := c.admit(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, reviewed)
		}
		late, _ := connect(t, s)
		ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
		defer cancel()
		if _, err := late.admit(ctx); kms.CodeOf(err) != kms.CodeUnavailable {
			t.Errorf("one too many of all connections: got %v, want that it waits", err)
		}
		known, err := c.admit(t.Context())
		if err != nil {
			t.Errorf("a connection that has shown a valid token waits for strangers: %v", err)
		}
		known()
		all[0]()
		if _, err := late.admit(t.Context()); err != nil {
			t.Errorf("when one was reviewed: %v", err)
		}
	})
}

// unavailable is why a token could not be reviewed.
func unavailable(err error) error { return &kms.Error{Code: kms.CodeUnavailable, Err: err} }

func TestAStrangerWhoDoesNotWaitIsCounted(t *testing.T) {
	c, _ := connect(t, newConnections(plain{}, func() time.Time { return time.Unix(0, 0) }))
	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	for range strangeBurst {
		c.refused(t.Context(), unavailable(nil)) // is not the caller's
		c.refused(gone, unavailable(gone.Err()))
	}
	if _, err := c.admit(t.Context()); kms.CodeOf(err) != kms.CodeThrottled {
		t.Errorf("got %v, want Throttled", err)
	}
}

// While the API server hangs, the calls of a pod whose token is due for a review end in nothing, and its application does not wait for
// that. Its renewals are not throttled for it, or else its leases would end.
func TestAPodThatDoesNotWaitInAnOutageIsNotThrottled(t *testing.T) {
	c, _ := connect(t, newConnections(plain{}, func() time.Time { return time.Unix(0, 0) }))
	enter(t, c, "pod")()
	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	for range 2 * strangeBurst {
		c.refused(gone, unavailable(context.DeadlineExceeded))
	}
	if _, err := c.admit(t.Context()); err != nil {
		t.Errorf("after calls that nobody waited for: %v", err)
	}
	for range strangeBurst {
		c.refused(gone, &kms.Error{Code: kms.CodeUnauthenticated})
	}
	if _, err := c.admit(t.Context()); kms.CodeOf(err) != kms.CodeThrottled {
		t.Errorf("after tokens that were refused: got %v, want Throttled", err)
	}
}

func TestCallsOfAPodTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newConnections(plain{}, time.Now)
		one, _ := connect(t, s)
		two, _ := connect(t, s)
		other, _ := connect(t, s)
		var leave func()
		for i := range maxPodCalls {
			leave = enter(t, []*connection{one, two}[i%2], "pod")
		}
		enter(t, other, "other pod")()

		ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
		defer cancel()
		began := time.Now()
		if _, err := two.enter(ctx, kms.OperationDecrypt, "pod"); kms.CodeOf(err) != kms.CodeThrottled || time.Since(began) != callTimeout*3/4 {
			t.Errorf("one call too many: got %v after %v, want that it waits, and is throttled while it can be told", err, time.Since(began))
		}
		done, err := two.enter(ctx, kms.OperationRenew, "pod")
		if err != nil {
			t.Fatalf("a renewal beside them: %v", err)
		}
		if _, err := one.enter(ctx, kms.OperationRenew, "pod"); kms.CodeOf(err) != kms.CodeThrottled || ctx.Err() != nil {
			t.Errorf("one renewal too many: got %v, want that it is throttled while it can be told", err)
		}
		done()
		in := make(chan error)
		go func() {
			_, err := one.enter(t.Context(), kms.OperationDecrypt, "pod")
			in <- err
		}()
		synctest.Wait()
		leave()
		if err := <-in; err != nil {
			t.Errorf("when a call has ended: %v", err)
		}
	})
}

func TestACallHasADeadlineFromTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct{ callers, want time.Duration }{
			"none of the caller's": {0, callTimeout},
			"a later one":          {time.Hour, callTimeout},
			"an earlier one":       {time.Second, time.Second},
		} {
			around, end := context.WithCancel(t.Context())
			if c.callers > 0 {
				around, end = context.WithTimeout(t.Context(), c.callers)
			}
			ctx, err := withDeadline(around, nil)
			if deadline, ok := ctx.Deadline(); err != nil || !ok || time.Until(deadline) != c.want {
				t.Errorf("%s: got a deadline in %v, want %v", name, time.Until(deadline), c.want)
			}
			end()
			<-ctx.Done()
		}
	})
}
