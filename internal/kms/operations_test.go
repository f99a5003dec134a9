package kms_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/kms/kmstest"
)

// verbs are all that the key service knows for a master key by name.
var verbs = []string{
	v1alpha1.VerbDecrypt, v1alpha1.VerbEncrypt, v1alpha1.VerbReEncryptFrom, v1alpha1.VerbReEncryptTo, v1alpha1.VerbGenerateDataKey,
	v1alpha1.VerbGenerateDataKeyWithoutPlaintext, v1alpha1.VerbGenerateDataKeyPair, v1alpha1.VerbGenerateDataKeyPairWithoutPlaintext,
	v1alpha1.VerbDescribeKey, v1alpha1.VerbGenerateRandom, v1alpha1.VerbListKeys, v1alpha1.VerbListAliases,
}

// limited adds a caller of team-a who has these verbs on the master key orders and nothing else, and returns the token.
func (w *world) limited(token string, verbs ...string) string {
	w.Tokens.Add(token, kmstest.Caller("team-a", token, token+"-pod"))
	for _, verb := range verbs {
		w.RBAC.Grant("system:serviceaccount:team-a:"+token,
			kms.Access{Verb: verb, Resource: v1alpha1.ResourceMasterKeys, Namespace: "team-a", Name: "orders"})
	}
	return token
}

func TestEachOperationNeedsItsVerbsAndNoOther(t *testing.T) {
	w := settled(t)
	made, err := w.GenerateDataKey(t.Context(), allKeys, kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32, Door: kms.DoorAWS})
	if err != nil {
		t.Fatal(err)
	}
	generate := func(without bool) func(context.Context, string) error {
		return func(ctx context.Context, token string) error {
			_, err := w.GenerateDataKey(ctx, token, kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32, Door: kms.DoorAWS, WithoutPlaintext: without})
			return err
		}
	}
	pair := func(without bool) func(context.Context, string) error {
		return func(ctx context.Context, token string) error {
			_, err := w.GenerateDataKeyPair(ctx, token, kms.GenerateDataKeyPairRequest{
				KeyID: "orders", KeyPairSpec: "ECC_NIST_EDWARDS25519", Door: kms.DoorAWS, WithoutPlaintext: without,
			})
			return err
		}
	}
	for name, c := range map[string]struct {
		needs []string
		call  func(context.Context, string) error
	}{
		"GenerateDataKey":                     {[]string{"generatedatakey"}, generate(false)},
		"GenerateDataKeyWithoutPlaintext":     {[]string{"generatedatakeywithoutplaintext"}, generate(true)},
		"GenerateDataKeyPair":                 {[]string{"generatedatakeypair"}, pair(false)},
		"GenerateDataKeyPairWithoutPlaintext": {[]string{"generatedatakeypairwithoutplaintext"}, pair(true)},
		"Encrypt": {[]string{"encrypt"}, func(ctx context.Context, token string) error {
			_, err := w.Encrypt(ctx, token, kms.EncryptRequest{KeyID: "orders", Plaintext: made.Plaintext, Door: kms.DoorAWS})
			return err
		}},
		"Decrypt": {[]string{"decrypt"}, func(ctx context.Context, token string) error {
			_, err := w.Decrypt(ctx, token, kms.DecryptRequest{CiphertextBlob: made.CiphertextBlob, Door: kms.DoorAWS})
			return err
		}},
		"BatchDecrypt": {[]string{"decrypt"}, func(ctx context.Context, token string) error {
			results, err := w.BatchDecrypt(ctx, token, []kms.DecryptRequest{{CiphertextBlob: made.CiphertextBlob, Door: kms.DoorAWS}})
			return errors.Join(err, results[0].Err)
		}},
		"Renew": {[]string{"decrypt"}, func(_ context.Context, token string) error {
			return w.renew(t, token, renewOf(t, w.Sealed(t, orders()))) //nolint:contextcheck // the test's
		}},
		"ReEncrypt": {[]string{"reencryptfrom", "reencryptto"}, func(ctx context.Context, token string) error {
			_, err := w.ReEncrypt(ctx, token, kms.ReEncryptRequest{CiphertextBlob: made.CiphertextBlob, DestinationKeyID: "orders", Door: kms.DoorAWS})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if err := c.call(t.Context(), w.limited(name+"-enough", c.needs...)); err != nil {
				t.Errorf("with %v: %v", c.needs, err)
			}
			for _, lacks := range c.needs {
				others := slices.DeleteFunc(slices.Clone(verbs), func(v string) bool { return v == lacks })
				if err := c.call(t.Context(), w.limited(name+"-without-"+lacks, others...)); kms.ReasonOf(err) != kmsv1.ReasonDenied {
					t.Errorf("with every verb but %s: got %v, want a denial", lacks, err)
				}
			}
		})
	}
}

