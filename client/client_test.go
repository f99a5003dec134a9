package client_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/codes"

	"github.com/datakeys/datakeys/client"
	"github.com/datakeys/datakeys/sidecar/podtest"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

// newClient returns a client of the pod's sidecar.
func newClient(t testing.TB, pod *podtest.Pod) *client.Client {
	t.Helper()
	c, err := client.New(client.Options{Socket: pod.Socket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// newPod runs a sidecar with the data key orders of three generations, a key pair and a data key that is too short.
func newPod(t testing.TB) (pod *podtest.Pod, pair []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if pair, err = x509.MarshalPKCS8PrivateKey(private); err != nil {
		t.Fatal(err)
	}
	pod = podtest.New(t, "orders", "signing", "short")
	pod.Put(t, "orders", dataKey(1), dataKey(2), dataKey(3))
	pod.Put(t, "signing", pair)
	pod.Put(t, "short", dataKey(1)[:15])
	pod.Start(t)
	return pod, pair
}

func TestDataKey(t *testing.T) {
	pod, pair := newPod(t)
	c := newClient(t, pod)
	for name, test := range map[string]struct {
		get       func(context.Context) (*client.DataKey, error)
		want      client.DataKey
		plaintext []byte
	}{
		"the newest": {
			func(ctx context.Context) (*client.DataKey, error) { return c.DataKey(ctx, "orders") },
			client.DataKey{Name: "orders", Generation: 3}, dataKey(3),
		},
		"an older one": {
			func(ctx context.Context) (*client.DataKey, error) { return c.Generation(ctx, "orders", 1) },
			client.DataKey{Name: "orders", Generation: 1}, dataKey(1),
		},
		"a key pair": {
			func(ctx context.Context) (*client.DataKey, error) { return c.DataKey(ctx, "signing") },
			client.DataKey{Name: "signing", Generation: 1, KeyPairSpec: "ECC_NIST_P256"}, pair,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.get(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if plaintext := got.Plaintext.AppendTo(nil); !bytes.Equal(plaintext, test.plaintext) || got.Plaintext.Len() != len(plaintext) {
				t.Errorf("got another plaintext, of %d bytes", len(plaintext))
			}
			test.want.KeyID, test.want.KeyVersion, test.want.Algorithm = sidecartest.ARN, 1, "AES_GCM"
			test.want.EncryptionContext = map[string]string{"tenant": "a"}
			if diff := cmp.Diff(test.want, *got, cmpopts.IgnoreFields(client.DataKey{}, "Plaintext", "CiphertextBlob", "PublicKey")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if len(got.CiphertextBlob) < 100 || (got.PublicKey != nil) != (got.KeyPairSpec != "") {
				t.Errorf("got a blob of %d bytes and a public key of %d", len(got.CiphertextBlob), len(got.PublicKey))
			}
			got.Destroy()
			if err := got.Plaintext.Use(func([]byte) error { return nil }); err == nil || got.Plaintext.Len() != 0 {
				t.Errorf("destroyed: got %v", err)
			}
		})
	}
}

// TestErrors holds what a sidecar refuses, and what this package does in its place: an application decides by the same reasons.
func TestErrors(t *testing.T) {
	pod, _ := newPod(t)
	c := newClient(t, pod)
	orders, err := c.AEAD(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	defer orders.Close()
	sealed, err := orders.Seal(t.Context(), []byte("data"), nil)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(at int, to byte) []byte { b := bytes.Clone(sealed); b[at] = to; return b }
	empty := filepath.Join(filepath.Dir(pod.Socket), "none")
	for name, test := range map[string]struct {
		call   func(context.Context) ([]byte, error)
		reason string
		status int
		detail string
	}{
		"a data key that the pod has not": {
			func(ctx context.Context) ([]byte, error) { _, err := c.DataKey(ctx, "payments"); return nil, err },
			client.ReasonUnknownDataKey, 404, `this pod has no data key "payments"`,
		},
		"a name that is another path": {
			func(ctx context.Context) ([]byte, error) { _, err := c.DataKey(ctx, "orders/events"); return nil, err },
			client.ReasonUnknownDataKey, 0, `"orders/events" is no name`,
		},
		"a name that is another path, to encrypt with": {
			func(ctx context.Context) ([]byte, error) { return c.Encrypt(ctx, "..", nil, nil) },
			client.ReasonUnknownDataKey, 0, "is no name",
		},
		"a generation that is not here": {
			func(ctx context.Context) ([]byte, error) { _, err := c.Generation(ctx, "orders", 4); return nil, err },
			client.ReasonUnknownGeneration, 404, "no generation 4",
		},
		"generation 0": {
			func(ctx context.Context) ([]byte, error) { _, err := c.Generation(ctx, "orders", 0); return nil, err },
			client.ReasonInvalidParameter, 0, "must be 1 to",
		},
		"encrypting with a key pair at the sidecar": {
			func(ctx context.Context) ([]byte, error) { return c.Encrypt(ctx, "signing", nil, nil) },
			client.ReasonUnsuitableDataKey, 409, "is a key pair",
		},
		"an AEAD of a key pair": {
			func(ctx context.Context) ([]byte, error) { _, err := c.AEAD(ctx, "signing"); return nil, err },
			client.ReasonUnsuitableDataKey, 0, "is a key pair",
		},
		"encrypting with a short data key at the sidecar": {
			func(ctx context.Context) ([]byte, error) { return c.Encrypt(ctx, "short", nil, nil) },
			client.ReasonUnsuitableDataKey, 409, "has 15 bytes",
		},
		"an AEAD of a short data key": {
			func(ctx context.Context) ([]byte, error) { _, err := c.AEAD(ctx, "short"); return nil, err },
			client.ReasonUnsuitableDataKey, 0, "has 15 bytes",
		},
		"a damaged ciphertext at the sidecar": {
			func(ctx context.Context) ([]byte, error) { return c.Decrypt(ctx, "orders", changed(90, 0), nil) },
			client.ReasonCiphertextBroken, 400, "is damaged",
		},
		"a damaged ciphertext": {
			func(ctx context.Context) ([]byte, error) { return orders.Open(ctx, changed(90, 0), nil) },
			client.ReasonCiphertextBroken, 0, "is damaged",
		},
		"a ciphertext that is cut off": {
			func(ctx context.Context) ([]byte, error) { return orders.Open(ctx, sealed[:97], nil) },
			client.ReasonCiphertextBroken, 0, "is damaged",
		},
		"a ciphertext of another generation": {
			func(ctx context.Context) ([]byte, error) { return orders.Open(ctx, changed(5, 2), nil) },
			client.ReasonCiphertextBroken, 0, "is damaged",
		},
		"a ciphertext of a generation that is not here, at the sidecar": {
			func(ctx context.Context) ([]byte, error) { return c.Decrypt(ctx, "orders", changed(5, 4), nil) },
			client.ReasonUnknownGeneration, 404, "no generation 4",
		},
		"a ciphertext of a generation that is not here": {
			func(ctx context.Context) ([]byte, error) { return orders.Open(ctx, changed(5, 4), nil) },
			client.ReasonUnknownGeneration, 404, "no generation 4",
		},
		"a ciphertext of a generation that cannot be": {
			func(ctx context.Context) ([]byte, error) { return orders.Open(ctx, changed(2, 0x80), nil) },
			client.ReasonUnknownGeneration, 0, "no generation 2147483651",
		},
		"other associated data at the sidecar": {
			func(ctx context.Context) ([]byte, error) { return c.Decrypt(ctx, "orders", sealed, []byte("row 43")) },
			client.ReasonCiphertextBroken, 400, "other associated data",
		},
		"other associated data": {
			func(ctx context.Context) ([]byte, error) { return orders.Open(ctx, sealed, []byte("row 43")) },
			client.ReasonCiphertextBroken, 0, "other associated data",
		},
		"another format at the sidecar": {
			func(ctx context.Context) ([]byte, error) { return c.Decrypt(ctx, "orders", changed(0, 130), nil) },
			client.ReasonUnknownFormat, 400, "another format",
		},
		"another format": {
			func(ctx context.Context) ([]byte, error) { return orders.Open(ctx, changed(0, 130), nil) },
			client.ReasonUnknownFormat, 0, "another format",
		},
		"too much associated data for the sidecar": {
			func(ctx context.Context) ([]byte, error) { return c.Encrypt(ctx, "orders", nil, make([]byte, 8193)) },
			client.ReasonInvalidParameter, 0, "8193 bytes: must be at most 8192",
		},
		"too much associated data to seal": {
			func(ctx context.Context) ([]byte, error) { return orders.Seal(ctx, nil, make([]byte, 8193)) },
			client.ReasonInvalidParameter, 0, "8193 bytes: must be at most 8192",
		},
		"too much associated data to open": {
			func(ctx context.Context) ([]byte, error) { return orders.Open(ctx, sealed, make([]byte, 8193)) },
			client.ReasonInvalidParameter, 0, "8193 bytes: must be at most 8192",
		},
		"too much for the sidecar": {
			func(ctx context.Context) ([]byte, error) {
				return c.Encrypt(ctx, "orders", make([]byte, 64<<10+1), nil)
			},
			client.ReasonBodyTooLarge, 413, "at most 65536",
		},
		"too much to seal": {
			func(ctx context.Context) ([]byte, error) { return orders.Seal(ctx, make([]byte, 1<<20+1), nil) },
			client.ReasonBodyTooLarge, 0, "at most 1048576",
		},
		"no sidecar": {
			func(ctx context.Context) ([]byte, error) {
				c, err := client.New(client.Options{Socket: empty})
				if err != nil {
					return nil, err
				}
				_, err = c.DataKey(ctx, "orders")
				return nil, err
			},
			client.ReasonUnreachable, 0, empty,
		},
		"a closed AEAD": {
			func(ctx context.Context) ([]byte, error) {
				a, err := c.AEAD(ctx, "orders")
				if err != nil {
					return nil, err
				}
				a.Close()
				a.Close()
				return a.Seal(ctx, nil, nil)
			},
			client.ReasonClosed, 0, "orders is closed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.call(t.Context())
			e, ok := errors.AsType[*client.Error](err)
			if !ok || got != nil {
				t.Fatalf("got %d bytes and %v", len(got), err)
			}
			if e.Reason != test.reason || e.Status != test.status || !strings.Contains(e.Detail, test.detail) ||
				!strings.Contains(e.Error(), "datakeys: "+test.reason+": ") {
				t.Errorf("got %d %s", e.Status, e)
			}
			if e.Temporary() != (test.reason == client.ReasonUnreachable) {
				t.Errorf("got temporary %v", e.Temporary())
			}
		})
	}
}

// TestBothWaysAreOne: what one way encrypts the other decrypts, with whichever generation it names, and up to the limits.
func TestBothWaysAreOne(t *testing.T) {
	pod := podtest.New(t, "orders")
	pod.Put(t, "orders", dataKey(1))
	pod.Start(t)
	c := newClient(t, pod)
	a, err := c.AEAD(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	type way func(ctx context.Context, given, associated []byte) ([]byte, error)
	encrypt := map[string]way{
		"sealed": a.Seal,
		"encrypted": func(ctx context.Context, plaintext, associated []byte) ([]byte, error) {
			return c.Encrypt(ctx, "orders", plaintext, associated)
		},
	}
	decrypt := map[string]way{
		"opened": a.Open,
		"decrypted": func(ctx context.Context, ciphertext, associated []byte) ([]byte, error) {
			return c.Decrypt(ctx, "orders", ciphertext, associated)
		},
	}
	type message struct{ data, associated, ciphertext []byte }
	var old []message
	check := func(t *testing.T, m message) {
		t.Helper()
		for name, f := range decrypt {
			got, err := f(t.Context(), m.ciphertext, m.associated)
			if err != nil || !bytes.Equal(got, m.data) {
				t.Errorf("%s: got %d bytes, %v", name, len(got), err)
			}
		}
	}
	for name, f := range encrypt {
		t.Run(name, func(t *testing.T) {
			for _, m := range []message{
				{data: []byte("data")},
				{data: []byte("data"), associated: []byte("row 42")},
				{},
				{data: make([]byte, 64<<10), associated: make([]byte, 8192)},
			} {
				if m.ciphertext, err = f(t.Context(), m.data, m.associated); err != nil {
					t.Fatal(err)
				}
				if len(m.ciphertext) != len(m.data)+98 || m.ciphertext[5] != 1 {
					t.Errorf("got %d bytes of generation %d", len(m.ciphertext), m.ciphertext[5])
				}
				check(t, m)
				old = append(old, m)
			}
		})
	}
	largest := make([]byte, 1<<20)
	ciphertext, err := a.Seal(t.Context(), largest, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := a.Open(t.Context(), ciphertext, nil); err != nil || !bytes.Equal(got, largest) {
		t.Errorf("1 MiB: got %d bytes, %v", len(got), err)
	}

	t.Run("after a rotation", func(t *testing.T) {
		for event, err := range c.Watch(t.Context(), "orders") {
			if err != nil {
				t.Fatal(err)
			}
			if event.Generation == 2 {
				break
			}
			pod.Put(t, "orders", dataKey(1), dataKey(2))
		}
		for _, m := range old {
			check(t, m)
		}
		// One that holds no key yet: the other goes over when it asks again, which TestKeyAge tells of.
		rotated, err := c.AEAD(t.Context(), "orders")
		if err != nil {
			t.Fatal(err)
		}
		defer rotated.Close()
		ciphertext, err := rotated.Seal(t.Context(), []byte("data"), nil)
		if err != nil || ciphertext[5] != 2 {
			t.Fatalf("got %v and generation %d", err, ciphertext[5])
		}
		check(t, message{data: []byte("data"), ciphertext: ciphertext})
	})
}

// TestWatch follows a data key through its life, and through that of its sidecar.
func TestWatch(t *testing.T) {
	pod := podtest.New(t, "orders")
	pod.Put(t, "orders", dataKey(1))
	pod.Start(t)
	c := newClient(t, pod)
	steps := []struct {
		want client.Event
		then func()
	}{
		{
			client.Event{Kind: client.EventGeneration, Name: "orders", Generation: 1},
			func() { pod.Put(t, "orders", dataKey(1), dataKey(2)) },
		},
		{
			client.Event{Kind: client.EventGeneration, Name: "orders", Generation: 2},
			func() {
				pod.Service.Refuse("orders", codes.PermissionDenied, "may not decrypt it")
				pod.Put(t, "orders", dataKey(1), dataKey(2))
			},
		},
		{
			client.Event{Kind: client.EventRevoked, Name: "orders", Reason: "AccessDenied", Message: "may not decrypt it"},
			func() {
				_, err := c.DataKey(t.Context(), "orders")
				if e, ok := errors.AsType[*client.Error](err); !ok || e.Status != 403 || e.Reason != "AccessDenied" || e.Temporary() {
					t.Errorf("revoked: got %v", err)
				}
				pod.Service.Refuse("orders", codes.OK, "")
				pod.Put(t, "orders", dataKey(1), dataKey(2))
			},
		},
		{
			client.Event{Kind: client.EventRestored, Name: "orders", Generation: 2},
			func() {
				pod.Stop()
				_, err := c.DataKey(t.Context(), "orders")
				if e, ok := errors.AsType[*client.Error](err); !ok || e.Reason != client.ReasonUnreachable || !e.Temporary() {
					t.Errorf("stopped: got %v", err)
				}
				pod.Put(t, "orders", dataKey(1), dataKey(2), dataKey(3))
				pod.Start(t)
			},
		},
		// What it was told before it is not told again.
		{client.Event{Kind: client.EventGeneration, Name: "orders", Generation: 3}, nil},
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for event, err := range c.Watch(ctx, "orders") {
		if len(steps) == 0 {
			if !errors.Is(err, context.Canceled) || event != (client.Event{}) {
				t.Fatalf("got %+v, %v", event, err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(steps[0].want, event); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		if steps[0].then != nil {
			steps[0].then()
		}
		if steps = steps[1:]; len(steps) == 0 {
			cancel()
		}
	}
	t.Error("the sequence ended without an error")
}

func TestWatchOfNoDataKeyEnds(t *testing.T) {
	pod, _ := newPod(t)
	c := newClient(t, pod)
	for _, name := range []string{"payments", "no/name"} {
		var errs []error
		for event, err := range c.Watch(t.Context(), name) {
			if event != (client.Event{}) {
				t.Errorf("%s: got %+v", name, event)
			}
			errs = append(errs, err)
		}
		if e, ok := errors.AsType[*client.Error](errors.Join(errs...)); len(errs) != 1 || !ok || e.Reason != client.ReasonUnknownDataKey {
			t.Errorf("%s: got %v", name, errs)
		}
	}
}

func TestOptions(t *testing.T) {
	for name, test := range map[string]struct {
		options client.Options
		want    string
	}{
		"none, as in an ordinary pod": {client.Options{}, ""},
		"the least key age":           {client.Options{KeyAge: time.Second}, ""},
		"the most key age":            {client.Options{KeyAge: 15 * time.Second}, ""},
		"too little key age":          {client.Options{KeyAge: time.Second - 1}, "the key age 999.999999ms: must be 1s to 15s; 0 stands for 5s"},
		"too much key age":            {client.Options{KeyAge: 15*time.Second + 1}, "must be 1s to 15s"},
		"a relative path":             {client.Options{Socket: "datakeys.sock"}, `the socket "datakeys.sock": must be an absolute path`},
		"a path that is too long":     {client.Options{Socket: "/" + strings.Repeat("a", 107)}, "at most 107 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := client.New(test.options)
			if test.want == "" && (err != nil || c == nil) {
				t.Error(err)
			}
			if test.want != "" && (err == nil || c != nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// TestWhatIsNoSidecar: whatever answers at the path, there is an error and no end of memory.
func TestWhatIsNoSidecar(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	for name, test := range map[string]struct{ answer, reason, detail string }{
		"nothing":          {"", client.ReasonUnreachable, "EOF"},
		"another protocol": {"SSH-2.0-OpenSSH_10.0\r\n", client.ReasonUnreachable, "malformed"},
		"an error that is no problem": {
			"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n", client.ReasonInvalidAnswer, "502 Bad Gateway",
		},
		"a problem that is no JSON": {
			"HTTP/1.1 404 Not Found\r\nContent-Type: application/problem+json\r\nContent-Length: 1\r\n\r\n{", client.ReasonInvalidAnswer, "404",
		},
		"a redirection": {
			"HTTP/1.1 307 Temporary Redirect\r\nLocation: /healthz\r\nContent-Length: 0\r\n\r\n", client.ReasonInvalidAnswer, "307",
		},
		"an answer of another type": {
			"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n", client.ReasonInvalidAnswer, "text/html",
		},
		"an answer of no length": {
			ok + "\r\n{}", client.ReasonInvalidAnswer, "-1 bytes",
		},
		"an answer that is too long": {
			ok + "Content-Length: 999999999999\r\n\r\n", client.ReasonInvalidAnswer, "at most 262144",
		},
		"an answer that is cut off": {
			ok + "Content-Length: 9\r\n\r\n{", client.ReasonUnreachable, "EOF",
		},
		"an answer that is no JSON": {
			ok + "Content-Length: 9\r\n\r\nplaintext", client.ReasonInvalidAnswer, "no JSON of one",
		},
		"an answer with no plaintext": {
			ok + "Content-Length: 2\r\n\r\n{}", client.ReasonInvalidAnswer, "a data key of 0 bytes",
		},
		"headers without end": {
			"HTTP/1.1 200 OK\r\nA: " + strings.Repeat("a", 1<<20), client.ReasonUnreachable, "exceeded",
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(shortDir(t), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go func() {
						_, _ = c.Read(make([]byte, 4096))
						_, _ = io.WriteString(c, test.answer)
						_ = c.Close()
					}()
				}
			}()
			defer func() { _ = l.Close() }()
			c, err := client.New(client.Options{Socket: path})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			got, err := c.DataKey(t.Context(), "orders")
			e, found := errors.AsType[*client.Error](err)
			if !found || got != nil || e.Reason != test.reason || !strings.Contains(e.Detail, test.detail) {
				t.Errorf("got %v", err)
			}
			if err != nil && strings.Contains(err.Error(), "plaintext") {
				t.Errorf("the error quotes the answer: %v", err)
			}
		})
	}
}

func TestTheEndOfTheContextIsNoErrorOfTheSidecar(t *testing.T) {
	pod, _ := newPod(t)
	c := newClient(t, pod)
	a, err := c.AEAD(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	old, err := c.Encrypt(t.Context(), "orders", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	old[5] = 1 // which the AEAD has not asked for yet
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range map[string]func() error{
		"DataKey": func() error { _, err := c.DataKey(ctx, "orders"); return err },
		"Encrypt": func() error { _, err := c.Encrypt(ctx, "orders", nil, nil); return err },
		"AEAD":    func() error { _, err := c.AEAD(ctx, "orders"); return err },
		"Open":    func() error { _, err := a.Open(ctx, old, nil); return err },
	} {
		err := call()
		if _, ok := errors.AsType[*client.Error](err); ok || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// Where no key is to be got, the context is nothing.
	if _, err := a.Seal(ctx, nil, nil); err != nil {
		t.Errorf("Seal: got %v", err)
	}
}
