//go:build cgo

package main

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/kms/pkg/service"
)

// annotation says how something was encrypted, so that a later plugin may do it otherwise.
const (
	annotation = "algorithm.softhsm-plugin.datakeys.io"
	algorithm  = "AES-GCM"
)

// plugin is a service.Service over the keys of a token.
type plugin struct{ token *token }

var _ service.Service = plugin{}

func (p plugin) Status(context.Context) (*service.StatusResponse, error) {
	current, err := p.token.current()
	if err != nil {
		return &service.StatusResponse{Version: "v2", Healthz: err.Error()}, nil //nolint:nilerr // the contract has a field for it
	}
	return &service.StatusResponse{Version: "v2", Healthz: "ok", KeyID: current.id}, nil
}

func (p plugin) Encrypt(_ context.Context, _ string, data []byte) (*service.EncryptResponse, error) {
	current, err := p.token.current()
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	ciphertext, err := p.token.encrypt(current, data)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &service.EncryptResponse{
		Ciphertext: ciphertext, KeyID: current.id, Annotations: map[string][]byte{annotation: []byte(algorithm)},
	}, nil
}

func (p plugin) Decrypt(_ context.Context, _ string, in *service.DecryptRequest) ([]byte, error) {
	if string(in.Annotations[annotation]) != algorithm {
		return nil, status.Errorf(codes.InvalidArgument, "annotation %s: must be %s", annotation, algorithm)
	}
	k, err := p.token.find(in.KeyID)
	if errors.Is(err, errNoKey) {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	plaintext, err := p.token.decrypt(k, in.Ciphertext)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return plaintext, nil
}
