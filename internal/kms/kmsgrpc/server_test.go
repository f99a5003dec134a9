package kmsgrpc_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmsgrpc"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/internal/secrettest"
)

func TestTheServerExposesTheseMethodsAndNoOther(t *testing.T) {
	server := kmsgrpc.NewServer(kmstest.Settled(t).Service, &tls.Config{}, (&kmstest.Log{}).Logger())
	defer server.Stop()
	got := map[string][]string{}
	for service, info := range server.GetServiceInfo() {
		for _, m := range info.Methods {
			got[service] = append(got[service], m.Name)
		}
		slices.Sort(got[service])
	}
	want := map[string][]string{"datakeys.kms.v1.KeyService": {
		"BatchDecrypt", "Decrypt", "DescribeKey", "Encrypt", "GenerateDataKey", "GenerateDataKeyPair",
		"GenerateDataKeyPairWithoutPlaintext", "GenerateDataKeyWithoutPlaintext", "GenerateRandom", "ListAliases", "ListKeys",
		"ReEncrypt", "Renew",
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("a method needs a row in TestWhoMayCallWhat and one here: %s", diff)
	}
}

func TestWhoMayCallWhat(t *testing.T) {
	w := kmstest.Settled(t)
	client := kmsv1.NewKeyServiceClient(serve(t, w))
	blob, pairs := w.Sealed(t, orders()), orders().EncryptionContext
	const aws = kmsv1.Door_DOOR_AWS
	methods := map[string]func(ctx context.Context) error{
		"GenerateDataKey": func(ctx context.Context) error {
			_, err := client.GenerateDataKey(ctx, &kmsv1.GenerateDataKeyRequest{KeyId: "orders", NumberOfBytes: 32, Door: aws})
			return err
		},
		"GenerateDataKeyWithoutPlaintext": func(ctx context.Context) error {
			_, err := client.GenerateDataKeyWithoutPlaintext(ctx, &kmsv1.GenerateDataKeyWithoutPlaintextRequest{KeyId: "orders", KeySpec: "AES_256", Door: aws})
			return err
		},
		"GenerateDataKeyPair": func(ctx context.Context) error {
			_, err := client.GenerateDataKeyPair(ctx, &kmsv1.GenerateDataKeyPairRequest{KeyId: "orders", KeyPairSpec: "ECC_NIST_P256", Door: aws})
			return err
		},
		"GenerateDataKeyPairWithoutPlaintext": func(ctx context.Context) error {
			_, err := client.GenerateDataKeyPairWithoutPlaintext(ctx, &kmsv1.GenerateDataKeyPairWithoutPlaintextRequest{KeyId: "orders", KeyPairSpec: "ECC_NIST_P256", Door: aws})
			return err
		},
		"Encrypt": func(ctx context.Context) error {
			_, err := client.Encrypt(ctx, &kmsv1.EncryptRequest{KeyId: "orders", Plaintext: []byte("x"), Door: aws})
			return err
		},
		"Decrypt": func(ctx context.Context) error {
			_, err := client.Decrypt(ctx, &kmsv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: pairs})
			return err
		},
		"BatchDecrypt": func(ctx context.Context) error {
			resp, err := client.BatchDecrypt(ctx, &kmsv1.BatchDecryptRequest{Requests: []*kmsv1.DecryptRequest{{CiphertextBlob: blob, EncryptionContext: pairs}}})
			if refusal := resp.GetResults(); err == nil && refusal[0].GetRefusal() != nil {
				return status.Error(codes.Code(refusal[0].GetRefusal().GetCode()), refusal[0].GetRefusal().GetMessage())
			}
			return err
		},
		"Renew": func(ctx context.Context) error {
			resp, err := client.Renew(ctx, &kmsv1.RenewRequest{DataKeys: []*kmsv1.RenewDataKey{renewMessage(t, blob)}})
			if results := resp.GetResults(); err == nil && results[0].GetRenewal() == nil {
				return status.Error(codes.Code(results[0].GetRefusal().GetCode()), results[0].GetRefusal().GetMessage())
			}
			return err
		},
		"ReEncrypt": func(ctx context.Context) error {
			_, err := client.ReEncrypt(ctx, &kmsv1.ReEncryptRequest{CiphertextBlob: blob, SourceEncryptionContext: pairs, DestinationKeyId: "orders", Door: aws})
			return err
		},
	}
	for caller, c := range map[string]struct {
		token string
		may   []string
		other codes.Code
	}{
		"permission on the request": {app, []string{"Decrypt", "BatchDecrypt", "Renew"}, codes.PermissionDenied},
		"permission on the key":     {keyUser, []string{"GenerateDataKey", "Decrypt", "BatchDecrypt", "Renew"}, codes.PermissionDenied},
		"permission on all keys":    {allKeys, slices.Collect(maps.Keys(methods)), codes.PermissionDenied},
		"no permission":             {nobody, nil, codes.PermissionDenied},
		"another namespace":         {stranger, []string{"Renew"}, codes.PermissionDenied}, // of a data key of its own, under a key that it may use
		"a token that is not known": {"stolen", nil, codes.Unauthenticated},
	} {
		for method, call := range methods {
			t.Run(caller+", "+method, func(t *testing.T) {
				want := c.other
				if slices.Contains(c.may, method) {
					want = codes.OK
				}
				if got := status.Code(call(as(t, c.token))); got != want {
					t.Errorf("got %v, want %v", got, want)
				}
			})
		}
	}
}

