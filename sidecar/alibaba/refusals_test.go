package alibaba

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/sidecar/alibaba/internal/dkms"
)

// refusal is what a client is told.
type refusal struct {
	Status     int
	Code, Text string
}

func refused(t testing.TB, a answer) refusal {
	t.Helper()
	e := failed(t, a)
	return refusal{a.Status, e.GetErrorCode(), e.GetErrorMessage()}
}

// How texts begin.
const (
	notValid     = "The specified parameter is not valid. "
	unsupporting = "Rejected.UnsupportedOperation: "
)

func TestRequestsThatAreNoneOfThisProtocol(t *testing.T) {
	header := func(name string, values ...string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Del(name)
			for _, v := range values {
				r.Header.Add(name, v)
			}
		}
	}
	body := encode(t, &dkms.DecryptRequest{CiphertextBlob: []byte("c")})
	for name, c := range map[string]struct {
		change func(*http.Request)
		want   refusal
	}{
		"no operation of that name": {
			header("x-kms-apiname", "DescribeKey"),
			refusal{400, "InvalidApiName", `The ApiName "DescribeKey" is invalid.`},
		},
		"a name in other letters": {
			header("x-kms-apiname", "advancedecrypt"),
			refusal{400, "InvalidApiName", `The ApiName "advancedecrypt" is invalid.`},
		},
		"two names": {
			header("x-kms-apiname", "Encrypt", "Decrypt"),
			refusal{400, "InvalidApiName", `The ApiName "Encrypt, Decrypt" is invalid.`},
		},
		"no name": {header("x-kms-apiname"), refusal{400, "InvalidApiName", `The ApiName "" is invalid.`}},
		"a long name, of which not all": {
			header("x-kms-apiname", strings.Repeat("x", 8000)),
			refusal{400, "InvalidApiName", `The ApiName "` + strings.Repeat("x", 256) + `…" is invalid.`},
		},
		"a name that is no UTF-8": {
			header("x-kms-apiname", "\xff\x00"),
			refusal{400, "InvalidApiName", `The ApiName "\xff\x00" is invalid.`},
		},
		"another version": {
			header("x-kms-apiversion", "dkms-gcs-0.3"),
			refusal{400, "InvalidApiVersion", `The ApiVersion "dkms-gcs-0.3" is invalid. It must be "dkms-gcs-0.2".`},
		},
		"no version": {
			header("x-kms-apiversion"),
			refusal{400, "InvalidApiVersion", `The ApiVersion "" is invalid. It must be "dkms-gcs-0.2".`},
		},
		"JSON": {
			header("content-type", "application/json"),
			refusal{415, "InvalidContentType", `Content-Type "application/json" is unsupported. It must be "application/x-protobuf".`},
		},
		"no type": {
			header("content-type"),
			refusal{415, "InvalidContentType", `Content-Type "" is unsupported. It must be "application/x-protobuf".`},
		},
		"another method of signing": {
			header("x-kms-signaturemethod", "HMAC"),
			refusal{400, "InvalidParam", "The Param x-kms-signaturemethod is invalid."},
		},
		"credentials of another scheme": {
			header("authorization", "Basic Zm9v"),
			refusal{400, "InvalidParam", "The Param Authorization is invalid."},
		},
		"credentials without a signature": {
			header("authorization", "Bearer "),
			refusal{400, "InvalidParam", "The Param Authorization is invalid."},
		},
		"an operation on asymmetric keys": {
			header("x-kms-apiname", "Sign"),
			refusal{400, "UnsupportedOperation", unsupporting + "A master key is symmetric. Sign with the private key of AdvanceGenerateDataKeyPair."},
		},
		"verification": {
			header("x-kms-apiname", "Verify"),
			refusal{400, "UnsupportedOperation", unsupporting + "A master key is symmetric. Verify with the public key of AdvanceGenerateDataKeyPair."},
		},
		"a public key": {
			header("x-kms-apiname", "GetPublicKey"),
			refusal{400, "UnsupportedOperation", unsupporting + "A master key is symmetric. AdvanceGenerateDataKeyPair answers with a public key."},
		},
		"an HMAC": {
			header("x-kms-apiname", "Hmac"),
			refusal{400, "UnsupportedOperation", unsupporting + "A master key encrypts. Use a data key of AdvanceGenerateDataKey."},
		},
		"a secret": {
			header("x-kms-apiname", "GetSecretValue"),
			refusal{400, "UnsupportedOperation", unsupporting + "There are no secrets here but data keys. Use a Secret of Kubernetes."},
		},
		"a body that is announced as huge": {
			func(r *http.Request) { r.ContentLength = 1 << 40 },
			refusal{413, "InvalidParameter", notValid + "The body must have at most 24576 bytes."},
		},
		"a body that does not end": {func(r *http.Request) { r.ContentLength = -1; r.Body = io.NopCloser(endless{}) },
			refusal{413, "InvalidParameter", notValid + "The body must have at most 24576 bytes."}},
		"a body that is cut off": {func(r *http.Request) { r.Body = io.NopCloser(broken{bytes.NewReader(body)}) },
			refusal{400, "InvalidParameter", notValid + "The body could not be read to its end."}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			r := request("AdvanceDecrypt", body)
			c.change(r)
			if diff := cmp.Diff(c.want, refused(t, do(t, newDoor(f), r))); diff != "" {
				t.Error(diff)
			}
			if len(f.asked) > 0 {
				t.Errorf("asked %v all the same", f.asked)
			}
		})
	}
}

