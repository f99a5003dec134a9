package sidecar

import (
	"fmt"
	"sync"

	"github.com/VictoriaMetrics/metrics"
)

// doorCounts counts the answers of the front doors. There are hundreds of outcomes, of which a pod sees a few: each has its counter from
// the first time on.
type doorCounts struct {
	render     renderer
	newCounter func(name string) *metrics.Counter // of a Set: see renderer

	mu       sync.Mutex
	counters map[outcome]*metrics.Counter
}

// outcome is how a request for a front door was answered, in words that are the doors' own.
type outcome struct{ door, operation, code string }

func newDoorCounts() *doorCounts {
	set := metrics.NewSet()
	return &doorCounts{render: set.WritePrometheus, newCounter: set.NewCounter, counters: map[outcome]*metrics.Counter{}}
}

// of counts for one door.
func (d *doorCounts) of(door string) func(operation, code string) {
	return func(operation, code string) { d.count(outcome{door, operation, code}) }
}

func (d *doorCounts) count(o outcome) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.counters[o]
	if c == nil {
		c = d.newCounter(fmt.Sprintf(`datakeys_sidecar_door_requests_total{door=%q,operation=%q,code=%q}`, o.door, o.operation, o.code))
		d.counters[o] = c
	}
	c.Inc()
}
