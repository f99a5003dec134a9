package client

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/envelope"
)

// The data keys of these tests.
const (
	first  = "\xf1\xe2\xd3\xc4\xb5\xa6\x97\x88\xf9\xea\xdb\xcc\xbd\xae\x9f\x80\xe1\xf2\xc3\xd4\xa5\xb6\x87\x98\xe9\xfa\xcb\xdc\xad\xbe\x8f\x90"
	second = "\x91\x82\xf3\xe4\xd5\xc6\xb7\xa8\x99\x8a\xfb\xec\xdd\xce\xbf\xa0\x81\x92\xe3\xf4\xc5\xd6\xa7\xb8\x89\x9a\xeb\xfc\xcd\xde\xaf\xb0"

	newest = "/v1/data-keys/orders"
)

func newAEAD(t *testing.T, f *fakeSidecar) *AEAD {
	t.Helper()
	a, err := f.client.AEAD(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	f.took()
	return a
}

// seals returns the generation that is sealed with now, or the reason why none is.
func seals(t *testing.T, a *AEAD) any {
	t.Helper()
	ciphertext, err := a.Seal(t.Context(), []byte("data"), nil)
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := envelope.ParseMessage(ciphertext)
	if err != nil {
		t.Fatal(err)
	}
	return int(m.Generation)
}

// live returns the bytes of the key that is held, which nobody else may keep, to see them cleared.
func live(t *testing.T, a *AEAD, generation uint32) (b []byte) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.keys[generation].Plaintext.Use(func(plaintext []byte) error { b = plaintext; return nil }); err != nil {
		t.Fatal(err)
	}
	return b
}

func cleared(b []byte) bool { return bytes.Equal(b, make([]byte, len(b))) }

// TestKeyAge tells what becomes of a key in the course of time. A step is a time since the key was asked for, and what happens then.
func TestKeyAge(t *testing.T) {
	type step struct {
		at     time.Duration
		change func(*fakeSidecar)
		want   any      // of a Seal
		calls  []string // made by it
	}
	const (
		age = 4 * time.Second
		ms  = time.Millisecond
	)
	refuse := func(status int, reason string) func(*fakeSidecar) {
		return func(f *fakeSidecar) {
			f.answer = func(w http.ResponseWriter, _ *http.Request) bool { problem(w, status, reason); return true }
		}
	}
	allow := func(f *fakeSidecar) { f.answer = nil }
	rotate := func(f *fakeSidecar) { f.generations = []string{first, second} }
	leave := func(away bool) func(*fakeSidecar) { return func(f *fakeSidecar) { f.away = away; f.client.Close() } }
	once := []string{newest}
	for name, steps := range map[string][]step{
		"nothing is asked in the first half": {
			{ms, nil, 1, nil}, {age/2 - 1, nil, 1, nil},
		},
		"a use in the second half asks again, and does not wait": {
			{age / 2, rotate, 1, once}, {age/2 + ms, nil, 2, nil}, {age - 1, nil, 2, nil}, {age, nil, 2, once},
		},
		"without a use nothing is asked, and the first that comes waits": {
			{age, rotate, 2, once}, {20 * age, nil, 2, once},
		},
		"a refusal ends the key at once": {
			{age / 2, refuse(403, "AccessDenied"), 1, once}, {age/2 + ms, nil, "AccessDenied", once}, {age/2 + 2*ms, allow, 1, once},
		},
		"a refusal that nobody asked for ends it with its time": {
			{age/2 - 1, refuse(403, "MasterKeyState"), 1, nil}, {age, nil, "MasterKeyState", once},
		},
		"a data key that is gone ends it": {
			{age / 2, refuse(404, "UnknownDataKey"), 1, once}, {age/2 + ms, nil, "UnknownDataKey", once},
		},
		"what answers is no sidecar any more": {
			{age / 2, refuse(418, "Teapot"), 1, once}, {age/2 + ms, nil, "Teapot", once},
		},
		"an outage in the second half is bridged, without a call for each use": {
			{age / 2, refuse(503, "Starting"), 1, once}, {age/2 + ms, nil, 1, nil}, {age/2 + age/8 + ms, nil, 1, once},
			{age/2 + 2*age/8 + 2*ms, allow, 1, once}, {age, nil, 1, nil},
		},
		"an outage does not prolong it": {
			{age / 2, refuse(503, "KeyServiceUnavailable"), 1, once}, {age - ms, nil, 1, once}, {age, nil, "KeyServiceUnavailable", once},
			{age + ms, nil, "KeyServiceUnavailable", once}, {age + 2*ms, allow, 1, once},
		},
		"a sidecar that restarts is bridged": {
			{age / 2, leave(true), 1, nil}, {age - ms, leave(false), 1, once}, {age + ms, nil, 1, nil},
		},
		"a sidecar that is gone does not prolong it": {
			{age / 2, leave(true), 1, nil}, {age, nil, ReasonUnreachable, nil}, {age + ms, leave(false), 1, once},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeSidecar(t, Options{KeyAge: age}, first)
				start := time.Now()
				a := newAEAD(t, f)
				for _, step := range steps {
					time.Sleep(time.Until(start.Add(step.at)))
					synctest.Wait()
					if step.change != nil {
						f.set(func() { step.change(f) })
					}
					if got := seals(t, a); got != step.want {
						t.Errorf("after %v: got %v, want %v", step.at, got, step.want)
					}
					synctest.Wait()
					if diff := cmp.Diff(step.calls, f.took()); diff != "" {
						t.Errorf("after %v (-want +got):\n%s", step.at, diff)
					}
				}
			})
		})
	}
}

