package kmsgrpc

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/datakeys/datakeys/internal/kms"
)

// Limits of connections. Whoever may connect can make as many as he likes, and each costs some 50 KiB: so of each pod there are a
// few, and of those who have not shown a valid token a number that anybody else gets past in the time of one call.
const (
	// maxPodConnections is how many connections one pod has. A sidecar has one, and for a moment a second when that grows old.
	maxPodConnections = 2
	// maxPodCalls is how many calls of one pod are worked on at once. More wait for their turn, their requests unread.
	maxPodCalls = 7
	// maxPodRenewals is how many renewals are, beside them: what else the pod asks for does not end its leases.
	maxPodRenewals = 1
	// maxStrangers is how many connections there are that have not shown a valid token yet.
	maxStrangers = 256
	// maxStrangeBytes is what a connection may send until it has shown one: the headers of a few calls.
	maxStrangeBytes = 24 << 10
	// maxStrangeReviews is how many of their tokens are reviewed at once, of each connection one.
	maxStrangeReviews = 32
)

// errStrange ends a connection that sends and sends, and shows no valid token.
var errStrange = fmt.Errorf("%d bytes came without a valid token", maxStrangeBytes)

// Limits of calls without a valid token: each may cost a TokenReview, and who makes them is not known, so they are counted where they come
// from. By connection and not by address: the pods of a node may share one, and none shall be able to silence another. A sidecar has one
// connection, and asks again after 10 seconds.
const (
	strangeRate  = rate.Limit(1) // a second
	strangeBurst = 20
	// strangeDebt bounds what a connection owes that made many at once: it is heard again after a minute.
	strangeDebt = 60
)

// connections are those of the server. They are the credentials by which it takes a connection: there is no earlier place.
type connections struct {
	credentials.TransportCredentials
	now func() time.Time

	reviews chan struct{} // holds one for each token of a stranger that is reviewed

	mu        sync.Mutex
	strangers *house
	pods      map[string]*house // by UID
}

func newConnections(tls credentials.TransportCredentials, now func() time.Time) *connections {
	return &connections{
		TransportCredentials: tls, now: now,
		reviews: make(chan struct{}, maxStrangeReviews), strangers: newHouse("", maxStrangers), pods: map[string]*house{},
	}
}

// house is who has connections: a pod, or all strangers together. Where it has more than it holds, the oldest makes way: those of
// a sidecar that was killed may still be there, and whoever has just come is about to show a token.
type house struct {
	pod  string // its UID; empty: strangers
	most int
	has  []*connection // the oldest first; it needs connections.mu
	// What is worked on.
	calls, renewals turns
}

func newHouse(pod string, most int) *house {
	return &house{pod: pod, most: most, calls: newTurns(maxPodCalls), renewals: newTurns(maxPodRenewals)}
}

// turnsOf are those that an operation waits for.
func (h *house) turnsOf(operation string) *turns {
	if operation == kms.OperationRenew {
		return &h.renewals
	}
	return &h.calls
}

// turns are how many calls go on at once.
type turns struct {
	taken chan struct{} // holds one for each of them
	leave func()
}

func newTurns(most int) turns {
	taken := make(chan struct{}, most)
	return turns{taken: taken, leave: func() { <-taken }}
}

// move takes a connection from the house where it is, nil for none, to another. The oldest of too many is closed.
func (s *connections) move(c *connection, to *house) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moveLocked(c, to)
}

func (s *connections) moveLocked(c *connection, to *house) {
	if from := c.house.Swap(to); from != nil {
		from.has = slices.DeleteFunc(from.has, func(other *connection) bool { return other == c })
		if len(from.has) == 0 && from.pod != "" {
			delete(s.pods, from.pod)
		}
	}
	if to == nil {
		return
	}
	to.has = append(to.has, c)
	if len(to.has) > to.most {
		to.has[0].makeWay()
	}
}

// welcome moves a stranger's connection to the house of the pod that has shown its token there, and returns where it is then.
func (s *connections) welcome(c *connection, pod string) *house {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.house.Load() == s.strangers {
		h := s.pods[pod]
		if h == nil {
			h = newHouse(pod, maxPodConnections)
			s.pods[pod] = h
		}
		s.moveLocked(c, h)
		close(c.known)
	}
	return c.house.Load()
}

// ServerHandshake implements credentials.TransportCredentials.
func (s *connections) ServerHandshake(tcp net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c := &connection{
		all: s, tcp: tcp, left: maxStrangeBytes, known: make(chan struct{}), closed: make(chan struct{}),
		review: make(chan struct{}, 1), strange: rate.NewLimiter(strangeRate, strangeBurst),
	}
	c.end = sync.OnceFunc(func() { close(c.closed) })
	s.move(c, s.strangers)
	conn, info, err := s.TransportCredentials.ServerHandshake(tcp)
	if err != nil {
		s.move(c, nil)
		return nil, nil, err
	}
	tlsInfo, ok := info.(credentials.TLSInfo)
	if !ok {
		s.move(c, nil)
		_ = conn.Close()
		return nil, nil, fmt.Errorf("internal error: TLS gives %T", info)
	}
	c.Conn, c.TLSInfo = conn, tlsInfo
	return c, c, nil
}

