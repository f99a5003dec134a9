package kms_test

import (
	"bytes"
	"maps"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
)

// FuzzDecrypt sends any bytes as a DecryptRequest of a caller who may open everything here. Nothing but the very blobs
// that were made opens, each with its own context, and nothing makes the service fail.
func FuzzDecrypt(f *testing.F) {
	w := settled(f)
	w.limits = kms.Limits{Calls: 1e9, CallsBurst: 1e9, Refusals: 1e9, RefusalsBurst: 1e9}
	w = replica(f, w)
	materialID, material := w.material(f, ordersKey)
	made := map[string]map[string]string{}
	add := func(blob []byte, context map[string]string, id string) {
		b, err := proto.Marshal(&kmsv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: context, KeyId: id, Door: kmsv1.Door_DOOR_AWS})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	scoped := w.sealed(f, orders())
	made[string(scoped)] = orders().EncryptionContext
	add(scoped, orders().EncryptionContext, "")
	add(scoped, orders().EncryptionContext, "orders")
	add(scoped, nil, ordersKey.KeyID)
	h := envelope.Header{Kind: envelope.KindAWS, KeyID: keyID(f, ordersKey.KeyID), KeyVersion: 1, MaterialID: materialID}
	unscoped := forged(f, h, material)
	made[string(unscoped)] = nil
	add(unscoped, nil, "arn:datakeys:kms:0123456789ab:team-a:key/"+ordersKey.KeyID)
	h.KeyVersion = 2
	add(forged(f, h, material), nil, "")
	h.KeyID = keyID(f, goneID)
	add(forged(f, h, material), nil, "")
	add(w.store.Secrets()[ordersKey.KeyID].Data["v1"], nil, "")
	f.Add([]byte{})

	ctx := metadata.NewIncomingContext(f.Context(), metadata.Pairs("authorization", "Bearer "+allKeys))
	service, log := w.Service, w.log.logger()
	f.Fuzz(func(t *testing.T, b []byte) {
		req := new(kmsv1.DecryptRequest)
		if proto.Unmarshal(b, req) != nil {
			return
		}
		resp, refusal := kms.CallDecrypt(ctx, service, log.V(9), req)
		if refusal != nil {
			switch refusal.Code() {
			case codes.InvalidArgument, codes.PermissionDenied, codes.NotFound, codes.Unavailable: // the last for the budget
			default:
				t.Errorf("got %v for %x", refusal, b)
			}
			if resp != nil {
				t.Error("an answer came beside the refusal")
			}
			return
		}
		context, ok := made[string(req.GetCiphertextBlob())]
		if !ok || !maps.Equal(context, req.GetEncryptionContext()) {
			t.Errorf("%x opened with context %v", req.GetCiphertextBlob(), req.GetEncryptionContext())
		}
		if bytes.Equal(resp.GetPlaintext(), make([]byte, len(resp.GetPlaintext()))) {
			t.Error("the plaintext is empty")
		}
	})
}
