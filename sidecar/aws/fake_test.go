package aws

import (
	"bytes"
	"context"
	"maps"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

const (
	keyID  = "1b4e28ba-2fa1-41d2-883f-0016d3cca427"
	keyARN = "arn:datakeys:kms:install:team-a:key/" + keyID
)

// Bytes of the answers of a fakeService. The fake answers with copies, since the door clears what it was given.
var (
	secretBytes   = []byte("0123456789abcdef0123456789ABCDEF")
	blobBytes     = []byte("a blob with enough bytes to be one")
	publicBytes   = []byte("a public key")
	materialBytes = []byte("0123456789abcdef")
)

// fakeService is a key service with one key. It opens what it made, with the same context.
type fakeService struct {
	mu    sync.Mutex
	err   error                      // what every call fails with
	last  proto.Message              // the last request
	sent  [][]byte                   // the secrets of answers, to see that they are cleared
	blobs map[string]fakeBlob        // what was made
	alter func(answer proto.Message) // changes answers
	hang  bool                       // calls wait for the end of their context
	plain []byte                     // the plaintext of the last Encrypt, as it came
}

type fakeBlob struct {
	plaintext []byte
	context   map[string]string
}

// reasons of errors, with their codes.
var reasonCodes = map[string]codes.Code{
	kmsv1.ReasonInvalid: codes.InvalidArgument, kmsv1.ReasonInvalidKeyName: codes.InvalidArgument,
	kmsv1.ReasonInvalidMarker: codes.InvalidArgument, kmsv1.ReasonInvalidCiphertext: codes.InvalidArgument,
	kmsv1.ReasonIncorrectKey: codes.InvalidArgument, kmsv1.ReasonUnsupported: codes.InvalidArgument,
	kmsv1.ReasonUnauthenticated: codes.Unauthenticated, kmsv1.ReasonDenied: codes.PermissionDenied,
	kmsv1.ReasonKeyNotFound: codes.NotFound, kmsv1.ReasonKeyDisabled: codes.FailedPrecondition,
	kmsv1.ReasonKeyPendingDeletion: codes.FailedPrecondition, kmsv1.ReasonKeyUnavailable: codes.FailedPrecondition,
	kmsv1.ReasonDryRun: codes.FailedPrecondition, kmsv1.ReasonThrottled: codes.ResourceExhausted,
	kmsv1.ReasonUnavailable: codes.Unavailable, kmsv1.ReasonInternal: codes.Internal,
}

// refusal is an error as the key service gives it.
func refusal(reason, message string) error {
	s, err := status.New(reasonCodes[reason], message).WithDetails(&errdetails.ErrorInfo{Domain: kmsv1.ErrorDomain, Reason: reason})
	if err != nil {
		return err
	}
	return s.Err()
}

// note takes a request, and says what it is answered.
func (f *fakeService) note(ctx context.Context, request proto.Message, dryRun bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = proto.Clone(request)
	if f.hang {
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	}
	if f.err != nil {
		return f.err
	}
	if dryRun && f.alter == nil {
		return refusal(kmsv1.ReasonDryRun, "the request would have succeeded, but dry_run is set")
	}
	return nil
}

// answer changes an answer as the test says, and remembers its secret.
func answer[M proto.Message](f *fakeService, m M, secret []byte) (M, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if secret != nil {
		f.sent = append(f.sent, secret)
	}
	if f.alter != nil {
		f.alter(m)
	}
	return m, nil
}

// seal makes a blob, another one each time.
func (f *fakeService) seal(plaintext []byte, context map[string]string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.blobs == nil {
		f.blobs = map[string]fakeBlob{}
	}
	blob := append(bytes.Clone(blobBytes), byte(len(f.blobs)))
	f.blobs[string(blob)] = fakeBlob{bytes.Clone(plaintext), maps.Clone(context)}
	return blob
}

func (f *fakeService) open(blob []byte, context map[string]string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, ok := f.blobs[string(blob)]
	if !ok || !maps.Equal(b.context, context) {
		return nil, refusal(kmsv1.ReasonInvalidCiphertext, "ciphertext_blob: does not open")
	}
	return bytes.Clone(b.plaintext), nil
}

func (f *fakeService) GenerateDataKey(ctx context.Context, r *kmsv1.GenerateDataKeyRequest, _ ...grpc.CallOption,
) (*kmsv1.GenerateDataKeyResponse, error) {
	if err := f.note(ctx, r, r.GetDryRun()); err != nil {
		return nil, err
	}
	plaintext := bytes.Clone(secretBytes)
	return answer(f, &kmsv1.GenerateDataKeyResponse{
		KeyId: keyARN, KeyVersion: 1, CiphertextBlob: f.seal(plaintext, r.GetEncryptionContext()), Plaintext: plaintext,
		Iv: blobBytes[:12], MaterialId: materialBytes,
	}, plaintext)
}

func (f *fakeService) GenerateDataKeyWithoutPlaintext(ctx context.Context, r *kmsv1.GenerateDataKeyWithoutPlaintextRequest,
	_ ...grpc.CallOption,
) (*kmsv1.GenerateDataKeyWithoutPlaintextResponse, error) {
	if err := f.note(ctx, r, r.GetDryRun()); err != nil {
		return nil, err
	}
	return answer(f, &kmsv1.GenerateDataKeyWithoutPlaintextResponse{
		KeyId: keyARN, CiphertextBlob: f.seal(secretBytes, r.GetEncryptionContext()), MaterialId: materialBytes,
	}, nil)
}

func (f *fakeService) GenerateDataKeyPair(ctx context.Context, r *kmsv1.GenerateDataKeyPairRequest, _ ...grpc.CallOption,
) (*kmsv1.GenerateDataKeyPairResponse, error) {
	if err := f.note(ctx, r, r.GetDryRun()); err != nil {
		return nil, err
	}
	plaintext := bytes.Clone(secretBytes)
	return answer(f, &kmsv1.GenerateDataKeyPairResponse{
		KeyId: keyARN, KeyPairSpec: r.GetKeyPairSpec(), PublicKey: publicBytes, PrivateKeyPlaintext: plaintext,
		PrivateKeyCiphertextBlob: f.seal(plaintext, r.GetEncryptionContext()), MaterialId: materialBytes,
	}, plaintext)
}

func (f *fakeService) GenerateDataKeyPairWithoutPlaintext(ctx context.Context, r *kmsv1.GenerateDataKeyPairWithoutPlaintextRequest,
	_ ...grpc.CallOption,
) (*kmsv1.GenerateDataKeyPairWithoutPlaintextResponse, error) {
	if err := f.note(ctx, r, r.GetDryRun()); err != nil {
		return nil, err
	}
	return answer(f, &kmsv1.GenerateDataKeyPairWithoutPlaintextResponse{
		KeyId: keyARN, KeyPairSpec: r.GetKeyPairSpec(), PublicKey: publicBytes, MaterialId: materialBytes,
		PrivateKeyCiphertextBlob: f.seal(secretBytes, r.GetEncryptionContext()),
	}, nil)
}

func (f *fakeService) Encrypt(ctx context.Context, r *kmsv1.EncryptRequest, _ ...grpc.CallOption) (*kmsv1.EncryptResponse, error) {
	if err := f.note(ctx, r, r.GetDryRun()); err != nil {
		return nil, err
	}
	f.plain = r.GetPlaintext()
	return answer(f, &kmsv1.EncryptResponse{
		KeyId: keyARN, CiphertextBlob: f.seal(r.GetPlaintext(), r.GetEncryptionContext()), MaterialId: materialBytes,
	}, nil)
}

func (f *fakeService) Decrypt(ctx context.Context, r *kmsv1.DecryptRequest, _ ...grpc.CallOption) (*kmsv1.DecryptResponse, error) {
	if err := f.note(ctx, r, r.GetDryRun()); err != nil {
		return nil, err
	}
	plaintext, err := f.open(r.GetCiphertextBlob(), r.GetEncryptionContext())
	if err != nil {
		return nil, err
	}
	return answer(f, &kmsv1.DecryptResponse{KeyId: keyARN, Plaintext: plaintext, MaterialId: materialBytes}, plaintext)
}

func (f *fakeService) ReEncrypt(ctx context.Context, r *kmsv1.ReEncryptRequest, _ ...grpc.CallOption) (*kmsv1.ReEncryptResponse, error) {
	if err := f.note(ctx, r, r.GetDryRun()); err != nil {
		return nil, err
	}
	plaintext, err := f.open(r.GetCiphertextBlob(), r.GetSourceEncryptionContext())
	if err != nil {
		return nil, err
	}
	return answer(f, &kmsv1.ReEncryptResponse{
		CiphertextBlob: f.seal(plaintext, r.GetDestinationEncryptionContext()), SourceKeyId: keyARN, SourceMaterialId: materialBytes,
		KeyId: keyARN, MaterialId: bytes.ToUpper(materialBytes),
	}, nil)
}

func (f *fakeService) GenerateRandom(ctx context.Context, r *kmsv1.GenerateRandomRequest, _ ...grpc.CallOption,
) (*kmsv1.GenerateRandomResponse, error) {
	if err := f.note(ctx, r, false); err != nil {
		return nil, err
	}
	random := bytes.Repeat([]byte("r"), int(r.GetNumberOfBytes()))
	return answer(f, &kmsv1.GenerateRandomResponse{Plaintext: random}, random)
}

func (f *fakeService) DescribeKey(ctx context.Context, r *kmsv1.DescribeKeyRequest, _ ...grpc.CallOption,
) (*kmsv1.DescribeKeyResponse, error) {
	if err := f.note(ctx, r, false); err != nil {
		return nil, err
	}
	return answer(f, &kmsv1.DescribeKeyResponse{Key: &kmsv1.KeyMetadata{
		KeyId: keyID, Arn: keyARN, Namespace: "team-a", Name: "orders", Description: "of \"orders\"", KeyState: "Enabled", KeySpec: "AES_256",
		CreationTime: timestamppb.New(time.Unix(1700000000, 250e6)), PrimaryVersion: 1, MaterialId: materialBytes,
	}}, nil)
}

func (f *fakeService) ListKeys(ctx context.Context, r *kmsv1.ListKeysRequest, _ ...grpc.CallOption) (*kmsv1.ListKeysResponse, error) {
	if err := f.note(ctx, r, false); err != nil {
		return nil, err
	}
	if r.GetMarker() == "" && r.GetLimit() == 1 {
		return answer(f, &kmsv1.ListKeysResponse{
			Keys: []*kmsv1.KeyEntry{{KeyId: keyID, Arn: keyARN, Name: "orders"}}, NextMarker: "more",
		}, nil)
	}
	return answer(f, &kmsv1.ListKeysResponse{Keys: []*kmsv1.KeyEntry{{KeyId: "second", Arn: keyARN + "2", Name: "payments"}}}, nil)
}

func (f *fakeService) ListAliases(ctx context.Context, r *kmsv1.ListAliasesRequest, _ ...grpc.CallOption,
) (*kmsv1.ListAliasesResponse, error) {
	if err := f.note(ctx, r, false); err != nil {
		return nil, err
	}
	if r.GetMarker() != "" {
		return answer(f, &kmsv1.ListAliasesResponse{}, nil)
	}
	return answer(f, &kmsv1.ListAliasesResponse{Aliases: []*kmsv1.AliasEntry{{
		AliasName: "alias/orders", AliasArn: "arn:datakeys:kms:install:team-a:alias/orders", TargetKeyId: keyID,
	}}, NextMarker: "more"}, nil)
}

// checkCleared reports that no secret of an answer is still where the key service put it.
func (f *fakeService) checkCleared(t *testing.T) {
	t.Helper()
	for _, secret := range f.sent {
		if !bytes.Equal(secret, make([]byte, len(secret))) {
			t.Errorf("the plaintext of an answer was not cleared")
		}
	}
}

var _ KeyService = kmsv1.KeyServiceClient(nil)
