package sidecar

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/datakeys/datakeys/internal/porttest"
)

// TestRunAnswersClientsOfBoth: of AWS KMS and of an instance of Alibaba Cloud KMS, on the socket and on the port.
func TestRunAnswersClientsOfBoth(t *testing.T) {
	p := newPod(t, "orders")
	p.put(t, "orders", 1, testPlaintext)
	p.config.LoopbackPort = int(porttest.Reserve(t).Port())
	p.start(t)
	if err := p.wait(t); err != nil {
		t.Fatal(err)
	}
	blob := p.service.Seal(t, "orders", 1, testPlaintext, nil)
	text := base64.StdEncoding.EncodeToString
	for name, ask := range map[string]struct {
		request string
		want    []byte // in the answer
	}{
		"AWS KMS": {postDoor("/", `{"CiphertextBlob":"`+text(blob)+`"}`, "X-Amz-Target: TrentService.Decrypt"), []byte(text(testPlaintext))},
		"Alibaba Cloud KMS": {
			postDoor("/", string(protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), blob)), "x-kms-apiname: AdvanceDecrypt",
				"x-kms-apiversion: dkms-gcs-0.2", "Content-Type: application/x-protobuf"),
			testPlaintext,
		},
	} {
		t.Run(name, func(t *testing.T) {
			host := "localhost:" + strconv.Itoa(p.config.LoopbackPort)
			for where, c := range map[string]net.Conn{"the socket": dialSocket(t, p.config.Socket), "the port": dialPort(t, p.config.LoopbackPort)} {
				in := bufio.NewReader(c)
				for range 2 { // on one connection
					write(t, c, strings.Replace(ask.request, "localhost", host, 1))
					if response, body := readReply(t, in, http.MethodPost); response.StatusCode != http.StatusOK || !bytes.Contains(body, ask.want) {
						t.Errorf("%s: got %s %q", where, response.Status, body)
					}
				}
			}
		})
	}
}
