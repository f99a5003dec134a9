package aws

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// listeners are the ways to a door.
var listeners = map[string]func(t *testing.T) (net.Listener, http.RoundTripper, string){
	"a unix socket": func(t *testing.T) (net.Listener, http.RoundTripper, string) {
		dir, err := os.MkdirTemp("", "dk") //nolint:usetesting // a short path, for a socket
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		path := filepath.Join(dir, "s")
		return listen(t, "unix", path), &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		}}, "http://datakeys"
	},
	"loopback": func(t *testing.T) (net.Listener, http.RoundTripper, string) {
		l := listen(t, "tcp", "127.0.0.1:0")
		return l, &http.Transport{}, "http://" + l.Addr().String()
	},
}

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// sdkClient serves a door and returns AWS's client of it, which tries once.
func sdkClient(t *testing.T, door http.Handler, way string, credentials awssdk.CredentialsProvider) *kms.Client {
	t.Helper()
	l, transport, endpoint := listeners[way](t)
	server := &http.Server{Handler: door}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close(); <-done })
	return kms.New(kms.Options{
		Region: "eu-central-1", BaseEndpoint: &endpoint, HTTPClient: &http.Client{Transport: transport}, Credentials: credentials,
		Retryer: awssdk.NopRetryer{},
	})
}

var signed = awssdk.CredentialsProviderFunc(func(context.Context) (awssdk.Credentials, error) {
	return awssdk.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "unused, but of a length that FIPS 140 allows", SessionToken: "unused"}, nil
})

func TestTheSDKOfAWSGoesRound(t *testing.T) {
	for way := range listeners {
		for how, credentials := range map[string]awssdk.CredentialsProvider{"signed": signed, "unsigned": awssdk.AnonymousCredentials{}} {
			t.Run(how+" over "+way, func(t *testing.T) {
				goRound(t, sdkClient(t, newDoor(&fakeService{}), way, credentials))
			})
		}
	}
}

