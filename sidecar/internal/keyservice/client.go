package keyservice

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope"
)

const (
	// CallTimeout is the most that one call may take, connecting included.
	CallTimeout = 5 * time.Second
	// connectTimeout leaves a call time for another try to connect: the first may lead to a replica that has just gone, and hang.
	connectTimeout = 2 * time.Second
	// idleTimeout closes a connection that nobody uses. With the usual leases it is used all the time; a sidecar that has nothing to
	// renew, or long leases, need not be held a connection for.
	idleTimeout = time.Minute
	// maxAnswerSize holds kmsv1.MaxBatch plaintexts of the largest size, with room for names and framing.
	maxAnswerSize = 1 << 20
)

// Client asks the key service, as the pod whose token it reads.
type Client struct {
	conn *grpc.ClientConn
	kms  kmsv1.KeyServiceClient
}

// New returns a client of the key service at address (host:port), which must present a certificate for that host from one of the roots
// (PEM). It connects when it is first used. Every call passes through intercept.
func New(address string, roots []byte, tokenPath string, intercept grpc.UnaryClientInterceptor) (*Client, error) {
	if err := CheckAddress(address); err != nil {
		return nil, err
	}
	pool, err := RootPool(roots)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient(
		// The dialer looks the name up for every connection; gRPC's own resolver would do so every 30 s at most.
		"passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			RootCAs:    pool,
			ServerName: host,
			MinVersion: tls.VersionTLS13,
		})),
		grpc.WithPerRPCCredentials(&tokenFile{path: tokenPath}),
		grpc.WithUnaryInterceptor(intercept),
		grpc.WithNoProxy(), // a token is for the key service alone, whatever the environment says
		grpc.WithIdleTimeout(idleTimeout),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: connectTimeout,
		}),
		// Pings are rare, because a call that lasts so long is; but with them comes the socket option that makes a
		// connection to a node that is gone fail instead of swallowing calls.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: CallTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswerSize)),
		// A quarter of the defaults: what goes over this connection is small, and memory counts in every pod.
		grpc.WithReadBufferSize(8<<10), grpc.WithWriteBufferSize(8<<10),
		grpc.WithDisableServiceConfig(), grpc.WithUserAgent("datakeys-sidecar"),
	)
	if err != nil {
		return nil, fmt.Errorf("key service %q: %w", address, err)
	}
	return &Client{conn: conn, kms: kmsv1.NewKeyServiceClient(conn)}, nil
}

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Open asks for up to kmsv1.MaxBatch plaintexts and returns one answer each, in order, or the gRPC status error of the call
// as a whole. Destroying the plaintexts is up to the caller.
func (c *Client) Open(ctx context.Context, sealed []Sealed) ([]Opened, error) {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	all := make([]Opened, 0, len(sealed))
	for _, batch := range batches(sealed) {
		opened, err := c.open(ctx, batch)
		if err != nil {
			for _, o := range all {
				o.Plaintext.Destroy()
			}
			return nil, err
		}
		all = append(all, opened...)
	}
	return all, nil
}

// open asks for the plaintexts of one batch.
func (c *Client) open(ctx context.Context, batch *kmsv1.BatchDecryptRequest) ([]Opened, error) {
	// Waiting for the connection makes the first try at a key service that comes up just now the one that succeeds.
	response, err := c.kms.BatchDecrypt(ctx, batch, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	results := response.GetResults()
	defer wipe(results)
	if len(results) != len(batch.GetRequests()) {
		return nil, status.Errorf(codes.Internal, "the key service gave %d answers to %d requests", len(results), len(batch.GetRequests()))
	}
	opened := make([]Opened, len(results))
	for i, result := range results {
		opened[i] = newOpened(result)
	}
	return opened, nil
}

// Renew asks for up to kmsv1.MaxBatch data keys to be renewed. It returns an error for each, in order: nil where it is, else a gRPC status
// error; or the one of the call as a whole.
func (c *Client) Renew(ctx context.Context, all []Renewal) ([]error, error) {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	request := &kmsv1.RenewRequest{DataKeys: make([]*kmsv1.RenewDataKey, len(all))}
	for i := range all {
		r := &all[i]
		request.DataKeys[i] = &kmsv1.RenewDataKey{
			KeyId: r.KeyID.String(), KeyVersion: int32(r.KeyVersion), MaterialId: r.MaterialID[:], Name: r.Name,
		}
	}
	response, err := c.kms.Renew(ctx, request, grpc.WaitForReady(true))
	if err != nil {
		return nil, err
	}
	results := response.GetResults()
	if len(results) != len(all) {
		return nil, status.Errorf(codes.Internal, "the key service gave %d answers about %d data keys", len(results), len(all))
	}
	answers := make([]error, len(results))
	for i, result := range results {
		if result.GetRenewal() == nil { // what says nothing renews nothing
			answers[i] = refusalError(result.GetRefusal())
		}
	}
	return answers, nil
}

// maxBatchSize is half of what the key service takes: with the largest request it is not more.
const maxBatchSize = kmsv1.MaxRequestSize / 2

// batches are the requests for plaintexts, in order, in as few batches as the key service takes. Nearly always that is one.
func batches(sealed []Sealed) (all []*kmsv1.BatchDecryptRequest) {
	var last *kmsv1.BatchDecryptRequest
	size := 0
	for _, s := range sealed {
		request := &kmsv1.DecryptRequest{CiphertextBlob: s.CiphertextBlob, EncryptionContext: s.EncryptionContext, Aad: s.AAD}
		n := proto.Size(request)
		if last == nil || size+n > maxBatchSize {
			last, size = &kmsv1.BatchDecryptRequest{}, 0
			all = append(all, last)
		}
		size += n
		last.Requests = append(last.Requests, request)
	}
	return all
}

// newOpened reads the answer to one request, and copies the plaintext: wiping the message is up to the caller.
func newOpened(result *kmsv1.BatchDecryptResult) Opened {
	if refusal := result.GetRefusal(); refusal != nil {
		return Opened{Err: refusalError(refusal)}
	}
	response := result.GetResponse()
	plaintext, err := envelope.PlaintextFromBytes(response.GetPlaintext())
	if err != nil {
		return Opened{Err: status.Errorf(codes.Internal, "the key service's answer: %v", err)}
	}
	return Opened{KeyARN: response.GetKeyId(), KeyVersion: response.GetKeyVersion(), Plaintext: plaintext}
}

// wipe clears the plaintexts that gRPC decoded. The bytes that it received them in are its own: best effort.
func wipe(results []*kmsv1.BatchDecryptResult) {
	for _, result := range results {
		clear(result.GetResponse().GetPlaintext())
	}
}

// CheckAddress checks the address of a key service, host:port.
func CheckAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err == nil {
		var n int
		n, err = strconv.Atoi(port)
		if host == "" || n < 1 || n > 65535 {
			err = errors.New("no host or no port of 1 to 65535")
		}
	}
	if err != nil {
		return fmt.Errorf("key service %q: must be host:port with a numeric port", address)
	}
	return nil
}

// RootPool reads certificates in PEM, one at least.
func RootPool(pem []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("roots of the key service: must hold at least one certificate in PEM")
	}
	return pool, nil
}
