package kmsgrpc

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// GenerateRandom implements kmsv1.KeyServiceServer.
func (a *adapter) GenerateRandom(ctx context.Context, req *kmsv1.GenerateRandomRequest) (*kmsv1.GenerateRandomResponse, error) {
	random, err := a.service.GenerateRandom(ctx, a.caller, int(req.GetNumberOfBytes()))
	if err != nil {
		return nil, err
	}
	defer random.Destroy()
	return &kmsv1.GenerateRandomResponse{Plaintext: random.AppendTo(insecuresecret.Token{}, nil)}, nil
}

// DescribeKey implements kmsv1.KeyServiceServer.
func (a *adapter) DescribeKey(ctx context.Context, req *kmsv1.DescribeKeyRequest) (*kmsv1.DescribeKeyResponse, error) {
	m, err := a.service.DescribeKey(ctx, a.caller, req.GetKeyId())
	if err != nil {
		return nil, err
	}
	key := &kmsv1.KeyMetadata{
		KeyId:          m.KeyID,
		Arn:            m.ARN,
		Namespace:      m.Namespace,
		Name:           m.Name,
		Description:    m.Description,
		KeyState:       m.State,
		KeySpec:        m.KeySpec,
		CreationTime:   timestamp(m.CreatedAt),
		DeletionTime:   timestamp(m.DeletionTime),
		PrimaryVersion: m.PrimaryVersion,
	}
	if m.PrimaryVersion > 0 {
		key.MaterialId = m.MaterialID[:]
	}
	return &kmsv1.DescribeKeyResponse{Key: key}, nil
}

// ListKeys implements kmsv1.KeyServiceServer.
func (a *adapter) ListKeys(ctx context.Context, req *kmsv1.ListKeysRequest) (*kmsv1.ListKeysResponse, error) {
	keys, next, err := a.service.ListKeys(ctx, a.caller, int(req.GetLimit()), req.GetMarker())
	if err != nil {
		return nil, err
	}
	out := &kmsv1.ListKeysResponse{Keys: make([]*kmsv1.KeyEntry, len(keys)), NextMarker: next}
	for i, k := range keys {
		out.Keys[i] = &kmsv1.KeyEntry{KeyId: k.KeyID, Arn: k.ARN, Name: k.Name}
	}
	return out, nil
}

// ListAliases implements kmsv1.KeyServiceServer.
func (a *adapter) ListAliases(ctx context.Context, req *kmsv1.ListAliasesRequest) (*kmsv1.ListAliasesResponse, error) {
	aliases, next, err := a.service.ListAliases(ctx, a.caller, req.GetKeyId(), int(req.GetLimit()), req.GetMarker())
	if err != nil {
		return nil, err
	}
	out := &kmsv1.ListAliasesResponse{Aliases: make([]*kmsv1.AliasEntry, len(aliases)), NextMarker: next}
	for i, e := range aliases {
		out.Aliases[i] = &kmsv1.AliasEntry{AliasName: e.Name, AliasArn: e.ARN, TargetKeyId: e.TargetKeyID}
	}
	return out, nil
}

// timestamp returns t, or nil for no time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
