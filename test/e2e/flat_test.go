package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sample is what a process takes at a moment. Memory is in KiB.
type sample struct {
	at                          time.Time
	resident, anonymous         int
	descriptors, threads, peaks int           // peaks is the most that was ever resident
	goroutines, live            int           // live is the heap that the collector found in use; 0 where the process does not tell
	cpu                         time.Duration // since its start
}

// life is what was sampled of a process, in order.
type life []sample

// settled are the samples of its second and third twelfth, when a process has warmed up and hardly begun to leak, and late those of its last
// sixth: of an hour, the minutes 5 to 15 and 50 to 60.
func (l life) settled() life { return l.between(1.0/12, 3.0/12) }
func (l life) late() life    { return l.between(10.0/12, 1) }

func (l life) between(from, to float64) life {
	if len(l) == 0 {
		return nil
	}
	start, whole := l[0].at, float64(l.lasted())
	var part life
	for _, s := range l {
		if at := float64(s.at.Sub(start)) / whole; at >= from && at <= to {
			part = append(part, s)
		}
	}
	return part
}

// lasted is for how long the process was sampled, and busy the part of a processor that it took meanwhile.
func (l life) lasted() time.Duration {
	if len(l) == 0 {
		return 0
	}
	return l[len(l)-1].at.Sub(l[0].at)
}

func (l life) busy() float64 { return float64(l[len(l)-1].cpu-l[0].cpu) / float64(l.lasted()) }

// middle and least sum up one measure of samples. The least leaves out what comes and goes, such as a connection that is open just now: a
// leak raises it, too.
func (l life) middle(of func(sample) int) int { v := l.sorted(of); return v[len(v)/2] }
func (l life) least(of func(sample) int) int  { return l.sorted(of)[0] }
func (l life) most(of func(sample) int) int   { v := l.sorted(of); return v[len(v)-1] }

func (l life) sorted(of func(sample) int) []int {
	v := make([]int, len(l))
	for i, s := range l {
		v[i] = of(s)
	}
	slices.Sort(v)
	return v
}

func resident(s sample) int    { return s.resident }
func anonymous(s sample) int   { return s.anonymous }
func descriptors(s sample) int { return s.descriptors }
func threads(s sample) int     { return s.threads }
func goroutines(s sample) int  { return s.goroutines }
func live(s sample) int        { return s.live }

// together is what several processes take, at the moments at which each of them was sampled.
func together(lives ...life) (sum life) {
	at := map[time.Time][]sample{}
	for _, l := range lives {
		for _, s := range l {
			at[s.at] = append(at[s.at], s)
		}
	}
	for _, samples := range at {
		if len(samples) < len(lives) {
			continue
		}
		all := sample{at: samples[0].at}
		for _, s := range samples {
			all.descriptors += s.descriptors
			all.goroutines += s.goroutines
		}
		sum = append(sum, all)
	}
	slices.SortFunc(sum, func(a, b sample) int { return a.at.Compare(b.at) })
	return sum
}

// measure is one that a process may have a little more of, late in its life, than when it had settled.
type measure struct {
	name    string
	sum     func(life, func(sample) int) int
	of      func(sample) int
	percent int // by which it may be more
	or      int // the amount by which it may be more in any case
}

// grown says how much more of its memory and threads a process has, by more than may be.
func (l life) grown() []string {
	// Memory that was needed once, when much happened at once, is given back late or never. Where a process tells what it uses of it, growth
	// is growth of that, and the rest may take longer to settle.
	percent, or := 5, 1024
	if settled := l.settled(); len(settled) > 0 && settled.least(live) > 0 {
		percent, or = 15, 4096
	}
	return l.more(
		measure{"resident KiB, at the median", life.middle, resident, percent, or},
		measure{"anonymous KiB, at the median", life.middle, anonymous, percent, or},
		measure{"live KiB of the heap, at least", life.least, live, 5, 1024},
		measure{"threads, at least", life.least, threads, 0, 2}, // the runtime of Go keeps each that it ever needed
	)
}

// moreConnections says how much more of what connections take there is, by more than may be. Where clients choose among replicas, these are
// asked together: a connection that moves is one less of the one and one more of the other.
func (l life) moreConnections() []string {
	return l.more(
		measure{"descriptors, at least", life.least, descriptors, 0, 3}, // of the connections that clients pool
		measure{"goroutines, at least", life.least, goroutines, 0, 15},
	)
}

