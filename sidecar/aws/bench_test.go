package aws

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// These benchmarks belong together: what a door adds to the call of the key service, beside a handler that makes the same call, with
// nothing read and a body of the same size answered. Neither has a connection around it, nor is there a key service: a call of it takes
// some hundred times as long as what is measured here. BenchmarkDoorRatio asks both in turn; the others are for allocations.
//
//	go test -run='^$' -bench=Door ./sidecar/aws

func BenchmarkDoorBareDecrypt(b *testing.B) { benchmarkOne(b, bareDecrypt(b)) }
func BenchmarkDoorDecrypt(b *testing.B) {
	benchmarkOne(b, benchAsker(benchDoor(), "Decrypt", decryptBody()))
}
func BenchmarkDoorBareGenerateDataKey(b *testing.B) { benchmarkOne(b, bareGenerateDataKey(b)) }
func BenchmarkDoorGenerateDataKey(b *testing.B) {
	benchmarkOne(b, benchAsker(benchDoor(), "GenerateDataKey", generateBody))
}

// BenchmarkDoorLargest reads the largest request that there is.
func BenchmarkDoorLargest(b *testing.B) {
	benchmarkOne(b, benchAsker(benchDoor(), "ReEncrypt", largest()))
}

// BenchmarkDoorAddsToDecrypt gives the difference of the medians: what a request costs more than the call that it needs.
func BenchmarkDoorAddsToDecrypt(b *testing.B) {
	bare, door := bareDecrypt(b), benchAsker(benchDoor(), "Decrypt", decryptBody())
	var bares, doors []time.Duration
	for b.Loop() {
		start := time.Now()
		bare()
		middle := time.Now()
		door()
		bares, doors = append(bares, middle.Sub(start)), append(doors, time.Since(middle))
	}
	slices.Sort(bares)
	slices.Sort(doors)
	b.ReportMetric(float64(bares[len(bares)/2]), "bare-ns")
	b.ReportMetric(float64(doors[len(doors)/2]), "door-ns")
}

func benchmarkOne(b *testing.B, ask func()) {
	b.ReportAllocs()
	for b.Loop() {
		ask()
	}
}

const benchContext = `"EncryptionContext":{"namespace":"team-a","tenant":"4711"}`

const generateBody = `{"KeyId":"alias/orders","KeySpec":"AES_256",` + benchContext + `}`

// decryptBody has a blob of the usual size.
func decryptBody() string {
	return `{"CiphertextBlob":"` + b64(make([]byte, 188)) + `","KeyId":"` + keyARN + `",` + benchContext + `}`
}

// benchService answers with what it must, and no more.
type benchService struct{ KeyService }

func (benchService) Decrypt(context.Context, *kmsv1.DecryptRequest, ...grpc.CallOption) (*kmsv1.DecryptResponse, error) {
	return &kmsv1.DecryptResponse{KeyId: keyARN, Plaintext: bytes.Clone(secretBytes), MaterialId: materialBytes}, nil
}

func (benchService) GenerateDataKey(context.Context, *kmsv1.GenerateDataKeyRequest, ...grpc.CallOption,
) (*kmsv1.GenerateDataKeyResponse, error) {
	return &kmsv1.GenerateDataKeyResponse{
		KeyId: keyARN, CiphertextBlob: make([]byte, 188), Plaintext: bytes.Clone(secretBytes), MaterialId: materialBytes,
	}, nil
}

func benchDoor() http.Handler {
	return New(Config{KeyService: benchService{}, Logger: slog.New(slog.DiscardHandler)})
}

// bareDecrypt is the floor of Decrypt.
func bareDecrypt(b *testing.B) func() {
	b.Helper()
	body := make([]byte, 300)
	return benchAsker(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := (benchService{}).Decrypt(r.Context(), &kmsv1.DecryptRequest{}); err != nil {
			b.Fatal(err)
		}
		_, _ = w.Write(body)
	}), "Decrypt", decryptBody())
}

// bareGenerateDataKey is the floor of GenerateDataKey.
func bareGenerateDataKey(b *testing.B) func() {
	b.Helper()
	body := make([]byte, 500)
	return benchAsker(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := (benchService{}).GenerateDataKey(r.Context(), &kmsv1.GenerateDataKeyRequest{}); err != nil {
			b.Fatal(err)
		}
		_, _ = w.Write(body)
	}), "GenerateDataKey", generateBody)
}

// benchAsker asks a handler the same again and again, with nothing made anew for it but a header.
func benchAsker(h http.Handler, operation, body string) func() {
	content := []byte(body)
	reader := bytes.NewReader(content)
	r := &http.Request{
		Method: http.MethodPost, Header: http.Header{"X-Amz-Target": {targetPrefix + operation}}, Body: io.NopCloser(reader),
		ContentLength: int64(len(body)),
	}
	w := &discard{header: http.Header{}}
	return func() {
		reader.Reset(content)
		clear(w.header)
		h.ServeHTTP(w, r)
	}
}

// discard is a response that nobody reads.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}
