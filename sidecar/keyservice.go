package sidecar

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
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
	// callTimeout is the most that one call may take, connecting included.
	callTimeout = 5 * time.Second
	// idleTimeout closes a connection that nobody uses. With the usual leases it is used all the time; a sidecar that has nothing to
	// renew, or long leases, need not be held a connection for.
	idleTimeout = time.Minute
	// maxBatch is how many blobs one BatchDecrypt takes, and how many data keys one Renew (kms.proto).
	maxBatch = 100
	// maxAnswerSize holds maxBatch plaintexts of the largest size, with room for names and framing.
	maxAnswerSize = 1 << 20
	// maxTokenSize is the most bytes read of a token; those of Kubernetes have about 1,200.
	maxTokenSize = 16 << 10
)

// Opened is the answer to one Sealed: Plaintext with its key, or the refusal Err, a gRPC status error.
type Opened struct {
	// KeyARN and KeyVersion name the master key, as the key service does.
	KeyARN     string
	KeyVersion int32
	Plaintext  envelope.Plaintext
	Err        error
}

// Client asks the key service, as the pod whose token it reads.
type Client struct {
	conn    *grpc.ClientConn
	kms     kmsv1.KeyServiceClient
	contact *contact
}

// NewClient returns a client of the key service at address (host:port), which must present a certificate for that host
// from one of the roots (PEM). It connects when it is first used.
func NewClient(address string, roots []byte, tokenPath string) (*Client, error) {
	if err := checkAddress(address); err != nil {
		return nil, err
	}
	pool, err := rootPool(roots)
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	contact := newContact()
	conn, err := grpc.NewClient(
		// The dialer looks the name up for every connection; gRPC's own resolver would do so every 30 s at most.
		"passthrough:///"+address,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			RootCAs:    pool,
			ServerName: host,
			MinVersion: tls.VersionTLS13,
		})),
		grpc.WithPerRPCCredentials(&tokenFile{path: tokenPath}),
		grpc.WithUnaryInterceptor(contact.intercept),
		grpc.WithNoProxy(), // a token is for the key service alone, whatever the environment says
		grpc.WithIdleTimeout(idleTimeout),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: callTimeout,
		}),
		// Pings are rare, because a call that lasts so long is; but with them comes the socket option that makes a
		// connection to a node that is gone fail instead of swallowing calls.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: callTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswerSize)),
		// A quarter of the defaults: what goes over this connection is small, and memory counts in every pod.
		grpc.WithReadBufferSize(8<<10), grpc.WithWriteBufferSize(8<<10),
		grpc.WithDisableServiceConfig(), grpc.WithUserAgent("datakeys-sidecar"),
	)
	if err != nil {
		return nil, fmt.Errorf("key service %q: %w", address, err)
	}
	return &Client{conn: conn, kms: kmsv1.NewKeyServiceClient(conn), contact: contact}, nil
}

// Close closes the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Open asks for up to maxBatch plaintexts and returns one answer each, in order, or the gRPC status error of the call
// as a whole. Destroying the plaintexts is up to the caller.
func (c *Client) Open(ctx context.Context, sealed []Sealed) ([]Opened, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
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

// Renew asks for up to maxBatch data keys to be renewed. It returns an error for each, in order: nil where it is, else a gRPC status
// error; or the one of the call as a whole.
func (c *Client) Renew(ctx context.Context, all []Renewal) ([]error, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
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

// tokenFile is the file with the pod's token. The kubelet puts a new one in its place in time, so every call looks whether it has; only
// then is it read.
type tokenFile struct {
	path string
	read atomic.Pointer[tokenRead]
}

// tokenRead is a token as a file had it. It is not changed.
type tokenRead struct {
	file     os.FileInfo
	metadata map[string]string
}

func (r *tokenRead) isOf(file os.FileInfo) bool {
	return os.SameFile(r.file, file) && r.file.ModTime().Equal(file.ModTime()) && r.file.Size() == file.Size()
}

// GetRequestMetadata implements credentials.PerRPCCredentials. A file that cannot be read now may be readable later.
func (f *tokenFile) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	info, err := os.Stat(f.path)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "the pod's token: %v", err)
	}
	if r := f.read.Load(); r != nil && r.isOf(info) {
		return r.metadata, nil
	}
	r, err := readToken(f.path)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "the pod's token: %v", err)
	}
	f.read.Store(r)
	return r.metadata, nil
}

func readToken(path string) (*tokenRead, error) {
	f, err := os.Open(path) //nolint:gosec // a path of the command line
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	token, err := io.ReadAll(io.LimitReader(f, maxTokenSize+1))
	if err != nil {
		return nil, err
	}
	token = bytes.TrimSpace(token)
	if len(token) == 0 || len(token) > maxTokenSize {
		return nil, fmt.Errorf("the file %s has to hold 1 to %d bytes", path, maxTokenSize)
	}
	return &tokenRead{info, map[string]string{"authorization": "Bearer " + string(token)}}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (*tokenFile) RequireTransportSecurity() bool { return true }
