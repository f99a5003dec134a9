package kmsgrpc_test

import (
	"bytes"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms/kmsgrpc"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
)

// FuzzCall sends any bytes to any method, as a caller who may use everything here. Whatever comes, the service answers with a
// code and a reason that belong together, and releases nothing beside a refusal. What opens is a blob that was made here, with
// the associated data that it was made with.
func FuzzCall(f *testing.F) {
	w := kmstest.Settled(f)
	scoped := w.Sealed(f, orders())
	materialID, material := w.Material(f, ordersKey)
	h := envelope.Header{Kind: envelope.KindAWS, KeyID: kmstest.KeyID(f, ordersKey.KeyID), KeyVersion: 1, MaterialID: materialID}
	unscoped := kmstest.Forged(f, h, material)
	h.Kind = envelope.KindAlibabaInitial
	initial := kmstest.ForgedWith(f, h, material, envelope.AssociatedData{Raw: []byte("aad")})
	h.Kind, h.KeyVersion = envelope.KindAlibabaAdvance, 2
	noVersion := kmstest.Forged(f, h, material)
	h.KeyID = kmstest.KeyID(f, goneID)
	noKey := kmstest.Forged(f, h, material)
	parsed, err := envelope.Parse(initial)
	if err != nil {
		f.Fatal(err)
	}
	pairs := orders().EncryptionContext
	made := map[string]envelope.AssociatedData{string(scoped): {Context: pairs}, string(unscoped): {}, string(initial): {Raw: []byte("aad")}}

	methods := kmsv1.KeyService_ServiceDesc.Methods
	seed := func(m proto.Message) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		name := strings.TrimSuffix(string(m.ProtoReflect().Descriptor().Name()), "Request")
		for i := range methods {
			if methods[i].MethodName == name {
				f.Add(uint8(i), b)
				return
			}
		}
		f.Fatalf("there is no method %s", name)
	}
	arn := "arn:datakeys:kms:0123456789ab:team-a:key/" + ordersKey.KeyID
	for door := range kmsv1.Door_name {
		d := kmsv1.Door(door)
		seed(&kmsv1.GenerateDataKeyRequest{KeyId: "orders", NumberOfBytes: 32, Door: d})
		seed(&kmsv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: ordersKey.KeyID, KeySpec: "AES_128", EncryptionContext: pairs, Door: d})
		seed(&kmsv1.GenerateDataKeyPairRequest{KeyId: "alias/orders", KeyPairSpec: "ECC_NIST_P256", Aad: []byte("aad"), Door: d, DryRun: true})
		seed(&kmsv1.GenerateDataKeyPairWithoutPlaintextRequest{KeyId: arn, KeyPairSpec: "ECC_NIST_EDWARDS25519", KeyFormat: "PEM", Door: d})
		seed(&kmsv1.EncryptRequest{KeyId: "orders", Plaintext: []byte("secret"), EncryptionContext: pairs, Door: d})
		for _, blob := range [][]byte{scoped, unscoped, initial, noVersion, noKey, w.Store.Secrets()[ordersKey.KeyID].Data["v1"]} {
			q := &kmsv1.DecryptRequest{CiphertextBlob: blob, KeyId: "orders", Aad: []byte("aad"), Iv: parsed.IV(), Door: d}
			seed(q)
			seed(&kmsv1.BatchDecryptRequest{Requests: []*kmsv1.DecryptRequest{q, {CiphertextBlob: blob, EncryptionContext: pairs, Door: d}, {}}})
			seed(&kmsv1.ReEncryptRequest{CiphertextBlob: blob, SourceEncryptionContext: pairs, DestinationKeyId: "other", DestinationAad: []byte("x"), Door: d})
		}
	}
	for _, blob := range [][]byte{scoped, unscoped, noVersion, noKey} {
		seed(&kmsv1.RenewRequest{DataKeys: []*kmsv1.RenewDataKey{renewMessage(f, blob), renewMessage(f, scoped), {}}})
	}
	seed(&kmsv1.GenerateRandomRequest{NumberOfBytes: 32})
	seed(&kmsv1.DescribeKeyRequest{KeyId: "orders"})
	seed(&kmsv1.ListKeysRequest{Limit: 1})
	seed(&kmsv1.ListAliasesRequest{KeyId: "orders", Marker: "x"})

	ctx := metadata.NewIncomingContext(f.Context(), metadata.Pairs("authorization", "Bearer "+allKeys))
	service := w.Unlimited(f, kmstest.Discard{}, w.Clock)
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		w.Clock.SetTime(w.Clock.Now().Add(time.Minute)) // what was not found is looked for again
		method := methods[int(which)%len(methods)]
		if strings.Contains(method.MethodName, "Pair") && bytes.Contains(b, []byte("RSA")) {
			return // they take seconds
		}
		resp, refusal, ok := kmsgrpc.Call(ctx, service, logr.Discard(), method, b)
		if !ok {
			return
		}
		if refusal != nil {
			if resp != nil {
				t.Errorf("%s: an answer came beside the refusal of %x", method.MethodName, b)
			}
			reason := reasonOf(t, refusal)
			checkRefusal(t, refusal.Code(), reason)
			return
		}
		checkOpened(t, made, b, resp)
	})
}

