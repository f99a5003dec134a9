//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/rootkey"
	"github.com/datakeys/datakeys/internal/seal"
	"github.com/datakeys/datakeys/sidecar/alibaba"
	"github.com/datakeys/datakeys/sidecar/aws"
)

// encryptionSDKUser uses the AWS Encryption SDK for JavaScript.
type encryptionSDKUser struct {
	*clients
	caller
}

// encrypt encrypts hello under keys, with a context.
func (u *encryptionSDKUser) encrypt(keys fields) (operation string, request fields) {
	return "encrypt", fields{"keys": keys, "plaintext": b64("hello"), "encryptionContext": fields{"tenant": "tenant-a"}}
}

// opens decrypts with keys, and checks what comes out.
func (u *encryptionSDKUser) opens(t *testing.T, keys fields, message any) {
	t.Helper()
	opened := must(t, u, "decrypt", fields{"keys": keys, "message": message})
	context, _ := opened["encryptionContext"].(map[string]any)
	if string(opened.bytes(t, "plaintext")) != "hello" || context["tenant"] != "tenant-a" {
		t.Errorf("it opens to something else, with the context %v", context)
	}
}

// refuses calls what fails with an error of that type, whose message has this in it.
func (u *encryptionSDKUser) refuses(t *testing.T, operation string, request fields, class, message string) {
	t.Helper()
	_, got := u.call(t, operation, request)
	u.isRefused(t, operation, got, class, message)
}

func (u *encryptionSDKUser) isRefused(t *testing.T, operation string, got *failure, class, message string) {
	t.Helper()
	if got == nil || got.Class != class || !strings.Contains(got.Message, message) {
		t.Errorf("%s: got %+v, want %s with %q", operation, got, class, message)
	}
}

func (u *encryptionSDKUser) usesKeys(t *testing.T) {
	discovery := func(partition, account string) fields {
		return fields{"discovery": true, "discoveryFilter": fields{"partition": partition, "accountIDs": []string{account}}}
	}
	for _, generator := range []string{u.arn, u.keyID, u.alias, u.aliasARN} {
		operation, request := u.encrypt(fields{"generatorKeyId": generator, "keyIds": []string{u.other}})
		made := must(t, u, operation, request)
		var keys []string
		convert(t, made["keys"], &keys)
		if want := []string{u.arn, u.other}; !slices.Equal(keys, want) {
			t.Errorf("by %s: the message is for %v, want %v", generator, keys, want)
		}
		for _, keys := range []fields{
			{"keyIds": []string{u.arn}}, {"keyIds": []string{u.other}}, {"discovery": true}, discovery("datakeys", u.namespace),
		} {
			u.opens(t, keys, made["message"])
		}
		u.clients.message = made.bytes(t, "message")
	}

	const noKey, failed = "unencryptedDataKey has not been set", "Unable to decrypt data key and one or more KMS CMKs had an error."
	changed := func(part, by string) fields {
		return fields{"keys": fields{"discovery": true}, "message": b64(bytes.Replace(u.message, []byte(part), []byte(by), 1))}
	}
	decrypt := func(keys fields) fields { return fields{"keys": keys, "message": b64(u.message)} }
	keyring := func(key string) fields { return fields{"keys": fields{"keyIds": []string{key}}} }
	notThere := strings.Replace(u.arn, u.keyID, noSuchKey, 1)
	signature := bytes.Clone(u.message)
	signature[len(signature)-1] ^= 1
	_, unknown := u.encrypt(fields{"generatorKeyId": "alias/none"})
	_, malformed := u.encrypt(fields{"generatorKeyId": "arn:datakeys:kms"})
	_, secondUnknown := u.encrypt(fields{"generatorKeyId": u.arn, "keyIds": []string{notThere}})
	_, token := u.encrypt(fields{"generatorKeyId": u.arn, "grantTokens": []string{"a-token"}})
	for name, m := range map[string]struct {
		operation      string
		request        fields
		class, message string
	}{
		"an alias of no key":      {"encrypt", unknown, notFound, "Alias alias/none is not found."},
		"another key of none":     {"encrypt", secondUnknown, notFound, "does not exist"},
		"no ARN":                  {"encrypt", malformed, "Error", "Malformed arn."},
		"a grant token":           {"encrypt", token, "InvalidGrantTokenException", "issues no grant tokens"},
		"a keyring with an alias": {"decrypt", decrypt(nil).plus(keyring(u.alias)), "Error", noKey},
		"another account":         {"decrypt", decrypt(discovery("datakeys", "another")), "Error", noKey},
		"another partition":       {"decrypt", decrypt(discovery("aws", u.namespace)), "Error", noKey},
		"another context":         {"decrypt", changed("tenant-a", "tenant-b"), "Error", failed},
		"and why":                 {"decrypt", changed("tenant-a", "tenant-b"), "Error", "InvalidCiphertextException"},
		"a key that is not there": {"decrypt", changed(u.keyID, noSuchKey).plus(keyring(notThere)), "Error", "IncorrectKeyException"},
		"a changed signature":     {"decrypt", changed("", "").plus(fields{"message": b64(signature)}), "Error", "Invalid Signature"},
	} {
		t.Run(name, func(t *testing.T) { u.refuses(t, m.operation, m.request, m.class, m.message) })
	}
}

