package sidecar

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
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

// api is the native API: HTTP/1.1 and JSON, errors as problem details (RFC 9457).
type api struct {
	store *store
	log   *slog.Logger
}

// newServer returns the server of the native API on a listener. Its time limits are the watchdog's.
func newServer(s *store, log *slog.Logger, d *watchdog) *http.Server {
	return newHTTPServer(&api{store: s, log: log}, log, d)
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
	if r.ContentLength != 0 {
		w.Header().Set("Connection", "close") // else net/http would first wait for the body
	}
	path := r.URL.Path
	name, ofKey := strings.CutPrefix(path, dataKeysPath+"/")
	switch {
	case len(r.RequestURI) > maxURI:
		newProblem(http.StatusRequestURITooLong, reasonURITooLong,
			fmt.Sprintf("the request target has %d bytes: at most %d are read", len(r.RequestURI), maxURI)).write(w)
	case ofKey && name != "" && !strings.Contains(name, "/"), path == dataKeysPath, path == "/healthz", path == "/readyz":
		a.get(w, r, name, ofKey)
	default:
		newProblem(http.StatusNotFound, reasonUnknownPath, fmt.Sprintf("there is no path %s: the paths are %s, %s/{name}, "+
			"/healthz and /readyz", quote(path), dataKeysPath, dataKeysPath)).write(w)
	}
}

// get answers a request for a path that there is.
func (a *api) get(w http.ResponseWriter, r *http.Request, name string, ofKey bool) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		newProblem(http.StatusMethodNotAllowed, reasonMethodNotAllowed,
			fmt.Sprintf("%s is not a method of this path: use GET or HEAD", quote(r.Method))).write(w)
		return
	}
	generation, problem := query(r.URL, ofKey)
	switch {
	case r.ContentLength != 0:
		newProblem(http.StatusRequestEntityTooLarge, reasonBodyNotAllowed,
			"the request has a body: no request of this API takes one").write(w)
	case problem != "":
		newProblem(http.StatusBadRequest, reasonInvalidParameter, problem).write(w)
	case ofKey:
		a.dataKey(w, r, name, generation)
	case r.URL.Path == dataKeysPath:
		a.plain(w, r, a.store.current.Load().list)
	case r.URL.Path == "/healthz":
		a.plain(w, r, alive)
	default:
		a.ready(w, r)
	}
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
func (a *api) ready(w http.ResponseWriter, r *http.Request) {
	if unready := a.store.current.Load().unready; unready != nil {
		w.Header().Set("Retry-After", "1")
		writeProblem(w, http.StatusServiceUnavailable, unready)
		return
	}
	a.plain(w, r, alive)
}

// plain answers with JSON that holds no secret.
func (a *api) plain(w http.ResponseWriter, r *http.Request, body []byte) {
	if negotiate(r.Header, mediaJSON) == "" {
		notAcceptable(w, mediaJSON)
		return
	}
	h := w.Header()
	h["Content-Type"] = jsonType
	h["Cache-Control"] = noStore
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	_, _ = w.Write(body) // net/http drops it for HEAD; a client that is gone needs no answer
}

// dataKey answers GET /v1/data-keys/{name}. It is what applications wait for.
func (a *api) dataKey(w http.ResponseWriter, r *http.Request, name string, number uint32) {
	k, g := a.store.get(name, number)
	switch {
	case k == nil:
		newProblem(http.StatusNotFound, reasonUnknownDataKey, fmt.Sprintf("this pod has no data key %s: name it in the pod's "+
			"annotation datakeys.io/data-keys", quote(name))).write(w)
		return
	case g == nil:
		newProblem(http.StatusNotFound, reasonUnknownGeneration,
			fmt.Sprintf("the data key %s has no generation %d here", quote(name), number)).write(w)
		return
	case g.issued == nil:
		notIssued(w, g, number)
		return
	}
	defer g.issued.release()
	body := secretBody{issued: g.issued}
	h := w.Header()
	switch negotiate(r.Header, mediaJSON, mediaBytes) {
	case mediaJSON:
		h["Content-Type"], h["Content-Length"] = jsonType, g.issued.answer.jsonLength
	case mediaBytes:
		body.raw = true
		h["Content-Type"], h["Content-Length"] = bytesType, g.issued.answer.rawLength
	default:
		notAcceptable(w, mediaJSON+" or "+mediaBytes)
		return
	}
	h["Cache-Control"] = noStore
	if r.Method == http.MethodHead {
		return
	}
	if err := sendSecret(w, r, body); err != nil {
		// net/http closes the connection, as not all of the body was written.
		a.log.Debug("a client was gone before its answer", "dataKey", name, "error", err.Error())
	}
}

// notIssued answers why there is no plaintext of a generation, of which that number was asked for: 403 for a refusal of the key
// service, else 503.
func notIssued(w http.ResponseWriter, g *generation, number uint32) {
	status := http.StatusServiceUnavailable
	switch {
	case g.State == StatePending:
		w.Header().Set("Retry-After", "1")
	case g.Reason == ReasonBlobInvalid:
		w.Header().Set("Retry-After", "10") // the manager repairs the Secret, and the kubelet brings it
	default:
		status = http.StatusForbidden
	}
	what := "the data key " + quote(g.Name)
	if number != 0 && number == g.number {
		what = fmt.Sprintf("generation %d of %s", number, what)
	}
	newProblem(status, g.Reason, what+" is not issued: "+g.Message).write(w)
}

func notAcceptable(w http.ResponseWriter, offers string) {
	newProblem(http.StatusNotAcceptable, reasonNotAcceptable, "the header Accept leaves out what there is: "+offers).write(w)
}

// quote quotes what a client sent, and not all of it.
func quote(s string) string {
	const most = 256
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strconv.Quote(s)
}
