package rootkey

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	kmsv2 "k8s.io/kms/apis/v2"
)

// pollClock is a clock that passes when the test says so.
type pollClock struct {
	asked chan time.Duration
	fire  chan time.Time
}

func newPollClock() *pollClock {
	return &pollClock{asked: make(chan time.Duration, 1), fire: make(chan time.Time)}
}

func (c *pollClock) after(d time.Duration) <-chan time.Time {
	c.asked <- d
	return c.fire
}

// next lets the time pass for which the poller waits, and returns how long it waits after the Status that it then asked for.
func (c *pollClock) next() time.Duration {
	c.fire <- time.Time{}
	return <-c.asked
}

// logLines is a log in memory.
type logLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *logLines) logger() logr.Logger {
	return funcr.New(func(_, args string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.lines = append(l.lines, args)
	}, funcr.Options{})
}

// taken returns the lines since the last call.
func (l *logLines) taken() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	l.lines = nil
	return lines
}

// wantLines fails the test unless there is one line for each of the words, in that order, and no other.
func (l *logLines) wantLines(t *testing.T, words ...string) {
	t.Helper()
	lines := l.taken()
	fits := len(lines) == len(words)
	for i := range min(len(lines), len(words)) {
		fits = fits && strings.Contains(lines[i], words[i])
	}
	if !fits {
		t.Errorf("logged %q, want lines with %q", lines, words)
	}
}

func TestThePollerFollowsThePlugin(t *testing.T) {
	fake, socket := newFakePlugin(t), socketPath(t)
	fake.serve(t, socket)
	clock, log := newPollClock(), &logLines{}
	root, err := openKMSv2RootBy(t.Context(), socket, log.logger(), pluginTimeout, clock.after)
	if err != nil {
		t.Fatal(err)
	}
	p := newSealingKey(t)
	wrap := func() []byte {
		t.Helper()
		wrapped, err := root.Wrap(t.Context(), p, nil)
		if err != nil {
			t.Fatal(err)
		}
		return wrapped
	}
	unwraps := func(wrapped []byte) {
		t.Helper()
		if got, err := root.Unwrap(t.Context(), wrapped, nil); err != nil || !got.Equal(p) {
			t.Errorf("what was wrapped does not unwrap: %v", err)
		}
	}
	wantInterval := func(got, want time.Duration) {
		t.Helper()
		if got != want {
			t.Errorf("the poller waits %v, want %v", got, want)
		}
	}
	wantInterval(<-clock.asked, time.Minute)
	wantInterval(clock.next(), time.Minute)
	first := wrap()
	log.wantLines(t)
	if root.Stale(first) || root.Stale(nil) || root.Stale([]byte("anything")) {
		t.Error("stale, although the plugin has one key only")
	}

	// It falls ill: said once, asked for often, and what it can do is still used.
	fake.says("HSM offline")
	wantInterval(clock.next(), 10*time.Second)
	wantInterval(clock.next(), 10*time.Second)
	log.wantLines(t, `not healthy: \"HSM offline\"`)
	unwraps(first)
	_, err = root.Wrap(t.Context(), p, nil)
	wantError(t, err, ErrPluginFailed)
	fake.says("HSM on fire")
	wantInterval(clock.next(), 10*time.Second)
	log.wantLines(t, `not healthy: \"HSM on fire\"`)
	fake.says("ok")
	wantInterval(clock.next(), time.Minute)
	log.wantLines(t, "healthy again")

	// It rotates its key.
	fake.rotate(t, "key-2")
	if root.Stale(first) {
		t.Error("stale before anybody asked the plugin")
	}
	wantInterval(clock.next(), time.Minute)
	log.wantLines(t, "has a new key")
	if !root.Stale(first) {
		t.Error("not stale, although the plugin has a new key")
	}
	unwraps(first)
	second := wrap()
	if root.Stale(second) {
		t.Error("stale, although the plugin's newest key wrapped it")
	}

	// It flips back: nothing is wrapped by the old key, and what the newer one wrapped does not become stale.
	fake.rotate(t, "key-1")
	wantInterval(clock.next(), 10*time.Second)
	wantInterval(clock.next(), 10*time.Second)
	log.wantLines(t, "went back to a key_id that it gave up")
	_, err = root.Wrap(t.Context(), p, nil)
	wantError(t, err, ErrPluginAnswer)
	if !errors.Is(err, errKeyIDReused) || !root.Stale(first) || root.Stale(second) {
		t.Errorf("a key_id that flipped back was trusted as new; error %v", err)
	}
	unwraps(first)
	unwraps(second)

	// It goes on to a third key, found by Wrap before the poller sees it.
	fake.rotate(t, "key-3")
	third := wrap()
	log.wantLines(t, "healthy again", "has a new key")
	if !root.Stale(second) || root.Stale(third) {
		t.Error("Wrap did not take notice of the new key")
	}
	unwraps(second)
	unwraps(third)

	if err := root.Close(); err != nil {
		t.Fatal(err)
	}
	log.wantLines(t)
}

