package alibaba_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
)

// TestSDKPastAProxy: what docs/front-doors.md has in NO_PROXY keeps the SDK from a proxy of the environment, to which it would send
// plaintexts over HTTP. It compares the whole address, with the port, and asks a proxy for 127.0.0.1 too.
func TestSDKPastAProxy(t *testing.T) {
	page, err := os.ReadFile("../../docs/front-doors.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := regexp.MustCompile("`NO_PROXY=([^`]*)`").FindSubmatch(page)
	if documented == nil {
		t.Fatal("docs/front-doors.md does not say what is in NO_PROXY")
	}
	w := newWorld(t)
	_, port, err := net.SplitHostPort(w.endpoint)
	if err != nil {
		t.Fatal(err)
	}
	var proxied atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		proxied.Add(1)
		rw.WriteHeader(http.StatusRequestEntityTooLarge) // which the SDK does not try again
	}))
	defer proxy.Close()
	request := fields{"KeyId": "orders", "Plaintext": b64("a password")}

	w.startClient(t, "HTTP_PROXY="+proxy.URL, "NO_PROXY=127.0.0.1")
	if a := w.call(t, "Encrypt", request); a.Error == nil || proxied.Load() != 1 {
		t.Errorf("NO_PROXY with the host alone is enough now: got %+v after %d requests to the proxy", a.Error, proxied.Load())
	}
	proxied.Store(0)
	w.startClient(t, "HTTP_PROXY="+proxy.URL, "NO_PROXY="+strings.ReplaceAll(string(documented[1]), "8200", port))
	if a := w.call(t, "Encrypt", request); a.Error != nil || proxied.Load() != 0 {
		t.Errorf("NO_PROXY=%s: got %+v after %d requests to the proxy", documented[1], a.Error, proxied.Load())
	}
}
