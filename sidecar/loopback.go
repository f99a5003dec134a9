package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
)

const (
	// minLoopbackPort is the first that needs no privilege; api/v1alpha1 declares it.
	minLoopbackPort = 1024
	// maxLoopbackConns is the most connections of the port at a time: half as many as the socket has. Any process of the pod may connect.
	maxLoopbackConns = 128
)

// loopback serves the front doors, and nothing else, on a port of 127.0.0.1.
//
// The browser of a pod that renders web pages reaches the port, too. A page of another origin cannot send the headers of a front door
// without being allowed to, which none is; one whose name leads to 127.0.0.1 by a trick of DNS names itself in Host. So Host is checked,
// and, since that costs nothing, what browsers alone send is refused.
type loopback struct {
	doors *doors
	port  string
}

// ServeHTTP implements http.Handler.
func (l *loopback) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case !l.isHost(r.Host):
		l.doors.refuse(w, r, newProblem(http.StatusMisdirectedRequest, reasonUnknownHost,
			fmt.Sprintf("the header Host is %s: it must be 127.0.0.1:%s or localhost:%s", quote(r.Host), l.port, l.port)))
	case r.Header["Origin"] != nil || r.Header["Sec-Fetch-Site"] != nil:
		l.doors.refuse(w, r, newProblem(http.StatusForbidden, reasonWebPage,
			"the request has the header Origin or Sec-Fetch-Site: it comes from a web page, and none is answered"))
	case r.URL.Path != doorPath:
		l.doors.refuse(w, r, newProblem(http.StatusNotFound, reasonUnknownPath,
			fmt.Sprintf("there is no path %s on this port: it serves POST / alone, the native API is on the socket", quote(r.URL.Path))))
	default:
		l.doors.serve(w, r, "; the native API is on the socket")
	}
}

func (l *loopback) isHost(host string) bool {
	name, port, err := net.SplitHostPort(host)
	return err == nil && port == l.port && (name == "127.0.0.1" || strings.EqualFold(name, "localhost"))
}

// newLoopbackServer returns the server of the port.
func newLoopbackServer(d *doors, port int, log *slog.Logger) *http.Server {
	return newHTTPServer(&loopback{doors: d, port: strconv.Itoa(port)}, log, d.dog)
}

// listenLoopback listens on the port. A port that is taken is an error at once, and so the sidecar's last word: it starts before the
// application, which would never find out whom it asks.
func listenLoopback(ctx context.Context, port int) (*bounded, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("loopback port %d: another process of the pod listens on it: choose another port in the pod's annotation "+
			"datakeys.io/loopback-port", port)
	case err != nil:
		return nil, fmt.Errorf("loopback port %d: %w", port, err)
	}
	return newBounded(l, maxLoopbackConns), nil
}

func checkLoopbackPort(port int) error {
	if port != 0 && (port < minLoopbackPort || port > 65535) {
		return fmt.Errorf("loopback port %d: must be %d to 65535, or 0 for none", port, minLoopbackPort)
	}
	return nil
}