func TestThePollerOutlivesTheContextOfOpening(t *testing.T) {
	fake, socket := newFakePlugin(t), socketPath(t)
	fake.serve(t, socket)
	clock := newPollClock()
	ctx, cancel := context.WithCancel(t.Context())
	root, err := openKMSv2RootBy(ctx, socket, logr.Discard(), pluginTimeout, clock.after)
	if err != nil {
		t.Fatal(err)
	}
	<-clock.asked
	cancel()
	fake.rotate(t, "key-2")
	clock.next()
	if got := root.status.current(); got != "key-2" {
		t.Errorf("the poller knows key %s, want key-2", got)
	}
	if err := root.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestClosingEndsAHangingPoll waits for ever where it does not.
func TestClosingEndsAHangingPoll(t *testing.T) {
	fake, socket := newFakePlugin(t), socketPath(t)
	fake.serve(t, socket)
	clock, log := newPollClock(), &logLines{}
	root, err := openKMSv2RootBy(t.Context(), socket, log.logger(), time.Hour, clock.after)
	if err != nil {
		t.Fatal(err)
	}
	called := make(chan struct{})
	fake.set(func() {
		fake.onStatus = func(ctx context.Context, _ *kmsv2.StatusResponse) error {
			close(called)
			<-ctx.Done()
			return ctx.Err()
		}
	})
	<-clock.asked
	clock.fire <- time.Time{}
	<-called
	if err := root.Close(); err != nil {
		t.Fatal(err)
	}
	log.wantLines(t)
}

func TestWhatAStatusSaysOfTheKey(t *testing.T) {
	type step struct {
		keyID string
		err   error
	}
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		steps []step
		want  []string // what each step returns; empty for an error
		key   string
	}{
		"one key":                       {[]step{{"a", nil}, {"a", nil}}, []string{"a", "a"}, "a"},
		"a rotation":                    {[]step{{"a", nil}, {"b", nil}}, []string{"a", "b"}, "b"},
		"a rotation during an illness":  {[]step{{"a", nil}, {"", broken}, {"b", nil}}, []string{"a", "", "b"}, "b"},
		"an illness forgets no key":     {[]step{{"a", nil}, {"", broken}}, []string{"a", ""}, "a"},
		"an illness at first":           {[]step{{"", broken}, {"a", nil}}, []string{"", "a"}, "a"},
		"a flip back":                   {[]step{{"a", nil}, {"b", nil}, {"a", nil}}, []string{"a", "b", ""}, "b"},
		"a flip back and forth":         {[]step{{"a", nil}, {"b", nil}, {"a", nil}, {"b", nil}}, []string{"a", "b", "", "b"}, "b"},
		"a flip back two keys":          {[]step{{"a", nil}, {"b", nil}, {"c", nil}, {"a", nil}, {"b", nil}}, []string{"a", "b", "c", "", ""}, "c"},
		"a new key after a flip back":   {[]step{{"a", nil}, {"b", nil}, {"a", nil}, {"c", nil}}, []string{"a", "b", "", "c"}, "c"},
		"a flip back during an illness": {[]step{{"a", nil}, {"b", nil}, {"", broken}, {"a", nil}}, []string{"a", "b", "", ""}, "b"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &pluginStatus{log: logr.Discard()}
			var got []string
			for _, step := range c.steps {
				keyID, err := s.observe(step.keyID, step.err)
				if (err != nil) != (keyID == "") {
					t.Errorf("got %q and error %v", keyID, err)
				}
				got = append(got, keyID)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("answers (-want +got):\n%s", diff)
			}
			if s.current() != c.key {
				t.Errorf("the key is %s, want %s", s.current(), c.key)
			}
		})
	}
}

func TestAPluginThatNeverKeepsAKeyFillsNoMemory(t *testing.T) {
	s := &pluginStatus{log: logr.Discard()}
	for i := range 3 * maxPastKeyIDs {
		if _, err := s.observe(fmt.Sprint("key-", i), nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(s.past); got != maxPastKeyIDs {
		t.Errorf("%d key_ids are remembered, want %d", got, maxPastKeyIDs)
	}
	if _, err := s.observe(fmt.Sprint("key-", 2*maxPastKeyIDs), nil); !errors.Is(err, errKeyIDReused) {
		t.Errorf("got %v for a key_id that was given up, want %v", err, errKeyIDReused)
	}
}
