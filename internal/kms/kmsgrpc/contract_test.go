package kmsgrpc_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
)

// exchange is a request of one method that is answered.
type exchange struct {
	token string
	req   proto.Message
}

// exchanges has one for each method of the contract, with an answer that leaves no field empty.
func exchanges(t *testing.T, w *kmstest.World, conn *grpc.ClientConn) map[string]exchange {
	t.Helper()
	const door = kmsv1.Door_DOOR_ALIBABA_ADVANCE
	made, err := kmsv1.NewKeyServiceClient(conn).Encrypt(as(t, allKeys), &kmsv1.EncryptRequest{KeyId: "orders", Plaintext: []byte("secret"), Door: door})
	if err != nil {
		t.Fatal(err)
	}
	decrypt := &kmsv1.DecryptRequest{CiphertextBlob: made.GetCiphertextBlob(), Door: door}
	other := orders() // of a key whose state will not allow it
	other.MasterKey = otherKey
	going := w.Sealed(t, other)
	due := begin
	w.MasterKeys.Put(kms.MasterKey{
		KeyID: otherKey.KeyID, Namespace: "team-a", Name: "other", Description: "goes soon", Aliases: []string{"b", "c"},
		State: kms.KeyStatePendingDeletion, CreatedAt: begin, DeletionTime: due,
	})
	return map[string]exchange{
		"GenerateDataKey":                     {allKeys, &kmsv1.GenerateDataKeyRequest{KeyId: "orders", NumberOfBytes: 32, Door: door}},
		"GenerateDataKeyWithoutPlaintext":     {allKeys, &kmsv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: "orders", KeySpec: "AES_128", Door: door}},
		"GenerateDataKeyPair":                 {allKeys, &kmsv1.GenerateDataKeyPairRequest{KeyId: "orders", KeyPairSpec: "ECC_NIST_P256", Door: door}},
		"GenerateDataKeyPairWithoutPlaintext": {allKeys, &kmsv1.GenerateDataKeyPairWithoutPlaintextRequest{KeyId: "orders", KeyPairSpec: "ECC_NIST_P256", Door: door}},
		"Encrypt":                             {allKeys, &kmsv1.EncryptRequest{KeyId: "orders", Plaintext: []byte("secret"), Door: door}},
		"Decrypt":                             {allKeys, decrypt},
		"BatchDecrypt":                        {allKeys, &kmsv1.BatchDecryptRequest{Requests: []*kmsv1.DecryptRequest{decrypt, {}, {CiphertextBlob: going}}}},
		"Renew":                               {allKeys, &kmsv1.RenewRequest{DataKeys: []*kmsv1.RenewDataKey{renewMessage(t, w.Sealed(t, orders())), {}, renewMessage(t, going)}}},
		"ReEncrypt":                           {allKeys, &kmsv1.ReEncryptRequest{CiphertextBlob: made.GetCiphertextBlob(), DestinationKeyId: "orders", Door: door}},
		"GenerateRandom":                      {lister, &kmsv1.GenerateRandomRequest{NumberOfBytes: 32}},
		"DescribeKey":                         {lister, &kmsv1.DescribeKeyRequest{KeyId: "other"}},
		"ListKeys":                            {lister, &kmsv1.ListKeysRequest{Limit: 1}},
		"ListAliases":                         {lister, &kmsv1.ListAliasesRequest{KeyId: "other", Limit: 1}},
	}
}

func (e exchange) call(t *testing.T, conn *grpc.ClientConn, method protoreflect.MethodDescriptor, req proto.Message) (proto.Message, error) {
	t.Helper()
	answer, err := protoregistry.GlobalTypes.FindMessageByName(method.Output().FullName())
	if err != nil {
		t.Fatal(err)
	}
	resp := answer.New().Interface()
	return resp, conn.Invoke(as(t, e.token), "/datakeys.kms.v1.KeyService/"+string(method.Name()), req, resp)
}

func TestEveryFieldOfTheContractIsAnswered(t *testing.T) {
	w := kmstest.Listed(t)
	conn := serve(t, w)
	methods := kmsv1.File_api_kms_v1_kms_proto.Services().ByName("KeyService").Methods()
	for name, e := range exchanges(t, w, conn) {
		t.Run(name, func(t *testing.T) {
			resp, err := e.call(t, conn, methods.ByName(protoreflect.Name(name)), e.req)
			if err != nil {
				t.Fatal(err)
			}
			answered := map[protoreflect.FullName]bool{}
			note(resp.ProtoReflect(), answered)
			for field, ok := range answered {
				if !ok {
					t.Errorf("%s is empty", field)
				}
			}
		})
	}
}

