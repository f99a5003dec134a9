package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// apiTimeout is for one request, all of it.
const apiTimeout = 5 * time.Second

// An apiClient is the little of a client that up needs.
type apiClient struct {
	server string
	http   *http.Client
}

func newAPIClient(server string, ca []byte, c credential) (*apiClient, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("the certificate authority is not PEM")
	}
	pair, err := tls.X509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, err
	}
	return &apiClient{server: server, http: &http.Client{
		Timeout: apiTimeout,
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13},
		},
	}}, nil
}

// get reads an object into out, or only looks whether the path answers if out is nil.
func (c *apiClient) get(ctx context.Context, path string, out any) error {
	return c.do(ctx, http.MethodGet, path, "", nil, out)
}

// apply makes an object be as given.
func (c *apiClient) apply(ctx context.Context, path string, object any) error {
	body, err := json.Marshal(object)
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodPatch, path+"?fieldManager=datakeys-cluster&force=true", "application/apply-patch+yaml", body, nil)
}

func (c *apiClient) do(ctx context.Context, method, path, contentType string, body []byte, out any) error {
	request, err := http.NewRequestWithContext(ctx, method, c.server+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s: %.300s", method, path, response.Status, content)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(content, out)
}
