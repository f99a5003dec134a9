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
	"google.golang.org/grpc/tap"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// Limits of the gRPC server. A sidecar holds one connection, and sends a few calls a minute. Those of connections and pods are in
// grpc_connection.go.
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

// NewGRPCServer returns a server that offers the service and nothing else: no reflection, no health service. It speaks
// TLS 1.3 with the certificate of tlsConfig. What callers are not told goes to log.
func NewGRPCServer(service *Service, tlsConfig *tls.Config, log logr.Logger) *grpc.Server {
	tlsConfig = tlsConfig.Clone()
	tlsConfig.MinVersion = max(tlsConfig.MinVersion, tls.VersionTLS13)
	server := grpc.NewServer(
		grpc.Creds(newConnections(credentials.NewTLS(tlsConfig), service.now)),
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
	server.RegisterService(g.guarded(&kmsv1.KeyService_ServiceDesc), g.adapter(Caller{}))
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
	case CodeUnauthenticated: // the log is not for strangers to fill
		log.V(1).Info("Refused a call", "error", err.Error())
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
		if errors.Is(err, context.Canceled) { // by a caller who does not wait: no outage
			log.V(1).Info("A call was cancelled", "error", err.Error())
			return codes.Unavailable, messageUnavailable
		}
		log.Error(err, "Could not answer a call")
		return codes.Unavailable, messageUnavailable
	default:
		log.Error(err, "A call failed")
		return codes.Internal, messageInternal
	}
}

// refusalStatus is the status of a call that is refused.
func (s *Service) refusalStatus(log logr.Logger, err error) error {
	code, message := refusal(log, err)
	told := status.New(code, message)
	info := &errdetails.ErrorInfo{Domain: kmsv1.ErrorDomain, Reason: ReasonOf(err)}
	if key := s.keyOfRefusal(err); key != "" {
		info.Metadata = map[string]string{kmsv1.MetadataKey: key}
	}
	withReason, failed := told.WithDetails(info)
	if failed != nil {
		return told.Err()
	}
	return withReason.Err()
}

// keyOfRefusal is the ARN of the key whose state is why, empty where that is not so.
func (s *Service) keyOfRefusal(err error) string {
	if e, ok := errors.AsType[*Error](err); ok && e.KeyID != "" {
		return s.keyARN(e.Namespace, e.KeyID)
	}
	return ""
}

// adapter is the gRPC face of a Service for one caller. Its methods are in grpc_datakeys.go, grpc_blobs.go and grpc_list.go.
type adapter struct {
	kmsv1.UnsafeKeyServiceServer
	service *Service
	log     logr.Logger
	caller  Caller
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
