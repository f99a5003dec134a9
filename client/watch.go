package client

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net/http"
	"time"
)

const (
	mediaEvents = "text/event-stream"

	// firstWait and lastWait are how long Watch waits before it connects again: the first time, unless the sidecar has said so, and in
	// the end, as it doubles.
	firstWait, lastWait = time.Second, 30 * time.Second
	// silence is how long the sidecar may say nothing to a call, or on a stream. It answers within 10 s, and says something every 15 s.
	silence = 45 * time.Second
)

// EventKind is what an Event tells.
type EventKind string

// Kinds of events. A sidecar may come to know more, which are left out.
const (
	// EventGeneration: that generation is the newest from now on. It is the first event, too, where the data key is issued.
	EventGeneration EventKind = "generation"
	// EventRevoked: the data key is not issued any more, or not yet.
	EventRevoked EventKind = "revoked"
	// EventRestored: it is issued again.
	EventRestored EventKind = "restored"
)

// Event is a change of a data key.
type Event struct {
	Kind EventKind
	// Name is that of the data key.
	Name string
	// Generation is the newest one, but for EventRevoked.
	Generation uint32
	// Reason is, for EventRevoked, why the data key is not issued. Reasons are stable: docs/native-api.md has them. Message says it for
	// people.
	Reason, Message string
}

// Watch yields what a data key is now and every change of it, until the loop is left, the context ends or there is no use in going on: the
// last pair then has an error. Where the sidecar is away it waits, with growing pauses, and connects again; what came and went meanwhile
// is left out.
func (c *Client) Watch(ctx context.Context, name string) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		if err := checkName(name); err != nil {
			yield(Event{}, err)
			return
		}
		w := watcher{client: c, path: "/v1/data-keys/" + name + "/events", first: firstWait}
		for {
			start := time.Now()
			err := w.stream(ctx, func(e Event) bool { return yield(e, nil) })
			if time.Since(start) > silence { // it lived, though there was nothing to tell
				w.failures = 0
			}
			if errors.Is(err, errLeft) {
				return
			}
			if err == nil || temporary(err) {
				err = w.pause(ctx, err)
			}
			if err != nil {
				yield(Event{}, err)
				return
			}
		}
	}
}

// errLeft says that the loop over the events was left.
var errLeft = errors.New("left")

// watcher is what is kept of a stream of events for the next one.
type watcher struct {
	client   *Client
	path     string
	last     string        // ID of the last event
	first    time.Duration // the first pause
	failures int           // since the last event, or stream that lived
}

// stream yields events until the stream ends, with a nil error where the sidecar ended it.
func (w *watcher) stream(ctx context.Context, yield func(Event) bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(silence, func() { cancel(unreachable(errors.New("the stream of events is silent"))) })
	defer watch.Stop()
	header := http.Header{}
	if w.last != "" {
		header.Set("Last-Event-ID", w.last)
	}
	response, err := w.client.send(ctx, call{method: http.MethodGet, path: w.path, accept: mediaEvents, header: header})
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	for f, err := range frames(response.Body, func() { watch.Reset(silence) }) {
		if err != nil {
			return failure(ctx, err)
		}
		if f.retry > 0 {
			w.first = min(f.retry, lastWait)
		}
		if f.id != "" {
			w.last = f.id
		}
		e, known, err := eventOf(f)
		if err != nil {
			return err
		}
		if !known {
			continue
		}
		w.failures = 0
		// While the caller has the event, nothing is read, and that is no silence.
		watch.Stop()
		if !yield(e) {
			return errLeft
		}
		watch.Reset(silence)
	}
	return nil
}

// pause waits before the next stream.
func (w *watcher) pause(ctx context.Context, why error) error {
	d := w.first
	for range min(w.failures, 10) {
		d = min(2*d, lastWait)
	}
	w.failures++
	d = jitter(d)
	if e, ok := errors.AsType[*Error](why); ok {
		d = max(d, e.RetryAfter)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// eventOf reads an event; known is false for one that this package does not know.
func eventOf(f frame) (e Event, known bool, err error) {
	e.Kind = EventKind(f.event)
	switch e.Kind {
	case EventGeneration, EventRevoked, EventRestored:
	default:
		return Event{}, false, nil
	}
	var data struct {
		Name       string `json:"name"`
		Generation uint32 `json:"generation"`
		Reason     string `json:"reason"`
		Message    string `json:"message"`
	}
	if err := json.Unmarshal([]byte(f.data), &data); err != nil {
		return Event{}, false, invalidAnswer("the event %s is no JSON of one", e.Kind)
	}
	e.Name, e.Generation, e.Reason, e.Message = data.Name, data.Generation, data.Reason, data.Message
	return e, true, nil
}
