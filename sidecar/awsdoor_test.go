package sidecar

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

// awsRequest is a request as a client of AWS KMS sends it.
func awsRequest(operation, body string) string {
	return fmt.Sprintf("POST / HTTP/1.1\r\nHost: kms.eu-central-1.amazonaws.com\r\nX-Amz-Target: TrentService.%s\r\n"+
		"Content-Type: application/x-amz-json-1.1\r\nAuthorization: AWS4-HMAC-SHA256 Credential=x, SignedHeaders=host, Signature=0\r\n"+
		"Content-Length: %d\r\n\r\n%s", operation, len(body), body)
}

// TestRunAnswersClientsOfAWSKMS beside the native API, on the same connection, and as the pod.
func TestRunAnswersClientsOfAWSKMS(t *testing.T) {
	p := newPod(t, "orders")
	p.put(t, "orders", 1, testPlaintext)
	p.start(t)
	if err := p.wait(t); err != nil {
		t.Fatal(err)
	}
	blob := base64.StdEncoding.EncodeToString(p.service.Seal(t, "orders", 1, testPlaintext, map[string]string{"tenant": "a"}))
	good := awsRequest("Decrypt", `{"CiphertextBlob":"`+blob+`","EncryptionContext":{"tenant":"a"}}`)
	c := dialSocket(t, p.config.Socket)
	in := bufio.NewReader(c)
	ask := func(request string) (reply, []byte) {
		t.Helper()
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		return readReply(t, in, strings.Fields(request)[0])
	}
	for range 2 {
		answered, body := ask(good)
		var opened struct {
			KeyID     string `json:"KeyId"`
			Plaintext []byte
		}
		if err := json.Unmarshal(body, &opened); err != nil {
			t.Fatal(err)
		}
		if answered.StatusCode != http.StatusOK || opened.KeyID != sidecartest.ARN || !bytes.Equal(opened.Plaintext, testPlaintext) {
			t.Errorf("got %d and the key %q", answered.StatusCode, opened.KeyID)
		}
	}
	if answered, body := ask(get("/v1/data-keys/orders", "Accept: "+mediaBytes)); answered.StatusCode != http.StatusOK ||
		!bytes.Equal(body, testPlaintext) {
		t.Errorf("the native API beside it: got %d", answered.StatusCode)
	}
	if answered, body := ask(awsRequest("CreateKey", "{}")); answered.StatusCode != http.StatusBadRequest ||
		answered.Header.Get("X-Amzn-ErrorType") != "UnsupportedOperationException" {
		t.Errorf("CreateKey: got %d %s", answered.StatusCode, body)
	}
	p.service.Fail(status.Error(codes.Unavailable, "down"))
	if answered, body := ask(good); answered.StatusCode != http.StatusInternalServerError ||
		answered.Header.Get("X-Amzn-ErrorType") != "KeyUnavailableException" {
		t.Errorf("with the key service down: got %d %s", answered.StatusCode, body)
	}
	if tokens := p.service.Tokens(); len(tokens) != 5 || slices.ContainsFunc(tokens, func(s string) bool { return s != "Bearer pod-token" }) {
		t.Errorf("got %d calls, want five with the pod's token: what failed was tried again", len(tokens))
	}
	checkHides(t, "the log", p.logs.String(), testPlaintext)
}

// decrypter is a key service that opens anything.
type decrypter struct{ kmsv1.KeyServiceClient }

func (decrypter) Decrypt(context.Context, *kmsv1.DecryptRequest, ...grpc.CallOption) (*kmsv1.DecryptResponse, error) {
	return &kmsv1.DecryptResponse{KeyId: sidecartest.ARN, Plaintext: bytes.Clone(testPlaintext)}, nil
}

// TestTheBufferOfAFrontDoorsAnswerIsCleared, as that of the native API.
func TestTheBufferOfAFrontDoorsAnswerIsCleared(t *testing.T) {
	for door, ask := range map[string]struct {
		request string
		want    string // in the answer
	}{
		"aws": {awsRequest("Decrypt", `{"CiphertextBlob":"YQ=="}`), base64.StdEncoding.EncodeToString(testPlaintext)},
		"alibaba": {
			postDoor("/", "\x0a\x01a", "x-kms-apiname: AdvanceDecrypt", "x-kms-apiversion: dkms-gcs-0.2", "Content-Type: application/x-protobuf"),
			string(testPlaintext),
		},
	} {
		t.Run(door, func(t *testing.T) {
			conns := make(chan *conn, 1)
			path := serveDoors(t, func(server *http.Server, d *doors) {
				dog := d.dog
				*d = newDoors(decrypter{}, slog.New(slog.DiscardHandler))
				d.dog = dog
				inner := server.ConnContext
				server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
					conns <- c.(*conn) //nolint:forcetypeassert // what the listener gives
					return inner(ctx, c)
				}
			})
			c := dialSocket(t, path)
			write(t, c, ask.request+get("/healthz", "Connection: close"))
			answers, err := io.ReadAll(c)
			if err != nil || bytes.Count(answers, []byte("200 OK")) != 2 || !bytes.Contains(answers, []byte(ask.want)) {
				t.Fatalf("got %v and %d bytes, want two answers", err, len(answers))
			}
			buffer := (<-conns).buffer
			buffer = buffer[:cap(buffer)]
			if len(buffer) < len(testPlaintext) {
				t.Fatalf("the buffer holds %d bytes: it was not used", len(buffer))
			}
			if i := slices.IndexFunc(buffer, func(b byte) bool { return b != 0 }); i >= 0 {
				t.Errorf("byte %d of the buffer is left", i)
			}
		})
	}
}
