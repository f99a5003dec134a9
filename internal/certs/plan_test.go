package certs

import (
	"crypto/x509"
	"slices"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	clocktesting "k8s.io/utils/clock/testing"
)

var epoch = time.Date(2030, time.March, 1, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

func TestPlanAt(t *testing.T) {
	// made is a root whose life begins so long after the epoch.
	made := func(number int, after time.Duration) *root {
		start := epoch.Add(after)
		return &root{number: number, cert: &x509.Certificate{NotBefore: start.Add(-clockSkew), NotAfter: start.Add(rootLifetime)}}
	}
	first, second, third := made(1, 0), made(2, 5*year), made(3, 10*year)
	late := made(2, 9*year+6*30*day)
	behind := made(2, -2*day)
	for name, test := range map[string]struct {
		at       time.Duration
		roots    []*root
		signing  int
		trusted  []int
		makeRoot bool
	}{
		"without a root one is made":                               {at: 0, makeRoot: true},
		"a new root signs":                                         {at: 0, roots: []*root{first}, signing: 1, trusted: []int{1}},
		"a root signs on a clock that is a little behind":          {at: -clockSkew, roots: []*root{first}, signing: 1, trusted: []int{1}},
		"no successor at half of the life":                         {at: 5 * year, roots: []*root{first}, signing: 1, trusted: []int{1}},
		"a successor after half of the life":                       {at: 5*year + 1, roots: []*root{first}, signing: 1, trusted: []int{1}, makeRoot: true},
		"a successor is trusted from the first day":                {at: 5*year + 1, roots: []*root{first, second}, signing: 1, trusted: []int{1, 2}},
		"a successor does not sign before the old one's last year": {at: 9*year - 1, roots: []*root{first, second}, signing: 1, trusted: []int{1, 2}},
		"a successor signs in the old one's last year":             {at: 9 * year, roots: []*root{first, second}, signing: 2, trusted: []int{1, 2}},
		"an expired root is not trusted":                           {at: 10 * year, roots: []*root{first, second}, signing: 2, trusted: []int{2}},
		"the order in which they are stored does not count":        {at: 12 * year, roots: []*root{third, second, first}, signing: 2, trusted: []int{2, 3}},
		"the third signs in its turn":                              {at: 14 * year, roots: []*root{first, second, third}, signing: 3, trusted: []int{2, 3}},
		"a late successor leaves the old one as long as it can":    {at: 10*year - 8*day, roots: []*root{first, late}, signing: 1, trusted: []int{1, 2}},
		"a late successor signs in the last week":                  {at: 10*year - 7*day, roots: []*root{first, late}, signing: 2, trusted: []int{1, 2}},
		"after the end of all one is made":                         {at: 15 * year, roots: []*root{first, second}, makeRoot: true},
		"a root of the future is trusted and no more":              {at: 2 * year, roots: []*root{first, third}, signing: 1, trusted: []int{1, 3}},
		"a root of a clock that was behind does not sign":          {at: day, roots: []*root{first, behind}, signing: 1, trusted: []int{1, 2}},
		"a root of the future is no successor":                     {at: 6 * year, roots: []*root{first, third}, signing: 1, trusted: []int{1, 3}, makeRoot: true},
	} {
		t.Run(name, func(t *testing.T) {
			got := planAt(epoch.Add(test.at), test.roots)
			signing := 0
			if got.signing != nil {
				signing = got.signing.number
			}
			if signing != test.signing || got.makeRoot != test.makeRoot || !slices.Equal(numbers(got.trusted), test.trusted) {
				t.Errorf("got signing %d, trusted %v, makeRoot %v; want %d, %v, %v",
					signing, numbers(got.trusted), got.makeRoot, test.signing, test.trusted, test.makeRoot)
			}
		})
	}
}

// TestFourYears goes through 25 years and more. Whenever a manager runs, a pod is created, and every pod that is less than
// four years old has to trust the root that signs then.
func TestFourYears(t *testing.T) {
	const end = 27 * year
	for name, test := range map[string]struct {
		step time.Duration
		// away is when no manager runs.
		away func(at time.Duration) bool
		// roots is how many there are in the end.
		roots int
	}{
		"a manager that always runs":                       {step: 10 * day, roots: 6},
		"a manager that looks every hundred days":          {step: 100 * day, roots: 6},
		"no manager for a year before the first half-life": {step: 10 * day, roots: 6, away: between(4*year+year/2, 5*year+year/2)},
		"no manager from the first half-life on, until shortly before the end": {
			step: 10 * day, roots: 5, away: between(5*year-day, 10*year-20*day),
		},
		"no manager at the end of the first root": {step: 10 * day, roots: 6, away: between(9*year, 11*year)},
		"no manager until all roots have expired": {step: 10 * day, roots: 5, away: between(7*year, 16*year)},
	} {
		t.Run(name, func(t *testing.T) {
			clock := clocktesting.NewFakeClock(epoch)
			store := &memoryStore{}
			authority := NewAuthority(store, clock, logr.Discard())
			type pod struct {
				created time.Duration
				trusted []int
			}
			var pods []pod
			checked := 0
			for at := time.Duration(0); at < end; at += test.step {
				if test.away != nil && test.away(at) {
					continue
				}
				clock.SetTime(epoch.Add(at))
				if err := authority.sync(t.Context()); err != nil {
					t.Fatal(err)
				}
				now := authority.plan()
				pods = append(pods, pod{at, numbers(now.trusted)})
				for len(pods) > 0 && at-pods[0].created >= 4*year {
					pods = pods[1:]
				}
				for _, pod := range pods {
					checked++
					if !slices.Contains(pod.trusted, now.signing.number) {
						t.Fatalf("year %.2f: root %d signs, which a pod of year %.2f does not trust: it has %v",
							years(at), now.signing.number, years(pod.created), pod.trusted)
					}
				}
				if left := now.signing.cert.NotAfter.Sub(clock.Now()); left < leafLifetime {
					t.Fatalf("year %.2f: the signing root ends in %v", years(at), left)
				}
			}
			if got := len(store.roots(t)); got != test.roots {
				t.Errorf("%d roots were made, want %d", got, test.roots)
			}
			t.Logf("%d pairs of a pod and a moment", checked)
		})
	}
}

// TestClockJump: a clock that was far ahead for a while costs nothing once it is right.
func TestClockJump(t *testing.T) {
	clock := clocktesting.NewFakeClock(epoch)
	authority := NewAuthority(&memoryStore{}, clock, logr.Discard())
	sync := func() plan {
		t.Helper()
		if err := authority.sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		return authority.plan()
	}
	before := sync()
	clock.SetTime(epoch.Add(30 * year))
	sync()
	clock.SetTime(epoch.Add(day))
	after := sync()
	if !after.signing.same(before.signing) {
		t.Errorf("root %d signs after the jump, root %d before", after.signing.number, before.signing.number)
	}
	if diff := cmp.Diff([]int{1, 2}, numbers(after.trusted)); diff != "" {
		t.Errorf("trusted (-want +got):\n%s", diff)
	}
	clock.SetTime(epoch.Add(5*year + day))
	if got := sync(); !slices.Contains(numbers(got.trusted), 3) {
		t.Errorf("the root of the future took the place of a successor: %v", numbers(got.trusted))
	}
}

// TestClockBehind: pods that were created before a replica came whose clock was behind trust what signs after it.
func TestClockBehind(t *testing.T) {
	store := &memoryStore{}
	right := NewAuthority(store, clocktesting.NewFakeClock(epoch), logr.Discard())
	wrong := NewAuthority(store, clocktesting.NewFakeClock(epoch.Add(-8*time.Hour)), logr.Discard())
	if err := right.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := right.plan()
	if err := wrong.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := right.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := right.plan()
	if !slices.Contains(numbers(before.trusted), after.signing.number) {
		t.Errorf("root %d signs, and a pod from before trusts %v", after.signing.number, numbers(before.trusted))
	}
}

func between(from, to time.Duration) func(time.Duration) bool {
	return func(at time.Duration) bool { return at > from && at < to }
}

func years(d time.Duration) float64 { return float64(d) / float64(year) }

func numbers(roots []*root) []int {
	var list []int
	for _, r := range roots {
		list = append(list, r.number)
	}
	return list
}
