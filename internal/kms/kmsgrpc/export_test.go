package kmsgrpc

import (
	"context"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/kms"
)

// Call calls a method with an encoded request, as the gRPC server does, without the network: the fuzzer has no time for it. The
// answer is as it goes to the encoder. ok says that the request can be decoded.
func Call(ctx context.Context, s *kms.Service, log logr.Logger, method grpc.MethodDesc, req []byte) (resp any, refusal *status.Status, ok bool) {
	ok = true
	decode := func(into any) error {
		err := newSecretCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(req)}, into)
		ok = err == nil
		return err
	}
	resp, err := (&gate{service: s, log: log}).method(method.MethodName, method.Handler)(nil, ctx, decode, nil)
	if err != nil {
		return nil, status.Convert(err), ok
	}
	return resp, nil, ok
}

// Encode is what the gRPC server does with an answer: it encodes it, and then clears the plaintext.
func Encode(resp any) ([]byte, error) {
	b, err := newSecretCodec().Marshal(resp)
	return b.Materialize(), err
}

// CallEncrypt is Encrypt of the adapter.
func CallEncrypt(ctx context.Context, s *kms.Service, c kms.Caller, req *kmsv1.EncryptRequest) error {
	_, err := (&adapter{service: s, caller: c}).Encrypt(ctx, req)
	return err
}

// Guarded is a service behind the gate of the server.
func Guarded(s *kms.Service, desc *grpc.ServiceDesc) *grpc.ServiceDesc {
	return (&gate{service: s}).guarded(desc)
}