// reasonOf returns the reason that a status carries.
func reasonOf(t *testing.T, s *status.Status) string {
	t.Helper()
	return infoOf(t, s).GetReason()
}

func infoOf(t *testing.T, s *status.Status) *errdetails.ErrorInfo {
	t.Helper()
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == kmsv1.ErrorDomain {
			return info
		}
	}
	t.Errorf("the status %v has no reason", s)
	return nil
}

// codeOf is the code of each reason, as reasons.go says.
var codeOf = map[string]codes.Code{
	kmsv1.ReasonInvalid: codes.InvalidArgument, kmsv1.ReasonInvalidKeyName: codes.InvalidArgument,
	kmsv1.ReasonInvalidMarker: codes.InvalidArgument, kmsv1.ReasonInvalidCiphertext: codes.InvalidArgument,
	kmsv1.ReasonIncorrectKey: codes.InvalidArgument, kmsv1.ReasonUnsupported: codes.InvalidArgument,
	kmsv1.ReasonUnauthenticated: codes.Unauthenticated, kmsv1.ReasonDenied: codes.PermissionDenied,
	kmsv1.ReasonKeyNotFound: codes.NotFound, kmsv1.ReasonKeyDisabled: codes.FailedPrecondition,
	kmsv1.ReasonKeyPendingDeletion: codes.FailedPrecondition, kmsv1.ReasonKeyUnavailable: codes.FailedPrecondition,
	kmsv1.ReasonDryRun: codes.FailedPrecondition, kmsv1.ReasonThrottled: codes.ResourceExhausted,
	kmsv1.ReasonUnavailable: codes.Unavailable, kmsv1.ReasonInternal: codes.Internal,
}

// checkRefusal fails the test for a refusal that nobody but a broken service would give in a whole world.
func checkRefusal(t *testing.T, code codes.Code, reason string) {
	t.Helper()
	if want, ok := codeOf[reason]; !ok || code != want {
		t.Errorf("the code %v comes with the reason %q", code, reason)
	}
	switch code {
	case codes.InvalidArgument, codes.PermissionDenied, codes.NotFound, codes.FailedPrecondition:
	default:
		t.Errorf("got %v", code)
	}
}

