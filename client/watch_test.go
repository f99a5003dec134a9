package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

const generationOne = "event: generation\nid: 1\ndata: {\"name\":\"orders\",\"generation\":1}\n\n"

type handler = func(http.ResponseWriter, *http.Request)

// stream answers with that text and then waits for the client to go, or ends.
func stream(text string, ends bool) handler {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", mediaEvents)
		_, _ = io.WriteString(w, text)
		_ = http.NewResponseController(w).Flush()
		if !ends {
			<-r.Context().Done()
		}
	}
}

// attempt is a stream that was asked for: the time since the last, and the ID that it stated.
type attempt struct {
	After time.Duration
	ID    string
}

// attempts watches through the streams, one after the other, and returns what was asked for and what was heard. In the end the sidecar has
// no such data key.
func attempts(t *testing.T, streams ...handler) (asked []attempt, events []Event, end error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSidecar(t, Options{})
		last := time.Now()
		f.stream = func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, attempt{time.Since(last), r.Header.Get("Last-Event-ID")})
			last = time.Now()
			if len(asked) > len(streams) {
				problem(w, http.StatusNotFound, ReasonUnknownDataKey)
				return
			}
			streams[len(asked)-1](w, r)
		}
		for event, err := range f.client.Watch(t.Context(), "orders") {
			if err != nil {
				end = err
				continue
			}
			events = append(events, event)
		}
	})
	return asked, events, end
}

// TestWatchConnectsAgain holds when.
func TestWatchConnectsAgain(t *testing.T) {
	busy := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "7")
		problem(w, http.StatusServiceUnavailable, "Busy")
	}
	cutOff := func(w http.ResponseWriter, r *http.Request) {
		stream(generationOne+"event: revoked\nid: 1-x\nda", true)(w, r)
		panic(http.ErrAbortHandler)
	}
	refused := func(w http.ResponseWriter, _ *http.Request) { problem(w, http.StatusServiceUnavailable, "Starting") }
	one := Event{Kind: EventGeneration, Name: "orders", Generation: 1}
	type between struct {
		least, most time.Duration
		id          string
	}
	for name, test := range map[string]struct {
		streams []handler
		events  []Event
		want    []between
	}{
		"after the end of a stream, from where it was": {
			[]handler{stream(generationOne, true)}, []Event{one}, []between{{500 * time.Millisecond, time.Second, "1"}},
		},
		"after as long as the stream has said": {
			[]handler{stream("retry: 8000\n\n"+generationOne, true)}, []Event{one},
			[]between{{4 * time.Second, 8 * time.Second, "1"}},
		},
		"after as long as a problem has said": {
			[]handler{busy}, nil, []between{{7 * time.Second, 7 * time.Second, ""}},
		},
		"after a stream that was cut off within an event": {
			[]handler{cutOff}, []Event{one}, []between{{500 * time.Millisecond, time.Second, "1"}},
		},
		"after silence": {
			[]handler{stream(generationOne, false)}, []Event{one},
			[]between{{silence + 500*time.Millisecond, silence + time.Second, "1"}},
		},
		"after growing pauses, which an event ends": {
			[]handler{refused, refused, refused, refused, refused, refused, stream(generationOne, true)}, []Event{one},
			[]between{
				{500 * time.Millisecond, time.Second, ""}, {time.Second, 2 * time.Second, ""}, {2 * time.Second, 4 * time.Second, ""},
				{4 * time.Second, 8 * time.Second, ""}, {8 * time.Second, 16 * time.Second, ""}, {15 * time.Second, 30 * time.Second, ""},
				{500 * time.Millisecond, time.Second, "1"},
			},
		},
		"with what it does not know left out": {
			[]handler{stream("event: rotated\nid: 9\ndata: {}\n\n", true)}, nil,
			[]between{{500 * time.Millisecond, time.Second, "9"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			asked, events, err := attempts(t, test.streams...)
			if e, ok := errors.AsType[*Error](err); !ok || e.Reason != ReasonUnknownDataKey {
				t.Errorf("got %v", err)
			}
			if diff := cmp.Diff(test.events, events); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if len(asked) != len(test.want)+1 {
				t.Fatalf("got %v", asked)
			}
			for i, want := range test.want {
				if got := asked[i+1]; got.After < want.least || got.After > want.most || got.ID != want.id {
					t.Errorf("attempt %d: got %v, want %v", i+1, got, want)
				}
			}
		})
	}
}