// note tells of each field whether any message of the answer has it.
func note(m protoreflect.Message, answered map[protoreflect.FullName]bool) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		answered[f.FullName()] = answered[f.FullName()] || m.Has(f)
		switch {
		case f.Message() == nil || f.IsMap() || !m.Has(f) || !strings.HasPrefix(string(f.Message().FullName()), "datakeys."):
		case f.IsList():
			for j := range m.Get(f).List().Len() {
				note(m.Get(f).List().Get(j).Message(), answered)
			}
		default:
			note(m.Get(f).Message(), answered)
		}
	}
}

// A field that is not read lets a caller believe what does not hold.
func TestEveryFieldOfTheContractIsHeldToItsRule(t *testing.T) {
	type breach struct{ value, reason string }
	tooMuch := strings.Repeat("v", 8193)
	breaches := map[string]breach{
		"key_id":                         {"No name!", kmsv1.ReasonInvalidKeyName},
		"source_key_id":                  {"No name!", kmsv1.ReasonInvalidKeyName},
		"destination_key_id":             {"No name!", kmsv1.ReasonInvalidKeyName},
		"number_of_bytes":                {"", kmsv1.ReasonInvalid},
		"key_spec":                       {"AES_512", kmsv1.ReasonInvalid},
		"key_pair_spec":                  {"SM2", kmsv1.ReasonInvalid},
		"key_format":                     {"JWK", kmsv1.ReasonInvalid},
		"encryption_context":             {tooMuch, kmsv1.ReasonInvalid},
		"source_encryption_context":      {tooMuch, kmsv1.ReasonInvalid},
		"destination_encryption_context": {tooMuch, kmsv1.ReasonInvalid},
		"aad":                            {tooMuch, kmsv1.ReasonInvalid},
		"source_aad":                     {tooMuch, kmsv1.ReasonInvalid},
		"destination_aad":                {tooMuch, kmsv1.ReasonInvalid},
		"iv":                             {"short", kmsv1.ReasonInvalid},
		"source_iv":                      {"short", kmsv1.ReasonInvalid},
		"plaintext":                      {tooMuch[:4097], kmsv1.ReasonInvalid},
		"ciphertext_blob":                {"no blob", kmsv1.ReasonInvalidCiphertext},
		"door":                           {"", kmsv1.ReasonInvalid},
		"dry_run":                        {"", kmsv1.ReasonDryRun},
		"limit":                          {"", kmsv1.ReasonInvalid},
		"marker":                         {"no marker", kmsv1.ReasonInvalidMarker},
		"requests":                       {"", kmsv1.ReasonInvalid},
		"data_keys":                      {"", kmsv1.ReasonInvalid},
	}
	w := kmstest.Listed(t)
	conn := serve(t, w)
	methods := kmsv1.File_api_kms_v1_kms_proto.Services().ByName("KeyService").Methods()
	all := exchanges(t, w, conn)
	for i := range methods.Len() {
		method := methods.Get(i)
		e, ok := all[string(method.Name())]
		if !ok {
			t.Errorf("there is no request of %s", method.Name())
			continue
		}
		fields := method.Input().Fields()
		for j := range fields.Len() {
			f := fields.Get(j)
			t.Run(string(method.Name())+"."+string(f.Name()), func(t *testing.T) {
				b, ok := breaches[string(f.Name())]
				if !ok {
					t.Fatalf("there is no value that breaks the rule of %s", f.Name())
				}
				req := proto.Clone(e.req)
				breakRule(req.ProtoReflect(), f, b.value)
				_, err := e.call(t, conn, method, req)
				told := status.Convert(err)
				if got := reasonOf(t, told); got != b.reason || !strings.Contains(told.Message(), string(f.Name())) {
					t.Errorf("got %v (%s), want %s that names the field", err, got, b.reason)
				}
			})
		}
	}
}

// breakRule sets a field to what its rule does not allow: the text, or what no number, enum or list of the contract may be.
func breakRule(m protoreflect.Message, f protoreflect.FieldDescriptor, text string) {
	switch {
	case f.IsMap():
		m.Mutable(f).Map().Set(protoreflect.ValueOfString("k").MapKey(), protoreflect.ValueOfString(text))
	case f.IsList():
		m.Clear(f)
	case f.Kind() == protoreflect.StringKind:
		m.Set(f, protoreflect.ValueOfString(text))
	case f.Kind() == protoreflect.BytesKind:
		m.Set(f, protoreflect.ValueOfBytes([]byte(text)))
	case f.Kind() == protoreflect.BoolKind:
		m.Set(f, protoreflect.ValueOfBool(true))
	case f.Kind() == protoreflect.EnumKind:
		m.Set(f, protoreflect.ValueOfEnum(17))
	default:
		m.Set(f, protoreflect.ValueOfInt32(1025))
	}
}
