package rootkey

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsv2 "k8s.io/kms/apis/v2"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/seal"
)

var errorsOfRootKeys = []error{ErrPluginFailed, ErrPluginAnswer, seal.ErrOtherRootKey, envelope.ErrBroken, envelope.ErrDestroyed}

// wantError fails the test unless err is want, of the errors that root keys return, and no other.
func wantError(t *testing.T, err, want error) {
	t.Helper()
	if (err == nil) != (want == nil) {
		t.Fatalf("got error %v, want %v", err, want)
	}
	for _, known := range errorsOfRootKeys {
		if errors.Is(err, known) != errors.Is(want, known) {
			t.Fatalf("got error %v, want %v", err, want)
		}
	}
}

func TestAKMSPluginWrapsAndUnwraps(t *testing.T) {
	fake, socket := newFakePlugin(t), socketPath(t)
	fake.serve(t, socket)
	root := openFake(t, socket)
	if got, want := root.ID(), "kmsv2://"+socket; got != want {
		t.Errorf("got ID %s, want %s", got, want)
	}
	p, ad := newSealingKey(t), []byte("sealing key 1")
	wrapped, err := root.Wrap(t.Context(), p, ad)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(wrapped, p.AppendTo(insecuresecret.Token{}, nil)[16:]) {
		t.Error("what is stored holds the key in clear")
	}
	other, err := root.Wrap(t.Context(), p, []byte("sealing key 2"))
	if err != nil {
		t.Fatal(err)
	}
	swapped, err := parsePluginWrapped(wrapped)
	if err != nil {
		t.Fatal(err)
	}
	swapped.annotations = map[string][]byte{"version.fake.datakeys.io": {2}}
	held := seal.NewHeldKey(envelope.NewKeyID(), envelope.NewMaterial())
	embedded, err := held.Wrap(t.Context(), p, ad)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		wrapped, ad []byte
		want        error
	}{
		"what it wrapped":                         {wrapped, ad, nil},
		"other associated data":                   {wrapped, []byte("sealing key 2"), envelope.ErrBroken},
		"no associated data":                      {wrapped, nil, envelope.ErrBroken},
		"what was wrapped for other data":         {other, ad, envelope.ErrBroken},
		"a missing last byte":                     {wrapped[:len(wrapped)-1], ad, envelope.ErrBroken},
		"a byte more":                             {append(bytes.Clone(wrapped), 0), ad, envelope.ErrBroken},
		"the label alone":                         {[]byte(pluginWrappedLabel), ad, envelope.ErrBroken},
		"more bytes than any":                     {append(bytes.Clone(wrapped), make([]byte, maxPluginWrapped)...), ad, envelope.ErrBroken},
		"nothing":                                 {nil, ad, seal.ErrOtherRootKey},
		"what the embedded root key wrapped":      {embedded, ad, seal.ErrOtherRootKey},
		"annotations that the plugin did not set": {swapped.marshal(), ad, ErrPluginFailed},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := root.Unwrap(t.Context(), c.wrapped, c.ad)
			wantError(t, err, c.want)
			if err == nil && !got.Equal(p) {
				t.Error("what came back is not what was wrapped")
			}
			if err != nil && !got.IsZero() {
				t.Error("something came back beside an error")
			}
		})
	}
	t.Run("any changed byte", func(t *testing.T) {
		for i := range wrapped {
			damaged := bytes.Clone(wrapped)
			damaged[i] ^= 1
			want := envelope.ErrBroken
			if i < len(pluginWrappedLabel) {
				want = seal.ErrOtherRootKey
			}
			if _, err := root.Unwrap(t.Context(), damaged, ad); !errors.Is(err, want) {
				t.Fatalf("byte %d: got %v, want %v", i, err, want)
			}
		}
	})
	t.Run("a key that was destroyed", func(t *testing.T) {
		gone := newSealingKey(t)
		gone.Destroy()
		_, err := root.Wrap(t.Context(), gone, ad)
		wantError(t, err, envelope.ErrDestroyed)
	})
}