// Every refusal says why in a word that a program can read, alone or in a batch.
func TestARefusalCarriesItsReason(t *testing.T) {
	w := kmstest.Settled(t)
	disable := func(k *kms.MasterKey) { k.State = kms.KeyStateDisabled }
	w.MasterKeys.Edit("team-a", "other", disable)
	client := kmsv1.NewKeyServiceClient(serve(t, w))
	good := &kmsv1.DecryptRequest{CiphertextBlob: w.Sealed(t, orders()), EncryptionContext: orders().EncryptionContext}
	of := func(change func(*kmsv1.DecryptRequest)) *kmsv1.DecryptRequest {
		r := proto.CloneOf(good)
		change(r)
		return r
	}
	for name, c := range map[string]struct {
		token, want string
		req         *kmsv1.DecryptRequest
	}{
		"a field":        {app, kmsv1.ReasonInvalid, of(func(r *kmsv1.DecryptRequest) { r.Iv = []byte("short") })},
		"a key name":     {app, kmsv1.ReasonInvalidKeyName, of(func(r *kmsv1.DecryptRequest) { r.KeyId = "Orders!" })},
		"another key":    {app, kmsv1.ReasonIncorrectKey, of(func(r *kmsv1.DecryptRequest) { r.KeyId = "other" })},
		"a damaged blob": {app, kmsv1.ReasonInvalidCiphertext, of(func(r *kmsv1.DecryptRequest) { r.EncryptionContext = nil })},
		"no permission":  {nobody, kmsv1.ReasonDenied, good},
		"a dry run":      {app, kmsv1.ReasonDryRun, of(func(r *kmsv1.DecryptRequest) { r.DryRun = true })},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client.Decrypt(as(t, c.token), c.req)
			told := status.Convert(err)
			if got := reasonOf(t, told); got != c.want || told.Code() != codeOf[c.want] {
				t.Errorf("got %v with the reason %q, want %v with %q", told.Code(), got, codeOf[c.want], c.want)
			}
			batch, err := client.BatchDecrypt(as(t, c.token), &kmsv1.BatchDecryptRequest{Requests: []*kmsv1.DecryptRequest{c.req}})
			if err != nil {
				t.Fatal(err)
			}
			r := batch.GetResults()[0].GetRefusal()
			if r.GetReason() != c.want || codes.Code(r.GetCode()) != told.Code() || r.GetMessage() != told.Message() {
				t.Errorf("in a batch: got %v, alone %v", r, told)
			}
		})
	}
	_, err := client.Encrypt(as(t, allKeys), &kmsv1.EncryptRequest{KeyId: "other", Plaintext: []byte("x"), Door: kmsv1.Door_DOOR_AWS})
	const isDisabled = "MasterKey team-a/other is Disabled: set its spec.state to Enabled to use it again"
	if told := status.Convert(err); reasonOf(t, told) != kmsv1.ReasonKeyDisabled || told.Message() != isDisabled {
		t.Errorf("of a Disabled key: got %v", told)
	} else if arn := infoOf(t, told).GetMetadata()[kmsv1.MetadataKey]; !strings.HasPrefix(arn, "arn:datakeys:kms:") ||
		!strings.HasSuffix(arn, ":team-a:key/"+otherKey.KeyID) {
		t.Errorf("of a Disabled key: got the key %q, want the ARN of team-a/other", arn)
	}
	w.MasterKeys.Edit("team-a", "orders", disable)
	batch, err := client.BatchDecrypt(as(t, app), &kmsv1.BatchDecryptRequest{Requests: []*kmsv1.DecryptRequest{good}})
	if r := batch.GetResults()[0].GetRefusal(); err != nil || r.GetReason() != kmsv1.ReasonKeyDisabled || !strings.HasSuffix(r.GetKey(), ":team-a:key/"+ordersKey.KeyID) {
		t.Errorf("of a Disabled key in a batch: got %v (%v)", r, err)
	}
	if _, err := client.Decrypt(as(t, "stolen"), good); reasonOf(t, status.Convert(err)) != kmsv1.ReasonUnauthenticated {
		t.Errorf("of a token that is not known: got %v", err)
	}
}