func TestHeadersThatMayDiffer(t *testing.T) {
	body := encode(t, &dkms.DecryptRequest{CiphertextBlob: []byte("c")})
	for name, change := range map[string]func(http.Header){
		"no signature": func(h http.Header) {
			for _, name := range []string{"Authorization", "X-Kms-Signaturemethod", "X-Kms-Acccesskeyid", "Date", "Accept"} {
				h.Del(name)
			}
		},
		"the scheme of Alibaba's documents": func(h http.Header) { h.Set("Authorization", "TOKEN c2ln") },
		"the date of another year":          func(h http.Header) { h.Set("Date", "Sat, 21 Nov 2020 12:00:00 GMT") },
		"no date at all":                    func(h http.Header) { h.Set("Date", "yesterday") },
		"a type with parameters":            func(h http.Header) { h.Set("Content-Type", "Application/X-Protobuf; charset=utf-8") },
		"a header of the caller's":          func(h http.Header) { h.Set("X-Kms-Extra", "1") },
	} {
		t.Run(name, func(t *testing.T) {
			r := request("AdvanceDecrypt", body)
			change(r.Header)
			if got := do(t, newDoor(newFake()), r); got.Status != http.StatusOK {
				t.Errorf("got %v", failed(t, got))
			}
		})
	}
}