// TestAPluginThatLiesAtEncrypt has a healthy plugin lie about one call of Encrypt.
func TestAPluginThatLiesAtEncrypt(t *testing.T) {
	type answer = kmsv2.EncryptResponse
	for name, c := range map[string]struct {
		lie  func(in []byte, out *answer) error
		want error // nil for an answer that keeps the contract
		says string
	}{
		"a ciphertext of 1 kB": {func(_ []byte, out *answer) error { out.Ciphertext = make([]byte, 1024); return nil }, nil, ""},
		"a ciphertext that is too large": {
			func(_ []byte, out *answer) error { out.Ciphertext = make([]byte, 1025); return nil },
			ErrPluginAnswer, "ciphertext of 1025 bytes: must be 1 to 1024 bytes",
		},
		"no ciphertext": {func(_ []byte, out *answer) error { out.Ciphertext = nil; return nil }, ErrPluginAnswer, "ciphertext of 0 bytes"},
		"no answer at all": {
			func(_ []byte, out *answer) error {
				out.Ciphertext, out.KeyId, out.Annotations = nil, "", nil
				return nil
			},
			ErrPluginAnswer, "key_id: must not be empty",
		},
		"the plaintext in the place of the ciphertext": {
			func(in []byte, out *answer) error { out.Ciphertext = in; return nil },
			ErrPluginAnswer, "holds the plaintext in clear",
		},
		"the plaintext in an annotation": {
			func(in []byte, out *answer) error { out.Annotations["a.b"] = in; return nil },
			ErrPluginAnswer, "holds the plaintext in clear",
		},
		"the plaintext in base64": {
			func(in []byte, out *answer) error {
				out.Ciphertext = []byte(base64.StdEncoding.EncodeToString(in))
				return nil
			}, ErrPluginAnswer, "holds the plaintext in base64",
		},
		"the plaintext in hexadecimal": {
			func(in []byte, out *answer) error { out.Ciphertext = fmt.Appendf(nil, "%x", in); return nil },
			ErrPluginAnswer, "holds the plaintext in hexadecimal",
		},
		"an empty key_id": {func(_ []byte, out *answer) error { out.KeyId = ""; return nil }, ErrPluginAnswer, "key_id: must not be empty"},
		"a key_id that is too long": {
			func(_ []byte, out *answer) error { out.KeyId = strings.Repeat("k", 1025); return nil },
			ErrPluginAnswer, "key_id of 1025 bytes: must be at most 1024 bytes",
		},
		"a key_id other than that of Status": {
			func(_ []byte, out *answer) error { out.KeyId = "key-2"; return nil },
			ErrPluginAnswer, "is not that of Status",
		},
		"no annotations": {func(_ []byte, out *answer) error { out.Annotations = nil; return nil }, nil, ""},
		"annotations of 32 kB": {
			func(_ []byte, out *answer) error {
				out.Annotations = map[string][]byte{"a.b": make([]byte, 32*1024-3)}
				return nil
			}, nil, "",
		},
		"annotations that are too large": {
			func(_ []byte, out *answer) error {
				out.Annotations = map[string][]byte{"a.b": make([]byte, 16*1024), "c.d": make([]byte, 16*1024)}
				return nil
			}, ErrPluginAnswer, "at most 32768 bytes together",
		},
		"as many annotations as there can be": {
			func(_ []byte, out *answer) error {
				out.Annotations = map[string][]byte{}
				for i := range 32 * 1024 / 7 {
					out.Annotations[fmt.Sprintf("%05x.a", i)] = nil
				}
				return nil
			}, nil, "",
		},
		"an annotation without a name": {
			func(_ []byte, out *answer) error { out.Annotations[""] = nil; return nil },
			ErrPluginAnswer, "no fully qualified domain name",
		},
		"an annotation whose name is no domain": {
			func(_ []byte, out *answer) error { out.Annotations["algorithm"] = nil; return nil },
			ErrPluginAnswer, "no fully qualified domain name",
		},
		"an annotation whose name is a path": {
			func(_ []byte, out *answer) error { out.Annotations["a.b/c"] = nil; return nil },
			ErrPluginAnswer, "no fully qualified domain name",
		},
		"a gigabyte": {func(_ []byte, out *answer) error { out.KeyId = hugeKeyID; return nil }, ErrPluginFailed, "ResourceExhausted"},
		"an error that quotes the plaintext": {
			func(in []byte, _ *answer) error { return status.Errorf(codes.Internal, "cannot encrypt %x", in) },
			ErrPluginFailed, "Encrypt: Internal: its own log says more",
		},
		"an error of a megabyte": {
			func([]byte, *answer) error { return status.Error(codes.Internal, strings.Repeat("x", 1<<20)) },
			ErrPluginFailed, "Encrypt: Internal",
		},
	} {
		t.Run(name, func(t *testing.T) {
			fake, socket := newFakePlugin(t), socketPath(t)
			fake.serve(t, socket)
			root := openFake(t, socket)
			fake.onEncrypt = func(_ context.Context, in *kmsv2.EncryptRequest, out *answer) error {
				return c.lie(in.GetPlaintext(), out)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			p := newSealingKey(t)
			wrapped, err := root.Wrap(t.Context(), p, []byte("ad"))
			runtime.ReadMemStats(&after)
			wantError(t, err, c.want)
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 256<<20 { // with the race detector regular expressions are dear
				t.Errorf("the answer took %d MiB of memory", grown>>20)
			}
			if err == nil {
				if w, err := parsePluginWrapped(wrapped); err != nil || !bytes.Equal(w.marshal(), wrapped) {
					t.Errorf("what was stored does not read: %v", err)
				}
				return
			}
			if wrapped != nil {
				t.Error("something came back beside an error")
			}
			if !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), root.ID()) || len(err.Error()) > 1000 {
				t.Errorf("got %q, want a short error that names the root key and says %q", err, c.says)
			}
			if strings.Contains(err.Error(), fmt.Sprintf("%x", p.AppendTo(insecuresecret.Token{}, nil)[16:24])) {
				t.Errorf("the error tells the plaintext: %v", err)
			}
			// The lie over, everything is as before.
			fake.set(func() { fake.onEncrypt = nil })
			if wrapped, err = root.Wrap(t.Context(), p, []byte("ad")); err != nil {
				t.Fatal(err)
			}
			if got, err := root.Unwrap(t.Context(), wrapped, []byte("ad")); err != nil || !got.Equal(p) {
				t.Errorf("after the lie, what is wrapped does not unwrap: %v", err)
			}
		})
	}
}

