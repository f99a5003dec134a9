package keyservice

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

const (
	// doorCalls is how many calls of the front doors are under way at once. The key service works on 7 of a pod; who waits there, waits
	// in no order, and so would what keeps the pod's own data keys.
	doorCalls = 6
	// doorWait is how long such a call waits for its turn at most.
	doorWait = 10 * time.Second
	// DoorTimeout is what it takes with that at most: the key service ends a call after 15 s.
	DoorTimeout = doorWait + 15*time.Second
	// reconnectWait is how long such a call waits at most for a connection in the place of one that has just been lost.
	reconnectWait = time.Second
)

// Doors is the client of the key service that the front doors have: over the one connection, but never all of it.
func (c *Client) Doors() kmsv1.KeyServiceClient {
	return newTogether(kmsv1.NewKeyServiceClient(&doorConn{connection: c.conn, turns: make(chan struct{}, doorCalls)}))
}

// doorConn makes calls wait for their turn, first come, first served.
type doorConn struct {
	connection
	turns chan struct{} // holds one for each call that is under way
}

// connection is a *grpc.ClientConn.
type connection interface {
	grpc.ClientConnInterface
	GetState() connectivity.State
	Connect()
	WaitForStateChange(ctx context.Context, from connectivity.State) bool
}

// Invoke implements grpc.ClientConnInterface. A call whose connection is lost is tried once more where there is another connection soon,
// which it waits for without a turn: asking twice changes nothing.
func (c *doorConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	err := c.call(ctx, method, args, reply, opts...)
	if status.Code(err) == codes.Unavailable && !hasReason(err) && c.reconnected(ctx) {
		err = c.call(ctx, method, args, reply, opts...)
	}
	return err
}

// call makes a call when it is its turn. It has no deadline then but its caller's: that would cost a tenth of its time, and the key service
// has one, as the pings of the connection have for the key service.
func (c *doorConn) call(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	select {
	case c.turns <- struct{}{}:
	default:
		if err := c.wait(ctx); err != nil {
			return err
		}
	}
	defer func() { <-c.turns }()
	return c.connection.Invoke(ctx, method, args, reply, opts...)
}

// reconnected waits for a connection, and reports whether there is one.
func (c *doorConn) reconnected(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, reconnectWait)
	defer cancel()
	for {
		state := c.GetState()
		switch state {
		case connectivity.Ready:
			return true
		case connectivity.Idle:
			c.Connect()
		case connectivity.Shutdown:
			return false
		case connectivity.Connecting, connectivity.TransientFailure:
		}
		if !c.WaitForStateChange(ctx, state) {
			return false
		}
	}
}

// wait waits for a turn.
func (c *doorConn) wait(ctx context.Context) error {
	timer := time.NewTimer(doorWait)
	defer timer.Stop()
	select {
	case c.turns <- struct{}{}:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	case <-timer.C:
		return newRefusal(codes.ResourceExhausted, kmsv1.ReasonThrottled,
			fmt.Sprintf("%d calls of this pod wait for the key service, and this one waited for too long", doorCalls), "")
	}
}