func TestParametersAgainstTheirRules(t *testing.T) {
	long := func(n int) []byte { return bytes.Repeat([]byte("x"), n) }
	invalid := func(text string) refusal { return refusal{400, "InvalidParameter", notValid + text} }
	missing := func(name string) refusal {
		return refusal{400, "MissingParameter", "Parameter " + name + " does not exist in http header or body."}
	}
	for name, c := range map[string]struct {
		operation string
		body      proto.Message
		want      refusal
	}{
		"a data key without a key": {"GenerateDataKey", &dkms.GenerateDataKeyRequest{NumberOfBytes: 32}, missing("KeyId")},
		"a data key without a length": {
			"GenerateDataKey", &dkms.GenerateDataKeyRequest{KeyId: "k"},
			invalid("NumberOfBytes must be 1 to 1024."),
		},
		"a data key of a negative length": {
			"AdvanceGenerateDataKey", &dkms.AdvanceGenerateDataKeyRequest{KeyId: "k", NumberOfBytes: -1},
			invalid("NumberOfBytes must be 1 to 1024."),
		},
		"a data key of 1025 bytes": {
			"AdvanceGenerateDataKey", &dkms.AdvanceGenerateDataKeyRequest{KeyId: "k", NumberOfBytes: 1025},
			invalid("NumberOfBytes must be 1 to 1024."),
		},
		"a data key in CBC": {
			"GenerateDataKey", &dkms.GenerateDataKeyRequest{KeyId: "k", NumberOfBytes: 32, Algorithm: "AES_CBC"},
			invalid(`Algorithm must be AES_GCM or empty, not "AES_CBC": there is no other.`),
		},
		"associated data too long": {
			"AdvanceGenerateDataKey", &dkms.AdvanceGenerateDataKeyRequest{KeyId: "k", NumberOfBytes: 32, Aad: long(8193)},
			invalid("Aad must have at most 8192 bytes."),
		},
		"the name of a key too long": {
			"AdvanceGenerateDataKey", &dkms.AdvanceGenerateDataKeyRequest{KeyId: string(long(2049)), NumberOfBytes: 32},
			invalid("KeyId must have at most 2048 bytes."),
		},
		"random bytes of no length": {"GenerateRandom", &dkms.GenerateRandomRequest{}, invalid("Length must be 1 to 1024.")},
		"1025 random bytes": {
			"GenerateRandom", &dkms.GenerateRandomRequest{Length: 1025},
			invalid("Length must be 1 to 1024."),
		},
		"nothing to encrypt":      {"Encrypt", &dkms.EncryptRequest{KeyId: "k"}, missing("Plaintext")},
		"nothing to encrypt with": {"AdvanceEncrypt", &dkms.EncryptRequest{Plaintext: long(1)}, missing("KeyId")},
		"too much to encrypt": {
			"Encrypt", &dkms.EncryptRequest{KeyId: "k", Plaintext: long(4097)},
			invalid("Plaintext must have at most 4096 bytes, not 4097: encrypt with a data key what is longer."),
		},
		"an IV of the caller's": {
			"Encrypt", &dkms.EncryptRequest{KeyId: "k", Plaintext: long(1), Iv: long(12)},
			invalid("Iv must be empty: the one that was used is in the answer."),
		},
		"ECB": {
			"AdvanceEncrypt", &dkms.EncryptRequest{KeyId: "k", Plaintext: long(1), Algorithm: "AES_ECB"},
			invalid(`Algorithm must be AES_GCM or empty, not "AES_ECB": there is no other.`),
		},
		"a padding": {
			"Encrypt", &dkms.EncryptRequest{KeyId: "k", Plaintext: long(1), PaddingMode: "PKCS7_PADDING"},
			invalid(`PaddingMode must be empty, not "PKCS7_PADDING": AES_GCM has none.`),
		},
		"nothing to decrypt": {"AdvanceDecrypt", &dkms.DecryptRequest{}, missing("CiphertextBlob")},
		"a ciphertext too long": {
			"AdvanceDecrypt", &dkms.DecryptRequest{CiphertextBlob: long(6145)},
			invalid("CiphertextBlob must have at most 6144 bytes, not 6145."),
		},
		"Decrypt without a key":  {"Decrypt", &dkms.DecryptRequest{CiphertextBlob: long(1), Iv: long(12)}, missing("KeyId")},
		"Decrypt without the IV": {"Decrypt", &dkms.DecryptRequest{CiphertextBlob: long(1), KeyId: "k"}, missing("Iv")},
		"decryption in CBC": {
			"Decrypt", &dkms.DecryptRequest{CiphertextBlob: long(1), KeyId: "k", Iv: long(16), Algorithm: "AES_CBC"},
			invalid(`Algorithm must be AES_GCM or empty, not "AES_CBC": there is no other.`),
		},
		"a key pair without a key": {
			"GenerateDataKeyPair", &dkms.GenerateDataKeyPairRequest{KeyPairSpec: "RSA_2048", KeyFormat: "DER"},
			missing("KeyId"),
		},
		"a key pair without a spec": {
			"AdvanceGenerateDataKeyPair", &dkms.AdvanceGenerateDataKeyPairRequest{KeyId: "k", KeyFormat: "DER"},
			missing("KeyPairSpec"),
		},
		"a key pair without a format": {
			"AdvanceGenerateDataKeyPairWithoutPlaintext", &dkms.AdvanceGenerateDataKeyPairRequest{KeyId: "k", KeyPairSpec: "RSA_2048"},
			missing("KeyFormat"),
		},
		"a key pair in a format of others": {
			"GenerateDataKeyPairWithoutPlaintext", &dkms.GenerateDataKeyPairRequest{KeyId: "k", KeyPairSpec: "RSA_2048", KeyFormat: "JWK"},
			invalid(`KeyFormat must be PEM or DER, not "JWK".`),
		},
		"a key pair under a CBC": {
			"GenerateDataKeyPair", &dkms.GenerateDataKeyPairRequest{KeyId: "k", KeyPairSpec: "RSA_2048", KeyFormat: "DER", Algorithm: "AES_CBC"},
			invalid(`Algorithm must be AES_GCM or empty, not "AES_CBC": there is no other.`),
		},
		"a spec with the letters of others": {
			"GenerateDataKeyPair", &dkms.GenerateDataKeyPairRequest{KeyId: "k", KeyPairSpec: "RSA_2048", KeyFormat: "der"},
			invalid(`KeyFormat must be PEM or DER, not "der".`),
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			if diff := cmp.Diff(c.want, refused(t, do(t, newDoor(f), request(c.operation, encode(t, c.body))))); diff != "" {
				t.Error(diff)
			}
			if len(f.asked) > 0 {
				t.Errorf("asked %v all the same", f.asked)
			}
		})
	}
}

