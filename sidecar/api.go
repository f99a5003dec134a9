package sidecar

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/datakeys/datakeys/sidecar/internal/keystore"
)

// Limits of a request.
const (
	// maxHeader is the most bytes of a request line and its headers; net/http adds 4 KiB of slack and answers 431.
	maxHeader = 8 << 10
	maxURI    = 2 << 10
)

const dataKeysPath = "/v1/data-keys"

// Header values that many answers share.
var (
	jsonType    = []string{mediaJSON}
	bytesType   = []string{mediaBytes}
	problemType = []string{"application/problem+json"}
	noStore     = []string{"no-store"}
	alive       = []byte(`{"status":"ok"}` + "\n")
)

// route is a path that there is, by its kind.
type route int

const (
	noRoute route = iota
	listRoute
	getRoute
	encryptRoute
	decryptRoute
	eventsRoute
	healthRoute
	readyRoute
	metricsRoute
)

// routes are the paths as people write them.
var routes = [...]string{
	noRoute:      "other",
	listRoute:    dataKeysPath,
	getRoute:     dataKeysPath + "/{name}",
	encryptRoute: dataKeysPath + "/{name}/encrypt",
	decryptRoute: dataKeysPath + "/{name}/decrypt",
	eventsRoute:  dataKeysPath + "/{name}/events",
	healthRoute:  "/healthz",
	readyRoute:   "/readyz",
	metricsRoute: "/metrics",
}

// routeOf returns the route of a path, and the name of the data key in it.
func routeOf(path string) (to route, name string) {
	rest, ok := strings.CutPrefix(path, dataKeysPath)
	if !ok {
		for _, to := range []route{healthRoute, readyRoute, metricsRoute} {
			if path == routes[to] {
				return to, ""
			}
		}
		return noRoute, ""
	}
	if rest == "" {
		return listRoute, ""
	}
	name, ok = strings.CutPrefix(rest, "/")
	if !ok || name == "" {
		return noRoute, ""
	}
	name, action, more := strings.Cut(name, "/")
	switch {
	case name == "":
		return noRoute, ""
	case !more:
		return getRoute, name
	case action == "encrypt":
		return encryptRoute, name
	case action == "decrypt":
		return decryptRoute, name
	case action == "events":
		return eventsRoute, name
	}
	return noRoute, ""
}

// takesBody reports whether requests of the route are POST with a body; those of the others are GET without.
func (to route) takesBody() bool { return to == encryptRoute || to == decryptRoute }

// api is the native API: HTTP/1.1 and JSON, errors as problem details (RFC 9457).
type api struct {
	store    *keystore.Store
	log      *slog.Logger
	dog      *watchdog
	metrics  *apiMetrics
	room     room
	watchers atomic.Int64 // of events
}

// newServer returns the server of the native API on a listener. Its time limits are the watchdog's. Its metrics
// tell of all else that there is to render.
func newServer(s *keystore.Store, log *slog.Logger, d *watchdog, more ...renderer) *http.Server {
	a := &api{store: s, log: log, dog: d}
	a.metrics = newAPIMetrics(a, more)
	return newHTTPServer(a, log, d)
}

// newHTTPServer returns the server of a handler.
func newHTTPServer(h http.Handler, log *slog.Logger, d *watchdog) *http.Server {
	return &http.Server{ //nolint:gosec // no ReadHeaderTimeout: see watchdog
		Handler:                      h,
		DisableGeneralOptionsHandler: true, // "OPTIONS *" gets problem details, too
		MaxHeaderBytes:               maxHeader,
		ErrorLog:                     slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnContext:                  withConn,
		ConnState:                    d.noted,
	}
}

// ServeHTTP implements http.Handler.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 || unclearEnd(r) {
		// Else net/http would first wait for the body. Who has read it takes this back.
		w.Header().Set("Connection", "close")
	}
	to, name := routeOf(r.URL.Path)
	a.metrics.count(to, a.serve(w, r, to, name))
}

// serve answers a request and returns the status. So does every method that answers one.
func (a *api) serve(w http.ResponseWriter, r *http.Request, to route, name string) (status int) {
	if len(r.RequestURI) > maxURI {
		return newProblem(http.StatusRequestURITooLong, reasonURITooLong,
			fmt.Sprintf("the request target has %d bytes: at most %d are read", len(r.RequestURI), maxURI)).write(w)
	}
	if to == noRoute {
		return newProblem(http.StatusNotFound, reasonUnknownPath, fmt.Sprintf("there is no path %s: the paths are %s", quote(r.URL.Path),
			strings.Join(routes[noRoute+1:], ", "))).write(w)
	}
	if to.takesBody() {
		if r.Method != http.MethodPost {
			return methodNotAllowed(w, r, "POST")
		}
	} else if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return methodNotAllowed(w, r, "GET, HEAD")
	}
	generation, problem := query(r.URL, to == getRoute)
	if problem != "" {
		return newProblem(http.StatusBadRequest, reasonInvalidParameter, problem).write(w)
	}
	if to.takesBody() {
		return a.crypt(w, r, to, name)
	}
	if r.ContentLength != 0 {
		return newProblem(http.StatusRequestEntityTooLarge, reasonBodyNotAllowed,
			"the request has a body: GET and HEAD take none").write(w)
	}
	switch to {
	case getRoute:
		return a.dataKey(w, r, name, generation)
	case listRoute:
		return a.plain(w, r, a.store.Now().List)
	case eventsRoute:
		return a.events(w, r, name)
	case readyRoute:
		return a.ready(w, r)
	case metricsRoute:
		return a.metrics.answer(w, r)
	default:
		return a.plain(w, r, alive)
	}
}