func TestATokenStandsOnceAndAsBearer(t *testing.T) {
	w := kmstest.Settled(t)
	client := kmsv1.NewKeyServiceClient(serve(t, w))
	req := &kmsv1.DecryptRequest{CiphertextBlob: w.Sealed(t, orders()), EncryptionContext: orders().EncryptionContext}
	for name, c := range map[string]struct {
		headers []string
		want    codes.Code
	}{
		"Bearer":              {[]string{"authorization", "Bearer app"}, codes.OK},
		"bearer":              {[]string{"authorization", "bearer app"}, codes.OK},
		"no header":           {nil, codes.Unauthenticated},
		"no scheme":           {[]string{"authorization", "app"}, codes.Unauthenticated},
		"another scheme":      {[]string{"authorization", "Basic app"}, codes.Unauthenticated},
		"no token":            {[]string{"authorization", "Bearer "}, codes.Unauthenticated},
		"two headers":         {[]string{"authorization", "Bearer app", "authorization", "Bearer key-user"}, codes.Unauthenticated},
		"a token and a space": {[]string{"authorization", "Bearer app "}, codes.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client.Decrypt(metadata.AppendToOutgoingContext(t.Context(), c.headers...), req)
			if got := status.Code(err); got != c.want {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestTheAnswersOverGRPCAreThoseOfTheService(t *testing.T) {
	w := kmstest.Settled(t)
	client := kmsv1.NewKeyServiceClient(serve(t, w))
	info, err := w.MasterKey(t.Context(), ordersKey)
	if err != nil {
		t.Fatal(err)
	}
	made, err := client.GenerateDataKey(as(t, keyUser), &kmsv1.GenerateDataKeyRequest{
		KeyId: info.ARN, NumberOfBytes: 24, EncryptionContext: map[string]string{"ключ": "значение"}, Door: kmsv1.Door_DOOR_AWS,
	})
	if err != nil {
		t.Fatal(err)
	}
	opened, err := client.Decrypt(as(t, keyUser), &kmsv1.DecryptRequest{
		CiphertextBlob: made.GetCiphertextBlob(), EncryptionContext: map[string]string{"ключ": "значение"}, KeyId: "orders", Door: kmsv1.Door_DOOR_AWS,
	})
	if err != nil {
		t.Fatal(err)
	}
	if made.GetKeyId() != info.ARN || opened.GetKeyId() != info.ARN || made.GetKeyVersion() != 1 || opened.GetKeyVersion() != 1 {
		t.Errorf("got %s version %d and %s version %d", made.GetKeyId(), made.GetKeyVersion(), opened.GetKeyId(), opened.GetKeyVersion())
	}
	if len(made.GetPlaintext()) != 24 || string(made.GetPlaintext()) != string(opened.GetPlaintext()) {
		t.Errorf("got %d bytes, and back %d", len(made.GetPlaintext()), len(opened.GetPlaintext()))
	}

	blob := w.Sealed(t, orders())
	batch, err := client.BatchDecrypt(as(t, app), &kmsv1.BatchDecryptRequest{Requests: []*kmsv1.DecryptRequest{
		{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext},
		{CiphertextBlob: made.GetCiphertextBlob()},
		{CiphertextBlob: blob},
		nil,
	}})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]codes.Code, len(batch.GetResults()))
	for i, r := range batch.GetResults() {
		got[i] = codes.Code(r.GetRefusal().GetCode())
	}
	if diff := cmp.Diff([]codes.Code{codes.OK, codes.PermissionDenied, codes.InvalidArgument, codes.InvalidArgument}, got); diff != "" {
		t.Errorf("batch: %s", diff)
	}
	if n := len(batch.GetResults()[0].GetResponse().GetPlaintext()); n != 32 {
		t.Errorf("batch: got %d bytes, want 32", n)
	}
}

func TestWhatACallerIsToldByCode(t *testing.T) {
	for name, c := range map[string]struct {
		token  string
		change func(*kmstest.World)
		want   codes.Code
		says   string
		logs   string // what the log says and the caller is not told
	}{
		"unauthenticated": {
			token: "stolen", want: codes.Unauthenticated,
			says: "a token of a running pod, with the audience datakeys.io, is needed", logs: "no such token",
		},
		"denied": {
			token: nobody, want: codes.PermissionDenied,
			says: "system:serviceaccount:team-a:nobody needs the verb decrypt on datakeyrequests/orders in namespace team-a, or on its MasterKey",
		},
		"the audit log is full": {
			token: app, change: func(w *kmstest.World) { w.Audit.Err = errors.New("write /dev/stdout: disk full") }, want: codes.Unavailable,
			says: "the key service cannot answer now: try again", logs: "disk full",
		},
		"the review fails": {
			token: app, change: func(w *kmstest.World) { w.RBAC.Err = errors.New("dial tcp 10.0.0.1:443") }, want: codes.Unavailable,
			says: "the key service cannot answer now: try again", logs: "10.0.0.1",
		},
		"the version is damaged": {
			token: app, want: codes.FailedPrecondition,
			change: func(w *kmstest.World) { w.Store.Edit(ordersKey.KeyID, func(s *seal.Secret) { s.Data["v1"][80] ^= 1 }) },
			says:   "the key is in a state that does not allow this: see the conditions of its MasterKey", logs: "has an entry v1 that does not open",
		},
		"something panics": {
			token: app, change: func(w *kmstest.World) { w.Audit = nil }, want: codes.Internal,
			says: "internal error", logs: "nil pointer dereference",
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := kmstest.Settled(t)
			blob := w.Sealed(t, orders())
			if c.want == codes.FailedPrecondition {
				w.AddVersion(t, ordersKey, 2)
			}
			if c.change != nil {
				c.change(w)
			}
			w = w.Replica(t)
			client := kmsv1.NewKeyServiceClient(serve(t, w))
			req := &kmsv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext}
			resp, err := client.Decrypt(as(t, c.token), req)
			got := status.Convert(err)
			if got.Code() != c.want || got.Message() != c.says || resp.GetPlaintext() != nil {
				t.Errorf("got %v: %q, want %v: %q", got.Code(), got.Message(), c.want, c.says)
			}
			if !strings.Contains(w.Log.String(), c.logs) {
				t.Errorf("the log does not say %q: %s", c.logs, w.Log)
			}
			batch, err := client.BatchDecrypt(as(t, c.token), &kmsv1.BatchDecryptRequest{Requests: []*kmsv1.DecryptRequest{req}})
			if err != nil {
				got = status.Convert(err)
			} else {
				r := batch.GetResults()[0].GetRefusal()
				got = status.New(codes.Code(r.GetCode()), r.GetMessage())
			}
			if got.Code() != c.want || got.Message() != c.says {
				t.Errorf("in a batch: got %v: %q, want %v: %q", got.Code(), got.Message(), c.want, c.says)
			}
		})
	}
}

