package kmsgrpc

import (
	"context"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
)

// Encrypt implements kmsv1.KeyServiceServer.
func (a *adapter) Encrypt(ctx context.Context, req *kmsv1.EncryptRequest) (*kmsv1.EncryptResponse, error) {
	defer clear(req.GetPlaintext())
	// What breaks the rule of plaintext becomes the zero Plaintext, and the service says so in its turn.
	p, _ := envelope.PlaintextFromBytes(req.GetPlaintext())
	defer p.Destroy()
	resp, err := a.service.Encrypt(ctx, a.caller, kms.EncryptRequest{
		KeyID:             req.GetKeyId(),
		Plaintext:         p,
		EncryptionContext: req.GetEncryptionContext(),
		AAD:               req.GetAad(),
		Door:              kms.Door(req.GetDoor()),
		DryRun:            req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &kmsv1.EncryptResponse{
		KeyId:          resp.KeyARN,
		KeyVersion:     resp.KeyVersion,
		CiphertextBlob: resp.CiphertextBlob,
		Iv:             resp.IV,
		MaterialId:     resp.MaterialID[:],
	}, nil
}

// Decrypt implements kmsv1.KeyServiceServer.
func (a *adapter) Decrypt(ctx context.Context, req *kmsv1.DecryptRequest) (*kmsv1.DecryptResponse, error) {
	resp, err := a.service.Decrypt(ctx, a.caller, decryptRequest(req))
	if err != nil {
		return nil, err
	}
	return decryptResponse(&resp), nil
}

// BatchDecrypt implements kmsv1.KeyServiceServer.
func (a *adapter) BatchDecrypt(ctx context.Context, req *kmsv1.BatchDecryptRequest) (*kmsv1.BatchDecryptResponse, error) {
	requests := make([]kms.DecryptRequest, len(req.GetRequests()))
	for i, r := range req.GetRequests() {
		requests[i] = decryptRequest(r)
	}
	results, err := a.service.BatchDecrypt(ctx, a.caller, requests)
	if err != nil {
		return nil, err
	}
	out := &kmsv1.BatchDecryptResponse{Results: make([]*kmsv1.BatchDecryptResult, len(results))}
	for i := range results {
		out.Results[i] = a.batchResult(&results[i])
	}
	return out, nil
}

// ReEncrypt implements kmsv1.KeyServiceServer.
func (a *adapter) ReEncrypt(ctx context.Context, req *kmsv1.ReEncryptRequest) (*kmsv1.ReEncryptResponse, error) {
	resp, err := a.service.ReEncrypt(ctx, a.caller, kms.ReEncryptRequest{
		CiphertextBlob:               req.GetCiphertextBlob(),
		SourceEncryptionContext:      req.GetSourceEncryptionContext(),
		SourceAAD:                    req.GetSourceAad(),
		SourceKeyID:                  req.GetSourceKeyId(),
		SourceIV:                     req.GetSourceIv(),
		DestinationKeyID:             req.GetDestinationKeyId(),
		DestinationEncryptionContext: req.GetDestinationEncryptionContext(),
		DestinationAAD:               req.GetDestinationAad(),
		Door:                         kms.Door(req.GetDoor()),
		DryRun:                       req.GetDryRun(),
	})
	if err != nil {
		return nil, err
	}
	return &kmsv1.ReEncryptResponse{
		CiphertextBlob:   resp.CiphertextBlob,
		SourceKeyId:      resp.SourceKeyARN,
		SourceKeyVersion: resp.SourceKeyVersion,
		SourceMaterialId: resp.SourceMaterialID[:],
		KeyId:            resp.KeyARN,
		KeyVersion:       resp.KeyVersion,
		MaterialId:       resp.MaterialID[:],
		Iv:               resp.IV,
	}, nil
}

// Renew implements kmsv1.KeyServiceServer.
func (a *adapter) Renew(ctx context.Context, req *kmsv1.RenewRequest) (*kmsv1.RenewResponse, error) {
	requests := make([]kms.RenewRequest, len(req.GetDataKeys()))
	for i, d := range req.GetDataKeys() {
		requests[i] = kms.RenewRequest{KeyID: d.GetKeyId(), KeyVersion: d.GetKeyVersion(), MaterialID: d.GetMaterialId(), Name: d.GetName()}
	}
	refusals, err := a.service.Renew(ctx, a.caller, requests)
	if err != nil {
		return nil, err
	}
	out := &kmsv1.RenewResponse{Results: make([]*kmsv1.RenewResult, len(refusals))}
	for i, err := range refusals {
		if err != nil {
			out.Results[i] = &kmsv1.RenewResult{Result: &kmsv1.RenewResult_Refusal{Refusal: a.refusal(err)}}
			continue
		}
		out.Results[i] = &kmsv1.RenewResult{Result: &kmsv1.RenewResult_Renewal{Renewal: &kmsv1.Renewal{}}}
	}
	return out, nil
}

// refusal is what is told of an item of a batch that is refused.
func (a *adapter) refusal(err error) *kmsv1.Refusal {
	code, message := refusal(a.log, err)
	return &kmsv1.Refusal{Code: int32(code), Message: message, Reason: kms.ReasonOf(err), Key: a.service.KeyOf(err)}
}

func (a *adapter) batchResult(r *kms.BatchDecryptResult) *kmsv1.BatchDecryptResult {
	if r.Err != nil {
		return &kmsv1.BatchDecryptResult{Result: &kmsv1.BatchDecryptResult_Refusal{Refusal: a.refusal(r.Err)}}
	}
	return &kmsv1.BatchDecryptResult{Result: &kmsv1.BatchDecryptResult_Response{Response: decryptResponse(&r.Response)}}
}

func decryptRequest(r *kmsv1.DecryptRequest) kms.DecryptRequest {
	return kms.DecryptRequest{
		CiphertextBlob:    r.GetCiphertextBlob(),
		EncryptionContext: r.GetEncryptionContext(),
		AAD:               r.GetAad(),
		KeyID:             r.GetKeyId(),
		IV:                r.GetIv(),
		Door:              kms.Door(r.GetDoor()),
		DryRun:            r.GetDryRun(),
	}
}

func decryptResponse(r *kms.DecryptResponse) *kmsv1.DecryptResponse {
	return &kmsv1.DecryptResponse{
		KeyId:      r.KeyARN,
		KeyVersion: r.KeyVersion,
		Plaintext:  release(r.Plaintext),
		MaterialId: r.MaterialID[:],
	}
}
