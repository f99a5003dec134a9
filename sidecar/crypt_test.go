package sidecar

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/secrettest"
	"github.com/datakeys/datakeys/sidecar/internal/keyservice"
	"github.com/datakeys/datakeys/sidecar/internal/keystore"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

// cryptStore is testStore with data keys that nothing can be encrypted with.
func cryptStore(t testing.TB) *keystore.Store {
	t.Helper()
	pair := sidecartest.IssuedKey(t, "pair", testPlaintext)
	pair.KeyPairSpec = "ECC_NIST_P256"
	gone := sidecartest.IssuedKey(t, "gone", testPlaintext)
	gone.Issued.Plaintext.Destroy() // which holding it prevents
	s := keystore.New(nil)
	s.Publish(append(testKeys(t), pair, gone, sidecartest.IssuedKey(t, "short", testPlaintext[:15]), sidecartest.IssuedKey(t, "shortest", testPlaintext[:16])))
	return s
}

func post(target, contentType string, body []byte, headers ...string) string {
	if contentType != "" {
		headers = append(headers, "Content-Type: "+contentType)
	}
	headers = append(headers, fmt.Sprint("Content-Length: ", len(body)))
	return "POST " + target + " HTTP/1.1\r\nHost: localhost\r\n" + strings.Join(headers, "\r\n") + "\r\n\r\n" + string(body)
}

func postJSON(target, body string, headers ...string) string {
	return post(target, mediaJSON, []byte(body), headers...)
}

