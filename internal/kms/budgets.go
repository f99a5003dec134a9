package kms

import (
	"sync"
	"time"
)

// budget is a token bucket: a number of tokens that comes back by and by.
type budget struct {
	tokens float64
	at     time.Time
}

// budgetRule is how a budget behaves. A budget begins full.
type budgetRule struct {
	rate  float64 // tokens that come back in a second
	burst float64 // the most that there are
	debt  float64 // the most that may be owed
}

// now returns the budget as it is at a time. A clock that goes back takes nothing and gives nothing.
func (r budgetRule) now(b budget, now time.Time) budget {
	if passed := now.Sub(b.at).Seconds(); passed > 0 {
		b = budget{tokens: min(b.tokens+passed*r.rate, r.burst), at: now}
	}
	return b
}

func (r budgetRule) spent(b budget, n float64) budget {
	b.tokens = max(b.tokens-n, -r.debt)
	return b
}

// budgets are budgets of one rule, each of somebody. Only those that are not full are kept, so the zero map will do.
type budgets struct {
	budgetRule
	// most is how many are kept. Where there are more, some are forgotten: full ones first, which are as good as none.
	most int

	mu sync.Mutex
	of map[string]*budget
}

// left reports whether anything is left in the budget of who.
func (s *budgets) left(who string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, kept := s.of[who]
	return !kept || s.now(*b, now).tokens >= 1
}

// spend takes n tokens from the budget of who, if anything is left in it, and reports whether that was so. What is
// missing is owed.
func (s *budgets) spend(who string, n float64, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.ofNow(who, now)
	if b.tokens < 1 {
		return false
	}
	*b = s.spent(*b, n)
	return true
}

// take takes n tokens from the budget of who, whatever is left in it.
func (s *budgets) take(who string, n float64, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.ofNow(who, now)
	*b = s.spent(*b, n)
}

// ofNow returns the budget of who as it is now, to be changed. It needs mu.
func (s *budgets) ofNow(who string, now time.Time) *budget {
	b, kept := s.of[who]
	if !kept {
		s.makeRoom(now)
		b = &budget{tokens: s.burst, at: now}
		s.of[who] = b
		return b
	}
	*b = s.now(*b, now)
	return b
}

// makeRoom makes room for one more. It needs mu.
func (s *budgets) makeRoom(now time.Time) {
	if s.of == nil {
		s.of = map[string]*budget{}
	}
	if len(s.of) < s.most {
		return
	}
	for who, b := range s.of {
		if s.now(*b, now).tokens >= s.burst {
			delete(s.of, who)
		}
	}
	for who := range s.of {
		if len(s.of) < s.most {
			break
		}
		delete(s.of, who)
	}
}
