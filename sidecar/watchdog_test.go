package sidecar

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestSlowClientIsCutOff lets the watchdog's time go by until the server hangs up.
func TestSlowClientIsCutOff(t *testing.T) {
	var dog *watchdog
	path := serveStore(t, testStore(t), func(_ *http.Server, _ *listener, d *watchdog) { dog = d })
	for name, test := range map[string]struct {
		answered string // a request that is answered first
		sent     string
	}{
		"nothing":              {"", ""},
		"half a request line":  {"", "GET /v1/data"},
		"half a header":        {"", "GET /v1/data-keys/orders HTTP/1.1\r\nHost: local"},
		"no second request":    {get("/healthz"), ""},
		"half a second header": {get("/healthz"), "GET /healthz HTTP/1.1\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			c := dialSocket(t, path)
			in := bufio.NewReader(c)
			if test.answered != "" {
				write(t, c, test.answered)
				readReply(t, in, http.MethodGet)
			}
			write(t, c, test.sent)
			ended := make(chan error, 1)
			go func() {
				_, err := io.Copy(io.Discard, in)
				ended <- err
			}()
			if err := untilEnded(dog, ended); err != nil && !strings.Contains(err.Error(), "connection reset") {
				t.Errorf("got %v, want the end of the connection", err)
			}
		})
	}
}

// TestClientThatDoesNotReadIsCutOff asks without end and reads nothing, so that writing blocks at both ends.
func TestClientThatDoesNotReadIsCutOff(t *testing.T) {
	var dog *watchdog
	path := serveStore(t, testStore(t), func(_ *http.Server, _ *listener, d *watchdog) { dog = d })
	c := dialSocket(t, path)
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := io.WriteString(c, get("/v1/data-keys/orders")); err != nil {
				ended <- err
				return
			}
		}
	}()
	if err := untilEnded(dog, ended); err == nil {
		t.Error("nothing has ended")
	}
	dog.mu.Lock()
	defer dog.mu.Unlock()
	if len(dog.conns) > 1 {
		t.Errorf("%d connections are watched", len(dog.conns))
	}
}

func TestWatchdogLimits(t *testing.T) {
	for name, test := range map[string]struct {
		state http.ConnState
		ticks int
	}{
		"new":    {http.StateNew, 11},
		"active": {http.StateActive, 11},
		"idle":   {http.StateIdle, 121},
	} {
		t.Run(name, func(t *testing.T) {
			dog := newWatchdog()
			freed := false
			c := &conn{stream: &net.UnixConn{}, free: func() { freed = true }}
			dog.noted(c, http.StateNew)
			dog.noted(c, test.state)
			for range test.ticks - 1 {
				dog.look()
			}
			if freed {
				t.Error("closed too early")
			}
			dog.look()
			if !freed {
				t.Error("not closed in time")
			}
			dog.noted(c, http.StateClosed)
			if len(dog.conns) > 0 {
				t.Error("watched after it was closed")
			}
		})
	}
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func untilEnded(dog *watchdog, ended <-chan error) error {
	for {
		select {
		case err := <-ended:
			return err
		default:
			dog.look()
		}
	}
}