func (u *encryptionSDKUser) cannotUse(t *testing.T, why trouble) {
	class := why.using.name
	if unmodelled[class] {
		class = "KMSServiceException"
	}
	operation, request := u.encrypt(fields{"generatorKeyId": u.arn})
	_, got := callUntil(t, u, operation, request, why.told(why.using.name))
	u.isRefused(t, operation, got, class, strings.TrimPrefix(why.using.message, "…"))
	if got != nil && got.Code != why.using.name {
		t.Errorf("%s: got the name %s, want %s", operation, got.Code, why.using.name)
	}
	request, named := fields{"keys": fields{"keyIds": []string{u.arn}}, "message": b64(u.message)}, "\n "+why.using.name+": "
	_, got = callUntil(t, u, "decrypt", request, func(_ fields, failed *failure) bool {
		return !why.passing || failed != nil && strings.Contains(failed.Message, named)
	})
	u.isRefused(t, "decrypt", got, "Error", named)
}

func (u *encryptionSDKUser) canUse(t *testing.T) {
	u.opens(t, fields{"discovery": true}, b64(u.message))
}

// rootKeyUser has the key orders be the root key of another manager, by go-kms-wrapping's awskms. It dials a port that leads to the
// socket.
type rootKeyUser struct {
	*clients
	address string
}