// goRound calls every operation that there is.
func goRound(t *testing.T, c *kms.Client) {
	ctx, key, pairs := t.Context(), awssdk.String("alias/orders"), map[string]string{"tenant": "a", "ключ": "\x01\"é"}
	opens := func(what string, blob, want []byte, pairs map[string]string) {
		t.Helper()
		a, err := c.Decrypt(ctx, &kms.DecryptInput{CiphertextBlob: blob, EncryptionContext: pairs, KeyId: awssdk.String(keyARN)})
		if err != nil {
			t.Errorf("%s: %v", what, err)
		} else if !bytes.Equal(a.Plaintext, want) || *a.KeyId != keyARN || len(*a.KeyMaterialId) != 64 ||
			a.EncryptionAlgorithm != types.EncryptionAlgorithmSpecSymmetricDefault {
			t.Errorf("%s: it did not open to the same: %v", what, a)
		}
	}

	made := must(c.GenerateDataKey(ctx, &kms.GenerateDataKeyInput{KeyId: key, KeySpec: types.DataKeySpecAes256, EncryptionContext: pairs}))
	opens("GenerateDataKey", made.CiphertextBlob, made.Plaintext, pairs)
	hidden := must(c.GenerateDataKeyWithoutPlaintext(ctx, &kms.GenerateDataKeyWithoutPlaintextInput{
		KeyId: key, NumberOfBytes: awssdk.Int32(32),
	}))
	opens("GenerateDataKeyWithoutPlaintext", hidden.CiphertextBlob, secretBytes, nil)
	pair := must(c.GenerateDataKeyPair(ctx, &kms.GenerateDataKeyPairInput{KeyId: key, KeyPairSpec: types.DataKeyPairSpecEccNistP256}))
	opens("GenerateDataKeyPair", pair.PrivateKeyCiphertextBlob, pair.PrivateKeyPlaintext, nil)
	hiddenPair := must(c.GenerateDataKeyPairWithoutPlaintext(ctx, &kms.GenerateDataKeyPairWithoutPlaintextInput{
		KeyId: key, KeyPairSpec: types.DataKeyPairSpecRsa2048,
	}))
	opens("GenerateDataKeyPairWithoutPlaintext", hiddenPair.PrivateKeyCiphertextBlob, secretBytes, nil)
	encrypted := must(c.Encrypt(ctx, &kms.EncryptInput{KeyId: key, Plaintext: []byte("hello"), EncryptionContext: pairs}))
	opens("Encrypt", encrypted.CiphertextBlob, []byte("hello"), pairs)
	again := must(c.ReEncrypt(ctx, &kms.ReEncryptInput{
		CiphertextBlob: encrypted.CiphertextBlob, SourceEncryptionContext: pairs, DestinationKeyId: key,
		DestinationEncryptionContext: map[string]string{"tenant": "b"},
	}))
	opens("ReEncrypt", again.CiphertextBlob, []byte("hello"), map[string]string{"tenant": "b"})

	if a := must(c.GenerateRandom(ctx, &kms.GenerateRandomInput{NumberOfBytes: awssdk.Int32(1024)})); len(a.Plaintext) != 1024 {
		t.Errorf("GenerateRandom: %d bytes", len(a.Plaintext))
	}
	if m := must(c.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: key})).KeyMetadata; *m.Arn != keyARN || !m.Enabled ||
		m.KeyState != types.KeyStateEnabled || m.CreationDate.UnixMilli() != 1700000000250 || m.DeletionDate != nil ||
		m.KeySpec != types.KeySpecSymmetricDefault || *m.AWSAccountId != "team-a" {
		t.Errorf("DescribeKey: %+v", m)
	}
	var keys, aliases int
	for p := kms.NewListKeysPaginator(c, &kms.ListKeysInput{Limit: awssdk.Int32(1)}); p.HasMorePages(); {
		keys += len(must(p.NextPage(ctx)).Keys)
	}
	for p := kms.NewListAliasesPaginator(c, &kms.ListAliasesInput{}); p.HasMorePages(); {
		aliases += len(must(p.NextPage(ctx)).Aliases)
	}
	if keys != 2 || aliases != 1 {
		t.Errorf("got %d keys and %d aliases, want 2 and 1", keys, aliases)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// as reports whether an error is of a type of the SDK.
func as[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// callOf is a call of an operation, of which the error counts.
func callOf[I, O any](operation func(*kms.Client, context.Context, *I, ...func(*kms.Options)) (O, error), input *I,
) func(context.Context, *kms.Client) error {
	return func(ctx context.Context, c *kms.Client) error {
		_, err := operation(c, ctx, input)
		return err
	}
}

// code reports whether an error has a code that the SDK has no type for.
func code(want string) func(error) bool {
	return func(err error) bool {
		e, ok := errors.AsType[smithy.APIError](err)
		return ok && e.ErrorCode() == want
	}
}

// TestTheSDKOfAWSKnowsTheErrors: by their types, where it has one.
func TestTheSDKOfAWSKnowsTheErrors(t *testing.T) {
	blob, key := []byte("blob"), awssdk.String("orders")
	describe := func(key string) func(context.Context, *kms.Client) error {
		return callOf((*kms.Client).DescribeKey, &kms.DescribeKeyInput{KeyId: &key})
	}
	decrypt := callOf((*kms.Client).Decrypt, &kms.DecryptInput{CiphertextBlob: blob})
	for name, c := range map[string]struct {
		refusal error
		call    func(ctx context.Context, c *kms.Client) error
		is      func(error) bool
	}{
		"disabled":          {ofKey(kmsv1.ReasonKeyDisabled), decrypt, as[*types.DisabledException]},
		"pending deletion":  {ofKey(kmsv1.ReasonKeyPendingDeletion), decrypt, as[*types.KMSInvalidStateException]},
		"a damaged blob":    {refusal(kmsv1.ReasonInvalidCiphertext, "x"), decrypt, as[*types.InvalidCiphertextException]},
		"another key":       {refusal(kmsv1.ReasonIncorrectKey, "x"), decrypt, as[*types.IncorrectKeyException]},
		"a dry run":         {refusal(kmsv1.ReasonDryRun, "x"), decrypt, as[*types.DryRunOperationException]},
		"unavailable":       {refusal(kmsv1.ReasonUnavailable, "x"), decrypt, as[*types.KeyUnavailableException]},
		"a timeout":         {status.Error(codes.DeadlineExceeded, "x"), decrypt, as[*types.DependencyTimeoutException]},
		"a fault":           {refusal(kmsv1.ReasonInternal, "x"), decrypt, as[*types.KMSInternalException]},
		"no permission":     {refusal(kmsv1.ReasonDenied, "x"), decrypt, code(accessDenied)},
		"too many calls":    {refusal(kmsv1.ReasonThrottled, "x"), decrypt, code(throttling)},
		"a pod not known":   {refusal(kmsv1.ReasonUnauthenticated, "x"), decrypt, code(unrecognizedClient)},
		"the key of a blob": {refusal(kmsv1.ReasonKeyNotFound, "ciphertext_blob: x"), decrypt, code(accessDenied)},
		"no key":            {refusal(kmsv1.ReasonKeyNotFound, "key_id: x"), describe("orders"), as[*types.NotFoundException]},
		"no ARN":            {refusal(kmsv1.ReasonInvalidKeyName, "x"), describe("arn:aws:x"), as[*types.InvalidArnException]},
		"no marker": {
			refusal(kmsv1.ReasonInvalidMarker, "x"), callOf((*kms.Client).ListKeys, &kms.ListKeysInput{}), as[*types.InvalidMarkerException],
		},
		"a grant token": {
			nil, callOf((*kms.Client).Decrypt, &kms.DecryptInput{CiphertextBlob: blob, GrantTokens: []string{"x"}}),
			as[*types.InvalidGrantTokenException],
		},
		"an RSA algorithm": {
			nil, callOf((*kms.Client).Encrypt, &kms.EncryptInput{
				KeyId: key, Plaintext: blob, EncryptionAlgorithm: types.EncryptionAlgorithmSpecRsaesOaepSha1,
			}), as[*types.InvalidKeyUsageException],
		},
		"a custom key store": {
			nil, callOf((*kms.Client).GenerateRandom, &kms.GenerateRandomInput{NumberOfBytes: awssdk.Int32(1), CustomKeyStoreId: key}),
			as[*types.CustomKeyStoreNotFoundException],
		},
		"a recipient": {
			nil, callOf((*kms.Client).Decrypt, &kms.DecryptInput{
				CiphertextBlob: blob, Recipient: &types.RecipientInfo{AttestationDocument: blob},
			}), as[*types.UnsupportedOperationException],
		},
		"a blob to leave out": {
			nil, callOf((*kms.Client).Decrypt, &kms.DecryptInput{
				DryRun: awssdk.Bool(true), DryRunModifiers: []types.DryRunModifierType{types.DryRunModifierTypeIgnoreCiphertext},
			}), as[*types.UnsupportedOperationException],
		},
		"the control plane": {nil, callOf((*kms.Client).CreateKey, &kms.CreateKeyInput{}), as[*types.UnsupportedOperationException]},
		"too many bytes": {
			nil, callOf((*kms.Client).GenerateRandom, &kms.GenerateRandomInput{NumberOfBytes: awssdk.Int32(1025)}), code(validation),
		},
	} {
		t.Run(name, func(t *testing.T) {
			for way := range listeners {
				err := c.call(t.Context(), sdkClient(t, newDoor(&fakeService{err: c.refusal}), way, signed))
				if !c.is(err) {
					t.Errorf("over %s: got %v", way, err)
				}
			}
		})
	}
}

// TestEachOperationOfTheModelIsKnown, and no other: those of the client of AWS, which is made of the model. The list is here as well, so
// that a newer model shows in a diff.
func TestEachOperationOfTheModelIsKnown(t *testing.T) {
	want := strings.Fields(`CancelKeyDeletion ConnectCustomKeyStore CreateAlias CreateCustomKeyStore CreateGrant CreateKey Decapsulate
		Decrypt DeleteAlias DeleteCustomKeyStore DeleteImportedKeyMaterial DeriveSharedSecret DescribeCustomKeyStores DescribeKey DisableKey
		DisableKeyRotation DisconnectCustomKeyStore EnableKey EnableKeyRotation Encapsulate Encrypt GenerateDataKey
		GenerateDataKeyPair GenerateDataKeyPairWithoutPlaintext GenerateDataKeyWithoutPlaintext GenerateMac GenerateRandom GetKeyLastUsage GetKeyPolicy
		GetKeyRotationStatus GetParametersForImport GetPublicKey ImportKeyMaterial ListAliases ListGrants ListKeyPolicies ListKeyRotations
		ListKeys ListResourceTags ListRetirableGrants PutKeyPolicy ReEncrypt ReplicateKey RetireGrant RevokeGrant RotateKeyOnDemand
		ScheduleKeyDeletion Sign TagResource UntagResource UpdateAlias UpdateCustomKeyStore UpdateKeyDescription UpdatePrimaryRegion
		Verify VerifyMac`)
	var ofSDK []string
	for m := range reflect.TypeFor[*kms.Client]().Methods() {
		if m.Type.NumIn() == 4 && m.Type.IsVariadic() {
			ofSDK = append(ofSDK, m.Name)
		}
	}
	known := slices.Sorted(maps.Keys(operations))
	for name := range elsewhere {
		if operations[name] != nil {
			t.Errorf("%s is here and elsewhere", name)
		}
		known = append(known, name)
	}
	slices.Sort(known)
	slices.Sort(ofSDK)
	if diff := cmp.Diff(want, ofSDK); diff != "" {
		t.Errorf("the operations of the SDK (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want, known); diff != "" {
		t.Errorf("the operations that the door knows (-want +got):\n%s", diff)
	}
}

// TestTheSDKOfAWSHasNoMemberThatIsNotKnown: a member that the door passed over could be one that a client trusts in.
func TestTheSDKOfAWSHasNoMemberThatIsNotKnown(t *testing.T) {
	inputs := map[string]reflect.Type{}
	for m := range reflect.TypeFor[*kms.Client]().Methods() {
		if operations[m.Name] != nil {
			inputs[m.Name] = m.Type.In(2).Elem()
		}
	}
	for name, o := range operations {
		known := map[string]bool{}
		for _, m := range o.members {
			known[members[m].name] = true
		}
		for f := range inputs[name].Fields() {
			if f.IsExported() && !known[f.Name] && f.Name != "Recipient" {
				t.Errorf("%s: the member %s is not known", name, f.Name)
			}
			delete(known, f.Name)
		}
		if len(known) > 0 {
			t.Errorf("%s: the SDK has no member %v", name, slices.Sorted(maps.Keys(known)))
		}
	}
}