func TestBytesThatAreNoMessage(t *testing.T) {
	for name, body := range map[string]string{
		"garbage":                         "ffffffff",
		"a field that is cut off":         "0a 05 61",
		"a length beyond all memory":      "0a ffffffffffffffff7f",
		"a number that does not end":      "18 80 80 80 80 80 80 80 80 80 80 80",
		"field number 0":                  "02 00",
		"a key that is no UTF-8":          "0a 02 ff fe 18 20",
		"an end of a group with no begin": "0c",
		"a group that does not end":       "0b 0b 0b",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			want := refusal{400, "InvalidParameter", notValid + "The body must be a protobuf message GenerateDataKeyRequest."}
			if diff := cmp.Diff(want, refused(t, do(t, newDoor(f), request("GenerateDataKey", unhex(t, body))))); diff != "" {
				t.Error(diff)
			}
		})
	}
	for name, body := range map[string]string{
		"a field that is not known":         "0a026b31 1820 fa0703616161",
		"a field twice, of which the last":  "0a026b30 0a026b31 1801 1820",
		"a known field of another kind":     "0a026b31 1820 2001",
		"a number longer than it has to be": "0a026b31 18a080808000",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			if got := do(t, newDoor(f), request("GenerateDataKey", unhex(t, body))); got.Status != http.StatusOK {
				t.Fatalf("got %v", failed(t, got))
			}
			want := &kmsv1.GenerateDataKeyRequest{KeyId: "k1", NumberOfBytes: 32, Door: kmsv1.Door_DOOR_ALIBABA}
			if len(f.asked) != 1 || !proto.Equal(want, f.asked[0]) {
				t.Errorf("asked %v, want %v", f.asked, want)
			}
		})
	}
}

