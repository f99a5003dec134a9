package kmsgrpc

import (
	"context"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/kms"
)

// gate is what every call passes before a byte of its request is read: who calls is known by then, and has a turn. A request
// is memory that its sender fills as slowly as he likes, so there is none of strangers, and of each pod no more than a few.
type gate struct {
	service *kms.Service
	log     logr.Logger
}

// handler is that of grpc.MethodDesc. It calls decode to read the request.
type handler = func(srv any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error)

// guarded returns the service with the gate before each method.
func (g *gate) guarded(desc *grpc.ServiceDesc) *grpc.ServiceDesc {
	guarded := *desc
	guarded.Methods = slices.Clone(desc.Methods)
	for i := range guarded.Methods {
		m := &guarded.Methods[i]
		m.Handler = g.method(m.MethodName, m.Handler)
	}
	return &guarded
}

// adapter is the gRPC face of a Service for one caller. Its methods are in datakeys.go, blobs.go and list.go.
type adapter struct {
	kmsv1.UnsafeKeyServiceServer
	service *kms.Service
	log     logr.Logger
	caller  kms.Caller
}

func (g *gate) adapter(c kms.Caller) *adapter {
	return &adapter{service: g.service, log: g.log, caller: c}
}

// method returns the method behind the gate. It turns errors into statuses and panics into errors, and logs what the caller is
// not told.
func (g *gate) method(name string, behind handler) handler {
	return func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (resp any, err error) {
		var unread error
		defer func() {
			if p := recover(); p != nil {
				resp, err = nil, kms.PanicError(p)
			}
			if err != nil && err != unread { //nolint:errorlint // this very error, which is a status by now
				resp, err = nil, refusalStatus(g.service, g.log.WithValues("method", name), err)
			}
		}()
		caller, leave, err := g.enter(ctx, name)
		if err != nil {
			return nil, err
		}
		defer leave()
		return behind(g.adapter(caller), ctx, func(req any) error {
			unread = decode(req)
			if code := status.Code(unread); unread != nil && code != codes.Canceled && code != codes.DeadlineExceeded {
				g.log.V(1).Info("Refused a request that cannot be read", "method", name, "error", unread.Error())
				g.service.Unread(ctx, name, caller, unread)
			}
			return unread
		}, nil)
	}
}

// enter returns who calls once it is the call's turn. The caller calls leave in the end.
func (g *gate) enter(ctx context.Context, name string) (c kms.Caller, leave func(), err error) {
	start := g.service.Now()
	conn := connectionOf(ctx)
	reviewed, err := conn.admit(ctx)
	if err != nil {
		return kms.Caller{}, nil, err
	}
	defer func() {
		if err != nil {
			g.service.TurnedAway(name, start, err)
		}
	}()
	c, err = g.service.Authenticate(ctx, bearer(ctx))
	if err != nil {
		conn.refused(ctx, err)
	}
	reviewed()
	if err != nil {
		return kms.Caller{}, nil, err
	}
	if leave, err = conn.enter(ctx, name, c.PodUID); err != nil {
		return kms.Caller{}, nil, err
	}
	// Only now, when those before it are counted as what became of them.
	if err = g.service.Admit(ctx, name, c); err != nil {
		leave()
		return kms.Caller{}, nil, err
	}
	return c, leave, nil
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
