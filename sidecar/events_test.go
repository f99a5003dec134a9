package sidecar

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/sidecar/internal/keystore"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

const ordersEvents = "/v1/data-keys/orders/events"

// stream is an open stream of events.
type eventStream struct {
	net.Conn
	events *bufio.Scanner // by blank lines
}

// openStream asks for events and reads the headers.
func openStream(t testing.TB, path, request string) *eventStream {
	t.Helper()
	c := dialSocket(t, path)
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	return newStream(t, c)
}

func newStream(t testing.TB, c net.Conn) *eventStream {
	t.Helper()
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = c.Close(), response.Body.Close() }) // in this order: the latter waits for the end
	if response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != "text/event-stream" ||
		response.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("got %s, %v", response.Status, response.Header)
	}
	s := &eventStream{c, bufio.NewScanner(response.Body)}
	s.events.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		if i := strings.Index(string(data), "\n\n"); i >= 0 {
			return i + 2, data[:i], nil
		}
		if atEOF {
			return len(data), nil, nil
		}
		return 0, nil, nil
	})
	return s
}

// next reads an event, or what else ends with a blank line.
func (s *eventStream) next(t testing.TB) string {
	t.Helper()
	if !s.events.Scan() {
		t.Fatalf("the stream has ended: %v", s.events.Err())
	}
	return s.events.Text()
}