func TestErrorsOfTheKeyService(t *testing.T) {
	because := func(code codes.Code, reason string) error {
		s, err := status.New(code, "why").WithDetails(&errdetails.ErrorInfo{Domain: kmsv1.ErrorDomain, Reason: reason})
		if err != nil {
			t.Fatal(err)
		}
		return s.Err()
	}
	const says = "The key service says: why."
	temporary := refusal{503, "ServiceUnavailableTemporary", "Service Unavailable Temporary. " + says}
	for name, c := range map[string]struct {
		err  error
		want refusal
	}{
		"a field against its rule": {
			because(codes.InvalidArgument, kmsv1.ReasonInvalid),
			refusal{400, "InvalidParameter", notValid + says},
		},
		"a name of no key": {
			because(codes.InvalidArgument, kmsv1.ReasonInvalidKeyName),
			refusal{400, "InvalidParameter", notValid + says},
		},
		"a blob that does not open": {
			because(codes.InvalidArgument, kmsv1.ReasonInvalidCiphertext), refusal{400, "InvalidParameter", notValid + says},
		},
		"a blob of another key": {
			because(codes.InvalidArgument, kmsv1.ReasonIncorrectKey),
			refusal{400, "InvalidParameter", notValid + says},
		},
		"not of this build": {
			because(codes.InvalidArgument, kmsv1.ReasonUnsupported), refusal{400, "UnsupportedOperation", unsupporting + "" + says},
		},
		"a token that proves nothing": {
			because(codes.Unauthenticated, kmsv1.ReasonUnauthenticated),
			refusal{403, "Forbidden.NoPermission", `This operation for "orders" is forbidden by permission system. ` + says},
		},
		"not allowed": {
			because(codes.PermissionDenied, kmsv1.ReasonDenied),
			refusal{403, "Forbidden.NoPermission", `This operation for "orders" is forbidden by permission system. ` + says},
		},
		"no such key": {
			because(codes.NotFound, kmsv1.ReasonKeyNotFound), refusal{404, "Forbidden.KeyNotFound", "The specified key does not exist. " + says},
		},
		"a key that is Disabled": {
			because(codes.FailedPrecondition, kmsv1.ReasonKeyDisabled),
			refusal{409, "Rejected.Disabled", "The request was rejected because the key state is Disabled. " + says},
		},
		"a key that is PendingDeletion": {
			because(codes.FailedPrecondition, kmsv1.ReasonKeyPendingDeletion),
			refusal{409, "Rejected.PendingDeletion", "The request was rejected because the key state is PendingDeletion. " + says},
		},
		"a key without its material": {because(codes.FailedPrecondition, kmsv1.ReasonKeyUnavailable), temporary},
		"too many calls": {
			because(codes.ResourceExhausted, kmsv1.ReasonThrottled), refusal{429, "Rejected.Throttling", "QPS Limit Exceeded. " + says},
		},
		"try again": {because(codes.Unavailable, kmsv1.ReasonUnavailable), temporary},
		"a fault": {
			because(codes.Internal, kmsv1.ReasonInternal),
			refusal{500, "InternalFailure", "Internal Failure. " + says},
		},
		"no connection": {status.Error(codes.Unavailable, "why"), temporary},
		"a reason that is newer than this sidecar, of a parameter": {
			because(codes.InvalidArgument, "NEW"), refusal{400, "InvalidParameter", notValid + says},
		},
		"one of a permission": {
			because(codes.PermissionDenied, "NEW"),
			refusal{403, "Forbidden.NoPermission", `This operation for "orders" is forbidden by permission system. ` + says},
		},
		"one of a key": {
			because(codes.NotFound, "NEW"), refusal{404, "Forbidden.KeyNotFound", "The specified key does not exist. " + says},
		},
		"one of which not even the code is known": {
			because(codes.DataLoss, "NEW"), refusal{500, "InternalFailure", "Internal Failure. " + says},
		},
		"a key service that is older than this sidecar": {
			status.Error(codes.Unimplemented, "why"), refusal{400, "UnsupportedOperation", unsupporting + says},
		},
		"an error that is no status": {errors.New("why"), refusal{500, "InternalFailure", "Internal Failure. " + says}},
		"an answer of a dry run": {
			because(codes.FailedPrecondition, kmsv1.ReasonDryRun),
			refusal{500, "InternalFailure", "Internal Failure. " + says},
		},
		"a message that is no UTF-8": {
			status.Error(codes.Unavailable, "\xff"),
			refusal{503, "ServiceUnavailableTemporary", "Service Unavailable Temporary. The key service says: \uFFFD."},
		},
		"a message that says nothing": {
			status.Error(codes.Unavailable, ""),
			refusal{503, "ServiceUnavailableTemporary", "Service Unavailable Temporary. "},
		},
		"a key whose ARN is no UTF-8": {
			nil,
			refusal{500, "InternalFailure", "Internal Failure. The answer of the key service could not be encoded."},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			f.refuse = c.err
			if c.err == nil {
				f.arn = "arn:key/\xff"
			}
			body := encode(t, &dkms.DecryptRequest{CiphertextBlob: []byte("c"), KeyId: "orders"})
			if diff := cmp.Diff(c.want, refused(t, do(t, newDoor(f), request("AdvanceDecrypt", body)))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestADenialThatNamesNoKeyNamesTheOperation(t *testing.T) {
	f := newFake()
	f.refuse = status.Error(codes.PermissionDenied, "why")
	got := refused(t, do(t, newDoor(f), request("AdvanceDecrypt", encode(t, &dkms.DecryptRequest{CiphertextBlob: []byte("c")}))))
	if want := `This operation for "AdvanceDecrypt" is forbidden`; !strings.HasPrefix(got.Text, want) {
		t.Errorf("got %q, want %q at its beginning", got.Text, want)
	}
}

func TestAKeyServiceThatDoesNotAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		body proto.Message
		want time.Duration
	}{
		"AdvanceDecrypt": {&dkms.DecryptRequest{CiphertextBlob: []byte("c")}, 5 * time.Second},
		"AdvanceGenerateDataKeyPair": {
			&dkms.AdvanceGenerateDataKeyPairRequest{KeyId: "k", KeyPairSpec: "RSA_4096", KeyFormat: "DER"}, 15 * time.Second,
		},
	} {
		t.Run(name, func(t *testing.T) {
			body := encode(t, c.body)
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				f.wait = true
				start := time.Now()
				got := refused(t, do(t, newDoor(f), request(name, body)))
				if got.Status != http.StatusServiceUnavailable || time.Since(start) != c.want {
					t.Errorf("got %v after %v, want status 503 after %v", got, time.Since(start), c.want)
				}
			})
		})
	}
}