func TestAPluginThatLiesAtDecrypt(t *testing.T) {
	for name, c := range map[string]struct {
		lie  func(out *kmsv2.DecryptResponse, other []byte) error
		want error
	}{
		"the plaintext of another ciphertext": {
			func(out *kmsv2.DecryptResponse, other []byte) error { out.Plaintext = other; return nil }, envelope.ErrBroken,
		},
		"another last byte": {
			func(out *kmsv2.DecryptResponse, _ []byte) error {
				out.GetPlaintext()[len(out.GetPlaintext())-1] ^= 1
				return nil
			}, envelope.ErrBroken,
		},
		"a byte less": {
			func(out *kmsv2.DecryptResponse, _ []byte) error {
				out.Plaintext = out.GetPlaintext()[:len(out.GetPlaintext())-1]
				return nil
			}, envelope.ErrBroken,
		},
		"a byte more": {
			func(out *kmsv2.DecryptResponse, _ []byte) error {
				out.Plaintext = append(out.GetPlaintext(), 0)
				return nil
			}, envelope.ErrBroken,
		},
		"zero bytes in its place": {
			func(out *kmsv2.DecryptResponse, _ []byte) error { clear(out.GetPlaintext()); return nil }, envelope.ErrBroken,
		},
		"the digest alone": {
			func(out *kmsv2.DecryptResponse, _ []byte) error { out.Plaintext = out.GetPlaintext()[:32]; return nil }, envelope.ErrBroken,
		},
		"nothing": {
			func(out *kmsv2.DecryptResponse, _ []byte) error { out.Plaintext = nil; return nil }, envelope.ErrBroken,
		},
		"more than any plaintext": {
			func(out *kmsv2.DecryptResponse, _ []byte) error { out.Plaintext = make([]byte, 64*1024); return nil }, envelope.ErrBroken,
		},
		"more than any answer": {
			func(out *kmsv2.DecryptResponse, _ []byte) error { out.Plaintext = make([]byte, 4<<20); return nil }, ErrPluginFailed,
		},
		"an error that quotes the plaintext": {
			func(out *kmsv2.DecryptResponse, _ []byte) error {
				return status.Errorf(codes.DataLoss, "cannot send %x", out.GetPlaintext())
			}, ErrPluginFailed,
		},
	} {
		t.Run(name, func(t *testing.T) {
			fake, socket := newFakePlugin(t), socketPath(t)
			fake.serve(t, socket)
			root := openFake(t, socket)
			p, ad := newSealingKey(t), []byte("sealing key 1")
			wrapped, err := root.Wrap(t.Context(), p, ad)
			if err != nil {
				t.Fatal(err)
			}
			secret, otherAD := newSealingKey(t).AppendTo(insecuresecret.Token{}, nil), []byte("sealing key 2")
			binding := bindingOf(secret, otherAD)
			fake.set(func() {
				fake.onDecrypt = func(_ context.Context, _ *kmsv2.DecryptRequest, out *kmsv2.DecryptResponse) error {
					return c.lie(out, append(binding[:], secret...))
				}
			})
			got, err := root.Unwrap(t.Context(), wrapped, ad)
			wantError(t, err, c.want)
			if !got.IsZero() {
				t.Error("something came back beside an error")
			}
			if strings.Contains(err.Error(), fmt.Sprintf("%x", p.AppendTo(insecuresecret.Token{}, nil)[16:24])) {
				t.Errorf("the error tells the plaintext: %v", err)
			}
			fake.set(func() { fake.onDecrypt = nil })
			if got, err = root.Unwrap(t.Context(), wrapped, ad); err != nil || !got.Equal(p) {
				t.Errorf("after the lie, what was wrapped does not unwrap: %v", err)
			}
		})
	}
}

