package kms_test

import (
	"context"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
)

// The operations of a world take a token, as those of the gRPC server do.

// enter tells who calls and counts the call, as that server does.
func (w *world) enter(ctx context.Context, operation, token string) (kms.Caller, error) {
	c, err := w.Authenticate(ctx, token)
	if err == nil {
		err = w.Admit(ctx, operation, c)
	}
	return c, err
}

func withToken[Req, Resp any](ctx context.Context, w *world, token string, do func(context.Context, kms.Caller, Req) (Resp, error), req Req) (resp Resp, err error) {
	caller, err := w.enter(ctx, "", token)
	if err != nil {
		return resp, err
	}
	return do(ctx, caller, req)
}

func (w *world) GenerateDataKey(ctx context.Context, token string, req kms.GenerateDataKeyRequest) (kms.GenerateDataKeyResponse, error) {
	return withToken(ctx, w, token, w.Service.GenerateDataKey, req)
}

func (w *world) GenerateDataKeyPair(ctx context.Context, token string, req kms.GenerateDataKeyPairRequest) (kms.GenerateDataKeyPairResponse, error) {
	return withToken(ctx, w, token, w.Service.GenerateDataKeyPair, req)
}

func (w *world) Encrypt(ctx context.Context, token string, req kms.EncryptRequest) (kms.EncryptResponse, error) {
	return withToken(ctx, w, token, w.Service.Encrypt, req)
}

func (w *world) Decrypt(ctx context.Context, token string, req kms.DecryptRequest) (kms.DecryptResponse, error) {
	return withToken(ctx, w, token, w.Service.Decrypt, req)
}

func (w *world) BatchDecrypt(ctx context.Context, token string, reqs []kms.DecryptRequest) ([]kms.BatchDecryptResult, error) {
	return withToken(ctx, w, token, w.Service.BatchDecrypt, reqs)
}

func (w *world) Renew(ctx context.Context, token string, reqs []kms.RenewRequest) ([]error, error) {
	caller, err := w.enter(ctx, kms.OperationRenew, token)
	if err != nil {
		return nil, err
	}
	return w.Service.Renew(ctx, caller, reqs)
}

func (w *world) ReEncrypt(ctx context.Context, token string, req kms.ReEncryptRequest) (kms.ReEncryptResponse, error) {
	return withToken(ctx, w, token, w.Service.ReEncrypt, req)
}

func (w *world) GenerateRandom(ctx context.Context, token string, numberOfBytes int) (envelope.Plaintext, error) {
	return withToken(ctx, w, token, w.Service.GenerateRandom, numberOfBytes)
}

func (w *world) DescribeKey(ctx context.Context, token, keyID string) (kms.KeyMetadata, error) {
	return withToken(ctx, w, token, w.Service.DescribeKey, keyID)
}

func (w *world) ListKeys(ctx context.Context, token string, limit int, marker string) ([]kms.KeyEntry, string, error) {
	caller, err := w.enter(ctx, "", token)
	if err != nil {
		return nil, "", err
	}
	return w.Service.ListKeys(ctx, caller, limit, marker)
}

func (w *world) ListAliases(ctx context.Context, token, keyID string, limit int, marker string) ([]kms.AliasEntry, string, error) {
	caller, err := w.enter(ctx, "", token)
	if err != nil {
		return nil, "", err
	}
	return w.Service.ListAliases(ctx, caller, keyID, limit, marker)
}
