package rootkey

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	_ "golang.org/x/crypto/x509roots/fallback" // where the system has no authorities to trust, as in our image
)

const (
	// maxAnswerSize bounds what a connection to a service may bring, with everything that TLS and HTTP add. An answer
	// has a few hundred bytes.
	maxAnswerSize = 1 << 20

	maxCAFileSize = 1 << 20
	dialTimeout   = 10 * time.Second
)

var (
	errAnswerTooLong = errors.New("the answer is longer than 1 MiB")

	// errRedirectInClear is for a service at a loopback address that sends its client on: Vault's library follows.
	errRedirectInClear = &wrappingError{
		problem: "the service redirects to an address without TLS",
		remedy:  "name the address with TLS by the URI, or let an agent answer that sends nobody on",
	}
)

// boundTransport makes t ask one question over one connection, in clear at a loopback address alone, trust the certificates
// in caFile alone (the system's where it is empty), and read a bounded answer that is not unpacked. It replaces what the
// environment may have put there.
func boundTransport(t *http.Transport, caFile, serverName string) error {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: serverName}
	if caFile != "" {
		pem, err := readSmallFile(caFile, maxCAFileSize)
		if err != nil {
			return err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return &wrappingError{
				problem: fmt.Sprintf("parameter \"ca-file\": %s has no certificate in it", caFile),
				remedy:  "it must hold the certificates to trust in PEM",
			}
		}
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &boundedConn{Conn: conn, left: maxAnswerSize}, nil
	}
	t.DialTLSContext = nil
	t.Proxy = func(r *http.Request) (*url.URL, error) {
		if r.URL.Scheme != "https" && !loopback(r.URL.Hostname()) {
			return nil, errRedirectInClear
		}
		return http.ProxyFromEnvironment(r)
	}
	t.TLSClientConfig = config
	t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	t.DisableKeepAlives = true
	t.DisableCompression = true
	t.MaxResponseHeaderBytes = 64 << 10
	return nil
}

// boundedConn fails once more was read from it than an answer may have. Only one goroutine of net/http reads it.
type boundedConn struct {
	net.Conn
	left int
}

func (c *boundedConn) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errAnswerTooLong
	}
	if len(b) > c.left {
		b = b[:c.left]
	}
	n, err := c.Conn.Read(b)
	c.left -= n
	return n, err
}

// readSmallFile reads a file that a parameter names.
func readSmallFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // the path is the operator's, from a flag of the manager
	if err != nil {
		return nil, &wrappingError{problem: err.Error(), remedy: "mount the file that the root key's URI names"}
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, &wrappingError{problem: err.Error(), remedy: "see that the manager may read the file"}
	}
	if int64(len(b)) > limit {
		return nil, &wrappingError{problem: fmt.Sprintf("%s is longer than %d bytes", path, limit), remedy: "name the right file"}
	}
	return b, nil
}

// explainNetwork says why no answer came, or nil where err does not tell. It shows errors of types whose text is made
// here alone: of the machine, of DNS and of certificates. A request's URL, which url.Error quotes, may hold what is to be
// encrypted.
func explainNetwork(err error) error {
	const remedy = "see that the manager can reach the service"
	if quoted, ok := errors.AsType[*url.Error](err); ok {
		err = quoted.Err
	}
	switch {
	case errors.Is(err, errAnswerTooLong):
		return &wrappingError{problem: errAnswerTooLong.Error(), remedy: "see what answers at the service's address"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &wrappingError{problem: "the connection ended before the answer", remedy: remedy}
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return &wrappingError{
			problem: e.Error(),
			remedy:  "name the service as its certificate does, and its authority in a file by the parameter ca-file where there is one",
		}
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return &wrappingError{problem: e.Error(), remedy: remedy}
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return &wrappingError{problem: e.Error(), remedy: remedy}
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return &wrappingError{problem: "the service did not answer in time", remedy: remedy}
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok || errors.Is(err, http.ErrSchemeMismatch) {
		return &wrappingError{problem: "the service does not speak TLS", remedy: "see what answers at its address"}
	}
	return nil
}