// Clone implements credentials.TransportCredentials.
func (s *connections) Clone() credentials.TransportCredentials {
	return newConnections(s.TransportCredentials.Clone(), s.now)
}

// connection is a TLS connection of the server, as calls see it.
type connection struct {
	net.Conn
	credentials.TLSInfo
	all   *connections
	tcp   net.Conn              // below TLS
	house atomic.Pointer[house] // set under all.mu
	left  int                   // what a stranger may still send; for the reader of the connection alone
	// known is closed once a pod has shown a valid token, closed when the connection is.
	known, closed chan struct{}
	end           func() // closes closed
	// review holds one while a token is reviewed that nobody has shown to be valid.
	review chan struct{}
	// strange has a token for each call without a valid one that is still answered.
	strange *rate.Limiter
}

// connectionOf returns the connection of a call, or nil for one that came by no network.
func connectionOf(ctx context.Context) *connection {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	c, _ := p.AuthInfo.(*connection)
	return c
}

// Read implements net.Conn. What strangers send is read as far as it takes to see a token, and the rest when that was valid.
func (c *connection) Read(b []byte) (int, error) {
	if c.isKnown() {
		return c.Conn.Read(b)
	}
	if c.left > 0 {
		n, err := c.Conn.Read(b[:min(len(b), c.left)])
		c.left -= n
		return n, err
	}
	patience := time.NewTimer(callTimeout)
	defer patience.Stop()
	select {
	case <-c.known:
		return c.Conn.Read(b)
	case <-c.closed:
		return 0, net.ErrClosed
	case <-patience.C:
		return 0, errStrange
	}
}

// Close implements net.Conn.
func (c *connection) Close() error {
	c.all.move(c, nil)
	c.end()
	return c.Conn.Close()
}

// makeWay ends a connection that is one too many. gRPC, which reads from it, closes it then. It needs all.mu.
func (c *connection) makeWay() {
	c.all.moveLocked(c, nil)
	c.end()
	_ = c.tcp.Close()
}

// admit waits until the token of a call may be reviewed, and returns an error where too many calls of the connection had no valid
// token. The caller calls reviewed afterwards.
func (c *connection) admit(ctx context.Context) (reviewed func(), err error) {
	if c == nil {
		return func() {}, nil
	}
	reviewed, err = c.turn(ctx)
	if err != nil {
		return nil, err
	}
	if c.strange.TokensAt(c.all.now()) >= 1 {
		return reviewed, nil
	}
	reviewed()
	return nil, &kms.Error{Code: kms.CodeThrottled, Message: "too many calls without a valid token on this connection: one a second is answered"}
}

// turn waits for the turn of a stranger's token. Calls of a connection that has shown a valid one do not wait.
func (c *connection) turn(ctx context.Context) (done func(), err error) {
	give := func() {}
	for _, turns := range []chan struct{}{c.review, c.all.reviews} {
		if c.isKnown() {
			return give, nil
		}
		before := give
		select {
		case turns <- struct{}{}:
			give = func() { <-turns; before() }
		case <-c.known:
			return give, nil
		case <-ctx.Done():
			give()
			return nil, &kms.Error{Code: kms.CodeUnavailable, Message: "the token could not be reviewed in time", Err: ctx.Err()}
		}
	}
	return give, nil
}

// isKnown reports whether a pod has shown a valid token.
func (c *connection) isKnown() bool {
	select {
	case <-c.known:
		return true
	default:
		return false
	}
}

// refused counts a call whose token was refused, or of a stranger who did not wait for that. In an outage the calls of a pod end so too:
// if they counted, its renewals would be throttled, and what they are for would not outlast the outage.
func (c *connection) refused(ctx context.Context, err error) {
	if c == nil || kms.CodeOf(err) != kms.CodeUnauthenticated && (ctx.Err() == nil || c.isKnown()) {
		return
	}
	if now := c.all.now(); c.strange.TokensAt(now) > -strangeDebt {
		c.strange.ReserveN(now, 1)
	}
}

// enter waits until it is the turn of a call of the pod, which has shown a valid token. The caller calls leave in the end. It waits for
// three quarters of the caller's time at most: he is to hear that he asks for too much, and not to take it for an outage,
// which his leases would outlast.
func (c *connection) enter(ctx context.Context, operation, pod string) (leave func(), err error) {
	if c == nil {
		return func() {}, nil
	}
	h := c.house.Load()
	if h == c.all.strangers {
		h = c.all.welcome(c, pod)
	}
	if h == nil {
		return nil, &kms.Error{Code: kms.CodeUnavailable, Message: "the connection made way for newer ones", Err: net.ErrClosed}
	}
	turns := h.turnsOf(operation)
	select {
	case turns.taken <- struct{}{}: // a context makes its channel only when it is asked for
		return turns.leave, nil
	default:
	}
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)*3/4)
		defer cancel()
	}
	select {
	case turns.taken <- struct{}{}:
		return turns.leave, nil
	case <-ctx.Done():
		return nil, &kms.Error{Code: kms.CodeThrottled, Err: ctx.Err(), Message: fmt.Sprintf(
			"too many calls of this pod at once: %d are worked on, and this one had to wait for too long", cap(turns.taken))}
	}
}
