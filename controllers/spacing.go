package controllers

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
	ctrl "sigs.k8s.io/controller-runtime"
)

// A spacing lets what many objects have to do at once be done one after the other, at a bounded rate, while the queue stays free for
// other work: an object that has to wait gets a turn, and is to come again then.
type spacing struct {
	limiter *rate.Limiter

	mutex sync.Mutex
	turns map[ctrl.Request]time.Time // of those that were told to wait
}

// newSpacing allows that many a second, and as many at once.
func newSpacing(perSecond int) *spacing {
	return &spacing{limiter: rate.NewLimiter(rate.Limit(perSecond), perSecond), turns: map[ctrl.Request]time.Time{}}
}

// wait is for how long an object has to wait for its turn, 0 where that is now.
func (s *spacing) wait(of ctrl.Request) time.Duration {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	now := time.Now()
	turn, waits := s.turns[of]
	if !waits {
		turn = now.Add(s.limiter.ReserveN(now, 1).DelayFrom(now))
	}
	if left := turn.Sub(now); left > 0 {
		s.turns[of] = turn
		return left
	}
	delete(s.turns, of)
	return 0
}

// forget gives up the turn of an object that is gone.
func (s *spacing) forget(of ctrl.Request) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	delete(s.turns, of)
}