func TestReEncrypt(t *testing.T) {
	w := settled(t)
	info, err := w.MasterKey(t.Context(), otherKey)
	if err != nil {
		t.Fatal(err)
	}
	request := func(change func(*kms.ReEncryptRequest)) kms.ReEncryptRequest {
		r := kms.ReEncryptRequest{
			CiphertextBlob: w.Sealed(t, orders()), SourceEncryptionContext: orders().EncryptionContext,
			DestinationKeyID: "orders", DestinationEncryptionContext: map[string]string{"new": "context"}, Door: kms.DoorAWS,
		}
		if change != nil {
			change(&r)
		}
		return r
	}
	unscoped := func(r *kms.ReEncryptRequest) {
		made, err := w.GenerateDataKey(t.Context(), allKeys, kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32, Door: kms.DoorAWS})
		if err != nil {
			t.Fatal(err)
		}
		r.CiphertextBlob, r.SourceEncryptionContext = made.CiphertextBlob, nil
	}
	onRequest := func(token string) string {
		w.RBAC.Grant("system:serviceaccount:team-a:"+token,
			kms.Access{Verb: "decrypt", Resource: v1alpha1.ResourceDataKeyRequests, Namespace: "team-a", Name: "orders"})
		return token
	}
	for name, c := range map[string]struct {
		token string
		req   kms.ReEncryptRequest
		want  string // the reason; empty: it works
	}{
		"to another key":                                    {allKeys, request(func(r *kms.ReEncryptRequest) { r.DestinationKeyID = info.ARN }), ""},
		"to the same key, with another context":             {allKeys, request(nil), ""},
		"from a context to aad":                             {allKeys, request(func(r *kms.ReEncryptRequest) { r.DestinationEncryptionContext, r.DestinationAAD = nil, []byte("aad") }), ""},
		"a scoped blob needs decrypt":                       {w.limited("a", "decrypt", "reencryptto"), request(nil), ""},
		"a scoped blob, decrypt on the request":             {onRequest(w.limited("b", "reencryptto")), request(nil), ""},
		"a scoped blob, without decrypt":                    {w.limited("c", "reencryptfrom", "reencryptto"), request(nil), kmsv1.ReasonDenied},
		"a scoped blob, without reencryptto":                {onRequest(w.limited("d", "decrypt", "reencryptfrom")), request(nil), kmsv1.ReasonDenied},
		"an unscoped blob, decrypt is not enough":           {onRequest(w.limited("e", "decrypt", "reencryptto")), request(unscoped), kmsv1.ReasonDenied},
		"an unscoped blob needs reencryptfrom":              {w.limited("f", "reencryptfrom", "reencryptto"), request(unscoped), ""},
		"another namespace's scope, every permission on it": {stranger, request(nil), kmsv1.ReasonDenied},
		"to a key of another namespace":                     {allKeys, request(func(r *kms.ReEncryptRequest) { r.DestinationKeyID = theirsKey.KeyID }), kmsv1.ReasonKeyNotFound},
		"with another context":                              {allKeys, request(func(r *kms.ReEncryptRequest) { r.SourceEncryptionContext = nil }), kmsv1.ReasonInvalidCiphertext},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(w.Audit.Records())
			got, err := w.ReEncrypt(t.Context(), c.token, c.req)
			if kms.ReasonOf(err) != c.want {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			records := w.Audit.Records()[before:]
			if len(records) != 1 {
				t.Fatalf("got %d audit records, want 1", len(records))
			}
			r := records[0]
			if r.SourceKey == nil || r.SourceKey.ID != ordersKey.KeyID || r.Key == nil || r.Key.ID == "" && r.Key.Name == "" || r.Door != "AWS" {
				t.Errorf("the audit record is %+v, from %+v to %+v", r, r.SourceKey, r.Key)
			}
			if c.want != "" {
				if diff := cmp.Diff(kms.ReEncryptResponse{}, got); diff != "" {
					t.Errorf("beside the error: %s", diff)
				}
				return
			}
			if r.Bytes != 32 || r.Key.Version != 1 || r.Key.Name == "" || r.SourceKey.Name != "orders" {
				t.Errorf("the audit record is %+v, from %+v to %+v", r, r.SourceKey, r.Key)
			}
			old, err := w.Decrypt(t.Context(), allKeys, kms.DecryptRequest{CiphertextBlob: c.req.CiphertextBlob, EncryptionContext: c.req.SourceEncryptionContext, Door: c.req.Door})
			if err != nil {
				t.Fatal(err)
			}
			again, err := w.Decrypt(t.Context(), allKeys, kms.DecryptRequest{
				CiphertextBlob: got.CiphertextBlob, EncryptionContext: c.req.DestinationEncryptionContext, AAD: c.req.DestinationAAD, KeyID: got.KeyARN, Door: c.req.Door,
			})
			if err != nil {
				t.Fatal(err)
			}
			b, err := envelope.Parse(got.CiphertextBlob)
			if err != nil {
				t.Fatal(err)
			}
			if !again.Plaintext.Equal(old.Plaintext) || again.KeyARN != got.KeyARN || old.KeyARN != got.SourceKeyARN || !b.Header.Scope.IsZero() {
				t.Errorf("%+v opens to something else, or has the scope %v", got, b.Header.Scope)
			}
			if bytes.Equal(got.CiphertextBlob, c.req.CiphertextBlob) {
				t.Error("the blob is the same")
			}
		})
	}
}