// keeper is a ResponseWriter that keeps the slices that it was given, and copies of them.
type keeper struct {
	httptest.ResponseRecorder
	slices [][]byte
}

func (k *keeper) Write(b []byte) (int, error) {
	k.slices = append(k.slices, b)
	return k.ResponseRecorder.Write(b)
}

func TestNothingOfAPlaintextIsLeft(t *testing.T) {
	long := bytes.Repeat([]byte(testPlaintext), 80) // longer than the answer, which takes its place
	for _, c := range []struct {
		name string
		body proto.Message
	}{
		{"AdvanceGenerateDataKey", &dkms.AdvanceGenerateDataKeyRequest{KeyId: "k", NumberOfBytes: 34}},
		{"AdvanceGenerateDataKeyPair", &dkms.AdvanceGenerateDataKeyPairRequest{KeyId: "k", KeyPairSpec: "RSA_2048", KeyFormat: "DER"}},
		{"AdvanceDecrypt", &dkms.DecryptRequest{CiphertextBlob: []byte("c")}},
		{"AdvanceEncrypt", &dkms.EncryptRequest{KeyId: "k", Plaintext: long}},
		{"Encrypt", &dkms.EncryptRequest{KeyId: "k", Plaintext: long, Aad: make([]byte, maxAAD)}}, // the body grows
		{"GenerateRandom", &dkms.GenerateRandomRequest{Length: 34}},
	} {
		for outcome, refuse := range map[string]error{"": nil, " that is refused": status.Error(codes.PermissionDenied, "why")} {
			t.Run(c.name+outcome, func(t *testing.T) {
				f := newFake()
				f.refuse = refuse
				d := newDoor(f)
				buffer := new([usualBody]byte)
				d.buffers.New = func() any { return buffer }
				var log bytes.Buffer
				d.log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
				w := &keeper{ResponseRecorder: *httptest.NewRecorder()}
				d.ServeHTTP(w, request(c.name, encode(t, c.body)))

				sent := bytes.Contains(w.Body.Bytes(), []byte(testPlaintext))
				if want := refuse == nil && !strings.HasSuffix(c.name, "Encrypt"); sent != want {
					t.Errorf("was the plaintext sent: %v, want %v", sent, want)
				}
				for _, b := range append(f.given, append(w.slices, buffer[:])...) {
					if bytes.ContainsFunc(b, func(r rune) bool { return r != 0 }) {
						t.Errorf("left is %q", bytes.TrimRight(b, "\x00"))
					}
				}
				if strings.Contains(log.String(), testPlaintext) {
					t.Error("the log has it")
				}
			})
		}
	}
}