// wants reads what comes next.
func (s *eventStream) wants(t testing.TB, want ...string) {
	t.Helper()
	var got []string
	for range want {
		got = append(got, s.next(t))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func generationEvent(event string, n uint32) string {
	return fmt.Sprintf("event: %s\nid: %d\ndata: {\"name\":\"orders\",\"generation\":%d}", event, n, n)
}

func revokedEvent(id string, state keystore.State, reason string) string {
	return fmt.Sprintf("event: revoked\nid: %s\ndata: "+`{"name":"orders","state":%q,"reason":%q,"message":"because"}`, id, state, reason)
}

// TestEvents follows a data key through its life.
func TestEvents(t *testing.T) {
	s := keystore.New(nil)
	s.Publish([]*keystore.DataKey{statusKey("orders", keystore.StatePending, keystore.ReasonStarting)})
	path := serveStore(t, s, nil)
	events := openStream(t, path, get(ordersEvents, "Accept: text/event-stream"))
	events.wants(t, "retry: 1000")
	s.Publish([]*keystore.DataKey{statusKey("orders", keystore.StatePending, keystore.ReasonSecretNotFound)})
	events.wants(t, revokedEvent("0-SecretNotFound", keystore.StatePending, "SecretNotFound"))

	s.Publish([]*keystore.DataKey{sidecartest.IssuedKey(t, "orders", testPlaintext)})
	events.wants(t, generationEvent("restored", 3), generationEvent("generation", 3))

	// A rewrap, and an older generation that comes, are no news.
	s.Publish([]*keystore.DataKey{sidecartest.KeyOf(sidecartest.IssuedGeneration(t, "orders", 3, testPlaintext), sidecartest.IssuedGeneration(t, "orders", 2, olderPlaintext))})
	s.Publish([]*keystore.DataKey{sidecartest.KeyOf(sidecartest.IssuedGeneration(t, "orders", 4, testPlaintext), sidecartest.IssuedGeneration(t, "orders", 3, olderPlaintext))})
	events.wants(t, generationEvent("generation", 4))

	s.Publish([]*keystore.DataKey{statusKey("orders", keystore.StateRefused, keystore.ReasonAccessDenied)})
	events.wants(t, revokedEvent("4-AccessDenied", keystore.StateRefused, "AccessDenied"))
	s.Publish([]*keystore.DataKey{statusKey("orders", keystore.StateRefused, keystore.ReasonMasterKeyState)})
	events.wants(t, revokedEvent("4-MasterKeyState", keystore.StateRefused, "MasterKeyState"))

	s.Publish([]*keystore.DataKey{sidecartest.KeyOf(sidecartest.IssuedGeneration(t, "orders", 4, testPlaintext))})
	events.wants(t, generationEvent("restored", 4))
	s.Publish([]*keystore.DataKey{statusKey("orders", keystore.StateRefused, keystore.ReasonAccessDenied)})
	events.wants(t, revokedEvent("4-AccessDenied", keystore.StateRefused, "AccessDenied"))
	s.Publish([]*keystore.DataKey{sidecartest.KeyOf(sidecartest.IssuedGeneration(t, "orders", 5, testPlaintext))})
	events.wants(t, generationEvent("restored", 5), generationEvent("generation", 5))
}

// TestEventsAfterARestart: a sidecar that has just started does not know yet, and its reader is told what is new once it does.
func TestEventsAfterARestart(t *testing.T) {
	for name, test := range map[string]struct {
		lastID string
		key    func(testing.TB) *keystore.DataKey
		want   []string
	}{
		"the same generation":  {"3", ordersIssued, nil},
		"another generation":   {"2", ordersIssued, []string{generationEvent("generation", 3)}},
		"revoked before":       {"3-AccessDenied", ordersIssued, []string{generationEvent("restored", 3)}},
		"revoked meanwhile":    {"3", ordersDenied, []string{revokedEvent("3-AccessDenied", keystore.StateRefused, "AccessDenied")}},
		"a reader that is new": {"", ordersIssued, []string{generationEvent("generation", 3)}},
	} {
		t.Run(name, func(t *testing.T) {
			s := keystore.New([]string{"orders"})
			path := serveStore(t, s, nil)
			events := openStream(t, path, get(ordersEvents, "Last-Event-ID: "+test.lastID))
			events.wants(t, "retry: 1000")
			s.Publish([]*keystore.DataKey{test.key(t)})
			next := sidecartest.KeyOf(sidecartest.IssuedGeneration(t, "orders", 9, testPlaintext))
			if test.want == nil {
				test.want = []string{generationEvent("generation", 9)}
				s.Publish([]*keystore.DataKey{next})
			}
			events.wants(t, test.want...)
		})
	}
}

// TestEventsBegin: a stream begins with what the data key is, unless its reader has seen that already.
func TestEventsBegin(t *testing.T) {
	for name, test := range map[string]struct {
		lastID string
		key    func(testing.TB) *keystore.DataKey
		want   []string
	}{
		"issued":              {"", ordersIssued, []string{generationEvent("generation", 3)}},
		"refused":             {"", ordersDenied, []string{revokedEvent("0-AccessDenied", keystore.StateRefused, "AccessDenied")}},
		"the same generation": {"3", ordersIssued, nil},
		"another generation":  {"2", ordersIssued, []string{generationEvent("generation", 3)}},
		"the same refusal":    {"2-AccessDenied", ordersDenied, nil},
		"another refusal": {
			"2-MasterKeyState", ordersDenied, []string{revokedEvent("2-AccessDenied", keystore.StateRefused, "AccessDenied")},
		},
		"revoked meanwhile":  {"3", ordersDenied, []string{revokedEvent("3-AccessDenied", keystore.StateRefused, "AccessDenied")}},
		"restored meanwhile": {"3-AccessDenied", ordersIssued, []string{generationEvent("restored", 3)}},
		"restored meanwhile with a next": {
			"2-AccessDenied", ordersIssued, []string{generationEvent("restored", 3), generationEvent("generation", 3)},
		},
		"an ID that is none":       {"three", ordersIssued, []string{generationEvent("generation", 3)}},
		"an ID of another number":  {"03", ordersIssued, []string{generationEvent("generation", 3)}},
		"an ID of no generation":   {"0", ordersIssued, []string{generationEvent("generation", 3)}},
		"an ID without its reason": {"3-", ordersIssued, []string{generationEvent("generation", 3)}},
		"an ID beyond all numbers": {"4294967299", ordersIssued, []string{generationEvent("generation", 3)}},
	} {
		t.Run(name, func(t *testing.T) {
			s := keystore.New(nil)
			s.Publish([]*keystore.DataKey{test.key(t)})
			events := openStream(t, serveStore(t, s, nil), get(ordersEvents, "Last-Event-ID: "+test.lastID))
			events.wants(t, append([]string{"retry: 1000"}, test.want...)...)
			// Nothing more: this is what comes next.
			s.Publish([]*keystore.DataKey{statusKey("orders", keystore.StateRefused, "Last")})
			if got := events.next(t); !strings.Contains(got, `"reason":"Last"`) {
				t.Errorf("got one more: %s", got)
			}
		})
	}
}

// FuzzLastEventID holds that only an ID of ours is taken for one.
func FuzzLastEventID(f *testing.F) {
	for _, id := range []string{"3", "3-AccessDenied", "0-Starting", "0", "03", "3-", "-", "", "4294967296", "+3"} {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, id string) {
		told, known := parseTold(id)
		if known && (told.id() != id || told.generation == 0 && told.reason == "") || !known && told.id() != "0" {
			t.Errorf("%q: got %+v, %v", id, told, known)
		}
	})
}

func ordersIssued(t testing.TB) *keystore.DataKey {
	return sidecartest.IssuedKey(t, "orders", testPlaintext)
}

func ordersDenied(testing.TB) *keystore.DataKey {
	return statusKey("orders", keystore.StateRefused, keystore.ReasonAccessDenied)
}

// TestEventStreamOutlivesTheWatchdog: an idle stream is none that is stuck.
func TestEventStreamOutlivesTheWatchdog(t *testing.T) {
	var dog *watchdog
	s := testStore(t)
	path := serveStore(t, s, func(_ *http.Server, _ *listener, d *watchdog) { dog = d })
	events := openStream(t, path, get(ordersEvents))
	events.wants(t, "retry: 1000", generationEvent("generation", 3))
	s.Publish([]*keystore.DataKey{sidecartest.IssuedKey(t, "orders", testPlaintext)}) // no news, and it wakes the stream
	for !atRest(dog) {                                                                // what was read just now may still be being written
		runtime.Gosched()
	}
	for range 1000 {
		dog.look()
	}
	s.Publish([]*keystore.DataKey{sidecartest.KeyOf(sidecartest.IssuedGeneration(t, "orders", 4, testPlaintext))})
	events.wants(t, generationEvent("generation", 4))
}

// atRest reports whether no connection has a time to end at.
func atRest(d *watchdog) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.conns {
		if c.expires.Load() != math.MaxInt64 {
			return false
		}
	}
	return len(d.conns) > 0
}

