package sidecar

import (
	"context"
	"math"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// How long a connection may stay as it is. A request in a pod takes well under a millisecond; these end what does not.
const (
	// maxBusy is for sending a first request, and for everything from a request's header to the end of its answer.
	maxBusy = 10 * time.Second
	// maxIdle is for sending another request.
	maxIdle = 2 * time.Minute

	tick = time.Second
)

// watchdog closes connections that stay as they are for too long: clients that send or read slowly, or not at all. It
// stands in for the timeouts of net/http, which set five deadlines for every request; that would cost a tenth of the
// whole answer. Here a request notes a number, and once a second all connections are looked at.
type watchdog struct {
	ticks atomic.Int64 // since the start

	mu    sync.Mutex
	conns map[*conn]struct{}
}

func newWatchdog() *watchdog { return &watchdog{conns: map[*conn]struct{}{}} }

// noted is the ConnState of the server.
func (d *watchdog) noted(nc net.Conn, state http.ConnState) {
	c, ok := nc.(*conn)
	if !ok {
		return
	}
	limit := maxBusy
	switch state {
	case http.StateNew:
	case http.StateIdle:
		limit = maxIdle
		c.wait()
	case http.StateActive:
		c.idleSince.Store(0)
	default:
		d.mu.Lock()
		delete(d.conns, c)
		d.mu.Unlock()
		return
	}
	d.allow(c, limit)
	if state == http.StateNew {
		d.mu.Lock()
		d.conns[c] = struct{}{}
		d.mu.Unlock()
	}
}

// allow gives a connection so much time from now on.
func (d *watchdog) allow(c *conn, limit time.Duration) {
	c.expires.Store(d.ticks.Load() + int64(limit/tick) + 1) // the tick under way does not count
}

// rest lets a connection be as it is until it is allowed a time again.
func (*watchdog) rest(c *conn) { c.expires.Store(math.MaxInt64) }

// count returns how many connections of a network there are.
func (d *watchdog) count(network string) float64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for c := range d.conns {
		if c.LocalAddr().Network() == network {
			n++
		}
	}
	return float64(n)
}

// run looks at the connections until the context ends.
func (d *watchdog) run(ctx context.Context) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			d.look()
		}
	}
}

// look is one tick.
func (d *watchdog) look() {
	now := d.ticks.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.conns {
		if c.expires.Load() <= now {
			_ = c.Close() // what waits for it fails, and the server notes that it is closed
		}
	}
}