func (l life) more(measures ...measure) (more []string) {
	settled, late := l.settled(), l.late()
	if len(settled) == 0 || len(late) == 0 {
		return []string{fmt.Sprintf("%d samples are too few to judge by", len(l))}
	}
	for _, m := range measures {
		before, after := m.sum(settled, m.of), m.sum(late, m.of)
		if after > before+max(m.or, before*m.percent/100) {
			more = append(more, fmt.Sprintf("%s: %d, then %d", m.name, before, after))
		}
	}
	return more
}

func TestGrowth(t *testing.T) {
	const sampled = 361 // an hour, each 10 s
	grows := func(change func(s *sample, i int)) life {
		l := make(life, sampled)
		for i := range l {
			l[i] = sample{
				at: time.Unix(0, 0).Add(time.Duration(i) * 10 * time.Second), resident: 16_000 + i%7*100, anonymous: 8_000 + i%7*100,
				descriptors: 20 + i%3, threads: 9, goroutines: 40 + i%5,
			}
			change(&l[i], i)
		}
		return l
	}
	for name, test := range map[string]struct {
		change func(*sample, int)
		want   []string
	}{
		"what goes up and down is flat":                 {func(*sample, int) {}, nil},
		"a mebibyte more is flat":                       {func(s *sample, i int) { s.resident += i * 1100 / sampled; s.anonymous += i * 1100 / sampled }, nil},
		"a process that warms up for 5 minutes is flat": {func(s *sample, i int) { s.resident -= max(0, 30-i) * 200 }, nil},
		"a moment that takes more is flat":              {func(s *sample, i int) { s.resident += i / 350 * i % 2 * 50_000 }, nil},
		"connections that come and go are flat":         {func(s *sample, i int) { s.descriptors += i % 2 * i / 100 }, nil},
		"two mebibytes in an hour are growth":           {func(s *sample, i int) { s.resident += i * 2048 / sampled }, []string{"resident KiB, at the median: 16648, then 18170"}},
		"so they are on the heap alone":                 {func(s *sample, i int) { s.anonymous += i * 2048 / sampled }, []string{"anonymous KiB, at the median: 8648, then 10170"}},
		"four of a process whose heap is flat are not":  {func(s *sample, i int) { s.live = 7000 + i%2*900; s.resident += i * 4096 / sampled }, nil},
		"two of its heap are":                           {func(s *sample, i int) { s.live = 7000 + i%2*900 + i*2048/sampled }, []string{"live KiB of the heap, at least: 7170, then 8701"}},
		"eight beside its heap are":                     {func(s *sample, i int) { s.live = 7000; s.resident += i * 8192 / sampled }, []string{"resident KiB, at the median: 17675, then 23783"}},
		"descriptors are":                               {func(s *sample, i int) { s.descriptors += i / 75 }, []string{"descriptors, at least: 20, then 24"}},
		"goroutines are":                                {func(s *sample, i int) { s.goroutines += i / 10 }, []string{"goroutines, at least: 43, then 70"}},
		"threads are":                                   {func(s *sample, i int) { s.threads += i / 100 }, []string{"threads, at least: 9, then 12"}},
	} {
		t.Run(name, func(t *testing.T) {
			l := grows(test.change)
			if diff := cmp.Diff(test.want, append(l.grown(), l.moreConnections()...)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	for _, few := range []life{nil, grows(func(*sample, int) {})[:1]} {
		if few.grown() == nil || few.moreConnections() == nil {
			t.Errorf("%d samples are called flat", len(few))
		}
	}

	// From the middle on one has so many connections more, at so many goroutines each, and another so many fewer.
	changes := func(connections, goroutines int) life {
		return grows(func(s *sample, i int) {
			if i > sampled/2 {
				s.descriptors += connections
				s.goroutines += connections * goroutines
			}
		})
	}
	for name, test := range map[string]struct {
		replicas []life
		want     []string
	}{
		"connections that move are flat":               {[]life{changes(8, 6), changes(-8, 6)}, nil},
		"some that move beside four that leak are not": {[]life{changes(10, 6), changes(-6, 6)}, []string{"descriptors, at least: 40, then 44", "goroutines, at least: 80, then 104"}},
		"a few that leak at each replica are growth":   {[]life{changes(2, 6), changes(2, 6)}, []string{"descriptors, at least: 40, then 44", "goroutines, at least: 80, then 104"}},
		"so they are where one was not sampled once":   {[]life{changes(2, 6), slices.Delete(changes(2, 6), 350, 351)}, []string{"descriptors, at least: 40, then 44", "goroutines, at least: 80, then 104"}},
		"replicas that were never sampled together":    {[]life{changes(0, 0)[:100], changes(0, 0)[100:]}, []string{"0 samples are too few to judge by"}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, together(test.replicas...).moreConnections()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
