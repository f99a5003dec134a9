package sidecar

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/datakeys/datakeys/sidecar/internal/keystore"
)

const (
	mediaEvents = "text/event-stream"

	// maxWatchers is the most streams of events at a time. Each holds one of maxConns connections for as long as it likes.
	maxWatchers = 32
	// heartbeat is how often a stream says something if there is nothing to say, so that its reader knows that it lives.
	heartbeat = 15 * time.Second
)

var eventsType = []string{mediaEvents}

// events answers GET /v1/data-keys/{name}/events with server-sent events (WHATWG HTML, section 9.2): what the data key is now, and
// every change of it.
//
// A stream has no queue: it waits until what is published is replaced, and tells how what is published then differs from what it
// told last. So nobody waits for it, and what came and went meanwhile is left out.
func (a *api) events(w http.ResponseWriter, r *http.Request, name string) int {
	if negotiate(r.Header, mediaEvents) == "" {
		return notAcceptable(w, mediaEvents)
	}
	if a.store.Now().ByName[name] == nil {
		return unknownDataKey(w, name)
	}
	if a.watchers.Add(1) > maxWatchers {
		a.watchers.Add(-1)
		w.Header().Set("Retry-After", "1")
		return newProblem(http.StatusServiceUnavailable, reasonBusy, fmt.Sprintf("%d streams of events are open: one for each application "+
			"is enough", maxWatchers)).write(w)
	}
	defer a.watchers.Add(-1)
	h := w.Header()
	h["Content-Type"], h["Cache-Control"] = eventsType, noStore
	if r.Method != http.MethodHead {
		a.stream(w, r, name)
	}
	return http.StatusOK
}

// stream sends events until the client is gone, or too slow, or the sidecar stops.
func (a *api) stream(w http.ResponseWriter, r *http.Request, name string) {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if !ok {
		return
	}
	control := http.NewResponseController(w)
	told, known := parseTold(r.Header.Get("Last-Event-ID"))
	text := "retry: 1000\n\n"
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		now := a.store.Now()
		k := now.ByName[name]                                                           // whose name the sidecar was started with
		if k.Reason != keystore.ReasonStarting && k.Reason != keystore.ReasonStopping { // that the sidecar is restarted says nothing of the data key
			text += told.until(k, known)
			told, known = toldOf(k, told), true
		}
		if text != "" {
			a.dog.allow(c, maxBusy)                          // a reader that is too slow is cut off in the midst of this, and comes back
			if _, err := w.Write([]byte(text)); err != nil { //nolint:gosec // text/event-stream, which no browser shows
				return
			}
			if err := control.Flush(); err != nil {
				return
			}
			a.dog.rest(c)
		}
		select {
		case <-r.Context().Done(): // the connection is closed, by the client or as the sidecar stops
			return
		case <-now.Replaced:
			text = ""
		case <-beat.C:
			text = ":\n\n"
		}
	}
}

// told is what a stream has told of a data key.
type told struct {
	generation uint32 // the last that was issued, 0 for none
	reason     string // why none is issued now, "" if one is
}

// toldOf is what is told of a data key after what was told last.
func toldOf(k *keystore.DataKey, last told) told {
	if k.Issued != nil {
		return told{generation: k.Number}
	}
	return told{generation: last.generation, reason: k.Reason}
}

// id is the ID of an event: a client that reconnects states the last it saw, and is told no more than what is new since.
func (t told) id() string {
	number := strconv.FormatUint(uint64(t.generation), 10)
	if t.reason == "" {
		return number
	}
	return number + "-" + t.reason
}

// parseTold reads an ID. What is none counts as having been told nothing.
func parseTold(id string) (t told, known bool) {
	number, reason, revoked := strings.Cut(id, "-")
	n, err := strconv.ParseUint(number, 10, 32)
	if t = (told{uint32(n), reason}); err != nil || t.id() != id || revoked == (reason == "") || n == 0 && !revoked {
		return told{}, false
	}
	return t, true
}

// until are the events from t to what a data key is now. If nothing was told yet, they tell what it is now.
func (t told) until(k *keystore.DataKey, known bool) string {
	next := toldOf(k, t)
	if known && next == t {
		return ""
	}
	if next.reason != "" {
		return event("revoked", next, object(struct {
			Name    string         `json:"name"`
			State   keystore.State `json:"state"`
			Reason  string         `json:"reason"`
			Message string         `json:"message"`
		}{k.Name, k.State, k.Reason, k.Message}))
	}
	data := object(struct {
		Name       string `json:"name"`
		Generation uint32 `json:"generation"`
	}{k.Name, k.Number})
	events := ""
	if t.reason != "" {
		events = event("restored", next, data)
	}
	if !known || next.generation != t.generation {
		events += event("generation", next, data)
	}
	return events
}

// event is one event. JSON has no line breaks of its own.
func event(name string, after told, data []byte) string {
	return "event: " + name + "\nid: " + after.id() + "\ndata: " + string(data) + "\n\n"
}
