package sidecar

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/sidecar/internal/keystore"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

var testPlaintext = []byte("0123456789abcdef0123456789ABCDEF")

// The plaintexts of older generations.
var olderPlaintext, oldestPlaintext = []byte("ghijklmnopqrstuvwxyz0123GHIJKLMN"), []byte("GhIjKlMnOpQrStUvWxYz32109876543210")

func statusGeneration(name string, number uint32, state keystore.State, reason string) *keystore.Generation {
	return &keystore.Generation{Number: number, Status: keystore.Status{Name: name, State: state, Reason: reason, Message: "because"}}
}

func statusKey(name string, state keystore.State, reason string) *keystore.DataKey {
	return &keystore.DataKey{Generation: statusGeneration(name, 0, state, reason)}
}

// testStore publishes one data key in every state, and one with generations in every state.
func testStore(t testing.TB) *keystore.Store {
	t.Helper()
	s := keystore.New(nil)
	s.Publish(testKeys(t))
	return s
}

func testKeys(t testing.TB) []*keystore.DataKey {
	t.Helper()
	next := statusGeneration("rotated", 8, keystore.StatePending, keystore.ReasonKeyServiceUnavailable)
	rotated := sidecartest.KeyOf(
		next,
		sidecartest.IssuedGeneration(t, "rotated", 7, testPlaintext),
		sidecartest.IssuedGeneration(t, "rotated", 5, olderPlaintext),
		statusGeneration("rotated", 4, keystore.StateRefused, keystore.ReasonBlobRefused),
		statusGeneration("rotated", 3, keystore.StateRefused, keystore.ReasonBlobInvalid),
		sidecartest.IssuedGeneration(t, "rotated", 1, oldestPlaintext),
	)
	rotated.Generation = rotated.Generations[1] // until the next one can be had
	return []*keystore.DataKey{
		sidecartest.IssuedKey(t, "orders", testPlaintext),
		rotated,
		statusKey("late", keystore.StatePending, keystore.ReasonSecretNotFound),
		statusKey("denied", keystore.StateRefused, keystore.ReasonAccessDenied),
		statusKey("edited", keystore.StateRefused, keystore.ReasonBlobInvalid),
		sidecartest.KeyOf(statusGeneration("broken", 2, keystore.StateRefused, keystore.ReasonBlobRefused), sidecartest.IssuedGeneration(t, "broken", 1, olderPlaintext)),
	}
}

func get(target string, headers ...string) string {
	return "GET " + target + " HTTP/1.1\r\nHost: localhost\r\n" + strings.Join(append(headers, "\r\n"), "\r\n")
}

func TestDataKeyAsJSON(t *testing.T) {
	path := serveStore(t, testStore(t), nil)
	for _, target := range []string{"/v1/data-keys/orders", "/v1/data-keys/orders?generation=3"} {
		response, body := roundTrip(t, path, get(target))
		if response.StatusCode != http.StatusOK {
			t.Fatalf("%s: got %s", target, response.Status)
		}
		for header, want := range map[string]string{"Content-Type": "application/json", "Cache-Control": "no-store"} {
			if got := response.Header.Get(header); got != want {
				t.Errorf("%s: %s: got %q, want %q", target, header, got, want)
			}
		}
		want := map[string]any{
			"name": "orders", "generation": 3.0, "keyId": "arn:datakeys:kms:test:team-a:key/1", "keyVersion": 2.0,
			"algorithm": "AES_GCM", "plaintext": base64.StdEncoding.EncodeToString(testPlaintext),
			"ciphertextBlob":    base64.StdEncoding.EncodeToString([]byte("the blob")),
			"encryptionContext": map[string]any{"tenant": "a"},
		}
		got := map[string]any{}
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", target, diff)
		}
	}
}

// TestGenerations: each is answered by its number, and without one the newest that there is.
func TestGenerations(t *testing.T) {
	path := serveStore(t, testStore(t), nil)
	for target, want := range map[string]struct {
		generation uint32
		plaintext  []byte
	}{
		"/v1/data-keys/rotated":              {7, testPlaintext},
		"/v1/data-keys/rotated?generation=7": {7, testPlaintext},
		"/v1/data-keys/rotated?generation=5": {5, olderPlaintext},
		"/v1/data-keys/rotated?generation=1": {1, oldestPlaintext},
		"/v1/data-keys/broken?generation=1":  {1, olderPlaintext},
	} {
		response, body := roundTrip(t, path, get(target))
		var got struct {
			Generation uint32
			Plaintext  []byte
		}
		if err := json.Unmarshal(body, &got); err != nil || response.StatusCode != http.StatusOK {
			t.Errorf("%s: got %s, %v", target, response.Status, err)
		}
		if got.Generation != want.generation || !bytes.Equal(got.Plaintext, want.plaintext) {
			t.Errorf("%s: got generation %d, want %d with its plaintext", target, got.Generation, want.generation)
		}
		if _, raw := roundTrip(t, path, get(target, "Accept: "+mediaBytes)); !bytes.Equal(raw, want.plaintext) {
			t.Errorf("%s as bytes: got another plaintext", target)
		}
	}
}