func TestKeysByTheirAliases(t *testing.T) {
	w := settled(t)
	o := inState(ordersKey, kms.KeyStateEnabled)
	o.Aliases = []string{"orders-prod"}
	w.MasterKeys.Put(o)
	theirs := inState(theirsKey, kms.KeyStateEnabled)
	theirs.Aliases = []string{"theirs"}
	w.MasterKeys.Put(theirs)
	info, err := w.MasterKey(t.Context(), ordersKey)
	if err != nil {
		t.Fatal(err)
	}
	install := info.ARN[:len(info.ARN)-len("team-a:key/")-len(ordersKey.KeyID)]
	encrypts := w.limited("encrypts", "encrypt", "decrypt")
	for name, c := range map[string]struct{ token, key, want string }{
		"its alias":                          {encrypts, "alias/orders-prod", ""},
		"its alias's ARN":                    {encrypts, install + "team-a:alias/orders-prod", ""},
		"an alias that is not there":         {encrypts, "alias/none", kmsv1.ReasonDenied},
		"none, permission on all":            {allKeys, "alias/none", kmsv1.ReasonKeyNotFound},
		"another namespace's alias":          {allKeys, "alias/theirs", kmsv1.ReasonKeyNotFound},
		"another namespace's alias, its ARN": {allKeys, install + "team-b:alias/theirs", kmsv1.ReasonKeyNotFound},
		"no alias":                           {allKeys, "alias/", kmsv1.ReasonInvalidKeyName},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := envelope.NewPlaintext(16)
			if err != nil {
				t.Fatal(err)
			}
			got, err := w.Encrypt(t.Context(), c.token, kms.EncryptRequest{KeyID: c.key, Plaintext: p, Door: kms.DoorAWS})
			if kms.ReasonOf(err) != c.want || err == nil && got.KeyARN != info.ARN {
				t.Fatalf("got %q and %v, want %q", got.KeyARN, err, c.want)
			}
			if c.want != "" {
				return
			}
			for key, want := range map[string]string{c.key: "", "alias/none": kmsv1.ReasonIncorrectKey, "alias/theirs": kmsv1.ReasonIncorrectKey} {
				_, err := w.Decrypt(t.Context(), c.token, kms.DecryptRequest{CiphertextBlob: got.CiphertextBlob, KeyID: key, Door: kms.DoorAWS})
				if kms.ReasonOf(err) != want {
					t.Errorf("Decrypt with key_id %s: got %v, want %q", key, err, want)
				}
			}
		})
	}
}

