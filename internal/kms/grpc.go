package kms

import (
	"context"
	"crypto/tls"
	"errors"
	"runtime"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// Limits of the gRPC server. A sidecar holds one connection, and sends a few calls a minute.
const (
	// maxReceive fits a batch of 100 blobs of 6144 bytes, each with a key name and a context of the greatest size: 8192 bytes in
	// 1024 pairs, which protobuf frames with 6 bytes each.
	maxReceive = 3 << 20
	// maxSend fits a batch of 100 plaintexts of 4096 bytes with their ARNs.
	maxSend = 1 << 20
	// maxHeaders fits a token, usually 1 to 2 KiB, with room for one that names many groups.
	maxHeaders = 16 << 10
	// maxStreams is the most calls of one connection at once.
	maxStreams = 64
	// streamWorkers is how many goroutines wait for calls, for each processor. A call that finds none gets one of its own, whose
	// stack first has to grow to what opening a blob needs: a fifth of the call's time. They take turns, and so do their stacks in
	// the processor's cache: with 16 for each, opening a blob takes a fifth longer.
	streamWorkers = 2
	// callTimeout ends a call whose caller set no deadline, or a later one.
	callTimeout = 15 * time.Second
	// connectionAge, plus or minus a tenth by gRPC, spreads long-lived connections over the replicas that are there now.
	connectionAge = 10 * time.Minute
	// connectionGrace is how long calls of a connection that is too old may go on.
	connectionGrace = 20 * time.Second
	// pingInterval is how often a client may ping at most, idle or not, before it is sent away.
	pingInterval = 10 * time.Second
)

// NewGRPCServer returns a server that offers the service and nothing else: no reflection, no health service. It speaks
// TLS 1.3 with the certificate of tlsConfig. What callers are not told goes to log.
func NewGRPCServer(service *Service, tlsConfig *tls.Config, log logr.Logger) *grpc.Server {
	tlsConfig = tlsConfig.Clone()
	tlsConfig.MinVersion = max(tlsConfig.MinVersion, tls.VersionTLS13)
	server := grpc.NewServer(
		grpc.Creds(countingCredentials{TransportCredentials: credentials.NewTLS(tlsConfig), now: service.now}),
		grpc.MaxRecvMsgSize(maxReceive),
		grpc.MaxSendMsgSize(maxSend),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxConcurrentStreams(maxStreams),
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
		grpc.UnaryInterceptor(guard(service.now, log)),
	)
	kmsv1.RegisterKeyServiceServer(server, &adapter{service: service, log: log})
	return server
}

// guard gives every call a deadline, turns errors into statuses and panics into errors, logs what the caller is not told,
// and lets no connection go on sending calls without a valid token.
func guard(now func() time.Time, log logr.Logger) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
		if deadline, ok := ctx.Deadline(); !ok || time.Until(deadline) > callTimeout {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, callTimeout)
			defer cancel()
		}
		conn := connectionOf(ctx)
		defer func() {
			if p := recover(); p != nil {
				resp, err = nil, panicError(p)
			}
			conn.done(now, err)
			if err != nil {
				resp, err = nil, refusalStatus(log.WithValues("method", info.FullMethod), err)
			}
		}()
		if err := conn.admit(now); err != nil {
			return nil, err
		}
		return handler(ctx, req)
	}
}

// Outward messages of the codes that tell nothing else.
const (
	messageUnauthenticated = "a token of a running pod, with the audience datakeys.io, is needed"
	messagePrecondition    = "the key is in a state that does not allow this: see the conditions of its MasterKey"
	messageUnavailable     = "the key service cannot answer now: try again"
	messageInternal        = "internal error"
)

// refusal turns an error of the service into what the caller is told, and logs the rest.
func refusal(log logr.Logger, err error) (codes.Code, string) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Code: CodeInternal, Message: messageInternal, Err: err}
	}
	switch e.Code {
	case CodeInvalidArgument:
		log.V(1).Info("Refused a call", "error", err.Error())
		return codes.InvalidArgument, e.Message
	case CodeDenied:
		log.V(1).Info("Refused a call", "error", err.Error())
		return codes.PermissionDenied, e.Message
	case CodeNotFound:
		log.Info("Refused a call", "error", err.Error())
		return codes.NotFound, e.Message
	case CodeUnauthenticated:
		log.Info("Refused a call", "error", err.Error())
		return codes.Unauthenticated, messageUnauthenticated
	case CodeThrottled:
		log.V(1).Info("Refused a call", "error", err.Error())
		return codes.ResourceExhausted, e.Message
	case CodeFailedPrecondition:
		if ReasonOf(e) != kmsv1.ReasonKeyUnavailable { // somebody wanted it so
			log.V(1).Info("Refused a call", "error", err.Error())
			return codes.FailedPrecondition, e.Message
		}
		log.Error(err, "A key cannot be used")
		return codes.FailedPrecondition, messagePrecondition
	case CodeUnavailable:
		log.Error(err, "Could not answer a call")
		return codes.Unavailable, messageUnavailable
	default:
		log.Error(err, "A call failed")
		return codes.Internal, messageInternal
	}
}

// refusalStatus is the status of a call that is refused.
func refusalStatus(log logr.Logger, err error) error {
	code, message := refusal(log, err)
	told := status.New(code, message)
	withReason, failed := told.WithDetails(&errdetails.ErrorInfo{Domain: kmsv1.ErrorDomain, Reason: ReasonOf(err)})
	if failed != nil {
		return told.Err()
	}
	return withReason.Err()
}

// adapter is the gRPC face of a Service. Its methods are in grpc_datakeys.go, grpc_blobs.go and grpc_list.go.
type adapter struct {
	kmsv1.UnsafeKeyServiceServer
	service *Service
	log     logr.Logger
}

// bearer returns the token of a call, or nothing unless there is exactly one (RFC 6750, section 2.1).
func bearer(ctx context.Context) string {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) != 1 {
		return ""
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return token
}