func TestDataKeyAsBytes(t *testing.T) {
	path := serveStore(t, testStore(t), nil)
	response, body := roundTrip(t, path, get("/v1/data-keys/orders", "Accept: application/octet-stream"))
	if got := response.Header.Get("Content-Type"); response.StatusCode != http.StatusOK || got != "application/octet-stream" {
		t.Errorf("got %s, %q", response.Status, got)
	}
	if got := response.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control: got %q", got)
	}
	if !bytes.Equal(body, testPlaintext) {
		t.Error("the body is not the plaintext")
	}
}

func TestHeadIsGetWithoutBody(t *testing.T) {
	path := serveStore(t, testStore(t), nil)
	for _, target := range []string{"/v1/data-keys/orders", "/v1/data-keys", "/healthz", "/readyz", "/v1/data-keys/denied", "/x"} {
		want, wantBody := roundTrip(t, path, get(target))
		got, body := roundTrip(t, path, strings.Replace(get(target), "GET", "HEAD", 1))
		if len(body) > 0 || got.StatusCode != want.StatusCode || got.ContentLength != int64(len(wantBody)) {
			t.Errorf("HEAD %s: got %s, %d bytes announced, %d sent; want %s, %d announced", target, got.Status,
				got.ContentLength, len(body), want.Status, len(wantBody))
		}
	}
}

// TestEverySizeOnOneConnection asks for all sizes in turn, so that answers are larger and smaller than every buffer.
func TestEverySizeOnOneConnection(t *testing.T) {
	s := keystore.New(nil)
	var keys []*keystore.DataKey
	sizes := []int{1, 16, 32, 1024, 4096, 7}
	for _, n := range sizes {
		keys = append(keys, sidecartest.IssuedKey(t, fmt.Sprint("k", n), bytes.Repeat([]byte{byte(n)}, n)))
	}
	s.Publish(keys)
	path := serveStore(t, s, nil)
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1, DialContext: unixDialer(path)}}
	defer client.CloseIdleConnections()
	for range 3 {
		for _, n := range sizes {
			request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprint("http://localhost/v1/data-keys/k", n), nil)
			request.Header.Set("Accept", mediaBytes)
			response, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(response.Body)
			_ = response.Body.Close()
			if err != nil || !bytes.Equal(body, bytes.Repeat([]byte{byte(n)}, n)) {
				t.Fatalf("%d bytes: got %d other ones, %v", n, len(body), err)
			}
		}
	}
}

