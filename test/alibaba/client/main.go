// Command client calls an Alibaba Cloud KMS instance with Alibaba's own SDK, for tests of the sidecar's front door. It reads requests
// from stdin and answers each on stdout, as JSON: {"operation": "AdvanceDecrypt", "request": {"CiphertextBlob": "…"}}, in the SDK's own
// names, and {"response": {…}} or {"error": {…}}.
//
// It is a module of its own: Alibaba's SDK is for this test alone and brings a dozen old modules with it, which are nothing that the
// manager or the sidecar should be scanned for, or have their own versions chosen by.
package main

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/alibabacloud-go/tea/tea"
	openapi "github.com/aliyun/alibabacloud-dkms-gcs-go-sdk/openapi"
	openapiutil "github.com/aliyun/alibabacloud-dkms-gcs-go-sdk/openapi-util"
	sdk "github.com/aliyun/alibabacloud-dkms-gcs-go-sdk/sdk"
)

func main() {
	endpoint := flag.String("endpoint", "", "host:port, without TLS")
	once := flag.Bool("once", false, "never try again")
	flag.Parse()
	if err := run(*endpoint, *once, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

// failure is an error of the SDK as its users see it.
type failure struct {
	Code      string `json:"code"`
	Message   string `json:"message"`
	Status    int    `json:"status"`
	RequestID string `json:"requestId"`
	// Other is an error that is not one of the SDK's.
	Other string `json:"other,omitempty"`
}

func run(endpoint string, once bool, in io.Reader, out io.Writer) error {
	client, err := connect(endpoint)
	if err != nil {
		return err
	}
	// The SDK tries again as always, but at once.
	methods := methodsOf(client, &openapiutil.RuntimeOptions{BackoffPolicy: tea.String("no"), Autoretry: tea.Bool(!once)})
	requests, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var asked struct {
			Operation string          `json:"operation"`
			Request   json.RawMessage `json:"request"`
		}
		if err := requests.Decode(&asked); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		call, ok := methods[asked.Operation]
		if !ok {
			return fmt.Errorf("the SDK has no operation %q", asked.Operation)
		}
		var answer struct {
			Response any      `json:"response,omitempty"`
			Error    *failure `json:"error,omitempty"`
		}
		if answer.Response, err = call(asked.Request); err != nil {
			answer.Response, answer.Error = nil, failureOf(err)
		}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
}

// connect makes a client with a key of its own, for which the door does not ask.
func connect(endpoint string) (*sdk.Client, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	return sdk.NewClient(&openapi.Config{
		Endpoint: tea.String(endpoint), Protocol: tea.String("http"), AccessKeyId: tea.String("KAAP.test"), PrivateKey: tea.String(string(text)),
	})
}

// methodsOf are the operations that the SDK has.
func methodsOf(c *sdk.Client, options *openapiutil.RuntimeOptions) map[string]func([]byte) (any, error) {
	return map[string]func([]byte) (any, error){
		"GenerateDataKey":                            method(c.GenerateDataKeyWithOptions, options),
		"AdvanceGenerateDataKey":                     method(c.AdvanceGenerateDataKeyWithOptions, options),
		"Encrypt":                                    method(c.EncryptWithOptions, options),
		"AdvanceEncrypt":                             method(c.AdvanceEncryptWithOptions, options),
		"Decrypt":                                    method(c.DecryptWithOptions, options),
		"AdvanceDecrypt":                             method(c.AdvanceDecryptWithOptions, options),
		"GenerateDataKeyPair":                        method(c.GenerateDataKeyPairWithOptions, options),
		"GenerateDataKeyPairWithoutPlaintext":        method(c.GenerateDataKeyPairWithoutPlaintextWithOptions, options),
		"AdvanceGenerateDataKeyPair":                 method(c.AdvanceGenerateDataKeyPairWithOptions, options),
		"AdvanceGenerateDataKeyPairWithoutPlaintext": method(c.AdvanceGenerateDataKeyPairWithoutPlaintextWithOptions, options),
		"GenerateRandom":                             method(c.GenerateRandomWithOptions, options),
		"Sign":                                       method(c.SignWithOptions, options),
		"Verify":                                     method(c.VerifyWithOptions, options),
		"GetPublicKey":                               method(c.GetPublicKeyWithOptions, options),
		"GetSecretValue":                             method(c.GetSecretValueWithOptions, options),
	}
}

func method[Request, Response any](
	call func(*Request, *openapiutil.RuntimeOptions) (*Response, error), options *openapiutil.RuntimeOptions,
) func([]byte) (any, error) {
	return func(text []byte) (any, error) {
		var request Request
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&request); err != nil {
			return nil, err
		}
		return call(&request, options)
	}
}

func failureOf(err error) *failure {
	var e *tea.SDKError
	if !errors.As(err, &e) {
		return &failure{Other: err.Error()}
	}
	f := &failure{Code: tea.StringValue(e.Code), Message: tea.StringValue(e.Message)}
	var data struct {
		HTTPCode  int    `json:"httpCode"`
		RequestID string `json:"requestId"`
	}
	if err := json.Unmarshal([]byte(tea.StringValue(e.Data)), &data); err != nil {
		return &failure{Other: fmt.Sprintf("the data of an error is no JSON: %v", err)}
	}
	f.Status, f.RequestID = data.HTTPCode, data.RequestID
	return f
}
