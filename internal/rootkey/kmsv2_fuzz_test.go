package rootkey

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	kmsv2 "k8s.io/kms/apis/v2"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/seal"
)

func FuzzParsePluginWrapped(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(pluginWrapped{keyID: "k", ciphertext: []byte{1}}.marshal())
	f.Add(pluginWrapped{keyID: "k", ciphertext: []byte{1}, annotations: map[string][]byte{"a.b": {1}, "c.d": nil}}.marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		// The checksum would keep everything away from what stands behind it.
		for _, stored := range [][]byte{b, withSum(string(b)), withSum(pluginWrappedLabel + string(b))} {
			w, err := parsePluginWrapped(stored)
			if err != nil {
				if !errors.Is(err, seal.ErrOtherRootKey) && !errors.Is(err, envelope.ErrBroken) {
					t.Fatalf("got %v", err)
				}
				continue
			}
			if problem := w.check(); problem != "" {
				t.Fatalf("read what breaks a rule: %s", problem)
			}
			if !bytes.Equal(w.marshal(), stored) {
				t.Fatal("one value has two encodings")
			}
		}
	})
}

// rawPlugin answers every call with bytes that need not even be protobuf.
type rawPlugin struct{ status, encrypt, decrypt []byte }

func rawAnswer[T proto.Message](raw []byte, answer T) (T, error) {
	if err := proto.Unmarshal(raw, answer); err != nil {
		return answer, status.Error(codes.Internal, err.Error()) // as the gRPC client does
	}
	return answer, nil
}

func (p rawPlugin) Status(context.Context, *kmsv2.StatusRequest, ...grpc.CallOption) (*kmsv2.StatusResponse, error) {
	return rawAnswer(p.status, &kmsv2.StatusResponse{})
}

func (p rawPlugin) Encrypt(context.Context, *kmsv2.EncryptRequest, ...grpc.CallOption) (*kmsv2.EncryptResponse, error) {
	return rawAnswer(p.encrypt, &kmsv2.EncryptResponse{})
}

func (p rawPlugin) Decrypt(context.Context, *kmsv2.DecryptRequest, ...grpc.CallOption) (*kmsv2.DecryptResponse, error) {
	return rawAnswer(p.decrypt, &kmsv2.DecryptResponse{})
}

func FuzzPluginAnswers(f *testing.F) {
	secret := bytes.Repeat([]byte("sealing key."), 4)
	p, err := envelope.PlaintextFromBytes(secret)
	if err != nil {
		f.Fatal(err)
	}
	ad := []byte("sealing key 1")
	binding := bindingOf(secret, ad)
	raw := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	honest := raw(&kmsv2.StatusResponse{Version: "v2", Healthz: "ok", KeyId: "k"})
	truth := raw(&kmsv2.DecryptResponse{Plaintext: append(binding[:], secret...)})
	f.Add(honest, raw(&kmsv2.EncryptResponse{Ciphertext: []byte{1}, KeyId: "k", Annotations: map[string][]byte{"a.b": {1}}}), truth)
	f.Add(honest, raw(&kmsv2.EncryptResponse{Ciphertext: secret, KeyId: "k"}), raw(&kmsv2.DecryptResponse{Plaintext: secret}))
	f.Add(raw(&kmsv2.StatusResponse{Version: "v2", Healthz: "no"}), []byte{1}, []byte(nil))
	f.Fuzz(func(t *testing.T, statusAnswer, encryptAnswer, decryptAnswer []byte) {
		r := &kmsv2Root{
			socket: "/run/kms.sock",
			plugin: &plugin{client: rawPlugin{statusAnswer, encryptAnswer, decryptAnswer}, timeout: pluginTimeout},
			status: &pluginStatus{log: logr.Discard()},
		}
		wrapped, err := r.Wrap(t.Context(), p, ad)
		if (err == nil) != (wrapped != nil) {
			t.Fatalf("got %d bytes and error %v", len(wrapped), err)
		}
		if err != nil && !errors.Is(err, ErrPluginFailed) && !errors.Is(err, ErrPluginAnswer) {
			t.Fatalf("got %v", err)
		}
		if err == nil {
			if w, err := parsePluginWrapped(wrapped); err != nil || !bytes.Equal(w.marshal(), wrapped) {
				t.Fatalf("what was stored does not read: %v", err)
			}
			if form := plainForm(wrapped, secret); form != "" {
				t.Fatalf("what was stored holds the plaintext %s", form)
			}
		}
		wrapped = pluginWrapped{keyID: "k", ciphertext: []byte{1}}.marshal()
		got, err := r.Unwrap(t.Context(), wrapped, ad)
		switch {
		case err == nil:
			if !bytes.Equal(got.AppendTo(insecuresecret.Token{}, nil), secret) { // nobody finds a second digest
				t.Fatal("what came back is not what was wrapped")
			}
		case !errors.Is(err, ErrPluginFailed) && !errors.Is(err, envelope.ErrBroken):
			t.Fatalf("got %v", err)
		case !got.IsZero():
			t.Fatal("something came back beside an error")
		}
		got.Destroy()
	})
}