// checkOpened fails the test if something was opened that was not made, or with other associated data, or renewed that is not there.
func checkOpened(t *testing.T, made map[string]envelope.AssociatedData, b []byte, resp any) {
	t.Helper()
	check := func(blob []byte, context map[string]string, aad []byte) {
		ad, ok := made[string(blob)]
		if !ok || !maps.Equal(ad.Context, context) || !bytes.Equal(ad.Raw, aad) {
			t.Errorf("%x opened with %v and %x", blob, context, aad)
		}
	}
	switch r := resp.(type) {
	case *kmsv1.DecryptResponse:
		q := new(kmsv1.DecryptRequest)
		if err := proto.Unmarshal(b, q); err != nil {
			t.Fatal(err)
		}
		check(q.GetCiphertextBlob(), q.GetEncryptionContext(), q.GetAad())
		if bytes.Equal(r.GetPlaintext(), make([]byte, len(r.GetPlaintext()))) {
			t.Error("the plaintext is empty")
		}
	case *kmsv1.ReEncryptResponse:
		q := new(kmsv1.ReEncryptRequest)
		if err := proto.Unmarshal(b, q); err != nil {
			t.Fatal(err)
		}
		check(q.GetCiphertextBlob(), q.GetSourceEncryptionContext(), q.GetSourceAad())
	case *kmsv1.BatchDecryptResponse:
		q := new(kmsv1.BatchDecryptRequest)
		if err := proto.Unmarshal(b, q); err != nil {
			t.Fatal(err)
		}
		for i, item := range r.GetResults() {
			if refusal := item.GetRefusal(); refusal != nil {
				checkRefusal(t, codes.Code(refusal.GetCode()), refusal.GetReason())
				continue
			}
			check(q.GetRequests()[i].GetCiphertextBlob(), q.GetRequests()[i].GetEncryptionContext(), q.GetRequests()[i].GetAad())
		}
	case *kmsv1.RenewResponse:
		q := new(kmsv1.RenewRequest)
		if err := proto.Unmarshal(b, q); err != nil {
			t.Fatal(err)
		}
		for i, item := range r.GetResults() {
			if refusal := item.GetRefusal(); refusal != nil {
				checkRefusal(t, codes.Code(refusal.GetCode()), refusal.GetReason())
			} else if q := q.GetDataKeys()[i]; q.GetKeyId() != ordersKey.KeyID || q.GetKeyVersion() != 1 {
				t.Errorf("%v was renewed", q)
			}
		}
	}
}

// What an answer held is cleared once it is encoded, and the request's plaintext once it is encrypted.
func TestMessagesLoseTheirPlaintext(t *testing.T) {
	w := kmstest.Settled(t)
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+allKeys))
	blob := w.Sealed(t, orders())
	decrypt := &kmsv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext}
	for name, c := range map[string]struct {
		req       proto.Message
		plaintext func(resp any) []byte
	}{
		"GenerateDataKey": {
			&kmsv1.GenerateDataKeyRequest{KeyId: "orders", NumberOfBytes: 32, Door: kmsv1.Door_DOOR_AWS},
			func(r any) []byte { return r.(*kmsv1.GenerateDataKeyResponse).GetPlaintext() },
		},
		"GenerateDataKeyPair": {
			&kmsv1.GenerateDataKeyPairRequest{KeyId: "orders", KeyPairSpec: "ECC_NIST_P256", Door: kmsv1.Door_DOOR_AWS},
			func(r any) []byte { return r.(*kmsv1.GenerateDataKeyPairResponse).GetPrivateKeyPlaintext() },
		},
		"Decrypt": {decrypt, func(r any) []byte { return r.(*kmsv1.DecryptResponse).GetPlaintext() }},
		"BatchDecrypt": {
			&kmsv1.BatchDecryptRequest{Requests: []*kmsv1.DecryptRequest{decrypt}},
			func(r any) []byte {
				return r.(*kmsv1.BatchDecryptResponse).GetResults()[0].GetResponse().GetPlaintext()
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := proto.Marshal(c.req)
			if err != nil {
				t.Fatal(err)
			}
			for _, method := range kmsv1.KeyService_ServiceDesc.Methods {
				if method.MethodName != name {
					continue
				}
				resp, refusal, _ := kmsgrpc.Call(ctx, w.Service, w.Log.Logger(), method, b)
				if refusal != nil {
					t.Fatal(refusal)
				}
				p := c.plaintext(resp)
				before := bytes.Clone(p)
				if len(p) < 32 || bytes.Equal(p, make([]byte, len(p))) {
					t.Fatalf("before: %x", p)
				}
				encoded, err := kmsgrpc.Encode(resp)
				if err != nil || !bytes.Contains(encoded, before) {
					t.Errorf("the encoded answer lacks the plaintext: %v", err)
				}
				if !bytes.Equal(p, make([]byte, len(p))) {
					t.Error("the answer still has its plaintext")
				}
				return
			}
			t.Fatal("there is no such method")
		})
	}
	req := &kmsv1.EncryptRequest{KeyId: "orders", Plaintext: []byte("a secret of the caller's"), Door: kmsv1.Door_DOOR_AWS}
	caller, err := w.Authenticate(ctx, allKeys)
	if err != nil {
		t.Fatal(err)
	}
	if err := kmsgrpc.CallEncrypt(ctx, w.Service, caller, req); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%x", req.GetPlaintext()); strings.Trim(got, "0") != "" {
		t.Errorf("the request still has %s", got)
	}
}
