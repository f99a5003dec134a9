package rootkey_test

import (
	"bytes"
	"context"
	"crypto/fips140"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/go-logr/logr"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
	"github.com/datakeys/datakeys/internal/rootkey"
	"github.com/datakeys/datakeys/internal/rootkey/rootkeytest"
	"github.com/datakeys/datakeys/internal/seal"
)

const (
	keyOne = "11111111-2222-4333-8444-555555555555"
	keyTwo = "99999999-8888-4777-8666-555555555555"
)

var wrappingAD = []byte("datakeys.io/sealing-key v1 of 0123456789ab")

// wrappingBackend is a fake service with two keys, and what a test does to it.
type wrappingBackend struct {
	service          *rootkeytest.Service
	uri, otherURI    string
	id               string
	encrypt, decrypt string    // operations
	keys             [2]string // the service's names of the key before and after rotate
	rotate           func()
	remove           func()
	// hidesOtherKeys: what names another key inside the service's own ciphertext fails as a missing key does.
	hidesOtherKeys bool
	// namesNoKey: the service's ciphertext does not name its key.
	namesNoKey bool
}

func transitBackend(t *testing.T) (*rootkeytest.Transit, wrappingBackend) {
	t.Helper()
	s := rootkeytest.NewTransit("s.test-token")
	t.Cleanup(s.Close)
	s.CreateKey("root", "aes256-gcm96", false)
	s.CreateKey("other", "aes256-gcm96", false)
	uri := s.RootKey(t, "root")
	id, _, _ := strings.Cut(uri, "?")
	return s, wrappingBackend{
		service:  &s.Service,
		uri:      uri,
		otherURI: s.RootKey(t, "other"),
		id:       id,
		encrypt:  rootkeytest.TransitEncrypt + "root",
		decrypt:  rootkeytest.TransitDecrypt + "root",
		keys:     [...]string{`"v1"`, `"v2"`},
		rotate:   func() { s.RotateKey("root") },
		remove:   func() { s.DeleteKey("root") },

		namesNoKey: true,
	}
}

func awsBackend(t *testing.T) (*rootkeytest.AWSKMS, wrappingBackend) {
	t.Helper()
	s := rootkeytest.NewAWSKMS("eu-west-1")
	t.Cleanup(s.Close)
	arn := s.CreateKey(keyOne)
	s.CreateKey(keyTwo)
	return s, wrappingBackend{
		service:  &s.Service,
		uri:      s.RootKey(t, keyOne),
		otherURI: s.RootKey(t, keyTwo),
		id:       "awskms://eu-west-1/" + keyOne,
		encrypt:  "Encrypt",
		decrypt:  "Decrypt",
		keys:     [...]string{keyOne, keyOne},
		rotate:   func() { s.RotateKey(arn) },
		remove:   func() { s.DeleteKey(arn) },
	}
}

func alicloudBackend(t *testing.T) (*rootkeytest.AlicloudKMS, wrappingBackend) {
	t.Helper()
	s := rootkeytest.NewAlicloudKMS()
	t.Cleanup(s.Close)
	s.CreateKey(keyOne)
	s.CreateKey(keyTwo)
	return s, wrappingBackend{
		service:        &s.Service,
		uri:            s.RootKey(t, keyOne),
		otherURI:       s.RootKey(t, keyTwo),
		id:             "alicloudkms://eu-central-1/" + keyOne,
		encrypt:        "Encrypt",
		decrypt:        "Decrypt",
		keys:           [...]string{keyOne, keyOne},
		rotate:         func() { s.RotateKey(keyOne) },
		remove:         func() { s.DeleteKey(keyOne) },
		hidesOtherKeys: true,
	}
}

// rerun reports whether the test shall go on here: in a process of its own with env. A process reads GODEBUG
// once.
func rerun(t *testing.T, env ...string) bool {
	t.Helper()
	const marker = "DATAKEYS_TEST_RERUN"
	if os.Getenv(marker) == t.Name() {
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1", "-test.v")
	cmd.Env = append(append(os.Environ(), env...), marker+"="+t.Name())
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("in a process of its own: %v\n%s", err, out)
	}
	return false
}