// TestAnAnswerWithoutWhatItIsForIsNoSuccess: the SDK takes a field that is not there for an empty one.
func TestAnAnswerWithoutWhatItIsForIsNoSuccess(t *testing.T) {
	pair := &dkms.GenerateDataKeyPairRequest{KeyId: "orders", KeyPairSpec: "EC_P256", KeyFormat: "DER"}
	for name, c := range map[string]struct {
		body  proto.Message
		lacks []string
	}{
		"GenerateDataKey": {
			&dkms.GenerateDataKeyRequest{KeyId: "orders", NumberOfBytes: 32}, []string{"key_id", "iv", "plaintext", "ciphertext_blob"},
		},
		"Encrypt": {&dkms.EncryptRequest{KeyId: "orders", Plaintext: []byte("p")}, []string{"key_id", "iv", "ciphertext_blob"}},
		"Decrypt": {
			&dkms.DecryptRequest{CiphertextBlob: []byte("c"), KeyId: "orders", Iv: testIV}, []string{"key_id", "plaintext"},
		},
		"GenerateDataKeyPair": {
			pair, []string{"key_id", "iv", "private_key_plaintext", "private_key_ciphertext_blob", "public_key"},
		},
		"GenerateDataKeyPairWithoutPlaintext": {pair, []string{"key_id", "iv", "private_key_ciphertext_blob", "public_key"}},
		"GenerateRandom":                      {&dkms.GenerateRandomRequest{Length: 34}, []string{"plaintext"}},
	} {
		for _, field := range c.lacks {
			t.Run(name+" without "+field, func(t *testing.T) {
				f := newFake()
				f.lacks = field
				got := do(t, newDoor(f), request(name, encode(t, c.body)))
				if got.Status != http.StatusInternalServerError || failed(t, got).GetErrorCode() != "InternalFailure" {
					t.Errorf("got %d %x", got.Status, got.Body)
				}
				for _, plaintext := range f.given {
					if !strings.HasSuffix(field, "plaintext") && !bytes.Equal(plaintext, make([]byte, len(plaintext))) {
						t.Error("a plaintext is left")
					}
				}
			})
		}
	}
}

func TestRequestsHaveNamesOfTheirOwn(t *testing.T) {
	d := New(Config{KeyService: newFake(), Logger: slog.New(slog.DiscardHandler)})
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[string]bool{}
	for range 100 {
		id := failed(t, do(t, d, request("Sign", nil))).GetRequestId()
		if !uuid.MatchString(id) || seen[id] {
			t.Fatalf("got the request ID %q", id)
		}
		seen[id] = true
	}
}

