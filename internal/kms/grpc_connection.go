package kms

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// strangerRule is how many calls without a valid token one connection may make: each may cost a TokenReview, and who makes
// them is not known, so they are counted where they come from. By connection and not by address: the pods of a node may
// share one, and none shall be able to silence another. A sidecar has one connection, and asks again after 10 seconds. A
// connection that made many at once is heard again after a minute at most.
var strangerRule = budgetRule{rate: 1, burst: 20, debt: 60}

// connection is a TLS connection of the server, as calls see it.
type connection struct {
	credentials.TLSInfo

	mu        sync.Mutex
	strangers budget
}

// countingCredentials give each connection a budget of its own.
type countingCredentials struct {
	credentials.TransportCredentials
	now func() time.Time
}

// ServerHandshake implements credentials.TransportCredentials.
func (c countingCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	tlsInfo, ok := info.(credentials.TLSInfo)
	if !ok {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("internal error: TLS gives %T", info)
	}
	return conn, &connection{TLSInfo: tlsInfo, strangers: strangerRule.full(c.now())}, nil
}

// Clone implements credentials.TransportCredentials.
func (c countingCredentials) Clone() credentials.TransportCredentials {
	return countingCredentials{TransportCredentials: c.TransportCredentials.Clone(), now: c.now}
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

// admit returns an error where too many calls of the connection had no valid token.
func (c *connection) admit(clock func() time.Time) error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.strangers.tokens >= 1 { // time takes none away
		return nil
	}
	if c.strangers = strangerRule.now(c.strangers, clock()); c.strangers.tokens >= 1 {
		return nil
	}
	return &Error{Code: CodeThrottled, Message: "too many calls without a valid token on this connection: one a second is answered"}
}

// done counts a call that came to an end.
func (c *connection) done(clock func() time.Time, err error) {
	if err == nil || c == nil || CodeOf(err) != CodeUnauthenticated {
		return
	}
	now := clock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.strangers = strangerRule.spent(strangerRule.now(c.strangers, now), 1)
}