// chunked sends a body in chunks.
func chunked(target, contentType string, chunks ...string) string {
	all := "POST " + target + " HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: chunked\r\nContent-Type: " + contentType + "\r\n\r\n"
	for _, c := range append(chunks, "") {
		all += fmt.Sprintf("%x\r\n%s\r\n", len(c), c)
	}
	return all
}

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// sealedMessage is what a data key encrypts.
func sealedMessage(t testing.TB, dataKey []byte, generation uint32, associated, data []byte) []byte {
	t.Helper()
	p, err := envelope.PlaintextFromBytes(dataKey)
	if err != nil {
		t.Fatal(err)
	}
	m, err := p.SealMessage(nil, generation, envelope.AssociatedData{Raw: associated}, data)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// openedMessage is what was encrypted, with the test store's data key of that generation.
func openedMessage(t testing.TB, dataKey []byte, generation uint32, associated, sealed []byte) []byte {
	t.Helper()
	p, err := envelope.PlaintextFromBytes(dataKey)
	if err != nil {
		t.Fatal(err)
	}
	m, err := envelope.ParseMessage(sealed)
	if err != nil || m.Generation != generation {
		t.Fatalf("got %+v, %v, want generation %d", m, err, generation)
	}
	data, err := p.OpenMessage(nil, m, envelope.AssociatedData{Raw: associated})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

const (
	encryptOrders = "/v1/data-keys/orders/encrypt"
	decryptOrders = "/v1/data-keys/orders/decrypt"
)

// secretData is what applications encrypt in these tests.
var secretData = []byte("the customer's card: 4111 1111 1111 1111, and more than one block of it")

// cryptProblemCases are requests that cryptStore does not answer with success.
func cryptProblemCases(t testing.TB) map[string]problemCase {
	t.Helper()
	sealed := sealedMessage(t, testPlaintext, 3, nil, secretData)
	flipped := bytes.Clone(sealed)
	flipped[len(flipped)-1] ^= 1
	large := bytes.Repeat([]byte("x"), maxPlaintext+1)
	secret := b64(secretData)
	encrypt := func(body string) string { return postJSON(encryptOrders, body) }
	all := map[string]problemCase{
		"GET of encrypt": {get(encryptOrders), 405, "MethodNotAllowed", "use POST", "Allow: POST"},
		"PUT of decrypt": {
			strings.Replace(post(decryptOrders, "", sealed), "POST", "PUT", 1), 405, "MethodNotAllowed", `"PUT"`, "Allow: POST",
		},
		"POST of events":    {post("/v1/data-keys/orders/events", "", nil), 405, "MethodNotAllowed", "use GET or HEAD", "Allow: GET, HEAD"},
		"DELETE of metrics": {strings.Replace(get("/metrics"), "GET", "DELETE", 1), 405, "MethodNotAllowed", "", "Allow: GET, HEAD"},
		"encrypt as text": {
			post(encryptOrders, "text/plain", secretData), 415, "UnsupportedMediaType", "application/octet-stream or application/json", "",
		},
		"encrypt as curl sends by itself": {
			post(encryptOrders, "application/x-www-form-urlencoded", secretData), 415, "UnsupportedMediaType", "Content-Type", "",
		},
		"encrypt as a type that is none": {post(encryptOrders, "/", secretData), 415, "UnsupportedMediaType", "", ""},
		"encrypt as two types": {
			post(encryptOrders, mediaBytes, secretData, "Content-Type: "+mediaJSON), 415, "UnsupportedMediaType", "", "",
		},
		"encrypt what is compressed": {
			post(encryptOrders, mediaBytes, secretData, "Content-Encoding: gzip"), 415, "UnsupportedMediaType", "without Content-Encoding", "",
		},
		"encrypt for text": {post(encryptOrders, mediaBytes, secretData, "Accept: text/plain"), 406, "NotAcceptable", "", ""},
		"encrypt with a parameter": {
			post(encryptOrders+"?generation=3", mediaBytes, secretData), 400, "InvalidParameter", `"generation"`, "",
		},
		"decrypt with a parameter":   {post(decryptOrders+"?generation=3", mediaBytes, sealed), 400, "InvalidParameter", `"generation"`, ""},
		"encrypt with a long target": {post(encryptOrders+"?"+strings.Repeat("a", maxURI), mediaBytes, secretData), 414, "URITooLong", "", ""},
		"associated data that is no base64": {
			post(encryptOrders, mediaBytes, secretData, associatedHeader+": row 42"), 400, "InvalidParameter", "must be base64", "",
		},
		"associated data twice": {
			post(encryptOrders, mediaBytes, secretData, associatedHeader+": YQ==", associatedHeader+": YQ=="), 400, "InvalidParameter", "once", "",
		},
		"too much associated data": {
			post(encryptOrders, mediaBytes, secretData, associatedHeader+": "+b64(make([]byte, 8193))), 400, "InvalidParameter", "at most 8192", "",
		},
		"associated data in a header beside JSON": {
			postJSON(encryptOrders, `{"plaintext":""}`, associatedHeader+": YQ=="), 400, "InvalidParameter", "the member associatedData", "",
		},
		"too much in JSON": {
			encrypt(`{"plaintext":"","associatedData":"` + b64(make([]byte, 8193)) + `"}`), 400, "BodyInvalid", "at most 8192", "",
		},
		"a plaintext that is too large": {
			post(encryptOrders, mediaBytes, large), 413, "BodyTooLarge", "at most 65536 are encrypted at once", "",
		},
		"a plaintext that is too large, in chunks": {chunked(encryptOrders, mediaBytes, string(large)), 413, "BodyTooLarge", "65536", ""},
		"a plaintext of several times as much, in chunks": {
			chunked(encryptOrders, mediaBytes, strings.Repeat("x", 3*maxPlaintext)), 413, "BodyTooLarge", "65536", "",
		},
		"a plaintext that is too large, in JSON": {encrypt(`{"plaintext":"` + b64(large) + `"}`), 413, "BodyTooLarge", "65536", ""},
		"JSON that is too large":                 {encrypt(strings.Repeat(" ", maxJSONBody+1)), 413, "BodyTooLarge", "131072", ""},
		"a length beyond all reason": {
			"POST " + encryptOrders + " HTTP/1.1\r\nHost: l\r\nContent-Length: 9223372036854775807\r\n\r\n", 413, "BodyTooLarge", "", "",
		},
		"a ciphertext that is too large": {
			post(decryptOrders, mediaBytes, append(bytes.Clone(large), make([]byte, envelope.MessageOverhead)...)), 413, "BodyTooLarge", "65634", "",
		},
		"a ciphertext that is too large, in JSON": {
			postJSON(decryptOrders, `{"ciphertext":"`+b64(append(bytes.Clone(large), make([]byte, envelope.MessageOverhead)...))+`"}`),
			413, "BodyTooLarge", "65634", "",
		},
		"chunks that are none": {
			"POST " + encryptOrders + " HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: chunked\r\n\r\nthis is no chunk\r\n", 400, "BodyIncomplete",
			"malformed", "",
		},
		"no JSON":                    {encrypt("plaintext"), 400, "BodyInvalid", "one JSON object", ""},
		"nothing as JSON":            {encrypt(""), 400, "BodyInvalid", "one JSON object", ""},
		"an array":                   {encrypt(`["` + secret + `"]`), 400, "BodyInvalid", "one JSON object", ""},
		"a string":                   {encrypt(`"` + secret + `"`), 400, "BodyInvalid", "one JSON object", ""},
		"JSON with something behind": {encrypt(`{"plaintext":"` + secret + `"} {}`), 400, "BodyInvalid", "one JSON object", ""},
		"a plaintext twice": {
			encrypt(`{"plaintext":"","plaintext":"` + secret + `"}`), 400, "BodyInvalid", `"plaintext" is there twice`, "",
		},
		"a member that nobody knows": {
			encrypt(`{"plaintext":"` + secret + `","context":{}}`), 400, "BodyInvalid", `"context" is not known`, "",
		},
		"a member in other letters":   {encrypt(`{"Plaintext":"` + secret + `"}`), 400, "BodyInvalid", `"Plaintext" is not known`, ""},
		"a ciphertext to encrypt":     {encrypt(`{"ciphertext":"` + secret + `"}`), 400, "BodyInvalid", `"ciphertext" is not known`, ""},
		"no plaintext":                {encrypt(`{"associatedData":"YQ=="}`), 400, "BodyInvalid", `"plaintext" is missing`, ""},
		"JSON with a comma too many":  {encrypt(`{"plaintext":"` + secret + `",}`), 400, "BodyInvalid", "one JSON object", ""},
		"JSON with a comma first":     {encrypt(`{,"plaintext":"` + secret + `"}`), 400, "BodyInvalid", "one JSON object", ""},
		"JSON without its end":        {encrypt(`{"plaintext":"` + secret + `"`), 400, "BodyInvalid", "one JSON object", ""},
		"JSON that ends in a string":  {encrypt(`{"plaintext":"` + secret), 400, "BodyInvalid", "must be a string", ""},
		"JSON that ends in an escape": {encrypt(`{"plaintext":"\`), 400, "BodyInvalid", "must be a string", ""},
		"an escape that is cut off":   {encrypt(`{"plaintext":"YQ\u00"}`), 400, "BodyInvalid", "must be base64", ""},
		"an escape with a sign":       {encrypt(`{"plaintext":"YWJ\u+041"}`), 400, "BodyInvalid", "must be base64", ""},
		"a quote as an escape":        {encrypt(`{"plaintext":"YQ=\""}`), 400, "BodyInvalid", "must be base64", ""},
		"an empty object":             {encrypt(` { } `), 400, "BodyInvalid", `"plaintext" is missing`, ""},
		"a plaintext of null":         {encrypt(`{"plaintext":null}`), 400, "BodyInvalid", `"plaintext" must be a string`, ""},
		"a number":                    {encrypt(`{"plaintext":1}`), 400, "BodyInvalid", `"plaintext" must be a string`, ""},
		"a plaintext in depth": {
			encrypt(`{"plaintext":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`), 400, "BodyInvalid", "string", "",
		},
		"depth without end":                {encrypt(`{"plaintext":` + strings.Repeat("[", 60000)), 400, "BodyInvalid", "must be a string", ""},
		"text in place of base64":          {encrypt(`{"plaintext":"hello, world"}`), 400, "BodyInvalid", `"plaintext" must be base64`, ""},
		"base64 without its padding":       {encrypt(`{"plaintext":"YQ"}`), 400, "BodyInvalid", `must be base64`, ""},
		"base64 with bits that are lost":   {encrypt(`{"plaintext":"YR=="}`), 400, "BodyInvalid", `must be base64`, ""},
		"base64 for URLs":                  {encrypt(`{"plaintext":"_-__"}`), 400, "BodyInvalid", `must be base64`, ""},
		"base64 in lines":                  {encrypt(`{"plaintext":"YWJj\nZGVm"}`), 400, "BodyInvalid", `must be base64`, ""},
		"base64 in lines, by their number": {encrypt(`{"plaintext":"YWJj\u000aZGVm"}`), 400, "BodyInvalid", `must be base64`, ""},
		"base64 outside of ASCII":          {encrypt(`{"plaintext":"YWJ\u016a"}`), 400, "BodyInvalid", `must be base64`, ""},

		"encrypt with an unknown name": {
			post("/v1/data-keys/other/encrypt", mediaBytes, secretData), 404, "UnknownDataKey", `no data key "other"`, "",
		},
		"decrypt with an unknown name": {post("/v1/data-keys/other/decrypt", mediaBytes, sealed), 404, "UnknownDataKey", "", ""},
		"encrypt with what is refused": {post("/v1/data-keys/denied/encrypt", mediaBytes, secretData), 403, "AccessDenied", "because", ""},
		"decrypt with what is refused": {post("/v1/data-keys/denied/decrypt", mediaBytes, sealed), 403, "AccessDenied", "because", ""},
		"encrypt with what is late": {
			post("/v1/data-keys/late/encrypt", mediaBytes, secretData), 503, "SecretNotFound", "", "Retry-After: 1",
		},
		"encrypt with a Secret that is broken": {
			post("/v1/data-keys/edited/encrypt", mediaBytes, secretData), 503, "BlobInvalid", "", "Retry-After: 10",
		},
		"decrypt what a later generation encrypted": {
			post("/v1/data-keys/rotated/decrypt", mediaBytes, sealedMessage(t, testPlaintext, 9, nil, secretData)),
			404, "UnknownGeneration", "no generation 9", "",
		},
		"decrypt what the last of all generations encrypted": {
			post("/v1/data-keys/rotated/decrypt", mediaBytes, sealedMessage(t, testPlaintext, 4294967295, nil, nil)),
			404, "UnknownGeneration", "4294967295", "",
		},
		"decrypt what an older generation encrypted that is refused": {
			post("/v1/data-keys/rotated/decrypt", mediaBytes, sealedMessage(t, testPlaintext, 4, nil, secretData)),
			403, "BlobRefused", "generation 4", "",
		},
		"decrypt what the next generation encrypted": {
			post("/v1/data-keys/rotated/decrypt", mediaBytes, sealedMessage(t, testPlaintext, 8, nil, secretData)),
			503, "KeyServiceUnavailable", "generation 8",
			"Retry-After: 1",
		},
		"decrypt what is damaged": {post(decryptOrders, mediaBytes, flipped), 400, "CiphertextBroken", "damaged", ""},
		"decrypt what is damaged, JSON": {
			postJSON(decryptOrders, `{"ciphertext":"`+b64(flipped)+`"}`), 400, "CiphertextBroken", "damaged", "",
		},
		"decrypt what is cut off": {post(decryptOrders, mediaBytes, sealed[:97]), 400, "CiphertextBroken", "", ""},
		"decrypt nothing":         {post(decryptOrders, mediaBytes, nil), 400, "CiphertextBroken", "", ""},
		"decrypt what is no message": {
			post(decryptOrders, mediaBytes, sidecartest.DataKeyBlob(t, "orders", 3)), 400, "UnknownFormat", "another format", "",
		},
		"decrypt base64 as bytes": {post(decryptOrders, mediaBytes, []byte(b64(sealed))), 400, "UnknownFormat", "", ""},
		"decrypt with associated data": {
			post(decryptOrders, mediaBytes, sealed, associatedHeader+": YQ=="), 400, "CiphertextBroken", "", "",
		},
		"decrypt with another data key": {post("/v1/data-keys/shortest/decrypt", mediaBytes, sealed), 400, "CiphertextBroken", "", ""},
		"encrypt with a key pair": {
			post("/v1/data-keys/pair/encrypt", mediaBytes, secretData), 409, "UnsuitableDataKey", "is a key pair", "",
		},
		"decrypt with a key pair": {
			post("/v1/data-keys/pair/decrypt", mediaBytes, sealed), 409, "UnsuitableDataKey", "is a key pair", "",
		},
		"encrypt with a short data key": {
			post("/v1/data-keys/short/encrypt", mediaBytes, secretData),
			409, "UnsuitableDataKey", "has 15 bytes: encrypting takes a symmetric one of 16", "",
		},
		"decrypt with a short data key": {
			post("/v1/data-keys/short/decrypt", mediaBytes, sealed), 409, "UnsuitableDataKey", "has 15 bytes", "",
		},
		"encrypt with what was destroyed": {post("/v1/data-keys/gone/encrypt", mediaBytes, secretData), 500, "InternalError", "", ""},
		"decrypt with what was destroyed": {post("/v1/data-keys/gone/decrypt", mediaBytes, sealed), 500, "InternalError", "", ""},

		"events of an unknown name": {get("/v1/data-keys/other/events"), 404, "UnknownDataKey", `no data key "other"`, ""},
		"events as JSON":            {get("/v1/data-keys/orders/events", "Accept: "+mediaJSON), 406, "NotAcceptable", "text/event-stream", ""},
		"events of a generation":    {get("/v1/data-keys/orders/events?generation=3"), 400, "InvalidParameter", `"generation"`, ""},
		"events with a body": {
			"GET /v1/data-keys/orders/events HTTP/1.1\r\nHost: l\r\nContent-Length: 5\r\n\r\n", 413, "BodyNotAllowed", "", "",
		},
		"metrics as JSON":          {get("/metrics", "Accept: "+mediaJSON), 406, "NotAcceptable", "text/plain", ""},
		"metrics with a parameter": {get("/metrics?name=x"), 400, "InvalidParameter", `"name"`, ""},
	}
	return all
}

// TestEncryptAndDecrypt: in both forms, each answered in both forms, without and with associated data, of all sizes.
func TestEncryptAndDecrypt(t *testing.T) {
	path := serveStore(t, cryptStore(t), nil)
	for _, associated := range [][]byte{nil, []byte("row 42"), bytes.Repeat([]byte{0xfb}, 8192)} {
		for _, data := range [][]byte{nil, []byte("x"), secretData, bytes.Repeat([]byte("4 KiB"), 1000), make([]byte, maxPlaintext)} {
			for _, in := range []string{mediaBytes, mediaJSON} {
				for _, out := range []string{mediaBytes, mediaJSON, ""} {
					name := fmt.Sprintf("%d bytes, %d associated, as %s, answered as %s", len(data), len(associated), in, out)
					sealed := crypt(t, path, encryptOrders, in, out, "plaintext", "ciphertext", data, associated)
					if got := openedMessage(t, testPlaintext, 3, associated, sealed); !bytes.Equal(got, data) {
						t.Errorf("%s: something else was encrypted", name)
					}
					if got := crypt(t, path, decryptOrders, in, out, "ciphertext", "plaintext", sealed, associated); !bytes.Equal(got, data) {
						t.Errorf("%s: something else was decrypted", name)
					}
				}
			}
		}
	}
}

// crypt posts what it is given in the one form and reads the other out of the answer.
func crypt(t *testing.T, path, target, in, out, give, take string, given, associated []byte) []byte {
	t.Helper()
	var headers []string
	if out != "" {
		headers = append(headers, "Accept: "+out)
	} else {
		out = in
	}
	content := given
	if in == mediaJSON {
		members := map[string][]byte{give: append([]byte{}, given...)}
		if associated != nil {
			members["associatedData"] = associated
		}
		content = object(members)
	} else if associated != nil {
		headers = append(headers, associatedHeader+": "+b64(associated))
	}
	response, answer := roundTrip(t, path, post(target, in, content, headers...))
	h := response.Header
	if response.StatusCode != http.StatusOK || h.Get("Content-Type") != out || h.Get("Cache-Control") != "no-store" ||
		response.ContentLength != int64(len(answer)) || h.Get("Connection") != "" {
		t.Fatalf("got %+v: %.300s", response, answer)
	}
	if out == mediaBytes {
		return answer
	}
	var got map[string]any
	if err := json.Unmarshal(answer, &got); err != nil {
		t.Fatal(err)
	}
	taken, _ := got[take].(string)
	if diff := cmp.Diff(map[string]any{"name": "orders", "generation": 3.0, take: taken}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	bytes, err := base64.StdEncoding.DecodeString(taken)
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// TestCryptGenerations: the newest that is issued encrypts, and each decrypts what it encrypted.
func TestCryptGenerations(t *testing.T) {
	path := serveStore(t, testStore(t), nil)
	_, sealed := roundTrip(t, path, post("/v1/data-keys/rotated/encrypt", mediaBytes, secretData))
	if got := openedMessage(t, testPlaintext, 7, nil, sealed); !bytes.Equal(got, secretData) {
		t.Error("something else was encrypted")
	}
	for generation, dataKey := range map[uint32][]byte{7: testPlaintext, 5: olderPlaintext, 1: oldestPlaintext} {
		sealed := sealedMessage(t, dataKey, generation, nil, secretData)
		response, got := roundTrip(t, path, post("/v1/data-keys/rotated/decrypt", mediaBytes, sealed))
		if response.StatusCode != http.StatusOK || !bytes.Equal(got, secretData) {
			t.Errorf("generation %d: got %s", generation, response.Status)
		}
	}
}

// TestBodiesThatAreTaken: how else a body may come.
func TestBodiesThatAreTaken(t *testing.T) {
	path := serveStore(t, testStore(t), nil)
	secret := b64(secretData)
	for name, request := range map[string]string{
		"without a type":           post(encryptOrders, "", secretData),
		"with parameters":          post(encryptOrders, "application/octet-stream; v=1", secretData),
		"in capitals":              post(encryptOrders, "Application/OCTET-Stream", secretData),
		"in one chunk":             chunked(encryptOrders, mediaBytes, string(secretData)),
		"in many chunks":           chunked(encryptOrders, mediaBytes, strings.Split(string(secretData), "")...),
		"JSON with a charset":      post(encryptOrders, "application/json; charset=utf-8", []byte(`{"plaintext":"`+secret+`"}`)),
		"JSON in chunks":           chunked(encryptOrders, mediaJSON, `{"plain`, `text":"`, secret, `"}`),
		"JSON with room":           postJSON(encryptOrders, " {\r\n\t\"plaintext\" : \""+secret+"\" } \n", "Accept: "+mediaBytes),
		"JSON with escapes":        postJSON(encryptOrders, `{"plaintext":"\u0064`+secret[1:]+`"}`, "Accept: "+mediaBytes),
		"with a second to be kept": post(encryptOrders, mediaBytes, secretData, "Connection: keep-alive"),
	} {
		t.Run(name, func(t *testing.T) {
			response, sealed := roundTrip(t, path, request)
			if response.StatusCode != http.StatusOK {
				t.Fatalf("got %s: %s", response.Status, sealed)
			}
			if response.Header.Get("Content-Type") == mediaJSON {
				var answer struct{ Ciphertext []byte }
				if err := json.Unmarshal(sealed, &answer); err != nil {
					t.Fatal(err)
				}
				sealed = answer.Ciphertext
			}
			if got := openedMessage(t, testPlaintext, 3, nil, sealed); !bytes.Equal(got, secretData) {
				t.Errorf("%q was encrypted", got)
			}
		})
	}
}

// TestExpect: a client that asks whether to send its body is told to, or why not.
func TestExpect(t *testing.T) {
	path := serveStore(t, testStore(t), nil)
	c := dialSocket(t, path)
	in := bufio.NewReader(c)
	head := "POST " + encryptOrders + " HTTP/1.1\r\nHost: l\r\nExpect: 100-continue\r\nContent-Length: 5\r\n"
	write(t, c, head+"\r\n")
	if response, _ := readReply(t, in, http.MethodPost); response.StatusCode != http.StatusContinue {
		t.Fatalf("got %s", response.Status)
	}
	write(t, c, "hello")
	response, sealed := readReply(t, in, http.MethodPost)
	if response.StatusCode != http.StatusOK || string(openedMessage(t, testPlaintext, 3, nil, sealed)) != "hello" {
		t.Errorf("got %s", response.Status)
	}
	write(t, c, head+"Content-Type: text/plain\r\n\r\n")
	if response, _ := readReply(t, in, http.MethodPost); response.StatusCode != http.StatusUnsupportedMediaType {
		t.Errorf("got %s", response.Status)
	}
}

// TestConnectionIsKept: after a body, and after a problem with one, the same connection answers the next request.
func TestConnectionIsKept(t *testing.T) {
	path := serveStore(t, cryptStore(t), nil)
	c := dialSocket(t, path)
	in := bufio.NewReader(c)
	for _, test := range []struct {
		request string
		want    int
	}{
		{post(encryptOrders, mediaBytes, secretData), 200},
		{post(encryptOrders, mediaBytes, make([]byte, maxPlaintext)), 200},
		{postJSON(encryptOrders, "{}"), 400},
		{post(decryptOrders, mediaBytes, secretData), 400},
		{post("/v1/data-keys/other/encrypt", mediaBytes, secretData), 404},
		{post("/v1/data-keys/denied/encrypt", mediaBytes, secretData), 403},
		{post(encryptOrders, mediaBytes, nil), 200},
		{get("/v1/data-keys/orders"), 200},
	} {
		write(t, c, test.request)
		response, body := readReply(t, in, http.MethodPost)
		if response.StatusCode != test.want || response.Header.Get("Connection") != "" {
			t.Errorf("got %+v: %s", response, body)
		}
	}
}

// TestSmugglingShapes sends requests of which two readers may find different ends. All of it is refused, or is one request and the end
// of the connection.
func TestSmugglingShapes(t *testing.T) {
	path := serveStore(t, testStore(t), nil)
	const second = "GET /healthz HTTP/1.1\r\nHost: l\r\n\r\n"
	for name, test := range map[string]struct {
		headers, body string
		want          []int // the statuses of all answers
	}{
		"chunks and a length":               {"Content-Length: 5\r\nTransfer-Encoding: chunked", "0\r\n\r\n" + second, []int{200}},
		"a length and chunks":               {"Transfer-Encoding: chunked\r\nContent-Length: 5", "0\r\n\r\n" + second, []int{200}},
		"two lengths":                       {"Content-Length: 5\r\nContent-Length: 6", "hello" + second, []int{400}},
		"a list of lengths":                 {"Content-Length: 5, 6", "hello" + second, []int{400}},
		"a length with a sign":              {"Content-Length: +5", "hello" + second, []int{400}},
		"a length below zero":               {"Content-Length: -5", "hello" + second, []int{400}},
		"a length in hexadecimal":           {"Content-Length: 0x5", "hello" + second, []int{400}},
		"a length that no number holds":     {"Content-Length: 18446744073709551621", "hello" + second, []int{400}},
		"chunks by a space":                 {"Transfer-Encoding : chunked", "0\r\n\r\n" + second, []int{400}},
		"chunks by another name":            {"Transfer-Encoding: xchunked", "0\r\n\r\n" + second, []int{501}},
		"chunks of something":               {"Transfer-Encoding: gzip, chunked", "0\r\n\r\n" + second, []int{501}},
		"chunks, and not":                   {"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "0\r\n\r\n" + second, []int{501}},
		"chunks in a line that goes on":     {"X: a\r\n Transfer-Encoding: chunked", "0\r\n\r\n" + second, []int{200, 400}},
		"two hosts":                         {"Host: m\r\nContent-Length: 5", "hello" + second, []int{400}},
		"a header behind a carriage return": {"X: a\rContent-Length: 5", "hello" + second, []int{400}},
		"a header with a zero byte":         {"X: a\x00\r\nContent-Length: 5", "hello" + second, []int{400}},
		"a chunk with a prefix":             {"Transfer-Encoding: chunked", "0x5\r\nhello\r\n0\r\n\r\n" + second, []int{400}},
		"chunks in bare lines":              {"Transfer-Encoding: chunked", "5\nhello\n0\n\n" + second, []int{400}},
		"a chunk beyond all numbers":        {"Transfer-Encoding: chunked", "fffffffffffffffff\r\nhello\r\n0\r\n\r\n" + second, []int{400}},
		"a chunk longer than it says":       {"Transfer-Encoding: chunked", "1\r\nhello\r\n0\r\n\r\n" + second, []int{400}},
		"chunks and a trailer":              {"Transfer-Encoding: chunked", "0\r\nContent-Length: 5\r\n\r\n" + second, []int{200}},
	} {
		t.Run(name, func(t *testing.T) {
			c := dialSocket(t, path)
			write(t, c, "POST "+encryptOrders+" HTTP/1.1\r\nHost: l\r\n"+test.headers+"\r\n\r\n"+test.body)
			if err := c.(*net.UnixConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			in := bufio.NewReader(c)
			var got []int
			for {
				response, err := http.ReadResponse(in, &http.Request{Method: http.MethodPost})
				if err != nil {
					break
				}
				_, _ = io.Copy(io.Discard, response.Body)
				_ = response.Body.Close()
				got = append(got, response.StatusCode)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestBodyThatIsCutOff: the client closes its side, which is the end of a body that is not at its end.
func TestBodyThatIsCutOff(t *testing.T) {
	var server *http.Server
	path := serveStore(t, testStore(t), func(s *http.Server, _ *listener, _ *watchdog) { server = s })
	for name, request := range map[string]string{
		"a length":             "POST " + encryptOrders + " HTTP/1.1\r\nHost: l\r\nContent-Length: 50\r\n\r\n" + string(secretData[:40]),
		"a chunk":              "POST " + encryptOrders + " HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n" + string(secretData),
		"chunks without a end": "POST " + encryptOrders + " HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
		"a length and nothing": "POST " + encryptOrders + " HTTP/1.1\r\nHost: l\r\nContent-Length: 50\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := dialSocket(t, path)
			write(t, c, request)
			if err := c.(*net.UnixConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			response, body := readReply(t, bufio.NewReader(c), http.MethodPost)
			var got problem
			if err := json.Unmarshal(body, &got); err != nil || got.Reason != "BodyIncomplete" || response.StatusCode != http.StatusBadRequest {
				t.Errorf("got %s: %s", response.Status, body)
			}
			checkHides(t, "the answer", string(body), secretData[:40])
		})
		t.Run(name+", and hangs up", func(t *testing.T) {
			c := dialSocket(t, path)
			write(t, c, request)
			_ = c.Close()
		})
	}
	if err := server.Shutdown(t.Context()); err != nil { // waits for the handlers
		t.Fatal(err)
	}
	a := server.Handler.(*api)
	if n := a.room.taken.Load(); n != 0 {
		t.Errorf("%d bytes of room are not given back", n)
	}
}

// TestSlowBodyIsCutOff lets the watchdog's time go by while a body does not come.
func TestSlowBodyIsCutOff(t *testing.T) {
	var dog *watchdog
	path := serveStore(t, testStore(t), func(_ *http.Server, _ *listener, d *watchdog) { dog = d })
	c := dialSocket(t, path)
	write(t, c, "POST "+encryptOrders+" HTTP/1.1\r\nHost: l\r\nContent-Length: 50\r\n\r\nhalf")
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, c)
		ended <- err
	}()
	if err := untilEnded(dog, ended); err != nil && !strings.Contains(err.Error(), "connection reset") {
		t.Errorf("got %v, want the end of the connection", err)
	}
}

// TestRoomIsBounded fills the room with bodies that do not come to their end, and others are told so until one goes.
func TestRoomIsBounded(t *testing.T) {
	var server *http.Server
	path := serveStore(t, testStore(t), func(s *http.Server, _ *listener, _ *watchdog) { server = s })
	a := server.Handler.(*api)
	for size, n := range map[int]int{8 << 10: maxConns, maxPlaintext: 32} { // docs/native-api.md says so
		var all []*body
		for range n {
			r := &http.Request{ContentLength: int64(size), Body: io.NopCloser(bodyOf(size))}
			b, problem := a.readBody(r, maxPlaintext)
			if problem != nil {
				t.Fatalf("body %d of %d bytes: %+v", len(all), size, problem)
			}
			all = append(all, b)
		}
		for _, b := range all {
			b.free()
		}
	}
	a.room.take(maxRoom - roomFactor*firstRead - roomFactor*100)
	small, large := post(encryptOrders, mediaBytes, secretData), post(encryptOrders, mediaBytes, make([]byte, maxPlaintext))
	response, body := roundTrip(t, path, large)
	var got problem
	if err := json.Unmarshal(body, &got); err != nil || response.StatusCode != http.StatusServiceUnavailable || got.Reason != "Busy" ||
		response.Header.Get("Retry-After") != "1" {
		t.Errorf("a large body: got %s: %s", response.Status, body)
	}
	if response, _ := roundTrip(t, path, small); response.StatusCode != http.StatusOK {
		t.Errorf("a small body: got %s", response.Status)
	}
	a.room.give(maxRoom - roomFactor*firstRead - roomFactor*100)
	if response, _ := roundTrip(t, path, large); response.StatusCode != http.StatusOK {
		t.Errorf("a large body, later: got %s", response.Status)
	}
	if err := server.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := a.room.taken.Load(); n != 0 {
		t.Errorf("%d bytes of room are not given back", n)
	}
}

// TestBodiesAreCleared: what a body was in holds nothing of it afterwards.
func TestBodiesAreCleared(t *testing.T) {
	var given []byte // every piece of memory that the body had
	seen := readerFunc(func(p []byte) (int, error) {
		given = p[:cap(p)]
		return copy(p, secretData), io.EOF
	})
	a := &api{}
	for _, length := range []int64{int64(len(secretData)), -1} {
		r := &http.Request{ContentLength: length, Body: io.NopCloser(seen)}
		b, problem := a.readBody(r, maxPlaintext)
		if problem != nil || !bytes.Equal(b.bytes(), secretData) {
			t.Fatalf("got %+v", problem)
		}
		b.free()
		if !bytes.Equal(given, make([]byte, len(given))) {
			t.Error("the memory of a body was not cleared")
		}
		failed := errors.New("no more")
		r.Body = io.NopCloser(io.MultiReader(seenWithout(seen), readerFunc(func([]byte) (int, error) { return 0, failed })))
		if _, problem := a.readBody(r, maxPlaintext); problem == nil || problem.Reason != "BodyIncomplete" {
			t.Errorf("got %+v", problem)
		}
		if !bytes.Equal(given, make([]byte, len(given))) {
			t.Error("the memory of half a body was not cleared")
		}
	}
	// What grows leaves nothing behind.
	b := newBody(&a.room)
	b.grow(len(secretData))
	first := append(b.bytes(), secretData...)
	b.bytes = hide(first)
	b.grow(2 * len(secretData))
	if !bytes.Equal(first, make([]byte, len(first))) || !bytes.Equal(b.bytes(), secretData) {
		t.Error("a body that grew was not moved, or not cleared where it was")
	}
	b.free()
	if n := a.room.taken.Load(); n != 0 {
		t.Errorf("%d bytes of room are not given back", n)
	}
}

// TestDecodedIsCleared: what was decoded of a JSON body goes with the body.
func TestDecodedIsCleared(t *testing.T) {
	for name, object := range map[string]string{
		"as it is":     `{"plaintext":"` + b64(secretData) + `"}`,
		"with escapes": `{"plaintext":"` + strings.Replace(b64(secretData), "d", `\u0064`, 1) + `"}`,
	} {
		a := &api{}
		r := &http.Request{ContentLength: int64(len(object)), Body: io.NopCloser(strings.NewReader(object))}
		b, problem := a.readBody(r, maxJSONBody)
		if problem != nil {
			t.Fatalf("%s: %+v", name, problem)
		}
		given, _, err := readCrypt(b, "plaintext")
		if err != nil || !bytes.Equal(given, secretData) {
			t.Fatalf("%s: got %q, %v", name, given, err)
		}
		whole := b.bytes()
		b.free()
		if !bytes.Equal(given, make([]byte, len(given))) || !bytes.Equal(whole, make([]byte, len(whole))) {
			t.Errorf("%s: something is left", name)
		}
	}
}

// TestDecryptedIsCleared looks at what was decrypted after its answer.
func TestDecryptedIsCleared(t *testing.T) {
	a := handler(testStore(t)).(*api)
	for _, asJSON := range []bool{false, true} {
		w := &capturingWriter{bareWriter: bareWriter{header: http.Header{}}}
		r, err := http.NewRequestWithContext(context.WithValue(t.Context(), connKey{}, &conn{}), http.MethodPost, decryptOrders, nil)
		if err != nil {
			t.Fatal(err)
		}
		c := crypting{w: w, r: r, name: "orders", json: asJSON}
		if status := a.decrypt(c, sealedMessage(t, testPlaintext, 3, nil, secretData)); status != http.StatusOK {
			t.Fatalf("got %d", status)
		}
		if !w.right || len(w.captured) != len(secretData) || !bytes.Equal(w.captured, make([]byte, len(secretData))) {
			t.Errorf("got %d bytes, right: %v; or they are left", len(w.captured), w.right)
		}
	}
}

// capturingWriter keeps the memory of what was decrypted, and whether it was right when it was sent.
type capturingWriter struct {
	bareWriter
	captured []byte
	right    bool
}

func (*capturingWriter) Flush() {}

func (w *capturingWriter) ReadFrom(r io.Reader) (int64, error) {
	w.captured = r.(secretReader).secretBody.(*decrypted).plaintext()
	w.right = bytes.Equal(w.captured, secretData)
	return 0, nil
}

// bodyOf reads n bytes as a body of net/http does, whose end comes with its last byte.
func bodyOf(n int) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		read := min(n, len(p))
		if n -= read; n == 0 {
			return read, io.EOF
		}
		return read, nil
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// seenWithout is the reader without its EOF.
func seenWithout(r io.Reader) io.Reader {
	first := true
	return readerFunc(func(p []byte) (int, error) {
		if !first {
			return 0, io.EOF
		}
		first = false
		n, _ := r.Read(p)
		return n, nil
	})
}

// TestReadClearsFirst: what net/http reads into is cleared before it waits for more.
func TestReadClearsFirst(t *testing.T) {
	path := filepath.Join(shortDir(t), "s")
	l, err := listen(t.Context(), path, maxConns)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	client := dialSocket(t, path)
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	write(t, client, "G")
	p := bytes.Clone(secretData)
	if n, err := server.Read(p); n != 1 || err != nil || !bytes.Equal(p[1:], make([]byte, len(p)-1)) {
		t.Errorf("got %d, %v, and what was there before", n, err)
	}
}

// FuzzMembers holds that what readMembers takes is what encoding/json reads, and that errors come alone.
func FuzzMembers(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"plaintext":"YQ==","associatedData":""}`, `{"plaintext":"\u0061\/+="}`, `{"plaintext":"YQ==","plaintext":""}`,
		`{"a":{"b":[]}}`,
		` { "associatedData" : "AAAA" } `, `[]`, `{"plaintext":"\\"}`, `{"plaintext":"YWJj\nZGVm"}`, "", `"`, `{"\"":""}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, object []byte) {
		got := map[string][]byte{}
		note := func(name string, value []byte) { got[name] = bytes.Clone(value) }
		err := readMembers(bytes.Clone(object), make([]byte, len(object)), []string{"plaintext", "associatedData"}, note)
		if err != nil {
			return
		}
		var want map[string][]byte
		if err := json.Unmarshal(object, &want); err != nil {
			t.Fatalf("took %q, which encoding/json does not: %v", object, err)
		}
		if len(want) != len(got) {
			t.Fatalf("%q: got %d members, want %d", object, len(got), len(want))
		}
		for name := range want {
			if !bytes.Equal(want[name], got[name]) {
				t.Fatalf("%q: got %x, want %x", object, got[name], want[name])
			}
		}
	})
}

// TestNothingPrints gives everything here that holds a plaintext to everything that prints.
func TestNothingPrints(t *testing.T) {
	key := sidecartest.IssuedKey(t, "orders", testPlaintext)
	s := keystore.New([]string{"orders"})
	s.Publish([]*keystore.DataKey{key})
	bodies := []secretBody{
		keystore.JSON{Issued: key.Issued}, keystore.Bytes{Issued: key.Issued}, &decrypted{plaintext: hide(testPlaintext)},
		&decrypted{plaintext: hide(testPlaintext), json: true},
	}
	taken := &body{bytes: hide(testPlaintext), decoded: hide(testPlaintext)}
	for _, holder := range []any{
		bodies, bodies[2], bodies[3], secretReader{bodies[0]}, secretReader{bodies[1]}, secretReader{bodies[2]}, taken, *taken, handler(s),
		keyservice.Opened{Plaintext: key.Issued.Plaintext}, &keyservice.Opened{Plaintext: key.Issued.Plaintext},
		[]keyservice.Opened{{Plaintext: key.Issued.Plaintext}},
	} {
		secrettest.CheckPrints(t, fmt.Sprintf("%T", holder), holder, map[string][]byte{"plaintext": testPlaintext})
	}
}