// Each bit flipped, each length cut, a byte too many: never the plaintext, and never more than what the header says in clear.
func TestADamagedBlobOpensForNobody(t *testing.T) {
	w := settled(t)
	made, err := w.GenerateDataKey(t.Context(), allKeys, kms.GenerateDataKeyRequest{KeyID: "orders", NumberOfBytes: 32, Door: kms.DoorAWS})
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]bool{}
	check := func(what string, at int, blob []byte, want ...string) {
		t.Helper()
		w.Clock.SetTime(w.Clock.Now().Add(time.Second)) // or the pod had too much refused
		for door, opened := range map[string]func() error{
			"Decrypt": func() error {
				resp, err := w.Decrypt(t.Context(), allKeys, kms.DecryptRequest{CiphertextBlob: blob, Door: kms.DoorAWS})
				if !resp.Plaintext.IsZero() {
					t.Errorf("%s %d: a plaintext", what, at)
				}
				return err
			},
			"ReEncrypt": func() error {
				_, err := w.ReEncrypt(t.Context(), allKeys, kms.ReEncryptRequest{CiphertextBlob: blob, DestinationKeyID: "other", Door: kms.DoorAWS})
				return err
			},
		} {
			err := opened()
			if !slices.Contains(want, kms.ReasonOf(err)) {
				t.Errorf("%s: %s %d: got %v, want %v", door, what, at, err, want)
			}
			if e, ok := errors.AsType[*kms.Error](err); ok {
				said[e.Message] = true
			}
		}
	}
	blob := made.CiphertextBlob
	for i := range len(blob) * 8 {
		flipped := bytes.Clone(blob)
		flipped[i/8] ^= 1 << (i % 8)
		want := []string{kmsv1.ReasonInvalidCiphertext}
		if at := i / 8; at >= 3 && at < 39 { // the key ID, version and material ID: docs/format.md
			want = []string{kmsv1.ReasonKeyNotFound}
			if at == 22 { // version 1 becomes version 0, which is none
				want = append(want, kmsv1.ReasonInvalidCiphertext)
			}
		}
		check("bit", i, flipped, want...)
	}
	for n := 1; n < len(blob); n++ {
		check("cut to", n, blob[:n], kmsv1.ReasonInvalidCiphertext)
	}
	check("longer by", 1, append(bytes.Clone(blob), 0), kmsv1.ReasonInvalidCiphertext)
	for version := range 256 {
		if version != 1 {
			other := bytes.Clone(blob)
			other[0] = byte(version)
			check("format version", version, other, kmsv1.ReasonInvalidCiphertext)
		}
	}
	if len(said) > 12 {
		t.Errorf("%d different answers: %v", len(said), said)
	}
	for _, r := range w.Audit.Records() {
		if r.Decision == kms.DecisionAllowed && r.Operation != kms.OperationGenerateDataKey && r.Operation != kms.OperationCreateMasterKeyVersion {
			t.Errorf("a record says that something was allowed: %+v", r)
		}
	}
}