// TestKeysAreCleared holds every way in which a key ends.
func TestKeysAreCleared(t *testing.T) {
	useLate := func(t *testing.T, _ *fakeSidecar, a *AEAD) {
		time.Sleep(DefaultKeyAge * 3 / 4)
		seals(t, a)
		time.Sleep(time.Millisecond)
	}
	for name, end := range map[string]func(*testing.T, *fakeSidecar, *AEAD){
		"by its age, with no use":   func(*testing.T, *fakeSidecar, *AEAD) { time.Sleep(DefaultKeyAge) },
		"by a key that replaces it": useLate,
		"by Close":                  func(_ *testing.T, _ *fakeSidecar, a *AEAD) { a.Close() },
		"by a refusal": func(t *testing.T, f *fakeSidecar, a *AEAD) {
			f.set(func() {
				f.answer = func(w http.ResponseWriter, _ *http.Request) bool { problem(w, 403, "AccessDenied"); return true }
			})
			useLate(t, f, a)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeSidecar(t, Options{}, first)
				a := newAEAD(t, f)
				b := live(t, a, 0)
				if string(b) != first {
					t.Fatal("that is not the key")
				}
				end(t, f, a)
				synctest.Wait()
				if !cleared(b) {
					t.Error("the key is still there")
				}
			})
		})
	}
}

// TestTheAgeOfAKeyCountsFromTheQuestion, whenever the answer comes and the timer goes off.
func TestTheAgeOfAKeyCountsFromTheQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSidecar(t, Options{}, first)
		f.answer = func(http.ResponseWriter, *http.Request) bool { time.Sleep(time.Second); return false }
		a := newAEAD(t, f)
		b := live(t, a, 0)
		time.Sleep(DefaultKeyAge - time.Second)
		synctest.Wait()
		if !cleared(b) {
			t.Error("the key is still there")
		}

		seals(t, a)
		a.mu.Lock()
		a.keys[0].expiry.Stop()
		a.mu.Unlock()
		f.took()
		f.set(func() {
			f.answer = func(w http.ResponseWriter, _ *http.Request) bool { problem(w, 403, "AccessDenied"); return true }
		})
		time.Sleep(DefaultKeyAge - time.Second)
		if got := seals(t, a); got != "AccessDenied" {
			t.Errorf("without its timer: got %v", got)
		}
	})
}