func openWrapping(t *testing.T, uri string) seal.RootKey {
	t.Helper()
	r, err := rootkey.Open(t.Context(), uri, logr.Discard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func sealingKey(t *testing.T) envelope.Plaintext {
	t.Helper()
	m := envelope.NewMaterial()
	t.Cleanup(m.Destroy)
	p, err := envelope.PlaintextOfMaterial(envelope.NewMaterialID(), m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Destroy)
	return p
}

func wrap(t *testing.T, r seal.RootKey, p envelope.Plaintext) []byte {
	t.Helper()
	wrapped, err := r.Wrap(t.Context(), p, wrappingAD)
	if err != nil {
		t.Fatal(err)
	}
	return wrapped
}

// unwraps fails the test unless r opens wrapped as p.
func unwraps(t *testing.T, r seal.RootKey, wrapped []byte, p envelope.Plaintext) {
	t.Helper()
	got, err := r.Unwrap(t.Context(), wrapped, wrappingAD)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Destroy()
	if !got.Equal(p) {
		t.Error("what came back is not what was wrapped")
	}
}

// saysNoSecret fails the test where err holds the key in some form, or does not name the root key.
func saysNoSecret(t *testing.T, err error, id string, p envelope.Plaintext) {
	t.Helper()
	text := err.Error()
	if !strings.Contains(text, id) {
		t.Errorf("the error does not name the root key %s: %s", id, text)
	}
	b := p.AppendTo(insecuresecret.Token{}, nil)
	for _, form := range []string{string(b), hex.EncodeToString(b), base64.StdEncoding.EncodeToString(b)[:40], "Plaintext=", "plaintext", "<html>"} {
		if strings.Contains(text, form) {
			t.Errorf("the error quotes a request or an answer: %q", text)
		}
	}
}

// wrappingBehaviours are what every root key behind go-kms-wrapping does.
var wrappingBehaviours = map[string]func(*testing.T, wrappingBackend){
	"a sealing key comes back, after a restart too": func(t *testing.T, b wrappingBackend) {
		r, p := openWrapping(t, b.uri), sealingKey(t)
		wrapped := wrap(t, r, p)
		unwraps(t, r, wrapped, p)
		unwraps(t, openWrapping(t, b.uri), wrapped, p)
		if r.ID() != b.id {
			t.Errorf("ID %s, want %s", r.ID(), b.id)
		}
		if bytes.Contains(wrapped, p.AppendTo(insecuresecret.Token{}, nil)) {
			t.Error("the key lies open in what is stored")
		}
		if again := wrap(t, r, p); bytes.Equal(again, wrapped) {
			t.Error("the same key was wrapped into the same bytes twice")
		}
	},
	"opening the root key asks nobody": func(t *testing.T, b wrappingBackend) {
		openWrapping(t, b.uri)
		if calls := b.service.Calls(); len(calls) > 0 {
			t.Errorf("asked for %q", calls)
		}
	},
	"a context that differs opens nothing": func(t *testing.T, b wrappingBackend) {
		r, p := openWrapping(t, b.uri), sealingKey(t)
		wrapped := wrap(t, r, p)
		for name, ad := range map[string][]byte{"none": nil, "longer": append(bytes.Clone(wrappingAD), 0), "cut": wrappingAD[1:]} {
			if _, err := r.Unwrap(t.Context(), wrapped, ad); !errors.Is(err, envelope.ErrBroken) {
				t.Errorf("%s: %v, want ErrBroken", name, err)
			}
		}
	},
	"no byte can be changed": func(t *testing.T, b wrappingBackend) {
		r, p := openWrapping(t, b.uri), sealingKey(t)
		wrapped := wrap(t, r, p)
		for i := range wrapped {
			changed := bytes.Clone(wrapped)
			changed[i] ^= 1 << (i % 8)
			_, err := r.Unwrap(t.Context(), changed, wrappingAD)
			if err == nil {
				t.Fatalf("opens with byte %d changed", i)
			}
			if !errors.Is(err, envelope.ErrBroken) && !errors.Is(err, seal.ErrOtherRootKey) && !b.hidesOtherKeys {
				t.Errorf("byte %d changed: %v, want ErrBroken or ErrOtherRootKey", i, err)
			}
		}
	},
	"what is cut or has more is refused without a question": func(t *testing.T, b wrappingBackend) {
		r, p := openWrapping(t, b.uri), sealingKey(t)
		wrapped := wrap(t, r, p)
		b.service.Calls()
		for n := range wrapped {
			if _, err := r.Unwrap(t.Context(), wrapped[:n], wrappingAD); !errors.Is(err, envelope.ErrBroken) {
				t.Errorf("cut to %d bytes: %v, want ErrBroken", n, err)
			}
		}
		if _, err := r.Unwrap(t.Context(), append(bytes.Clone(wrapped), 0), wrappingAD); !errors.Is(err, envelope.ErrBroken) {
			t.Errorf("with a byte more: %v, want ErrBroken", err)
		}
		if calls := b.service.Calls(); len(calls) > 0 {
			t.Errorf("asked for %q", calls)
		}
	},
	"a key that was rotated at the service opens what it wrapped before": func(t *testing.T, b wrappingBackend) {
		r, p := openWrapping(t, b.uri), sealingKey(t)
		before := wrap(t, r, p)
		b.rotate()
		after := wrap(t, r, p)
		unwraps(t, r, before, p)
		unwraps(t, r, after, p)
		for i, wrapped := range [][]byte{before, after} {
			if got := r.(seal.KeyTeller).KeyOf(wrapped); !strings.Contains(got, b.keys[i]) {
				t.Errorf("wrapped by key %s, want %s", got, b.keys[i])
			}
		}
	},
	"another key of the same service opens nothing": func(t *testing.T, b wrappingBackend) {
		r, other, p := openWrapping(t, b.uri), openWrapping(t, b.otherURI), sealingKey(t)
		_, err := other.Unwrap(t.Context(), wrap(t, r, p), wrappingAD)
		if !errors.Is(err, seal.ErrOtherRootKey) || !strings.Contains(err.Error(), b.id) {
			t.Errorf("%v, want ErrOtherRootKey that names %s", err, b.id)
		}
	},
	"another key opens nothing though what is stored names this one": func(t *testing.T, b wrappingBackend) {
		if b.namesNoKey {
			return // its ciphertexts name a version of the key alone
		}
		r, other, p := openWrapping(t, b.uri), openWrapping(t, b.otherURI), sealingKey(t)
		// The first names are those of the root key and of the service's key; the third is inside the service's ciphertext.
		forged := bytes.Replace(wrap(t, other, p), []byte(keyTwo), []byte(keyOne), 2)
		if _, err := r.Unwrap(t.Context(), forged, wrappingAD); !errors.Is(err, seal.ErrOtherRootKey) {
			t.Errorf("%v, want ErrOtherRootKey", err)
		}
	},
	"a key that is gone is worth another try": func(t *testing.T, b wrappingBackend) {
		r, p := openWrapping(t, b.uri), sealingKey(t)
		wrapped := wrap(t, r, p)
		b.remove()
		_, err := r.Unwrap(t.Context(), wrapped, wrappingAD)
		if err == nil || errors.Is(err, envelope.ErrBroken) || errors.Is(err, seal.ErrOtherRootKey) {
			t.Fatalf("unwrapping: %v, want an error that is neither ErrBroken nor ErrOtherRootKey", err)
		}
		saysNoSecret(t, err, b.id, p)
		_, err = r.Wrap(t.Context(), p, wrappingAD)
		if err == nil {
			t.Fatal("wrapped by a key that is gone")
		}
		saysNoSecret(t, err, b.id, p)
	},
	"a service that misbehaves does no harm, and is asked again": func(t *testing.T, b wrappingBackend) {
		r, p := openWrapping(t, b.uri), sealingKey(t)
		wrapped := wrap(t, r, p)
		for name, test := range map[string]struct {
			mischief rootkeytest.Mischief
			says     string
		}{
			"is not there":                       {mischief: rootkeytest.Drop, says: "the connection ended before the answer"},
			"fails":                              {mischief: rootkeytest.FailHTTP},
			"answers with no body":               {mischief: rootkeytest.NoBody},
			"answers with no members":            {mischief: rootkeytest.NoMembers, says: "not what it was asked for"},
			"answers with members of other type": {mischief: rootkeytest.WrongMembers, says: "not what it was asked for"},
			"answers something else":             {mischief: rootkeytest.NotJSON, says: "not what it was asked for"},
			"answers without an end":             {mischief: rootkeytest.Huge, says: "longer than 1 MiB"},
			"answers without an end, packed":     {mischief: rootkeytest.HugePacked},
			"quotes the request":                 {mischief: rootkeytest.Echo},
		} {
			for _, operation := range []string{rootkeytest.AnyOperation, b.encrypt, b.decrypt} {
				b.service.Behave()
				b.service.Misbehave(operation, test.mischief)
				if operation != b.decrypt {
					_, err := r.Wrap(t.Context(), p, wrappingAD)
					if err == nil || errors.Is(err, envelope.ErrBroken) || errors.Is(err, seal.ErrOtherRootKey) {
						t.Fatalf("wrapping by a service that %s: %v, want another error", name, err)
					}
					if !strings.Contains(err.Error(), test.says) {
						t.Errorf("wrapping by a service that %s: %v, want the word %q", name, err, test.says)
					}
					saysNoSecret(t, err, b.id, p)
				}
				if operation != b.encrypt {
					_, err := r.Unwrap(t.Context(), wrapped, wrappingAD)
					if err == nil || errors.Is(err, envelope.ErrBroken) || errors.Is(err, seal.ErrOtherRootKey) {
						t.Fatalf("unwrapping by a service that %s: %v, want another error", name, err)
					}
					if !strings.Contains(err.Error(), test.says) {
						t.Errorf("unwrapping by a service that %s: %v, want the word %q", name, err, test.says)
					}
					saysNoSecret(t, err, b.id, p)
				}
			}
		}
		b.service.Behave()
		unwraps(t, r, wrapped, p)
	},
	"a service that lies about the plaintext is found out": func(t *testing.T, b wrappingBackend) {
		r, p := openWrapping(t, b.uri), sealingKey(t)
		wrapped := wrap(t, r, p)
		b.service.Misbehave(b.decrypt, rootkeytest.WrongPlaintext)
		if _, err := r.Unwrap(t.Context(), wrapped, wrappingAD); !errors.Is(err, envelope.ErrBroken) {
			t.Errorf("%v, want ErrBroken", err)
		}
	},
	"a service that wraps under a key of its own choice is refused": func(t *testing.T, b wrappingBackend) {
		r, p := openWrapping(t, b.uri), sealingKey(t)
		b.service.Misbehave(b.encrypt, rootkeytest.OtherKey)
		if _, err := r.Wrap(t.Context(), p, wrappingAD); err == nil {
			t.Error("took what another key wrapped")
		}
	},
	"a call ends with its context where the service hangs": func(t *testing.T, b wrappingBackend) {
		r, p := openWrapping(t, b.uri), sealingKey(t)
		wrapped := wrap(t, r, p)
		b.service.Misbehave(rootkeytest.AnyOperation, rootkeytest.Hang)
		for name, call := range map[string]func(context.Context) error{
			"wrapping":   func(ctx context.Context) error { _, err := r.Wrap(ctx, p, wrappingAD); return err },
			"unwrapping": func(ctx context.Context) error { _, err := r.Unwrap(ctx, wrapped, wrappingAD); return err },
		} {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- call(ctx) }()
			<-b.service.Hung()
			cancel()
			err := <-ended
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("%s: %v, want Canceled", name, err)
			}
			saysNoSecret(t, err, b.id, p)
			<-b.service.Left() // the request ended too, and not the wait for it alone
		}
		b.service.Behave()
		unwraps(t, r, wrapped, p)
	},
	"a key that was destroyed is not wrapped": func(t *testing.T, b wrappingBackend) {
		r, p := openWrapping(t, b.uri), sealingKey(t)
		p.Destroy()
		if _, err := r.Wrap(t.Context(), p, wrappingAD); !errors.Is(err, envelope.ErrDestroyed) {
			t.Errorf("%v, want ErrDestroyed", err)
		}
	},
}