// Who watches the log for errors hears of outages, and not of applications that do not wait.
func TestACallerWhoHangsUpIsNoErrorOfTheLog(t *testing.T) {
	for name, c := range map[string]struct {
		review error
		want   bool // an error of the log
	}{
		"he hangs up":                 {fmt.Errorf("review the access: %w", context.Canceled), false},
		"the API server hangs":        {fmt.Errorf("review the access: %w", context.DeadlineExceeded), true},
		"the API server is not there": {errors.New("review the access: connection refused"), true},
	} {
		t.Run(name, func(t *testing.T) {
			w := kmstest.Settled(t)
			w.RBAC.Err = c.review
			req := &kmsv1.DecryptRequest{CiphertextBlob: w.Sealed(t, orders()), EncryptionContext: orders().EncryptionContext}
			_, err := kmsv1.NewKeyServiceClient(serve(t, w)).Decrypt(as(t, app), req)
			if got := status.Code(err); got != codes.Unavailable {
				t.Errorf("got %v, want Unavailable", got)
			}
			if !strings.Contains(w.Log.String(), c.review.Error()) {
				t.Errorf("the log does not say why: %s", w.Log)
			}
			if got := strings.Contains(w.Log.String(), "Could not answer a call"); got != c.want {
				t.Errorf("an error of the log: %t, want %t: %s", got, c.want, w.Log)
			}
		})
	}
}