// TestAKeyThatComesAfterCloseIsCleared: and whoever waits for it is told.
func TestAKeyThatComesAfterCloseIsCleared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSidecar(t, Options{}, first, second)
		a := newAEAD(t, f)
		old := sealedBy(t, first, 1)
		answer := make(chan struct{})
		f.set(func() { f.answer = func(http.ResponseWriter, *http.Request) bool { <-answer; return false } })
		opened := make(chan error)
		go func() { _, err := a.Open(t.Context(), old, nil); opened <- err }()
		synctest.Wait()
		a.Close()
		close(answer)
		if e, ok := errors.AsType[*Error](<-opened); !ok || e.Reason != ReasonClosed {
			t.Errorf("got %v", e)
		}
		synctest.Wait()
		if len(a.keys) != 0 || len(a.fetches) != 0 {
			t.Errorf("got %d keys and %d fetches", len(a.keys), len(a.fetches))
		}
	})
}

// sealedBy is a message of that data key.
func sealedBy(t *testing.T, key string, generation uint32) []byte {
	t.Helper()
	p, err := envelope.PlaintextFromBytes([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	message, err := p.SealMessage(nil, generation, envelope.AssociatedData{}, []byte("data"))
	if err != nil {
		t.Fatal(err)
	}
	return message
}

func TestOpenGetsEachGenerationOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSidecar(t, Options{}, first, second)
		a := newAEAD(t, f)
		opens := func(key string, generation uint32) {
			t.Helper()
			if got, err := a.Open(t.Context(), sealedBy(t, key, generation), nil); err != nil || string(got) != "data" {
				t.Errorf("got %q, %v", got, err)
			}
		}
		opens(second, 2)
		if calls := f.took(); calls != nil {
			t.Errorf("for the newest: got %v", calls)
		}
		for range 3 {
			opens(first, 1)
		}
		if diff := cmp.Diff([]string{newest + "?generation=1"}, f.took()); diff != "" {
			t.Errorf("for an older one (-want +got):\n%s", diff)
		}
		b := live(t, a, 1)
		time.Sleep(DefaultKeyAge)
		synctest.Wait()
		if !cleared(b) {
			t.Error("the older one is still there")
		}
	})
}

// TestCallersShareAFetch: and one that goes away does not take it from the others.
func TestCallersShareAFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSidecar(t, Options{}, first, second)
		a := newAEAD(t, f)
		old := sealedBy(t, first, 1)
		answer := make(chan struct{})
		f.set(func() { f.answer = func(http.ResponseWriter, *http.Request) bool { <-answer; return false } })
		ctx, cancel := context.WithCancel(t.Context())
		impatient := make(chan error)
		go func() { _, err := a.Open(ctx, old, nil); impatient <- err }()
		synctest.Wait()
		var waiting sync.WaitGroup
		for range 100 {
			waiting.Go(func() {
				if got, err := a.Open(t.Context(), old, nil); err != nil || string(got) != "data" {
					t.Errorf("got %q, %v", got, err)
				}
			})
		}
		synctest.Wait()
		cancel()
		if err := <-impatient; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		close(answer)
		waiting.Wait()
		if diff := cmp.Diff([]string{newest + "?generation=1"}, f.took()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// TestAnAnswerThatComesTooLate could not be used.
func TestAnAnswerThatComesTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSidecar(t, Options{KeyAge: time.Second}, first)
		f.answer = func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return false }
		start := time.Now()
		_, err := f.client.AEAD(t.Context(), "orders")
		if e, ok := errors.AsType[*Error](err); !ok || e.Reason != ReasonUnreachable || !e.Temporary() || time.Since(start) != time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
	})
}

// TestASilentSidecar keeps nobody for ever, whose context has no end.
func TestASilentSidecar(t *testing.T) {
	for name, call := range map[string]func(context.Context, *Client) error{
		"DataKey": func(ctx context.Context, c *Client) error { _, err := c.DataKey(ctx, "orders"); return err },
		"Encrypt": func(ctx context.Context, c *Client) error { _, err := c.Encrypt(ctx, "orders", nil, nil); return err },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFakeSidecar(t, Options{}, first)
				f.answer = func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return false }
				start := time.Now()
				err := call(t.Context(), f.client)
				if e, ok := errors.AsType[*Error](err); !ok || e.Reason != ReasonUnreachable || !e.Temporary() || time.Since(start) != silence {
					t.Errorf("got %v after %v", err, time.Since(start))
				}
			})
		})
	}
}

