package sidecar

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"google.golang.org/grpc/codes"

	"github.com/datakeys/datakeys/sidecar/internal/keystore"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

// document is docs/openapi.yaml, or a part of it.
type document map[string]any

func readOpenAPI(t *testing.T) document {
	t.Helper()
	b, err := os.ReadFile("../docs/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var d document
	if err := yaml.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// at follows a path of members, nil where there is none.
func (d document) at(path ...string) document {
	for _, name := range path {
		next, ok := d[name].(document)
		if !ok {
			return nil
		}
		d = next
	}
	return d
}

// resolve replaces a reference by what it refers to, with what stands beside it.
func (d document) resolve(t *testing.T, part document) document {
	t.Helper()
	ref, ok := part["$ref"].(string)
	if !ok {
		return part
	}
	found := d.at(strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
	if found == nil {
		t.Fatalf("%s leads nowhere", ref)
	}
	return d.resolve(t, found).with(part)
}

// with is the document with what stands beside a reference to it.
func (d document) with(beside document) document {
	merged := maps.Clone(d)
	for name, value := range beside {
		inner, ok := value.(document)
		if outer := d.at(name); ok && outer != nil {
			value = outer.with(inner)
		}
		if name != "$ref" {
			merged[name] = value
		}
	}
	return merged
}

// answers are all that a document has: path, method, status, media type and, of a problem, reason, each with its schema.
func (d document) answers(t *testing.T) map[string]document {
	t.Helper()
	all := map[string]document{}
	for path, item := range d.at("paths") {
		for _, method := range []string{"get", "post", "put", "patch", "delete"} {
			for code := range item.(document).at(method, "responses") {
				response := d.resolve(t, item.(document).at(method, "responses", code))
				for media := range response.at("content") {
					answer := strings.Join([]string{path, strings.ToUpper(method), code, media}, " ")
					schema := response.at("content", media, "schema")
					reasons, _ := d.resolve(t, schema).at("properties", "reason")["enum"].([]any)
					if media != problemType[0] {
						reasons = []any{""}
					}
					for _, reason := range reasons {
						all[strings.TrimSpace(fmt.Sprint(answer, " ", reason))] = schema
					}
				}
			}
		}
	}
	return all
}

// conforms reports what in a JSON value is not as the schema says.
func (d document) conforms(t *testing.T, what string, schema document, value any) {
	t.Helper()
	schema = d.resolve(t, schema)
	kinds := map[string]bool{}
	switch v := value.(type) {
	case string:
		kinds["string"] = true
	case float64:
		kinds["number"], kinds["integer"] = true, v == float64(int64(v))
	case []any:
		kinds["array"] = true
		for i, item := range v {
			d.conforms(t, fmt.Sprint(what, "[", i, "]"), schema.at("items"), item)
		}
	case map[string]any:
		kinds["object"] = true
		for name, member := range v {
			known := schema.at("properties", name)
			if known == nil {
				known = schema.at("additionalProperties")
			}
			if known == nil {
				t.Errorf("%s: the document has no member %s", what, name)
			}
			d.conforms(t, what+"."+name, known, member)
		}
		required, _ := schema["required"].([]any)
		for _, name := range required {
			if _, ok := v[name.(string)]; !ok {
				t.Errorf("%s: there is no member %s", what, name)
			}
		}
	}
	if kind, ok := schema["type"].(string); !ok || !kinds[kind] {
		t.Errorf("%s is %v, which is not of the type %v", what, value, schema["type"])
	}
	if enum, ok := schema["enum"].([]any); ok && !slices.Contains(enum, value) {
		t.Errorf("%s is %v, which is none of %v", what, value, enum)
	}
}

// reasonsOfTheSources are the reasons that the package has constants for.
func reasonsOfTheSources(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, filepath.Join("internal", "keystore", "state.go"))
	var all []string
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^\t[rR]eason\w+\s+= "(\w+)"$`).FindAllSubmatch(b, -1) {
			all = append(all, string(m[1]))
		}
	}
	slices.Sort(all)
	return all
}

// aKeyForEachReason is a data key for each reason why there may be none.
func aKeyForEachReason() (keys []*keystore.DataKey) {
	for _, reason := range []string{
		keystore.ReasonStarting, keystore.ReasonStopping, keystore.ReasonSecretNotFound, keystore.ReasonSecretUnreadable, keystore.ReasonKeyServiceUnavailable, keystore.ReasonLeaseExpired,
	} {
		keys = append(keys, statusKey(strings.ToLower(reason), keystore.StatePending, reason))
	}
	keys = append(keys, statusKey(strings.ToLower(keystore.ReasonBlobInvalid), keystore.StateRefused, keystore.ReasonBlobInvalid))
	for code := range codes.Code(17) {
		if reason, refused := keystore.RefusalReason(code); refused {
			keys = append(keys, statusKey(strings.ToLower(reason), keystore.StateRefused, reason))
		}
	}
	return keys
}

// TestOpenAPI sends every request that the tests have, and some for every path and reason, and compares the answers with the document.
func TestOpenAPI(t *testing.T) {
	d := readOpenAPI(t)
	documented := d.answers(t)
	if len(documented) < 80 {
		t.Fatalf("the document has %d answers, want 80 or more", len(documented))
	}

	s := cryptStore(t)
	var all []*keystore.DataKey
	for _, k := range s.Now().ByName {
		all = append(all, k)
	}
	lacking := aKeyForEachReason()
	s.Publish(append(all, lacking...))
	var server *http.Server
	path := serveStore(t, s, func(h *http.Server, _ *listener, _ *watchdog) { server = h })
	ready := keystore.New(nil)
	ready.Publish([]*keystore.DataKey{sidecartest.IssuedKey(t, "orders", testPlaintext)})
	readyPath := serveStore(t, ready, nil)

	seen := map[string]bool{}
	note := func(path, request string) {
		t.Helper()
		answer, body := exchange(t, path, request)
		if answer == "" {
			return
		}
		seen[answer] = true
		schema, ok := documented[answer]
		if !ok {
			t.Errorf("the document has no %s", answer)
		} else if body != nil {
			d.conforms(t, answer, schema, body)
		}
	}
	requests := []string{
		post(encryptOrders, mediaBytes, nil), post(encryptOrders, mediaBytes, nil, "Accept: "+mediaJSON),
		post(decryptOrders, mediaBytes, sealedMessage(t, testPlaintext, 3, nil, nil)),
		post(decryptOrders, mediaBytes, sealedMessage(t, testPlaintext, 3, nil, nil), "Accept: "+mediaJSON),
		get("/v1/data-keys/rotated?generation=5"), get("/v1/data-keys/orders", "Accept: "+mediaBytes),
	}
	for _, c := range problemCases() {
		requests = append(requests, c.request)
	}
	for _, c := range cryptProblemCases(t) {
		requests = append(requests, c.request)
	}
	for _, k := range lacking {
		target := "/v1/data-keys/" + k.Name
		requests = append(requests, get(target), get(target+"/events"), post(target+"/encrypt", mediaBytes, nil),
			post(target+"/decrypt", mediaBytes, sealedMessage(t, testPlaintext, 3, nil, nil)))
	}
	for to := listRoute; int(to) < len(routes); to++ {
		target := strings.ReplaceAll(routes[to], "{name}", "orders")
		if to.takesBody() {
			requests = append(requests, post(target, "text/plain", nil), post(target+"?a="+strings.Repeat("a", maxURI), mediaBytes, nil),
				post(target, mediaBytes, nil, "Accept: text/html"),
				strings.Replace(post(target, mediaBytes, nil), "Content-Length: 0", "Transfer-Encoding: chunked", 1)+"no chunk\r\n",
				postJSON(target, ""))
			continue
		}
		requests = append(requests, get(target), get(target+"?a=b"), get(target+"?a="+strings.Repeat("a", maxURI)),
			get(target, "Accept: image/png"), get(target, "Content-Length: 5"))
	}
	for _, request := range requests {
		note(path, request)
	}
	note(readyPath, get("/readyz"))
	note(readyPath, get("/readyz", "Accept: image/png"))
	a := server.Handler.(*api)
	a.watchers.Add(maxWatchers)
	note(path, get(ordersEvents))
	a.room.take(maxRoom)
	note(path, post(encryptOrders, mediaBytes, nil))
	note(path, post(decryptOrders, mediaBytes, nil))

	if diff := cmp.Diff(slices.Sorted(maps.Keys(documented)), slices.Sorted(maps.Keys(seen))); diff != "" {
		t.Errorf("answers (-documented +seen):\n%s", diff)
	}
}

// exchange sends a request and returns its answer in the words of document.answers, and its body if that is JSON. Of what concerns no
// path of the document it returns nothing, when it has seen that it is what the document says of it.
func exchange(t *testing.T, path, request string) (answer string, body any) {
	t.Helper()
	c := dialSocket(t, path)
	if _, err := io.WriteString(c, request); err != nil {
		t.Fatal(err)
	}
	method, rest, _ := strings.Cut(request, " ")
	target, _, _ := strings.Cut(rest, " ")
	target, _, _ = strings.Cut(target, "?")
	target, _ = url.PathUnescape(target)
	response, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = c.Close(), response.Body.Close() }() // in this order: a stream has no end
	media, _, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if err != nil {
		t.Fatalf("%.80q: %v", request, err)
	}
	var reason string
	if media == mediaJSON || media == problemType[0] {
		if err := json.NewDecoder(response.Body).Decode(&body); err != nil {
			t.Fatal(err)
		}
		reason, _ = body.(map[string]any)["reason"].(string)
	}
	to, _ := routeOf(target)
	switch {
	case reason == reasonUnknownPath && to == noRoute && response.StatusCode == http.StatusNotFound:
		return "", nil
	case reason == reasonMethodNotAllowed && response.StatusCode == http.StatusMethodNotAllowed && response.Header.Get("Allow") != "":
		return "", nil
	}
	return strings.TrimSpace(strings.Join([]string{routes[to], method, strconv.Itoa(response.StatusCode), media, reason}, " ")), body
}

// TestOpenAPIHasEveryMethod asks each path by every method, and HEAD for what GET answers.
func TestOpenAPIHasEveryMethod(t *testing.T) {
	d := readOpenAPI(t)
	path := serveStore(t, testStore(t), nil)
	paths := routes[noRoute+1:]
	if diff := cmp.Diff(slices.Sorted(slices.Values(paths)), slices.Sorted(maps.Keys(d.at("paths")))); diff != "" {
		t.Errorf("paths (-routes +document):\n%s", diff)
	}
	for _, p := range paths {
		target := strings.ReplaceAll(p, "{name}", "orders")
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"} {
			c := dialSocket(t, path)
			write(t, c, method+" "+target+" HTTP/1.1\r\nHost: l\r\nContent-Length: 0\r\n\r\n")
			response, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Close(), response.Body.Close()
			documented := d.at("paths", p, strings.ToLower(method)) != nil
			if documented == (response.StatusCode == http.StatusMethodNotAllowed) {
				t.Errorf("%s %s: got %s, and the document has it: %v", method, p, response.Status, documented)
			}
			if allow := response.Header.Get("Allow"); !documented && (allow == "" || strings.Contains(allow, method)) {
				t.Errorf("%s %s: Allow: %q", method, p, allow)
			}
		}
	}
}

// TestOpenAPIHasEveryReason, and no other, and what requests may have.
func TestOpenAPIHasEveryReason(t *testing.T) {
	d := readOpenAPI(t)
	named := map[string]bool{ // in its description
		reasonUnknownPath: true, reasonMethodNotAllowed: true, reasonUnknownProtocol: true, reasonUnknownHost: true, reasonWebPage: true,
	}
	for answer := range d.answers(t) {
		if _, reason, ok := strings.Cut(answer, problemType[0]+" "); ok {
			named[reason] = true
		}
	}
	if diff := cmp.Diff(reasonsOfTheSources(t), slices.Sorted(maps.Keys(named))); diff != "" {
		t.Errorf("reasons (-sources +document):\n%s", diff)
	}
	for p, item := range d.at("paths") {
		got := []string{}
		operation := item.(document).at("get")
		if post := item.(document).at("post"); post != nil {
			operation = post
			if diff := cmp.Diff([]string{mediaJSON, mediaBytes}, slices.Sorted(maps.Keys(post.at("requestBody", "content")))); diff != "" {
				t.Errorf("%s: bodies (-want +document):\n%s", p, diff)
			}
		}
		for _, list := range []any{item.(document)["parameters"], operation["parameters"]} {
			parameters, _ := list.([]any)
			for _, parameter := range parameters {
				got = append(got, d.resolve(t, parameter.(document))["name"].(string))
			}
		}
		want := map[string][]string{
			routes[getRoute]: {"name", "generation"}, routes[eventsRoute]: {"name", "Last-Event-ID"},
			routes[encryptRoute]: {"name", associatedHeader}, routes[decryptRoute]: {"name", associatedHeader},
		}[p]
		if diff := cmp.Diff(append([]string{}, want...), got); diff != "" {
			t.Errorf("%s: parameters (-want +document):\n%s", p, diff)
		}
	}
}
