package kms

import (
	"context"
	"slices"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// gate is what every call passes before a byte of its request is read: who calls is known by then, and has a turn. A request
// is memory that its sender fills as slowly as he likes, so there is none of strangers, and of each pod no more than a few.
type gate struct {
	service *Service
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

func (g *gate) adapter(c Caller) *adapter { return &adapter{service: g.service, log: g.log, caller: c} }

// method returns the method behind the gate. It turns errors into statuses and panics into errors, and logs what the caller is
// not told.
func (g *gate) method(name string, behind handler) handler {
	return func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (resp any, err error) {
		var unread error
		defer func() {
			if p := recover(); p != nil {
				resp, err = nil, panicError(p)
			}
			if err != nil && err != unread { //nolint:errorlint // this very error, which is a status by now
				resp, err = nil, g.service.refusalStatus(g.log.WithValues("method", name), err)
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
				g.service.done(ctx, name, g.service.now(), caller, invalid("request", unread))
			}
			return unread
		}, nil)
	}
}

// enter returns who calls once it is the call's turn. The caller calls leave in the end.
func (g *gate) enter(ctx context.Context, name string) (c Caller, leave func(), err error) {
	start := g.service.now()
	conn := connectionOf(ctx)
	reviewed, err := conn.admit(ctx)
	if err != nil {
		return Caller{}, nil, err
	}
	defer func() {
		if err != nil {
			g.service.metrics.observe(name, g.service.clock.Since(start), err)
		}
	}()
	c, err = g.service.Authenticate(ctx, bearer(ctx))
	if err != nil {
		conn.refused(ctx, err)
	}
	reviewed()
	if err != nil {
		return Caller{}, nil, err
	}
	if leave, err = conn.enter(ctx, name, c.PodUID); err != nil {
		return Caller{}, nil, err
	}
	// Only now, when those before it are counted as what became of them.
	if err = g.service.admit(ctx, name, c); err != nil {
		leave()
		return Caller{}, nil, err
	}
	return c, leave, nil
}
