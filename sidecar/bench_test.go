package sidecar

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/sidecar/internal/keystore"
	"github.com/datakeys/datakeys/sidecar/internal/secrets"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

// These benchmarks belong together: the answer of the sidecar beside the one that a bare handler of net/http gives on a
// unix socket, with a body of the same size, to the same client. The client is as thin as can be, so as not to hide the
// difference. BenchmarkSocketRatio asks both in turn, so that a machine that is busy is so for both, and gives the medians
// of single requests; the others are for allocations.
//
//	go test -run='^$' -bench=Socket ./sidecar

func BenchmarkSocketBareJSON(b *testing.B) {
	benchmarkOne(b, bare(b, keystore.JSON{Issued: benchKey(b)}.Size()))
}
func BenchmarkSocketGetJSON(b *testing.B) { benchmarkOne(b, sidecarFor(b, mediaJSON)) }
func BenchmarkSocketBareRaw(b *testing.B) {
	benchmarkOne(b, bare(b, keystore.Bytes{Issued: benchKey(b)}.Size()))
}
func BenchmarkSocketGetRaw(b *testing.B) { benchmarkOne(b, sidecarFor(b, mediaBytes)) }

// BenchmarkSocketGetOldestRaw asks for a generation by its number, of as many as there may be.
func BenchmarkSocketGetOldestRaw(b *testing.B) {
	s := keystore.New(nil)
	k := &keystore.DataKey{}
	for n := uint32(secrets.MaxGenerations); n > 0; n-- {
		k.Generations = append(k.Generations, sidecartest.IssuedGeneration(b, "orders", n, testPlaintext))
	}
	k.Generation = k.Generations[0]
	s.Publish([]*keystore.DataKey{k})
	benchmarkOne(b, newBenchClient(b, serveStore(b, s, nil), get("/v1/data-keys/orders?generation=1", "Accept: "+mediaBytes)))
}

func BenchmarkSocketRatioJSON(b *testing.B) {
	benchmarkTwo(b, bare(b, keystore.JSON{Issued: benchKey(b)}.Size()), sidecarFor(b, mediaJSON))
}

func BenchmarkSocketRatioRaw(b *testing.B) {
	benchmarkTwo(b, bare(b, keystore.Bytes{Issued: benchKey(b)}.Size()), sidecarFor(b, mediaBytes))
}

// Encrypting and decrypting 1 KiB, beside a bare handler that reads as much and answers as much.

func BenchmarkSocketRatioEncrypt(b *testing.B) {
	data := make([]byte, 1<<10)
	benchmarkTwo(b, barePost(b, data, len(data)+envelope.MessageOverhead), cryptFor(b, encryptOrders, data))
}

func BenchmarkSocketRatioDecrypt(b *testing.B) {
	sealed := sealedMessage(b, testPlaintext, 3, nil, make([]byte, 1<<10))
	benchmarkTwo(b, barePost(b, sealed, 1<<10), cryptFor(b, decryptOrders, sealed))
}

func BenchmarkSocketRatioEncryptJSON(b *testing.B) {
	data := object(map[string][]byte{"plaintext": make([]byte, 1<<10)})
	bare := barePost(b, data, base64.StdEncoding.EncodedLen(1<<10+envelope.MessageOverhead)+50)
	benchmarkTwo(b, bare, newBenchClient(b, serveStore(b, testStore(b), nil), post(encryptOrders, mediaJSON, data)))
}

func cryptFor(b *testing.B, target string, body []byte) *benchClient {
	b.Helper()
	return newBenchClient(b, serveStore(b, testStore(b), nil), post(target, mediaBytes, body))
}

func barePost(b *testing.B, body []byte, size int) *benchClient {
	b.Helper()
	return newBenchClient(b, bareHandler(b, size), post("/", mediaBytes, body))
}

func benchmarkOne(b *testing.B, c *benchClient) {
	b.ReportAllocs()
	for b.Loop() {
		c.do(b)
	}
}

