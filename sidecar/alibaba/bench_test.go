package alibaba

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/alibaba/internal/dkms"
)

// These benchmarks have the door on a unix socket beside a floor: a handler that makes the same call of the same key service, which
// answers from memory, and sends as many bytes. BenchmarkRatio asks both in turn, so that a machine that is busy is so for both, and
// gives the medians; the others are for allocations.
//
//	go test -run='^$' -bench=. ./sidecar/alibaba

func BenchmarkFloorAdvanceDecrypt(b *testing.B)         { benchmarkOne(b, floor(b, advanceDecrypt)) }
func BenchmarkAdvanceDecrypt(b *testing.B)              { benchmarkOne(b, door(b, advanceDecrypt)) }
func BenchmarkFloorAdvanceGenerateDataKey(b *testing.B) { benchmarkOne(b, floor(b, advanceGenerate)) }
func BenchmarkAdvanceGenerateDataKey(b *testing.B)      { benchmarkOne(b, door(b, advanceGenerate)) }

func BenchmarkRatioAdvanceDecrypt(b *testing.B)         { benchmarkTwo(b, advanceDecrypt) }
func BenchmarkRatioAdvanceGenerateDataKey(b *testing.B) { benchmarkTwo(b, advanceGenerate) }

// benchmark is an operation, and the call that answers it.
type benchmark struct {
	name string
	body proto.Message
	call func(*http.Request, *fakeKeyService) error
}

var (
	advanceDecrypt = benchmark{
		"AdvanceDecrypt", &dkms.DecryptRequest{CiphertextBlob: make([]byte, 169), Aad: []byte("tenant-a")},
		func(r *http.Request, f *fakeKeyService) error {
			_, err := f.Decrypt(r.Context(), &kmsv1.DecryptRequest{})
			return err
		},
	}
	advanceGenerate = benchmark{
		"AdvanceGenerateDataKey", &dkms.AdvanceGenerateDataKeyRequest{KeyId: "orders", NumberOfBytes: 32, Aad: []byte("tenant-a")},
		func(r *http.Request, f *fakeKeyService) error {
			_, err := f.GenerateDataKey(r.Context(), &kmsv1.GenerateDataKeyRequest{})
			return err
		},
	}
)

func door(b *testing.B, o benchmark) *benchClient {
	b.Helper()
	f := newFake()
	f.forget = true
	return newBenchClient(b, o, New(Config{KeyService: f, Logger: slog.New(slog.DiscardHandler)}))
}

func floor(b *testing.B, o benchmark) *benchClient {
	b.Helper()
	size := len(do(b, newDoor(newFake()), request(o.name, encode(b, o.body))).Body) + len(testKeyID) - len("rid")
	f, body := newFake(), bytes.Repeat([]byte("x"), size)
	f.forget = true
	return newBenchClient(b, o, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := o.call(r, f); err != nil {
			b.Error(err)
		}
		w.Header().Set("Content-Type", mediaProtobuf)
		_, _ = w.Write(body)
	}))
}

func benchmarkOne(b *testing.B, c *benchClient) {
	b.ReportAllocs()
	for b.Loop() {
		c.do(b)
	}
}

func benchmarkTwo(b *testing.B, o benchmark) {
	bare, ours := floor(b, o), door(b, o)
	var floors, doors []time.Duration
	for b.Loop() {
		start := time.Now()
		bare.do(b)
		middle := time.Now()
		ours.do(b)
		floors, doors = append(floors, middle.Sub(start)), append(doors, time.Since(middle))
	}
	slices.Sort(floors)
	slices.Sort(doors)
	x, y := floors[len(floors)/2], doors[len(doors)/2]
	b.ReportMetric(float64(x), "floor-ns")
	b.ReportMetric(float64(y), "door-ns")
	b.ReportMetric(float64(y)/float64(x), "door/floor")
}

// benchClient asks the same on one connection, again and again.
type benchClient struct {
	conn            net.Conn
	request, answer []byte
}

// newBenchClient reads one answer as HTTP, for its size; the others have the same.
func newBenchClient(b *testing.B, o benchmark, h http.Handler) *benchClient {
	b.Helper()
	path := filepath.Join(b.TempDir(), "s")
	l, err := (&net.ListenConfig{}).Listen(b.Context(), "unix", path)
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: h}
	go func() { _ = server.Serve(l) }()
	b.Cleanup(func() { _ = server.Close() })
	c := &benchClient{}
	if c.conn, err = (&net.Dialer{}).DialContext(b.Context(), "unix", path); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.conn.Close() })
	body := encode(b, o.body)
	c.request = fmt.Appendf(nil, "POST / HTTP/1.1\r\nHost: x\r\nx-kms-apiname: %s\r\nx-kms-apiversion: %s\r\ncontent-type: %s\r\n"+
		"x-kms-signaturemethod: %s\r\nx-kms-acccesskeyid: KAAP.test\r\nauthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s",
		o.name, apiVersion, mediaProtobuf, signatureMethod, bytes.Repeat([]byte("c2ln"), 86), len(body), body)
	if _, err := c.conn.Write(c.request); err != nil {
		b.Fatal(err)
	}
	read := &bytes.Buffer{}
	answered, err := http.ReadResponse(bufio.NewReader(io.TeeReader(c.conn, read)), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = answered.Body.Close() }()
	if _, err := io.Copy(io.Discard, answered.Body); err != nil || answered.StatusCode != http.StatusOK {
		b.Fatalf("got %v, %v", answered, err)
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