func TestARootKeyIsNotOpenedOnABadStatus(t *testing.T) {
	for name, c := range map[string]struct {
		lie  func(*kmsv2.StatusResponse) error
		want error // nil where it opens
		says string
	}{
		"version v2beta1, which the contract holds for v2": {func(out *kmsv2.StatusResponse) error { out.Version = "v2beta1"; return nil }, nil, ""},
		"another version":           {func(out *kmsv2.StatusResponse) error { out.Version = "v1beta1"; return nil }, ErrPluginAnswer, `version "v1beta1": must be v2`},
		"no version":                {func(out *kmsv2.StatusResponse) error { out.Version = ""; return nil }, ErrPluginAnswer, `version "": must be v2`},
		"not healthy":               {func(out *kmsv2.StatusResponse) error { out.Healthz = "HSM offline\n"; return nil }, ErrPluginFailed, `not healthy: "HSM offline\n"`},
		"no word of its health":     {func(out *kmsv2.StatusResponse) error { out.Healthz = ""; return nil }, ErrPluginFailed, `not healthy: ""`},
		"no key_id":                 {func(out *kmsv2.StatusResponse) error { out.KeyId = ""; return nil }, ErrPluginAnswer, "key_id: must not be empty"},
		"a key_id of 1 kB":          {func(out *kmsv2.StatusResponse) error { out.KeyId = strings.Repeat("k", 1024); return nil }, nil, ""},
		"a key_id that is too long": {func(out *kmsv2.StatusResponse) error { out.KeyId = strings.Repeat("k", 1025); return nil }, ErrPluginAnswer, "key_id of 1025 bytes"},
		"an error":                  {func(*kmsv2.StatusResponse) error { return status.Error(codes.Unimplemented, "no Status") }, ErrPluginFailed, `Unimplemented: "no Status"`},
		"an answer that is too large": {
			func(out *kmsv2.StatusResponse) error { out.Healthz = strings.Repeat("k", 4<<20); return nil },
			ErrPluginFailed, "ResourceExhausted",
		},
		"a long word on its health": {
			func(out *kmsv2.StatusResponse) error { out.Healthz = strings.Repeat("k", 100_000); return nil },
			ErrPluginFailed, "and 99800 bytes more",
		},
	} {
		t.Run(name, func(t *testing.T) {
			fake, socket := newFakePlugin(t), socketPath(t)
			fake.onStatus = func(_ context.Context, out *kmsv2.StatusResponse) error { return c.lie(out) }
			fake.serve(t, socket)
			root, err := openKMSv2Root(t.Context(), socket, logr.Discard())
			wantError(t, err, c.want)
			if err == nil {
				if err := root.Close(); err != nil {
					t.Error(err)
				}
				return
			}
			if root != nil {
				t.Error("something came back beside an error")
			}
			if !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), socket) || len(err.Error()) > 1000 {
				t.Errorf("got %q, want a short error that names the socket and says %q", err, c.says)
			}
		})
	}
}