func TestTransitRoot(t *testing.T) {
	for name, behaves := range wrappingBehaviours {
		t.Run(name, func(t *testing.T) {
			_, b := transitBackend(t)
			behaves(t, b)
		})
	}
}

func TestAWSRoot(t *testing.T) {
	for name, behaves := range wrappingBehaviours {
		t.Run(name, func(t *testing.T) {
			_, b := awsBackend(t)
			if !refusedByFIPS(t, b) {
				behaves(t, b)
			}
		})
	}
}

func TestAlicloudRoot(t *testing.T) {
	for name, behaves := range wrappingBehaviours {
		t.Run(name, func(t *testing.T) {
			_, b := alicloudBackend(t)
			if !refusedByFIPS(t, b) {
				behaves(t, b)
			}
		})
	}
}

// refusedByFIPS reports whether only approved cryptography runs. Then the root key, which needs other, must not open.
func refusedByFIPS(t *testing.T, b wrappingBackend) bool {
	t.Helper()
	if !fips140.Enforced() {
		return false
	}
	_, err := rootkey.Open(t.Context(), b.uri, logr.Discard())
	if err == nil || !strings.Contains(err.Error(), "fips140=only") {
		t.Errorf("%v, want the word that it cannot be used under fips140=only", err)
	}
	return true
}

func TestWrappingRootsUnderFIPS(t *testing.T) {
	if !rerun(t, "GODEBUG=fips140=only") {
		return
	}
	_, aws := awsBackend(t)
	_, alicloud := alicloudBackend(t)
	for _, b := range []wrappingBackend{aws, alicloud} {
		if !refusedByFIPS(t, b) {
			t.Error("only approved cryptography should run here")
		}
	}
	_, b := transitBackend(t)
	r, p := openWrapping(t, b.uri), sealingKey(t)
	unwraps(t, r, wrap(t, r, p), p)
}
