package doors_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	awskms "github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/kms/types"
	"github.com/aws/smithy-go"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/sidecar/aws"
)

// awsClient returns AWS's client of a door on a unix socket, whose pod has the token.
func (w *world) awsClient(t *testing.T, token string) *awskms.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "dk") //nolint:usetesting // a short path, for a socket
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: aws.New(aws.Config{KeyService: w.client(t, token), Logger: slog.New(slog.DiscardHandler)})}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close(); <-done; _ = os.RemoveAll(dir) })
	return newClient(path)
}

func check[T any](t *testing.T) func(v T, err error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// TestTheAWSDoorOfTheKeyService goes round through every operation, with AWS's client at one end and the key service at the other.
func TestTheAWSDoorOfTheKeyService(t *testing.T) {
	w := newWorld(t)
	c, ctx := w.awsClient(t, app), t.Context()
	key, pairs := awssdk.String("alias/main"), map[string]string{"tenant": "a", "ключ": "\x01\"é"}
	described := check[*awskms.DescribeKeyOutput](t)(c.DescribeKey(ctx, &awskms.DescribeKeyInput{KeyId: key})).KeyMetadata
	arn := *described.Arn
	if !strings.HasSuffix(arn, ":team-a:key/"+ordersKey.KeyID) || *described.AWSAccountId != "team-a" || !described.Enabled ||
		*described.KeyId != ordersKey.KeyID || *described.Description != "of orders" {
		t.Errorf("DescribeKey: %+v", described)
	}
	opens := func(what string, blob, want []byte, context map[string]string) {
		t.Helper()
		a, err := c.Decrypt(ctx, &awskms.DecryptInput{CiphertextBlob: blob, EncryptionContext: context, KeyId: &arn})
		if err != nil {
			t.Errorf("%s: %v", what, err)
		} else if len(a.Plaintext) == 0 || want != nil && !bytes.Equal(a.Plaintext, want) || *a.KeyId != arn ||
			*a.KeyMaterialId != *described.CurrentKeyMaterialId {
			t.Errorf("%s: it did not open to the same", what)
		}
		_, err = c.Decrypt(ctx, &awskms.DecryptInput{CiphertextBlob: blob, EncryptionContext: map[string]string{"tenant": "z"}})
		if e, ok := errors.AsType[*types.InvalidCiphertextException](err); !ok || e.ErrorMessage() != "" {
			t.Errorf("%s, with another context: got %v", what, err)
		}
	}

	made := check[*awskms.GenerateDataKeyOutput](t)(c.GenerateDataKey(ctx, &awskms.GenerateDataKeyInput{
		KeyId: &arn, KeySpec: types.DataKeySpecAes256, EncryptionContext: pairs,
	}))
	opens("GenerateDataKey", made.CiphertextBlob, made.Plaintext, pairs)
	if len(made.Plaintext) != 32 || *made.KeyId != arn {
		t.Errorf("GenerateDataKey: %d bytes under %s", len(made.Plaintext), *made.KeyId)
	}
	hidden := check[*awskms.GenerateDataKeyWithoutPlaintextOutput](t)(c.GenerateDataKeyWithoutPlaintext(ctx,
		&awskms.GenerateDataKeyWithoutPlaintextInput{KeyId: key, NumberOfBytes: awssdk.Int32(1024)}))
	opens("GenerateDataKeyWithoutPlaintext", hidden.CiphertextBlob, nil, nil)
	pair := check[*awskms.GenerateDataKeyPairOutput](t)(c.GenerateDataKeyPair(ctx, &awskms.GenerateDataKeyPairInput{
		KeyId: key, KeyPairSpec: types.DataKeyPairSpecEccNistP256, EncryptionContext: pairs,
	}))
	opens("GenerateDataKeyPair", pair.PrivateKeyCiphertextBlob, pair.PrivateKeyPlaintext, pairs)
	private, err := x509.ParsePKCS8PrivateKey(pair.PrivateKeyPlaintext)
	public, err2 := x509.ParsePKIXPublicKey(pair.PublicKey)
	if own, ok := private.(*ecdsa.PrivateKey); err != nil || err2 != nil || !ok || !own.PublicKey.Equal(public) {
		t.Errorf("GenerateDataKeyPair: the two do not belong together: %v %v", err, err2)
	}
	hiddenPair := check[*awskms.GenerateDataKeyPairWithoutPlaintextOutput](t)(c.GenerateDataKeyPairWithoutPlaintext(ctx,
		&awskms.GenerateDataKeyPairWithoutPlaintextInput{KeyId: key, KeyPairSpec: types.DataKeyPairSpecEccNistEdwards25519}))
	opens("GenerateDataKeyPairWithoutPlaintext", hiddenPair.PrivateKeyCiphertextBlob, nil, nil)
	encrypted := check[*awskms.EncryptOutput](t)(c.Encrypt(ctx, &awskms.EncryptInput{
		KeyId: awssdk.String("other"), Plaintext: []byte("hello"), EncryptionContext: pairs,
	}))
	again := check[*awskms.ReEncryptOutput](t)(c.ReEncrypt(ctx, &awskms.ReEncryptInput{
		CiphertextBlob: encrypted.CiphertextBlob, SourceEncryptionContext: pairs, DestinationKeyId: key, SourceKeyId: encrypted.KeyId,
	}))
	opens("ReEncrypt", again.CiphertextBlob, []byte("hello"), nil)
	if *again.SourceKeyId != *encrypted.KeyId || *again.KeyId != arn || *again.SourceKeyMaterialId == *again.DestinationKeyMaterialId {
		t.Errorf("ReEncrypt: from %s to %s", *again.SourceKeyId, *again.KeyId)
	}
	random := check[*awskms.GenerateRandomOutput](t)(c.GenerateRandom(ctx, &awskms.GenerateRandomInput{NumberOfBytes: awssdk.Int32(1024)}))
	if len(random.Plaintext) != 1024 {
		t.Errorf("GenerateRandom: %d bytes", len(random.Plaintext))
	}
	var keys, aliases []string
	for p := awskms.NewListKeysPaginator(c, &awskms.ListKeysInput{Limit: awssdk.Int32(1)}); p.HasMorePages(); {
		for _, k := range check[*awskms.ListKeysOutput](t)(p.NextPage(ctx)).Keys {
			keys = append(keys, *k.KeyId)
		}
	}
	for p := awskms.NewListAliasesPaginator(c, &awskms.ListAliasesInput{KeyId: &arn}); p.HasMorePages(); {
		for _, a := range check[*awskms.ListAliasesOutput](t)(p.NextPage(ctx)).Aliases {
			aliases = append(aliases, *a.AliasName+" "+*a.TargetKeyId)
		}
	}
	want := ordersKey.KeyID + ", " + otherKey.KeyID + ", alias/main " + ordersKey.KeyID
	if got := strings.Join(append(keys, aliases...), ", "); got != want {
		t.Errorf("got the keys and aliases %s, want %s", got, want)
	}

	declared, err := w.GenerateDataKeyWithoutPlaintext(ctx, kms.DataKey{
		MasterKey: ordersKey, Namespace: "team-a", Name: "orders", Generation: 1, Length: 32, EncryptionContext: pairs,
	})
	if err != nil {
		t.Fatal(err)
	}
	opens("the data key of a DataKeyRequest", declared.CiphertextBlob, nil, pairs)
	foreign, err := w.client(t, app).Encrypt(ctx, &kmsv1.EncryptRequest{
		KeyId: "orders", Plaintext: []byte("hello"), Door: kmsv1.Door_DOOR_ALIBABA_ADVANCE,
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Decrypt(ctx, &awskms.DecryptInput{CiphertextBlob: foreign.GetCiphertextBlob()})
	if !is[*types.InvalidCiphertextException](err) {
		t.Errorf("a blob of another door: got %v", err)
	}
}

func is[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// TestTheErrorsOfTheAWSDoorOfTheKeyService: what the key service itself refuses, as AWS's client tells it.
func TestTheErrorsOfTheAWSDoorOfTheKeyService(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	allowed, denied := w.awsClient(t, app), w.awsClient(t, nobody)
	encrypt := func(c *awskms.Client, key string) error {
		_, err := c.Encrypt(ctx, &awskms.EncryptInput{KeyId: &key, Plaintext: []byte("hello")})
		return err
	}
	made := check[*awskms.EncryptOutput](t)(allowed.Encrypt(ctx, &awskms.EncryptInput{
		KeyId: awssdk.String("orders"), Plaintext: []byte("hello"),
	}))
	arn, blob := *made.KeyId, made.CiphertextBlob
	decrypt := func(c *awskms.Client, change func(*awskms.DecryptInput)) error {
		in := &awskms.DecryptInput{CiphertextBlob: bytes.Clone(blob)}
		change(in)
		_, err := c.Decrypt(ctx, in)
		return err
	}
	const unknown = "99999999-9999-4999-8999-999999999999"
	asIs := func(*awskms.DecryptInput) {}
	dry := func(in *awskms.DecryptInput) { in.DryRun = awssdk.Bool(true) }
	for name, c := range map[string]struct {
		err           error
		code, message string
	}{
		"an unknown key":        {encrypt(allowed, unknown), "NotFoundException", "Key '" + unknown + "' does not exist"},
		"an unknown name":       {encrypt(allowed, "third"), "NotFoundException", "Key 'third' does not exist"},
		"an unknown alias":      {encrypt(allowed, "alias/third"), "NotFoundException", "Alias alias/third is not found."},
		"no name of a key":      {encrypt(allowed, "Orders!"), "NotFoundException", "Invalid keyId 'Orders!'"},
		"another account":       {encrypt(allowed, strings.Replace(arn, "team-a", "team-b", 1)), "NotFoundException", "does not exist"},
		"another region":        {encrypt(allowed, strings.Replace(arn, ":kms:", ":kms:x", 1)), "NotFoundException", "does not exist"},
		"another partition":     {encrypt(allowed, strings.Replace(arn, "datakeys", "aws", 1)), "NotFoundException", "Invalid arn '"},
		"no permission":         {encrypt(denied, "orders"), "AccessDeniedException", "needs the verb encrypt"},
		"no permission to open": {decrypt(denied, asIs), "AccessDeniedException", "needs the verb decrypt"},
		"another key": {
			decrypt(allowed, func(in *awskms.DecryptInput) { in.KeyId = awssdk.String("other") }), "IncorrectKeyException",
			"The key ID in the request does not identify a CMK that can perform this operation.",
		},
		"a dry run": {
			decrypt(allowed, dry), "DryRunOperationException", "The request would have succeeded, but the DryRun option is set.",
		},
		"a dry run without permission": {decrypt(denied, dry), "AccessDeniedException", "needs the verb decrypt"},
		"a damaged blob": {
			decrypt(allowed, func(in *awskms.DecryptInput) { in.CiphertextBlob[len(blob)-1] ^= 1 }), "InvalidCiphertextException", "",
		},
		"no blob of ours": {
			decrypt(allowed, func(in *awskms.DecryptInput) { in.CiphertextBlob = []byte("something else") }), "InvalidCiphertextException", "",
		},
	} {
		t.Run(name, func(t *testing.T) { checkError(t, c.err, c.code, c.message) })
	}
	for state, want := range map[kms.KeyState]struct{ code, message string }{
		kms.KeyStateDisabled:        {"DisabledException", arn + " is disabled."},
		kms.KeyStatePendingDeletion: {"KMSInvalidStateException", arn + " is pending deletion."},
	} {
		w.put(ordersKey, state)
		t.Run(string(state), func(t *testing.T) {
			checkError(t, encrypt(allowed, "alias/main"), want.code, want.message)
			checkError(t, decrypt(allowed, asIs), want.code, want.message)
		})
		m := check[*awskms.DescribeKeyOutput](t)(allowed.DescribeKey(ctx, &awskms.DescribeKeyInput{KeyId: &arn})).KeyMetadata
		if m.Enabled || string(m.KeyState) != string(state) || (m.DeletionDate != nil) != (state == kms.KeyStatePendingDeletion) {
			t.Errorf("%s: described as %+v", state, m)
		}
	}
}

func checkError(t *testing.T, err error, code, message string) {
	t.Helper()
	e, ok := errors.AsType[smithy.APIError](err)
	if !ok || e.ErrorCode() != code || !strings.Contains(e.ErrorMessage(), message) || message == "" && e.ErrorMessage() != "" {
		t.Errorf("got %v, want %s: %s", err, code, message)
	}
}
