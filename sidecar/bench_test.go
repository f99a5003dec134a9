package sidecar

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
)

// The three benchmarks belong together: the answer of the sidecar beside the one that a bare handler of net/http gives,
// with a body of the same size, to the same client. The client is as thin as can be, so as not to hide the difference.
//
//	go test -run='^$' -bench=Socket -count=9 ./sidecar

func BenchmarkSocketBareJSON(b *testing.B) { benchmarkBare(b, benchKey(b).answer.jsonSize) }
func BenchmarkSocketGetJSON(b *testing.B)  { benchmarkGet(b, mediaJSON) }
func BenchmarkSocketBareRaw(b *testing.B)  { benchmarkBare(b, benchKey(b).answer.rawSize) }
func BenchmarkSocketGetRaw(b *testing.B)   { benchmarkGet(b, mediaBytes) }

// benchKey is an AES_256 data key with a blob and an ARN of the usual sizes.
func benchKey(b *testing.B) *issued {
	b.Helper()
	s := dataKeyStatus{
		Name: "orders", State: StateIssued, Generation: 3, KeyVersion: 2, Algorithm: algorithmAESGCM,
		KeyID: "arn:datakeys:kms:1b4e28ba2fa1:team-a:key/1b4e28ba-2fa1-41d2-883f-0016d3cca427",
	}
	k := issuedKey(b, "orders", testPlaintext).issued
	k.answer = newAnswer(s, Sealed{CiphertextBlob: dataKeyBlob(b, "orders", 3)}, len(testPlaintext))
	return k
}

func benchmarkGet(b *testing.B, accept string) {
	s := newStore(nil)
	s.publish([]*dataKey{{dataKeyStatus: dataKeyStatus{Name: "orders", State: StateIssued, Generation: 3}, issued: benchKey(b)}})
	benchmarkRequests(b, serveStore(b, s, nil), accept)
}

func benchmarkBare(b *testing.B, size int) {
	body := bytes.Repeat([]byte("x"), size)
	path := filepath.Join(shortDir(b), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", mediaJSON)
		_, _ = w.Write(body)
	})}
	go func() { _ = server.Serve(l) }()
	b.Cleanup(func() { _ = server.Close() })
	benchmarkRequests(b, path, mediaJSON)
}

func benchmarkRequests(b *testing.B, path, accept string) {
	c := dialSocket(b, path)
	request := []byte(get("/v1/data-keys/orders", "Accept: "+accept))
	in := bufio.NewReader(c)
	// One answer is read as HTTP, for its size; the others have the same.
	if _, err := c.Write(request); err != nil {
		b.Fatal(err)
	}
	head := &bytes.Buffer{}
	response, err := http.ReadResponse(bufio.NewReader(io.TeeReader(c, head)), nil)
	if err != nil || response.StatusCode != http.StatusOK || response.ContentLength < int64(len(testPlaintext)) {
		b.Fatalf("got %v, %v", response, err)
	}
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		b.Fatal(err)
	}
	answer := make([]byte, head.Len())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(request); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(in, answer); err != nil {
			b.Fatal(err)
		}
	}
}