func (u *rootKeyUser) open(t *testing.T, key string) seal.RootKey {
	t.Helper()
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} { // nobody else in this process asks for them
		if err := os.Setenv(name, "any"); err != nil { //nolint:usetesting // t.Setenv is not for tests that run beside others
			t.Fatal(err)
		}
	}
	r, err := rootkey.Open(t.Context(), "awskms://"+strings.Split(u.arn, ":")[3]+"/"+key+"?endpoint=http://"+u.address, logr.Discard())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func newSealingKey(t *testing.T) envelope.Plaintext {
	t.Helper()
	key, err := envelope.PlaintextOfMaterial(envelope.NewMaterialID(), envelope.NewMaterial())
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (u *rootKeyUser) usesKeys(t *testing.T) {
	for _, name := range []string{u.keyID, u.alias, u.aliasARN, u.arn} {
		r, key := u.open(t, name), newSealingKey(t)
		wrapped, err := r.Wrap(t.Context(), key, []byte("ad"))
		if err != nil {
			t.Fatalf("by %s: %v", name, err)
		}
		opened, err := r.Unwrap(t.Context(), wrapped, []byte("ad"))
		if err != nil || !opened.Equal(key) {
			t.Errorf("by %s: it unwraps to something else (%v)", name, err)
		}
		if _, err := r.Unwrap(t.Context(), wrapped, []byte("other")); !errors.Is(err, envelope.ErrBroken) {
			t.Errorf("by %s: with other additional data: got %v", name, err)
		}
		u.clients.wrapped = wrapped // by the ARN at last
	}
	for name, key := range map[string]string{"a key that is not there": noSuchKey, "an alias of no key": "alias/none"} {
		_, err := u.open(t, key).Wrap(t.Context(), newSealingKey(t), nil)
		u.isRefused(t, name, err, "the service answered NotFoundException: name a key that exists in the URI's region")
	}
	if _, err := u.open(t, u.other).Unwrap(t.Context(), u.wrapped, []byte("ad")); !errors.Is(err, seal.ErrOtherRootKey) {
		t.Errorf("by another key: got %v", err)
	}
}

func (u *rootKeyUser) isRefused(t *testing.T, doing string, err error, want string) {
	t.Helper()
	if err == nil || !strings.HasSuffix(err.Error(), ": "+want) {
		t.Errorf("%s: got %v, want %s", doing, err, want)
	}
}

func (u *rootKeyUser) cannotUse(t *testing.T, why trouble) {
	r := u.open(t, u.arn)
	var wrapping, unwrapping error
	told := func(err error) bool { return !why.passing || err != nil && strings.HasSuffix(err.Error(), why.rootKey) }
	kube.poll(t, "a root key", func() bool {
		_, wrapping = r.Wrap(t.Context(), newSealingKey(t), []byte("ad"))
		_, unwrapping = r.Unwrap(t.Context(), u.wrapped, []byte("ad"))
		return told(wrapping) && told(unwrapping)
	})
	u.isRefused(t, "wrapping", wrapping, why.rootKey)
	u.isRefused(t, "unwrapping", unwrapping, why.rootKey)
}

func (u *rootKeyUser) canUse(t *testing.T) {
	if _, err := u.open(t, u.arn).Unwrap(t.Context(), u.wrapped, []byte("ad")); err != nil {
		t.Error(err)
	}
}

// listen listens until the test ends.
func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// forward listens on a port of this machine for the socket, until the test ends.
func forward(t *testing.T, socket string) (address string) {
	t.Helper()
	l := listen(t, "tcp", "127.0.0.1:0")
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := (&net.Dialer{}).DialContext(context.Background(), "unix", socket)
				if err != nil {
					return
				}
				defer out.Close()
				go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
	return l.Addr().String()
}

// fault is a connection to a key service that fails, which a real one does not when it is asked to.
type fault struct{ grpc.ClientConnInterface }

func (fault) Invoke(context.Context, string, any, any, ...grpc.CallOption) error {
	return status.Error(codes.Internal, "it fails")
}

// localDoor has the front doors of a sidecar in this process, before a key service of the test's.
func localDoor(t *testing.T, service kmsv1.KeyServiceClient) door {
	t.Helper()
	folder, err := os.MkdirTemp("", "dk") //nolint:usetesting // a short path, for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	log := slog.New(slog.DiscardHandler)
	ofAWS, ofAlibaba := aws.New(aws.Config{KeyService: service, Logger: log}), alibaba.New(alibaba.Config{KeyService: service, Logger: log})
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Amz-Target") != "" {
			ofAWS.ServeHTTP(w, r)
		} else {
			ofAlibaba.ServeHTTP(w, r)
		}
	})}
	t.Cleanup(func() { _ = server.Close() })
	d := door{socket: filepath.Join(folder, "s")}
	port := listen(t, "tcp", "127.0.0.1:0")
	d.endpoint = "http://" + port.Addr().String()
	for _, l := range []net.Listener{port, listen(t, "unix", d.socket)} {
		go func() { _ = server.Serve(l) }()
	}
	return d
}