func benchmarkTwo(b *testing.B, bare, sidecar *benchClient) {
	var bares, sidecars []time.Duration
	for b.Loop() {
		start := time.Now()
		bare.do(b)
		middle := time.Now()
		sidecar.do(b)
		bares, sidecars = append(bares, middle.Sub(start)), append(sidecars, time.Since(middle))
	}
	slices.Sort(bares)
	slices.Sort(sidecars)
	x, y := bares[len(bares)/2], sidecars[len(sidecars)/2]
	b.ReportMetric(float64(x), "bare-ns")
	b.ReportMetric(float64(y), "sidecar-ns")
	b.ReportMetric(float64(y)/float64(x), "sidecar/bare")
}

// benchKey is an AES_256 data key with a blob and an ARN of the usual sizes.
func benchKey(b *testing.B) *keystore.Issued {
	b.Helper()
	s := keystore.Status{
		Name: "orders", State: keystore.StateIssued, Generation: 3, KeyVersion: 2, Algorithm: keystore.AlgorithmAESGCM,
		KeyID: "arn:datakeys:kms:1b4e28ba2fa1:team-a:key/1b4e28ba-2fa1-41d2-883f-0016d3cca427",
	}
	p, err := envelope.PlaintextFromBytes(testPlaintext)
	if err != nil {
		b.Fatal(err)
	}
	return keystore.NewIssued(s, p, sidecartest.DataKeyBlob(b, "orders", 3), nil, keystore.RenderBound(nil, nil), time.Now(), time.Hour)
}

func sidecarFor(b *testing.B, accept string) *benchClient {
	b.Helper()
	s := keystore.New(nil)
	s.Publish([]*keystore.DataKey{sidecartest.KeyOf(&keystore.Generation{
		Status: keystore.Status{Name: "orders", State: keystore.StateIssued, Generation: 3}, Number: 3, Issued: benchKey(b),
	})})
	return newBenchClient(b, serveStore(b, s, nil), get("/v1/data-keys/orders", "Accept: "+accept))
}

func bare(b *testing.B, size int) *benchClient {
	b.Helper()
	return newBenchClient(b, bareHandler(b, size), get("/v1/data-keys/orders", "Accept: "+mediaJSON))
}

// bareHandler reads what it is given, answers so many bytes and returns its socket.
func bareHandler(b *testing.B, size int) string {
	b.Helper()
	body := bytes.Repeat([]byte("x"), size)
	path := filepath.Join(shortDir(b), "s")
	l, err := (&net.ListenConfig{}).Listen(b.Context(), "unix", path)
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > 0 {
			_, _ = io.ReadFull(r.Body, make([]byte, r.ContentLength))
		}
		w.Header().Set("Content-Type", mediaJSON)
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body)
	})}
	go func() { _ = server.Serve(l) }()
	b.Cleanup(func() { _ = server.Close() })
	return path
}

// benchClient asks the same on one connection, again and again.
type benchClient struct {
	conn            net.Conn
	request, answer []byte
}

// newBenchClient reads one answer as HTTP, for its size; the others have the same.
func newBenchClient(b *testing.B, path, request string) *benchClient {
	b.Helper()
	c := &benchClient{conn: dialSocket(b, path), request: []byte(request)}
	if _, err := c.conn.Write(c.request); err != nil {
		b.Fatal(err)
	}
	read := &bytes.Buffer{}
	answered, body := readReply(b, bufio.NewReader(io.TeeReader(c.conn, read)), http.MethodGet)
	if answered.StatusCode != http.StatusOK || len(body) < len(testPlaintext) {
		b.Fatalf("got %v", answered)
	}
	c.answer = make([]byte, read.Len())
	return c
}

func (c *benchClient) do(b *testing.B) {
	if _, err := c.conn.Write(c.request); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(c.conn, c.answer); err != nil {
		b.Fatal(err)
	}
}
