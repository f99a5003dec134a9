// Package kmsgrpc is the key service on the network: a gRPC server of kmsv1.KeyService. It decides who is read and when, and what of an
// error its caller is told. What the operations do is up to package kms.
//
// A call comes by a connection (connections.go), passes the gate (gate.go) before a byte of its request is read, is decoded (codec.go),
// and becomes a call of kms.Service and back (datakeys.go, blobs.go, list.go). What fails becomes a status (refusal.go).
package kmsgrpc

import (
	"context"
	"crypto/tls"
	"runtime"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/tap"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/kms"
)

// Limits of the gRPC server. A sidecar holds one connection, and sends a few calls a minute. Those of connections and pods are in
// connections.go.
const (
	// maxSend fits a batch of 100 plaintexts of 4096 bytes with their ARNs.
	maxSend = 1 << 20
	// maxHeaders fits a token, usually 1 to 2 KiB, with room for one that names many groups. They may be compressed to next to nothing.
	maxHeaders = 8 << 10
	// maxStreams is the most calls of one connection at once. Each may have sent streamWindow bytes before anybody looks at it, which
	// gRPC may keep in four times as much memory, or not take its answer.
	maxStreams   = 8
	streamWindow = 64 << 10 // the least that gRPC knows
	// readBuffer is smaller than gRPC's 32 KiB: TLS has a buffer of its own, and most connections wait.
	readBuffer = 4 << 10
	// streamWorkers is how many goroutines wait for calls, for each processor. A call that finds none gets one of its own, whose
	// stack first has to grow to what opening a blob needs: a fifth of the call's time. They take turns, and so do their stacks in
	// the processor's cache: with 16 for each, opening a blob takes a fifth longer.
	streamWorkers = 2
	// callTimeout ends a call whose caller set no deadline, or a later one. It begins with the headers: the request has to come in
	// that time too.
	callTimeout = 15 * time.Second
	// connectionAge, plus or minus a tenth by gRPC, spreads long-lived connections over the replicas that are there now.
	connectionAge = 10 * time.Minute
	// connectionGrace is how long calls of a connection that is too old may go on.
	connectionGrace = 20 * time.Second
	// pingInterval is how often a client may ping at most, idle or not, before it is sent away.
	pingInterval = 10 * time.Second
)

// NewServer returns a server that offers the service and nothing else: no reflection, no health service. It speaks
// TLS 1.3 with the certificate of tlsConfig. What callers are not told goes to log.
func NewServer(service *kms.Service, tlsConfig *tls.Config, log logr.Logger) *grpc.Server {
	tlsConfig = tlsConfig.Clone()
	tlsConfig.MinVersion = max(tlsConfig.MinVersion, tls.VersionTLS13)
	server := grpc.NewServer(
		grpc.Creds(newConnections(credentials.NewTLS(tlsConfig), service.Now)),
		grpc.MaxRecvMsgSize(kmsv1.MaxRequestSize),
		grpc.MaxSendMsgSize(maxSend),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.InitialWindowSize(streamWindow),
		grpc.ReadBufferSize(readBuffer),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingInterval, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge:      connectionAge,
			MaxConnectionAgeGrace: connectionGrace,
			Time:                  time.Minute,
			Timeout:               pingInterval,
		}),
		grpc.NumStreamWorkers(uint32(streamWorkers*runtime.GOMAXPROCS(0))),
		grpc.ForceServerCodecV2(newSecretCodec()),
		grpc.InTapHandle(withDeadline),
	)
	g := &gate{service: service, log: log}
	server.RegisterService(g.guarded(&kmsv1.KeyService_ServiceDesc), g.adapter(kms.Caller{}))
	return server
}

// withDeadline gives every call a deadline that holds while its request is still to come.
func withDeadline(ctx context.Context, _ *tap.Info) (context.Context, error) {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= callTimeout {
		return ctx, nil
	}
	bounded, cancel := context.WithTimeout(ctx, callTimeout)
	context.AfterFunc(ctx, cancel) // gRPC ends it with the call
	return bounded, nil
}