// TestASlowReaderOfEventsIsNoSilence: while the loop's body runs, nothing is read.
func TestASlowReaderOfEventsIsNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSidecar(t, Options{})
		more := make(chan struct{})
		f.stream = func(w http.ResponseWriter, r *http.Request) {
			stream(generationOne, true)(w, r)
			<-more
			stream(generationOne, false)(w, r)
		}
		got := 0
		for _, err := range f.client.Watch(t.Context(), "orders") {
			if err != nil {
				t.Fatal(err)
			}
			if got++; got == 2 {
				break
			}
			time.Sleep(10 * silence)
			close(more)
		}
		if calls := f.took(); len(calls) != 1 {
			t.Errorf("got %v", calls)
		}
	})
}

// TestHeartbeatsAreNoSilence: a stream that says nothing but that it lives is kept.
func TestHeartbeatsAreNoSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSidecar(t, Options{})
		f.stream = func(w http.ResponseWriter, r *http.Request) {
			stream(generationOne, true)(w, r)
			for {
				select {
				case <-time.After(15 * time.Second):
					_, _ = io.WriteString(w, ":\n\n")
					_ = http.NewResponseController(w).Flush()
				case <-r.Context().Done():
					return
				}
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		var end error
		for _, err := range f.client.Watch(ctx, "orders") {
			end = err
		}
		if calls := f.took(); len(calls) != 1 || !errors.Is(end, context.DeadlineExceeded) {
			t.Errorf("got %d streams and %v", len(calls), end)
		}
	})
}

// TestAStreamThatLivedIsNoFailure: a sidecar that restarts once an hour, with nothing to tell, is asked again as soon each time.
func TestAStreamThatLivedIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSidecar(t, Options{})
		var ended time.Time
		var pauses []time.Duration
		f.stream = func(w http.ResponseWriter, r *http.Request) {
			if !ended.IsZero() {
				pauses = append(pauses, time.Since(ended))
			}
			w.Header().Set("Content-Type", mediaEvents)
			for range 240 {
				_, _ = io.WriteString(w, ":\n\n")
				_ = http.NewResponseController(w).Flush()
				select {
				case <-time.After(15 * time.Second):
				case <-r.Context().Done():
					return
				}
			}
			ended = time.Now()
		}
		ctx, cancel := context.WithTimeout(t.Context(), 8*time.Hour)
		defer cancel()
		for range f.client.Watch(ctx, "orders") {
		}
		if len(pauses) < 7 || slices.Max(pauses) > firstWait {
			t.Errorf("paused for %v", pauses)
		}
	})
}

func TestWatchEndsWithItsContextInAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSidecar(t, Options{})
		f.goAway(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var errs []error
		for _, err := range f.client.Watch(ctx, "orders") {
			errs = append(errs, err)
		}
		if len(errs) != 1 || !errors.Is(errs[0], context.DeadlineExceeded) {
			t.Errorf("got %v", errs)
		}
	})
}

func TestWatchOfWhatIsNoSidecarEnds(t *testing.T) {
	for name, text := range map[string]string{
		"an event that is no JSON": "event: generation\ndata: 1\n\n",
	} {
		t.Run(name, func(t *testing.T) {
			asked, events, err := attempts(t, stream(text, false))
			if e, ok := errors.AsType[*Error](err); !ok || e.Reason != ReasonInvalidAnswer || len(asked) != 1 || events != nil {
				t.Errorf("got %v, %v after %d attempts", events, err, len(asked))
			}
		})
	}
}

// TestLeavingTheLoopClosesTheStream, so that the sidecar has room for others.
func TestLeavingTheLoopClosesTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSidecar(t, Options{})
		gone := make(chan struct{})
		f.stream = func(w http.ResponseWriter, r *http.Request) { stream(generationOne, false)(w, r); close(gone) }
		for event, err := range f.client.Watch(t.Context(), "orders") {
			if fmt.Sprint(event.Generation, err) != "1 <nil>" {
				t.Errorf("got %+v, %v", event, err)
			}
			break
		}
		<-gone
	})
}