func TestARootKeyIsNotOpenedOnABadSocket(t *testing.T) {
	short := time.Second // for an attempt to connect; what fails waits for all of it
	silent := socketPath(t)
	listener, err := net.Listen("unix", silent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	left := socketPath(t)
	unlinked, err := net.ListenUnix("unix", &net.UnixAddr{Name: left})
	if err != nil {
		t.Fatal(err)
	}
	unlinked.SetUnlinkOnClose(false)
	_ = unlinked.Close()
	file := socketPath(t)
	if err := os.WriteFile(file, []byte("no socket"), 0o600); err != nil {
		t.Fatal(err)
	}
	const rule = "must be the absolute path of a unix socket"
	for name, c := range map[string]struct {
		socket string
		says   string
	}{
		"nothing there":                  {socketPath(t), "no such file or directory"},
		"the socket of a dead process":   {left, "connection refused"},
		"a file":                         {file, "connection refused"},
		"somebody who never says a word": {silent, "DeadlineExceeded"},
		"no path":                        {"", rule},
		"a relative path":                {"run/kms.sock", rule},
		"an abstract socket":             {"@kms", rule},
		"a path that goes up":            {"/run/../kms.sock", rule},
		"a path with a zero byte":        {"/run/kms\x00.sock", rule},
		"a path that is too long":        {"/" + strings.Repeat("a", 107), rule},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := openKMSv2RootBy(t.Context(), c.socket, logr.Discard(), short, never)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v, want an error that says %q", err, c.says)
			}
			if c.says != rule && !errors.Is(err, ErrPluginFailed) {
				t.Errorf("got %v, want one that is worth another try", err)
			}
		})
	}
	t.Run("a path of the longest size", func(t *testing.T) {
		p, err := dialPlugin("/"+strings.Repeat("a", 106), short)
		if err != nil {
			t.Fatal(err)
		}
		_ = p.close()
	})
}

// TestAPluginThatHangs shows that every call ends by its own time-out, and by the caller's context.
func TestAPluginThatHangs(t *testing.T) {
	calls := map[string]func(*kmsv2Root, context.Context, []byte) error{
		"Status": func(r *kmsv2Root, ctx context.Context, _ []byte) error {
			_, err := r.status.ask(ctx, r.plugin.status)
			return err
		},
		"Wrap": func(r *kmsv2Root, ctx context.Context, _ []byte) error {
			_, err := r.Wrap(ctx, newSealingKey(t), nil)
			return err
		},
		"Unwrap": func(r *kmsv2Root, ctx context.Context, wrapped []byte) error {
			_, err := r.Unwrap(ctx, wrapped, nil)
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			fake, socket := newFakePlugin(t), socketPath(t)
			fake.serve(t, socket)
			root := openFake(t, socket)
			wrapped, err := root.Wrap(t.Context(), newSealingKey(t), nil)
			if err != nil {
				t.Fatal(err)
			}
			called := make(chan struct{}, 10)
			hang := func(ctx context.Context) error { called <- struct{}{}; <-ctx.Done(); return ctx.Err() }
			fake.set(func() {
				if name == "Status" {
					fake.onStatus = func(ctx context.Context, _ *kmsv2.StatusResponse) error { return hang(ctx) }
				}
				fake.onEncrypt = func(ctx context.Context, _ *kmsv2.EncryptRequest, _ *kmsv2.EncryptResponse) error { return hang(ctx) }
				fake.onDecrypt = func(ctx context.Context, _ *kmsv2.DecryptRequest, _ *kmsv2.DecryptResponse) error { return hang(ctx) }
			})

			// The caller gives up first.
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-called; cancel() }()
			root.plugin.timeout = time.Hour
			if err := call(root, ctx, wrapped); err == nil {
				t.Error("no error, although nothing was answered")
			}
			// Nobody gives up.
			root.plugin.timeout = 200 * time.Millisecond
			wantError(t, call(root, t.Context(), wrapped), ErrPluginFailed)
		})
	}
}

func TestAPluginMayBeRestarted(t *testing.T) {
	fake, socket := newFakePlugin(t), socketPath(t)
	stop := fake.serve(t, socket)
	root := openFake(t, socket)
	p := newSealingKey(t)
	wrapped, err := root.Wrap(t.Context(), p, nil)
	if err != nil {
		t.Fatal(err)
	}
	stop()
	root.plugin.timeout = 50 * time.Millisecond
	_, err = root.Unwrap(t.Context(), wrapped, nil)
	wantError(t, err, ErrPluginFailed)
	_, err = root.Wrap(t.Context(), p, nil)
	wantError(t, err, ErrPluginFailed)

	root.plugin.timeout = pluginTimeout
	fake.serve(t, socket)
	got, err := root.Unwrap(t.Context(), wrapped, nil)
	if err != nil || !got.Equal(p) {
		t.Fatalf("the first call after the restart: %v", err)
	}
	if _, err := root.Wrap(t.Context(), p, nil); err != nil {
		t.Fatal(err)
	}
	if err := root.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = root.Unwrap(t.Context(), wrapped, nil)
	wantError(t, err, ErrPluginFailed)
}