func TestTheServerRefusesWhatIsTooLargeOrTooOld(t *testing.T) {
	w := kmstest.Settled(t)
	conn := serve(t, w)
	client := kmsv1.NewKeyServiceClient(conn)

	pairs := map[string]string{}
	for i := range 1024 {
		pairs[fmt.Sprintf("%04d", i)] = "valu"
	}
	name := strings.Repeat("k", 2048)
	big := &kmsv1.ReEncryptRequest{
		CiphertextBlob: make([]byte, 6144), SourceEncryptionContext: pairs, SourceKeyId: name, DestinationEncryptionContext: pairs, DestinationKeyId: name,
		Door: kmsv1.Door_DOOR_AWS,
	}
	if _, err := client.ReEncrypt(as(t, app), big); status.Code(err) != codes.InvalidArgument {
		t.Errorf("the largest request that the rules allow: %v", err)
	}
	_, err := client.Decrypt(as(t, app), &kmsv1.DecryptRequest{CiphertextBlob: make([]byte, 128<<10)})
	if got := status.Code(err); got != codes.ResourceExhausted {
		t.Errorf("a message of more than 128 KiB: got %v, want ResourceExhausted", err)
	}
	_, err = client.ReEncrypt(as(t, strings.Repeat("t", 32<<10)), big)
	if err == nil || status.Code(err) == codes.Unauthenticated {
		t.Errorf("a token of 32 KiB: got %v, want that the header is refused", err)
	}

	old := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{"h2"}}
	raw, err := (&tls.Dialer{Config: old}).DialContext(t.Context(), "tcp", conn.Target())
	if err == nil {
		_ = raw.Close()
		t.Error("TLS 1.2 is accepted")
	}
	plain, err := new(net.Dialer).DialContext(t.Context(), "tcp", conn.Target())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = plain.Close() }()
	if _, err := fmt.Fprint(plain, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	if n, err := plain.Read(buf); err == nil && n > 0 && buf[0] != 21 { // 21: a TLS alert
		t.Errorf("without TLS it answers %q", buf[:n])
	}
}

