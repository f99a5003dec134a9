package kms

import (
	"context"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// CallDecrypt is Decrypt as the gRPC server calls it, without the network: the fuzzer has no time for it.
func CallDecrypt(ctx context.Context, s *Service, log logr.Logger, req *kmsv1.DecryptRequest) (*kmsv1.DecryptResponse, *status.Status) {
	a := &adapter{service: s, log: log}
	resp, err := guard(s.now, log)(ctx, req, &grpc.UnaryServerInfo{FullMethod: kmsv1.KeyService_Decrypt_FullMethodName},
		func(ctx context.Context, req any) (any, error) { return a.Decrypt(ctx, req.(*kmsv1.DecryptRequest)) })
	if err != nil {
		return nil, status.Convert(err)
	}
	return resp.(*kmsv1.DecryptResponse), nil
}