func TestList(t *testing.T) {
	path := serveStore(t, testStore(t), nil)
	response, body := roundTrip(t, path, get("/v1/data-keys"))
	want := `{"dataKeys":[` +
		`{"name":"orders","state":"Issued","generation":3,"keyId":"arn:datakeys:kms:test:team-a:key/1","keyVersion":2,"algorithm":"AES_GCM",` +
		`"generations":[{"generation":3,"state":"Issued","keyVersion":2}]},` +
		`{"name":"rotated","state":"Issued","generation":7,"keyId":"arn:datakeys:kms:test:team-a:key/1","keyVersion":2,"algorithm":"AES_GCM",` +
		`"generations":[{"generation":8,"state":"Pending","reason":"KeyServiceUnavailable"},` +
		`{"generation":7,"state":"Issued","keyVersion":2},{"generation":5,"state":"Issued","keyVersion":2},` +
		`{"generation":4,"state":"Refused","reason":"BlobRefused"},{"generation":3,"state":"Refused","reason":"BlobInvalid"},` +
		`{"generation":1,"state":"Issued","keyVersion":2}]},` +
		`{"name":"late","state":"Pending","reason":"SecretNotFound","message":"because"},` +
		`{"name":"denied","state":"Refused","reason":"AccessDenied","message":"because"},` +
		`{"name":"edited","state":"Refused","reason":"BlobInvalid","message":"because"},` +
		`{"name":"broken","state":"Refused","reason":"BlobRefused","message":"because",` +
		`"generations":[{"generation":2,"state":"Refused","reason":"BlobRefused"},{"generation":1,"state":"Issued","keyVersion":2}]}]}` + "\n"
	if response.StatusCode != http.StatusOK {
		t.Errorf("got %s", response.Status)
	}
	if diff := cmp.Diff(want, string(body)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, plaintext := range [][]byte{testPlaintext, olderPlaintext, oldestPlaintext} {
		checkHides(t, "the list", string(body), plaintext)
	}
}

func TestHealth(t *testing.T) {
	s := testStore(t)
	path := serveStore(t, s, nil)
	if response, _ := roundTrip(t, path, get("/healthz")); response.StatusCode != http.StatusOK {
		t.Errorf("/healthz with keys that are not issued: got %s", response.Status)
	}
	old := statusGeneration("orders", 1, keystore.StateRefused, keystore.ReasonBlobRefused)
	s.Publish([]*keystore.DataKey{sidecartest.KeyOf(sidecartest.IssuedGeneration(t, "orders", 3, testPlaintext), old)})
	if response, _ := roundTrip(t, path, get("/readyz")); response.StatusCode != http.StatusOK {
		t.Errorf("/readyz with the newest generation of every key issued: got %s", response.Status)
	}
}

// problemCase is a request that is not answered with success.
type problemCase struct {
	request string
	status  int
	reason  string
	detail  string // a part of it
	header  string
}

// problemCases are requests without a body, sent to testStore.
func problemCases() map[string]problemCase {
	return map[string]problemCase{
		"an unknown name": {
			get("/v1/data-keys/other"), 404, "UnknownDataKey", `this pod has no data key "other": it was created without it; ` +
				`name it in the annotation datakeys.io/data-keys and create the pod again`, "",
		},
		"an unknown name that is a path": {
			get("/v1/data-keys/..%2fetc"), 404, "UnknownPath", "/v1/data-keys/{name}", "",
		},
		"an unknown path": {get("/v2/data-keys"), 404, "UnknownPath", `no path "/v2/data-keys"`, ""},
		"an empty name":   {get("/v1/data-keys/"), 404, "UnknownPath", "no path", ""},
		"a path below a name": {
			get("/v1/data-keys/orders/sign"), 404, "UnknownPath", "no path", "",
		},
		"a path below an action":      {get("/v1/data-keys/orders/encrypt/"), 404, "UnknownPath", "no path", ""},
		"an action of no name":        {get("/v1/data-keys//encrypt"), 404, "UnknownPath", "no path", ""},
		"a name behind no slash":      {get("/v1/data-keysorders"), 404, "UnknownPath", "/v1/data-keys/{name}/encrypt, ", ""},
		"a path with doubled slashes": {get("//v1/data-keys/orders"), 404, "UnknownPath", "no path", ""},
		"no path at all":              {"OPTIONS * HTTP/1.1\r\nHost: l\r\n\r\n", 404, "UnknownPath", "no path", ""},
		"POST to a data key": {
			"POST /v1/data-keys/orders HTTP/1.1\r\nHost: l\r\nContent-Length: 0\r\n\r\n", 405, "MethodNotAllowed",
			`"POST" is not a method`, "Allow: GET, HEAD",
		},
		"DELETE of the list": {
			"DELETE /v1/data-keys HTTP/1.1\r\nHost: l\r\n\r\n", 405, "MethodNotAllowed", "use GET or HEAD", "Allow: GET, HEAD",
		},
		"PUT of an unknown name": {
			"PUT /v1/data-keys/other HTTP/1.1\r\nHost: l\r\n\r\n", 405, "MethodNotAllowed", "use GET or HEAD", "Allow: GET, HEAD",
		},
		"a method that nobody knows": {
			"STEAL /readyz HTTP/1.1\r\nHost: l\r\n\r\n", 405, "MethodNotAllowed", `"STEAL"`, "Allow: GET, HEAD",
		},
		"a data key that the key service refuses": {
			get("/v1/data-keys/denied"), 403, "AccessDenied", `"denied" is not issued: because`, "",
		},
		"a data key that is not there yet": {
			get("/v1/data-keys/late"), 503, "SecretNotFound", `"late" is not issued: because`, "Retry-After: 1",
		},
		"a data key whose Secret is broken": {
			get("/v1/data-keys/edited"), 503, "BlobInvalid", `"edited" is not issued`, "Retry-After: 10",
		},
		"not ready": {get("/readyz"), 503, "NotReady", "not every data key", "Retry-After: 1"},
		"an Accept of something else": {
			get("/v1/data-keys/orders", "Accept: text/html"), 406, "NotAcceptable", "application/octet-stream", "",
		},
		"an Accept of bytes for the list": {
			get("/v1/data-keys", "Accept: application/octet-stream"), 406, "NotAcceptable", "application/json", "",
		},
		"another generation": {
			get("/v1/data-keys/orders?generation=2"), 404, "UnknownGeneration",
			`the data key "orders" has no generation 2 here: GET /v1/data-keys lists those that there are`, "",
		},
		"an unknown generation between others": {
			get("/v1/data-keys/rotated?generation=6"), 404, "UnknownGeneration", "no generation 6", "",
		},
		"a new generation that is not there yet": {
			get("/v1/data-keys/rotated?generation=8"), 503, "KeyServiceUnavailable",
			`generation 8 of the data key "rotated" is not issued: because`, "Retry-After: 1",
		},
		"an older generation that is refused": {
			get("/v1/data-keys/rotated?generation=4"), 403, "BlobRefused",
			`generation 4 of the data key "rotated" is not issued: because`, "",
		},
		"an older generation whose entry is broken": {
			get("/v1/data-keys/rotated?generation=3"), 503, "BlobInvalid",
			`generation 3 of the data key "rotated" is not issued: because`, "Retry-After: 10",
		},
		"the newest generation refused, beside one that is issued": {
			get("/v1/data-keys/broken"), 403, "BlobRefused", `the data key "broken" is not issued: because`, "",
		},
		"a generation of a data key that is not there yet": {
			get("/v1/data-keys/late?generation=2"), 503, "SecretNotFound", `the data key "late" is not issued: because`, "Retry-After: 1",
		},
		"a generation that no int32 holds": {
			get("/v1/data-keys/rotated?generation=2147483648"), 400, "InvalidParameter", "generation", "",
		},
		"a generation of 0":      {get("/v1/data-keys/orders?generation=0"), 400, "InvalidParameter", "generation", ""},
		"a generation in words":  {get("/v1/data-keys/orders?generation=one"), 400, "InvalidParameter", "generation", ""},
		"two generations":        {get("/v1/data-keys/orders?generation=3&generation=3"), 400, "InvalidParameter", "one", ""},
		"an unknown parameter":   {get("/v1/data-keys/orders?verbose=1"), 400, "InvalidParameter", `"verbose"`, ""},
		"a generation of a list": {get("/v1/data-keys?generation=3"), 400, "InvalidParameter", `"generation"`, ""},
		"a malformed query":      {get("/v1/data-keys/orders?a=%zz"), 400, "InvalidParameter", "malformed", ""},
		"a long target": {
			get("/v1/data-keys/" + strings.Repeat("a", maxURI)), 414, "URITooLong", "at most 2048", "",
		},
		"a body that never comes": {
			"GET /v1/data-keys/orders HTTP/1.1\r\nHost: l\r\nContent-Length: 5\r\n\r\n", 413, "BodyNotAllowed", "the request has a body: GET and HEAD take none", "",
		},
		"a body of unknown length": {
			"GET /v1/data-keys/orders HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: chunked\r\n\r\n", 413, "BodyNotAllowed", "the request has a body: GET and HEAD take none", "",
		},
		"POST with a body that never comes": {
			"POST /v1/data-keys/orders HTTP/1.1\r\nHost: l\r\nContent-Length: 5\r\n\r\n", 405, "MethodNotAllowed", "use GET or HEAD",
			"Allow: GET, HEAD",
		},
		"POST with a body to another path": {
			"POST / HTTP/1.1\r\nHost: l\r\nContent-Length: 5\r\n\r\n", 404, "UnknownPath", "no path", "",
		},
	}
}

func TestProblems(t *testing.T) {
	path := serveStore(t, cryptStore(t), nil)
	all := problemCases()
	maps.Copy(all, cryptProblemCases(t))
	for name, test := range all {
		t.Run(name, func(t *testing.T) {
			response, body := roundTrip(t, path, test.request)
			var got problem
			if err := json.Unmarshal(body, &got); err != nil {
				t.Fatalf("%s: %v: %s", response.Status, err, body)
			}
			if response.StatusCode != test.status || got.Status != test.status || got.Reason != test.reason {
				t.Errorf("got %s, %d, reason %q; want %d, %q", response.Status, got.Status, got.Reason, test.status, test.reason)
			}
			if !strings.Contains(got.Detail, test.detail) || got.Type != "about:blank" || got.Title != http.StatusText(test.status) {
				t.Errorf("got %+v, want a detail with %q", got, test.detail)
			}
			if ct := response.Header.Get("Content-Type"); ct != "application/problem+json" {
				t.Errorf("Content-Type: got %q", ct)
			}
			if name, want, ok := strings.Cut(test.header, ": "); ok && response.Header.Get(name) != want {
				t.Errorf("%s: got %q, want %q", name, response.Header.Get(name), want)
			}
			for _, plaintext := range [][]byte{testPlaintext, olderPlaintext, oldestPlaintext} {
				checkHides(t, "the answer", string(body), plaintext)
			}
		})
	}
}

func TestReadyNamesWhatIsMissing(t *testing.T) {
	path := serveStore(t, testStore(t), nil)
	_, body := roundTrip(t, path, get("/readyz"))
	var got problem
	if err := json.Unmarshal(body, &got); err != nil {
		t.Fatal(err)
	}
	want := []keystore.Status{
		{Name: "late", State: keystore.StatePending, Reason: keystore.ReasonSecretNotFound, Message: "because"},
		{Name: "denied", State: keystore.StateRefused, Reason: keystore.ReasonAccessDenied, Message: "because"},
		{Name: "edited", State: keystore.StateRefused, Reason: keystore.ReasonBlobInvalid, Message: "because"},
		{Name: "broken", State: keystore.StateRefused, Reason: keystore.ReasonBlobRefused, Message: "because"},
	}
	if diff := cmp.Diff(want, got.DataKeys); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestMalformedRequestsAreAnswered sends what net/http itself refuses.
func TestMalformedRequestsAreAnswered(t *testing.T) {
	path := serveStore(t, testStore(t), nil)
	for name, test := range map[string]struct {
		request string
		status  int
	}{
		"a huge header":             {get("/healthz", "X: "+strings.Repeat("x", 64<<10)), 431},
		"many headers":              {get("/healthz", strings.Repeat("X: y\r\n", 8<<10)+"Z: z"), 431},
		"no HTTP":                   {"hello there\r\n\r\n", 400},
		"no Host":                   {"GET /healthz HTTP/1.1\r\n\r\n", 400},
		"another protocol version":  {"GET /healthz HTTP/3.0\r\nHost: l\r\n\r\n", 505},
		"a length that is none":     {"GET /healthz HTTP/1.1\r\nHost: l\r\nContent-Length: x\r\n\r\n", 400},
		"a header without a name":   {get("/healthz", ": x"), 400},
		"an escape that is no byte": {get("/v1/data-keys/%zz"), 400},
	} {
		t.Run(name, func(t *testing.T) {
			if response, _ := roundTrip(t, path, test.request); response.StatusCode != test.status {
				t.Errorf("got %s, want %d", response.Status, test.status)
			}
		})
	}
}

// TestAnswersLetGo: whatever was answered, the plaintext goes when it is replaced.
func TestAnswersLetGo(t *testing.T) {
	s := testStore(t)
	last := s.Now()
	var server *http.Server
	path := serveStore(t, s, func(s *http.Server, _ *listener, _ *watchdog) { server = s })
	for _, request := range []string{
		get("/v1/data-keys/orders"), get("/v1/data-keys/orders", "Accept: "+mediaBytes),
		get("/v1/data-keys/orders", "Accept: text/html"), get("/v1/data-keys/orders?generation=9"),
		get("/v1/data-keys/rotated?generation=5"), get("/v1/data-keys/rotated?generation=1", "Accept: "+mediaBytes),
		get("/v1/data-keys/rotated?generation=4"), get("/v1/data-keys/broken?generation=1", "Accept: text/html"),
		strings.Replace(get("/v1/data-keys/orders"), "GET", "HEAD", 1),
	} {
		roundTrip(t, path, request)
	}
	if err := server.Shutdown(t.Context()); err != nil { // waits for the handlers
		t.Fatal(err)
	}
	s.Close()
	plaintexts := 0
	for _, k := range last.ByName {
		for issued := range k.Plaintexts() {
			if plaintexts++; !issued.Plaintext.IsZero() {
				t.Errorf("somebody still holds a plaintext of %s", k.Name)
			}
		}
	}
	if plaintexts != 5 {
		t.Errorf("got %d plaintexts", plaintexts)
	}
}

// TestManyConnections keeps more connections than there is room for: each is served in its turn.
func TestManyConnections(t *testing.T) {
	path := serveStore(t, testStore(t), func(_ *http.Server, l *listener, _ *watchdog) { l.slots = make(chan struct{}, 2) })
	for range 20 {
		if response, _ := roundTrip(t, path, get("/healthz")); response.StatusCode != http.StatusOK {
			t.Fatalf("got %s", response.Status)
		}
	}
}
