package main

import (
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"
)

func TestAnswerCache(t *testing.T) {
	begin := time.Unix(0, 0)
	clock := clocktesting.NewFakePassiveClock(begin)
	c := newAnswerCache[int, string](10*time.Second, 4)
	c.clock = clock
	at := func(after time.Duration) time.Time {
		clock.SetTime(begin.Add(after))
		return clock.Now()
	}
	check := func(key int, want string) {
		t.Helper()
		if got, found := c.get(key); got != want || found != (want != "") {
			t.Errorf("after %v: %d is %q, %v, want %q", clock.Now().Sub(begin), key, got, found, want)
		}
	}

	check(1, "")
	c.add(1, "one", at(0))
	at(5 * time.Second)
	c.add(2, "two", begin) // the answer took 5 s: it counts from the question
	check(1, "one")
	check(2, "two")
	at(10*time.Second - 1)
	check(1, "one")
	check(2, "two")
	at(10 * time.Second)
	check(1, "")
	check(2, "")

	c.add(3, "three", at(10*time.Second))
	c.add(4, "four", at(10*time.Second))
	check(3, "three")
	check(4, "four")
	c.add(3, "3", at(11*time.Second))
	check(3, "3")
	check(4, "four")
}

// Of many answers that all hold still, the last ones are remembered.
func TestAFullCacheForgetsTheOldestAnswers(t *testing.T) {
	const most = 100
	begin := time.Unix(0, 0)
	c := newAnswerCache[int, int](10*time.Second, most)
	c.clock = clocktesting.NewFakePassiveClock(begin)
	for key := range 10 * most {
		c.add(key, key, begin)
		remembered := 0
		for earlier := range key + 1 {
			value, found := c.get(earlier)
			if found {
				remembered++
			}
			if last := earlier > key-most/2; found && value != earlier || last && !found {
				t.Fatalf("after %d, %d is %d, %v", key, earlier, value, found)
			}
		}
		if remembered > most {
			t.Fatalf("%d answers are remembered, want at most %d", remembered, most)
		}
	}
}

// What was answered to a later question holds, although an earlier one is answered later.
func TestALateAnswerReplacesNoNewerOne(t *testing.T) {
	begin := time.Unix(0, 0)
	c := newAnswerCache[string, bool](10*time.Second, 4)
	c.clock = clocktesting.NewFakePassiveClock(begin.Add(5 * time.Second))
	c.add("may", false, begin.Add(3*time.Second))
	c.add("may", true, begin) // the permission was taken between the two
	if may, found := c.get("may"); may || !found {
		t.Errorf("got %v, %v, want the newer answer", may, found)
	}
	c.add("may", true, begin.Add(4*time.Second))
	if may, found := c.get("may"); !may || !found {
		t.Errorf("got %v, %v, want the newest answer", may, found)
	}
}