// Failures that clients are not to blame for are logged, and a client that tries again and again does not fill the log.
func TestFailuresAreLogged(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want []string
	}{
		"the key service is away": {status.Error(codes.Unavailable, "why"), []string{"rid-1", "rid-4"}},
		"it refuses":              {status.Error(codes.PermissionDenied, "why"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			body := encode(t, &dkms.GenerateRandomRequest{Length: 1})
			synctest.Test(t, func(t *testing.T) {
				f, log, calls := newFake(), &bytes.Buffer{}, 0
				f.refuse = c.err
				d := newDoor(f)
				d.log = slog.New(slog.NewTextHandler(log, nil))
				d.newID = func() string { calls++; return fmt.Sprintf("rid-%d", calls) }
				for range 2 {
					for range 3 {
						do(t, d, request("GenerateRandom", body))
					}
					time.Sleep(time.Second)
				}
				var got []string
				for line := range strings.Lines(log.String()) {
					if !strings.Contains(line, "level=WARN") || !strings.Contains(line, "operation=GenerateRandom code=ServiceUnavailableTemporary") {
						t.Errorf("logged %q", line)
					}
					_, id, _ := strings.Cut(line, "requestId=")
					id, _, _ = strings.Cut(id, " ")
					got = append(got, id)
				}
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Error(diff)
				}
			})
		})
	}
}

// TestAClientThatHangsUpIsNoFailureOfOthers: what it does not wait for is not in the log, where it would stand in the place of what went wrong.
func TestAClientThatHangsUpIsNoFailureOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, log := newFake(), &bytes.Buffer{}
		f.wait = true
		d := newDoor(f)
		d.log = slog.New(slog.NewTextHandler(log, nil))
		body := encode(t, &dkms.GenerateRandomRequest{Length: 1})
		ctx, hangUp := context.WithTimeout(t.Context(), time.Millisecond)
		defer hangUp()
		do(t, d, request("GenerateRandom", body).WithContext(ctx))
		if log.Len() > 0 {
			t.Errorf("logged %q", log)
		}
		f.wait, f.refuse = false, status.Error(codes.Unavailable, "why")
		do(t, d, request("GenerateRandom", body))
		if !strings.Contains(log.String(), "level=WARN") {
			t.Errorf("logged %q, want the failure that came after", log)
		}
	})
}

func TestBodiesOfEverySize(t *testing.T) {
	for _, size := range []int{usualBody - 1, usualBody, usualBody + 1, 2 * usualBody, 20_000, maxBody - 1, maxBody, maxBody + 1, 2 * maxBody} {
		for way, reader := range map[string]func(io.Reader) io.Reader{
			"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader, "with its end": iotest.DataErrReader,
		} {
			t.Run(fmt.Sprintf("%d bytes %s", size, way), func(t *testing.T) {
				body := protowire.AppendTag(encode(t, &dkms.DecryptRequest{CiphertextBlob: []byte("c")}), 100, protowire.BytesType)
				padding := size - len(body) - protowire.SizeVarint(uint64(size))
				body = protowire.AppendBytes(body, make([]byte, padding))
				r := request("AdvanceDecrypt", nil)
				r.ContentLength, r.Body = -1, io.NopCloser(reader(bytes.NewReader(body)))
				f := newFake()
				w := httptest.NewRecorder()
				newDoor(f).ServeHTTP(w, r)
				want := http.StatusOK
				if len(body) > maxBody {
					want = http.StatusRequestEntityTooLarge
				}
				if w.Code != want {
					t.Errorf("got status %d, want %d", w.Code, want)
				}
				if got := w.Header().Get("Connection"); (got == "close") != (want != http.StatusOK) {
					t.Errorf("got the header Connection: %q", got)
				}
			})
		}
	}
}