func methodNotAllowed(w http.ResponseWriter, r *http.Request, allowed string) int {
	w.Header().Set("Allow", allowed)
	return newProblem(http.StatusMethodNotAllowed, reasonMethodNotAllowed, fmt.Sprintf("%s is not a method of this path: use %s",
		quote(r.Method), strings.ReplaceAll(allowed, ", ", " or "))).write(w)
}

// query reads the one parameter there is, generation, 0 where it is not given. The problem it returns is a sentence.
func query(u *url.URL, ofKey bool) (generation uint32, problem string) {
	if u.RawQuery == "" {
		return 0, ""
	}
	if digits, ok := strings.CutPrefix(u.RawQuery, "generation="); ok && ofKey { // the usual case, without a map
		if n, err := strconv.ParseUint(digits, 10, 31); err == nil && n > 0 {
			return uint32(n), ""
		}
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return 0, "the query is malformed: it must be name=value pairs"
	}
	for name, v := range values {
		if !ofKey || name != "generation" {
			return 0, fmt.Sprintf("the parameter %s is not known", quote(name))
		}
		n, err := strconv.ParseUint(v[0], 10, 31)
		if err != nil || n == 0 || len(v) != 1 {
			return 0, "the parameter generation must be one number of 1 or more"
		}
		generation = uint32(n)
	}
	return generation, ""
}

// ready answers GET /readyz: whether every data key can be issued.
func (a *api) ready(w http.ResponseWriter, r *http.Request) int {
	if unready := a.store.Now().Unready; unready != nil {
		w.Header().Set("Retry-After", "1")
		p := newProblem(http.StatusServiceUnavailable, reasonNotReady, "not every data key can be issued")
		p.DataKeys = unready
		return p.write(w)
	}
	return a.plain(w, r, alive)
}

// plain answers with JSON that holds no secret.
func (a *api) plain(w http.ResponseWriter, r *http.Request, body []byte) int {
	if negotiate(r.Header, mediaJSON) == "" {
		return notAcceptable(w, mediaJSON)
	}
	return respond(w, jsonType, body)
}

// respond answers with what is no secret.
func respond(w http.ResponseWriter, contentType []string, body []byte) int {
	h := w.Header()
	h["Content-Type"] = contentType
	h["Cache-Control"] = noStore
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	_, _ = w.Write(body) // net/http drops it for HEAD; a client that is gone needs no answer
	return http.StatusOK
}

// dataKey answers GET /v1/data-keys/{name}. It is what applications wait for.
func (a *api) dataKey(w http.ResponseWriter, r *http.Request, name string, number uint32) int {
	g, status := a.held(w, name, number)
	if g == nil {
		return status
	}
	defer g.Issued.Release()
	var body interface {
		secretBody
		Length() []string
	}
	h := w.Header()
	switch negotiate(r.Header, mediaJSON, mediaBytes) {
	case mediaJSON:
		body, h["Content-Type"] = keystore.JSON{Issued: g.Issued}, jsonType
	case mediaBytes:
		body, h["Content-Type"] = keystore.Bytes{Issued: g.Issued}, bytesType
	default:
		return notAcceptable(w, mediaJSON+" or "+mediaBytes)
	}
	h["Content-Length"], h["Cache-Control"] = body.Length(), noStore
	if r.Method != http.MethodHead {
		a.send(w, r, name, body)
	}
	return http.StatusOK
}

// send sends a body with plaintext, for which the headers are set.
func (a *api) send(w http.ResponseWriter, r *http.Request, name string, body secretBody) {
	if err := sendSecret(w, r, body); err != nil {
		// net/http closes the connection, as not all of the body was written.
		a.log.Debug("a client was gone before its answer", "dataKey", name, "error", err.Error())
	}
}

// held returns a generation that is issued, the newest for 0, whose plaintext the caller holds and must release. Where there is none
// it answers why.
func (a *api) held(w http.ResponseWriter, name string, number uint32) (g *keystore.Generation, status int) {
	k, g := a.store.Get(name, number)
	switch {
	case k == nil:
		return nil, unknownDataKey(w, name)
	case g == nil:
		return nil, newProblem(http.StatusNotFound, reasonUnknownGeneration,
			fmt.Sprintf("the data key %s has no generation %d here: GET /v1/data-keys lists those that there are", quote(name), number)).write(w)
	case g.Issued == nil:
		return nil, notIssued(w, g, number)
	}
	return g, http.StatusOK
}

func unknownDataKey(w http.ResponseWriter, name string) int {
	return newProblem(http.StatusNotFound, reasonUnknownDataKey, fmt.Sprintf("this pod has no data key %s: it was created without "+
		"it; name it in the annotation datakeys.io/data-keys and create the pod again", quote(name))).write(w)
}

// notIssued answers why there is no plaintext of a generation, of which that number was asked for: 403 for a refusal of the key
// service, else 503.
func notIssued(w http.ResponseWriter, g *keystore.Generation, number uint32) int {
	status := http.StatusServiceUnavailable
	switch {
	case g.State == keystore.StatePending:
		w.Header().Set("Retry-After", "1")
	case g.Reason == keystore.ReasonBlobInvalid:
		w.Header().Set("Retry-After", "10") // the manager repairs the Secret, and the kubelet brings it
	default:
		status = http.StatusForbidden
	}
	what := "the data key " + quote(g.Name)
	if number != 0 && number == g.Number {
		what = fmt.Sprintf("generation %d of %s", number, what)
	}
	return newProblem(status, g.Reason, what+" is not issued: "+g.Message).write(w)
}

func notAcceptable(w http.ResponseWriter, offers string) int {
	return newProblem(http.StatusNotAcceptable, reasonNotAcceptable, "the header Accept leaves out what there is: "+offers).write(w)
}

// quote quotes what a client sent, and not all of it.
func quote(s string) string {
	const most = 256
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strconv.Quote(s)
}