// Nobody has to be waited for who has not said who he is.
func TestACallIsRefusedBeforeItsRequestIsSent(t *testing.T) {
	for name, c := range map[string]struct {
		token  string
		limits kms.Limits
		want   codes.Code
	}{
		"without a token":         {token: "", want: codes.Unauthenticated},
		"another token":           {token: "stolen", want: codes.Unauthenticated},
		"a pod that is throttled": {token: app, limits: kms.Limits{Calls: 1, CallsBurst: 0, Refusals: 1, RefusalsBurst: 1}, want: codes.ResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			w := kmstest.Settled(t)
			w.Limits = c.limits
			w = w.Replica(t)
			stream, err := serve(t, w).NewStream(as(t, c.token), &grpc.StreamDesc{ClientStreams: true}, kmsv1.KeyService_BatchDecrypt_FullMethodName)
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.RecvMsg(&kmsv1.BatchDecryptResponse{}); status.Code(err) != c.want {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestARequestThatCannotBeReadIsRefused(t *testing.T) {
	many := &kmsv1.DecryptRequest{}
	many.ProtoReflect().SetUnknown(bytes.Repeat([]byte{0x78, 0x01}, kmsv1.MaxRequestRecords+1))
	for name, c := range map[string]struct {
		req  proto.Message
		want codes.Code
	}{
		"it is too large":         {&kmsv1.DecryptRequest{CiphertextBlob: make([]byte, kmsv1.MaxRequestSize)}, codes.ResourceExhausted},
		"it has too many records": {many, codes.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			err := serve(t, kmstest.Settled(t)).Invoke(as(t, app), kmsv1.KeyService_Decrypt_FullMethodName, c.req, &kmsv1.DecryptResponse{})
			if status.Code(err) != c.want {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// A pod has brought it upon itself.
func TestARequestThatCannotBeReadCounts(t *testing.T) {
	w := kmstest.Settled(t)
	w.Limits = kms.Limits{Calls: 1000, CallsBurst: 1000, Refusals: 1, RefusalsBurst: 2}
	w = w.Replica(t)
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+app))
	call := func(req []byte) (*status.Status, bool) {
		_, refusal, ok := kmsgrpc.Call(ctx, w.Service, w.Log.Logger(), kmsv1.KeyService_ServiceDesc.Methods[0], req)
		return refusal, ok
	}
	for range 2 {
		if refusal, ok := call([]byte{0xff}); ok || refusal == nil {
			t.Fatalf("got %v", refusal)
		}
	}
	if refusal, _ := call(nil); refusal.Code() != codes.ResourceExhausted {
		t.Errorf("after two of two that are allowed: got %v, want ResourceExhausted", refusal)
	}
}

func TestACallThatIsTurnedAwayIsCounted(t *testing.T) {
	w := kmstest.Settled(t)
	if _, err := kmsv1.NewKeyServiceClient(serve(t, w)).Decrypt(as(t, "stolen"), &kmsv1.DecryptRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Fatal(err)
	}
	const want = `
# HELP datakeys_kms_operations_total Operations of the key service, by operation and result code. Each item of a batch counts as Decrypt, or RenewDataKey, too.
# TYPE datakeys_kms_operations_total counter
datakeys_kms_operations_total{code="OK",operation="CreateMasterKeyVersion"} 3
datakeys_kms_operations_total{code="Unauthenticated",operation="Decrypt"} 1
`
	if err := testutil.GatherAndCompare(w.Metrics, strings.NewReader(want), "datakeys_kms_operations_total"); err != nil {
		t.Error(err)
	}
}

func TestNoKeyIsInTheServersLog(t *testing.T) {
	w := kmstest.Settled(t)
	client := kmsv1.NewKeyServiceClient(serve(t, w))
	_, material := w.Material(t, ordersKey)
	blob := w.Sealed(t, orders())
	opened, err := client.Decrypt(as(t, app), &kmsv1.DecryptRequest{CiphertextBlob: blob, EncryptionContext: orders().EncryptionContext})
	if err != nil {
		t.Fatal(err)
	}
	var told strings.Builder
	all := w.Blobs(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		for _, token := range []string{app, keyUser, allKeys, nobody, stranger, "a-token-that-nobody-should-ever-log"} {
			_, err := client.Decrypt(as(t, token), &kmsv1.DecryptRequest{CiphertextBlob: all[name]})
			fmt.Fprintf(&told, "%v\n", err)
		}
	}
	secrets := map[string][]byte{
		"data key": opened.GetPlaintext(), "master key": material.AppendTo(insecuresecret.Token{}, nil),
		"token": []byte("a-token-that-nobody-should-ever-log"),
	}
	if w.Log.String() == "" {
		t.Fatal("the log is empty")
	}
	secrettest.CheckText(t, "the log", w.Log.String(), secrets)
	secrettest.CheckText(t, "an answer", told.String(), secrets)
}
