package controllers

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"k8s.io/utils/clock"
)

const (
	// maxClockSkew is how far the clocks of the manager and of the API server may be apart before nothing is done by time.
	maxClockSkew = 10 * time.Minute
	// maxPause is the longest time for which an object that waits for a moment is left alone. A timer runs on while the clock jumps:
	// this is how late a jump is noticed.
	maxPause = time.Hour
)

// errClocksDisagree is returned where something is due by the manager's clock and not by the API server's.
var errClocksDisagree = errors.New("the clocks of the manager and of the API server are apart")

// clocks are the manager's own, which tells what may be due, and the API server's, which has to agree before it is done: what is
// rotated too often, dropped or destroyed cannot be had back when a clock that jumped is set right.
type clocks struct {
	clock.PassiveClock

	// server reads the API server's clock.
	server func(context.Context) (time.Time, error)
}

// both returns the earlier and the later of the two clocks.
func (c clocks) both(ctx context.Context) (earlier, later time.Time, err error) {
	own := c.Now()
	server, err := c.server(ctx)
	if err != nil {
		return time.Time{}, time.Time{}, fmt.Errorf("ask the API server for the time: %w", err)
	}
	if own.Before(server) {
		return own, server, nil
	}
	return server, own, nil
}

// agree returns an error unless the two clocks tell about the same time.
func (c clocks) agree(ctx context.Context) error {
	earlier, later, err := c.both(ctx)
	if err == nil && later.Sub(earlier) > maxClockSkew {
		err = fmt.Errorf("%w: one tells %s, the other %s", errClocksDisagree, earlier.UTC().Format(time.RFC3339), later.UTC().Format(time.RFC3339))
	}
	return err
}

// pause is for how long an object that waits for the earliest of these moments is left alone; zero moments are none.
func pause(now time.Time, moments ...time.Time) time.Duration {
	var shortest time.Duration
	for _, moment := range moments {
		if moment.IsZero() {
			continue
		}
		if d := max(moment.Sub(now), time.Second); shortest == 0 || d < shortest {
			shortest = d
		}
	}
	return min(shortest, maxPause)
}

// jitter is a part of most that is always the same for one name: so not everything of a cluster is rotated at once.
func jitter(name string, most time.Duration) time.Duration {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(name)) // it never fails
	return time.Duration(float64(most) * float64(hash.Sum32()) / (1 << 32))
}

// intervalEnd is when an interval that began then has passed, for the object of that name.
func intervalEnd(began time.Time, interval time.Duration, name string) time.Time {
	return began.Add(interval + jitter(name, min(interval/10, time.Hour)))
}

// passed reports whether a moment is there. began is what the moment was counted from: where that lies in the future, the clock that
// dated it was wrong, and the moment with it.
func passed(now, moment, began time.Time) bool {
	return !moment.IsZero() && (!now.Before(moment) || began.Sub(now) > maxClockSkew)
}