// TestEventReaderThatDoesNotReadIsCutOff, and who publishes does not wait for it.
func TestEventReaderThatDoesNotReadIsCutOff(t *testing.T) {
	var dog *watchdog
	var server *http.Server
	s := testStore(t)
	path := serveStore(t, s, func(h *http.Server, _ *listener, d *watchdog) { server, dog = h, d })
	c := dialSocket(t, path)
	write(t, c, get(ordersEvents))
	a := server.Handler.(*api)
	reasons := []string{keystore.ReasonAccessDenied, keystore.ReasonMasterKeyState}
	ended := make(chan error, 1)
	go func() { // publishes until the stream has ended, and long events, so that the socket is soon full
		for i := 0; ; i++ {
			if i > 100 && a.watchers.Load() == 0 {
				ended <- nil
				return
			}
			k := statusKey("orders", keystore.StateRefused, reasons[i%2])
			k.Message = strings.Repeat("x", 4<<10)
			s.Publish([]*keystore.DataKey{k})
		}
	}()
	if err := untilEnded(dog, ended); err != nil {
		t.Error(err)
	}
}

// TestEventStreamsAreBounded.
func TestEventStreamsAreBounded(t *testing.T) {
	path := serveStore(t, testStore(t), nil)
	var first *eventStream
	for range maxWatchers {
		first = openStream(t, path, get(ordersEvents))
		first.wants(t, "retry: 1000")
	}
	response, body := roundTrip(t, path, get(ordersEvents))
	if response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") != "1" ||
		!strings.Contains(string(body), `"Busy"`) {
		t.Errorf("one too many: got %s: %s", response.Status, body)
	}
	_ = first.Close()
	for { // until the server has seen that one is gone
		c := dialSocket(t, path)
		write(t, c, get(ordersEvents))
		response, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.Close()
		_ = response.Body.Close()
		if response.StatusCode == http.StatusOK {
			break
		}
	}
}

// TestEventStreamsDoNotHoldTheExit: a sidecar with an open stream stops at once.
func TestEventStreamsDoNotHoldTheExit(t *testing.T) {
	p := newPod(t, "orders")
	p.put(t, "orders", 1, testPlaintext)
	p.start(t)
	if err := p.wait(t); err != nil {
		t.Fatal(err)
	}
	events := openStream(t, p.config.Socket, get(ordersEvents))
	events.wants(t, "retry: 1000", generationEvent("generation", 1))
	p.stop()
	if err := <-p.done; err != nil {
		t.Error(err)
	}
	for events.events.Scan() {
		t.Errorf("got %s", events.events.Text())
	}
}

// TestHeartbeat holds the time of the comments that come when nothing else does.
func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := keystore.New(nil)
		s.Publish([]*keystore.DataKey{sidecartest.IssuedKey(t, "orders", testPlaintext)})
		a := &api{store: s, dog: newWatchdog()}
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), connKey{}, &conn{}))
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, ordersEvents, nil)
		if err != nil {
			t.Fatal(err)
		}
		w := &flushedWriter{bareWriter: bareWriter{header: http.Header{}}, flushed: make(chan string)}
		ended := make(chan struct{})
		go func() { defer close(ended); a.stream(w, r, "orders") }()
		if got := <-w.flushed; got != "retry: 1000\n\n"+generationEvent("generation", 3)+"\n\n" {
			t.Errorf("got %q", got)
		}
		for range 3 {
			start := time.Now()
			if got := <-w.flushed; got != ":\n\n" || time.Since(start) != heartbeat {
				t.Errorf("got %q after %v", got, time.Since(start))
			}
		}
		cancel()
		<-ended
	})
}

// flushedWriter hands out what is flushed.
type flushedWriter struct {
	bareWriter
	flushed chan string
}

func (w *flushedWriter) Flush() {
	w.flushed <- w.body.String()
	w.body.Reset()
}