// TestAConnectionThatIsClosedMeanwhile: the sidecar closes those that have waited for longest, and a request may be on its way already.
func TestAConnectionThatIsClosedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSidecar(t, Options{}, first)
		f.answer = func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", mediaBytes)
			return true
		}
		conns := 0
		f.wrap = func(c net.Conn) net.Conn { conns++; return &usedOnceConn{Conn: c} }
		for range 2 {
			if _, err := f.client.Encrypt(t.Context(), "orders", []byte("data"), nil); err != nil {
				t.Error(err)
			}
		}
		if conns != 2 {
			t.Errorf("got %d connections", conns)
		}
	})
}

// usedOnceConn is closed by the other side when a second request has been written.
type usedOnceConn struct {
	net.Conn
	writes int
}

func (c *usedOnceConn) Write(p []byte) (int, error) {
	if c.writes++; c.writes == 2 {
		return len(p), c.Close()
	}
	return c.Conn.Write(p)
}

// TestTheEndOfAnotherContext: net/http may close a connection for a call whose context ends when it has lent it to the next already, which
// then gets that call's error.
func TestTheEndOfAnotherContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSidecar(t, Options{}, first)
		f.wrap = func(c net.Conn) net.Conn { return canceledConn{c} }
		_, err := f.client.DataKey(t.Context(), "orders")
		if e, ok := errors.AsType[*Error](err); !ok || e.Reason != ReasonUnreachable || errors.Is(err, context.Canceled) {
			t.Errorf("got %v, which passes for the end of the caller's context", err)
		}
	})
}

type canceledConn struct{ net.Conn }

func (canceledConn) Read([]byte) (int, error) { return 0, context.Canceled }

// TestAnotherGenerationThanAskedFor is not taken for it.
func TestAnotherGenerationThanAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSidecar(t, Options{}, first, second)
		a := newAEAD(t, f)
		f.set(func() {
			f.answer = func(_ http.ResponseWriter, r *http.Request) bool {
				r.URL.RawQuery = ""
				return false
			}
		})
		_, err := a.Open(t.Context(), sealedBy(t, first, 1), nil)
		if e, ok := errors.AsType[*Error](err); !ok || e.Reason != ReasonInvalidAnswer {
			t.Errorf("got %v", err)
		}
		k, err := f.client.Generation(t.Context(), "orders", 1)
		if e, ok := errors.AsType[*Error](err); !ok || e.Reason != ReasonInvalidAnswer || k != nil {
			t.Errorf("the data key itself: got %v, %v", k, err)
		}
	})
}

// TestUnderLoad has keys replaced under the hands of those who use them.
func TestUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSidecar(t, Options{KeyAge: time.Second}, first)
		a := newAEAD(t, f)
		var busy sync.WaitGroup
		for range 8 {
			busy.Go(func() {
				for range 200 {
					ciphertext, err := a.Seal(t.Context(), []byte("data"), []byte("row 42"))
					if err != nil {
						t.Error(err)
						return
					}
					if got, err := a.Open(t.Context(), ciphertext, []byte("row 42")); err != nil || string(got) != "data" {
						t.Errorf("got %q, %v", got, err)
					}
					time.Sleep(jitter(100 * time.Millisecond))
				}
			})
		}
		busy.Wait()
	})
}

// TestALateTimerMixesUpNoGenerations: where the process slept, the newest key is over and its timer has not run yet. What was made with it
// is opened with its generation, not with what is the newest by now.
func TestALateTimerMixesUpNoGenerations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeSidecar(t, Options{}, first)
		a := newAEAD(t, f)
		ciphertext, err := a.Seal(t.Context(), []byte("data"), nil)
		if err != nil {
			t.Fatal(err)
		}
		a.mu.Lock()
		a.keys[0].expiry.Stop()
		a.mu.Unlock()
		f.set(func() { f.generations = []string{first, second} })
		time.Sleep(DefaultKeyAge)
		if got, err := a.Open(t.Context(), ciphertext, nil); err != nil || string(got) != "data" {
			t.Errorf("got %q, %v", got, err)
		}
	})
}
