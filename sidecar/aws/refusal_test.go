package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// said is an exception as a client reads it.
type said struct {
	Status        int `json:"-"`
	Type, Message string
}

func (s *said) UnmarshalJSON(b []byte) error {
	members := map[string]string{}
	err := json.Unmarshal(b, &members)
	s.Type, s.Message = members["__type"], members["message"]
	return err
}

func saidBy(t testing.TB, w *httptest.ResponseRecorder) said {
	t.Helper()
	s := said{Status: w.Code}
	if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// usual are requests that are right, by operation.
var usual = map[string]string{
	"GenerateDataKey":                     `{"KeyId":"orders","KeySpec":"AES_256"}`,
	"GenerateDataKeyWithoutPlaintext":     `{"KeyId":"orders","KeySpec":"AES_256"}`,
	"GenerateDataKeyPair":                 `{"KeyId":"orders","KeyPairSpec":"RSA_2048"}`,
	"GenerateDataKeyPairWithoutPlaintext": `{"KeyId":"orders","KeyPairSpec":"RSA_2048"}`,
	"Encrypt":                             `{"KeyId":"orders","Plaintext":"c2VjcmV0"}`,
	"Decrypt":                             `{"CiphertextBlob":"` + b64(firstBlob()) + `","KeyId":"orders"}`,
	"ReEncrypt":                           `{"CiphertextBlob":"` + b64(firstBlob()) + `","DestinationKeyId":"orders"}`,
	"GenerateRandom":                      `{"NumberOfBytes":32}`,
	"DescribeKey":                         `{"KeyId":"orders"}`,
	"ListKeys":                            `{}`,
	"ListAliases":                         `{"KeyId":"orders"}`,
}

// modelled are the errors that the service model (2014-11-01) has for an operation.
var modelled = map[string][]string{
	"GenerateDataKey":                     cryptographic(),
	"GenerateDataKeyWithoutPlaintext":     cryptographic(),
	"GenerateDataKeyPair":                 cryptographic(unsupportedOperation),
	"GenerateDataKeyPairWithoutPlaintext": cryptographic(unsupportedOperation),
	"Encrypt":                             cryptographic(),
	"Decrypt":                             cryptographic(invalidCiphertext, incorrectKey),
	"ReEncrypt":                           cryptographic(invalidCiphertext, incorrectKey),
	"GenerateRandom":                      {dependencyTimeout, kmsInternal, unsupportedOperation, customKeyStoreNotFound},
	"DescribeKey":                         {notFound, invalidArn, dependencyTimeout, kmsInternal},
	"ListKeys":                            {dependencyTimeout, kmsInternal, invalidMarker},
	"ListAliases":                         {dependencyTimeout, invalidMarker, kmsInternal, invalidArn, notFound},
}

func cryptographic(more ...string) []string {
	return append(more, notFound, disabled, keyUnavailable, dependencyTimeout, invalidKeyUsage, invalidGrantToken, kmsInternal,
		kmsInvalidState, dryRunOperation)
}

// TestEachRefusalOfTheKeyServiceByOperation asks each operation for each refusal that it can get, and for each failure of gRPC: an
// exception that its model has, or one of those that every operation of AWS may answer with.
func TestEachRefusalOfTheKeyServiceByOperation(t *testing.T) {
	type refused struct {
		err  error
		want said
		only []string // operations; nil: all
	}
	allKeys := []string{
		"GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "GenerateDataKeyPair", "GenerateDataKeyPairWithoutPlaintext", "Encrypt",
	}
	opening := []string{"Decrypt", "ReEncrypt"}
	using := slices.Concat(allKeys, opening)
	naming := slices.Concat(using, []string{"DescribeKey", "ListAliases"})
	listing := []string{"ListKeys", "ListAliases"}
	telling := slices.Concat(listing, []string{"GenerateRandom", "DescribeKey"})
	const bad, retry, later = http.StatusBadRequest, http.StatusInternalServerError, http.StatusServiceUnavailable
	const gone = "MasterKey team-a/orders is Destroyed: use another key"
	pairs := allKeys[2:4]
	others := except(slices.Concat(using, telling), pairs)
	const failed, tooLate = "the key service failed: try again", "the key service did not answer in 5s: try again"
	const pairTooLate = "the key service did not answer in 15s: try again"
	const unreachable = "the key service cannot be reached or cannot answer now: try again"
	for name, c := range map[string]refused{
		"a field breaks a rule of the key service": {
			refusal(kmsv1.ReasonInvalid, "key_id: must be at most 2048 bytes"), said{bad, validation, "key_id: must be at most 2048 bytes"}, nil,
		},
		"no name of a key": {
			refusal(kmsv1.ReasonInvalidKeyName, "key_id: must be"), said{bad, notFound, "Invalid keyId 'orders'"}, naming,
		},
		"no marker": {
			refusal(kmsv1.ReasonInvalidMarker, "marker: is none"),
			said{bad, invalidMarker, "Could not deserialize marker: it must be the NextMarker of the answer before"}, listing,
		},
		"a blob that does not open": {
			refusal(kmsv1.ReasonInvalidCiphertext, "ciphertext_blob: is damaged"), said{bad, invalidCiphertext, ""}, opening,
		},
		"a blob of another key": {
			refusal(kmsv1.ReasonIncorrectKey, "key_id: another"), said{bad, incorrectKey, messageIncorrectKey}, opening,
		},
		"a key pair that is not there": {
			refusal(kmsv1.ReasonUnsupported, "key_pair_spec: not here"), said{bad, unsupportedOperation, "key_pair_spec: not here"}, allKeys[2:4],
		},
		"a pod that is not known": {
			refusal(kmsv1.ReasonUnauthenticated, "a token is needed"),
			said{bad, unrecognizedClient, "the key service does not know this pod: a token is needed"}, nil,
		},
		"no permission": {
			refusal(kmsv1.ReasonDenied, "app needs the verb decrypt"), said{bad, accessDenied, "app needs the verb decrypt"}, nil,
		},
		"no key": {
			refusal(kmsv1.ReasonKeyNotFound, `key_id: there is no key "orders"`), said{bad, notFound, "Key 'orders' does not exist"},
			except(naming, opening),
		},
		"no key to go to": {
			refusal(kmsv1.ReasonKeyNotFound, `destination_key_id: there is no key "orders"`), said{bad, notFound, "Key 'orders' does not exist"},
			opening[1:],
		},
		"no key of a blob": {
			refusal(kmsv1.ReasonKeyNotFound, "ciphertext_blob: the key is not known"), said{bad, accessDenied, messageUnknownBlob}, opening,
		},
		"a MasterKey that is gone": {
			refusal(kmsv1.ReasonKeyNotFound, gone), said{bad, notFound, "Key 'orders' does not exist: " + gone}, except(naming, opening),
		},
		"a MasterKey that is gone, of a blob": {
			refusal(kmsv1.ReasonKeyNotFound, gone), said{bad, accessDenied, messageUnknownBlob}, opening[:1],
		},
		"one of two MasterKeys that is gone": {refusal(kmsv1.ReasonKeyNotFound, gone), said{bad, notFound, gone}, opening[1:]},
		"a Disabled key":                     {ofKey(kmsv1.ReasonKeyDisabled), said{bad, disabled, keyARN + " is disabled."}, using},
		"a Disabled key of an older manager": {
			refusal(kmsv1.ReasonKeyDisabled, "MasterKey"), said{bad, disabled, "orders is disabled."}, using,
		},
		"a key that is PendingDeletion": {
			ofKey(kmsv1.ReasonKeyPendingDeletion), said{bad, kmsInvalidState, keyARN + " is pending deletion."}, using,
		},
		"a key without material": {
			ofKey(kmsv1.ReasonKeyUnavailable), said{bad, kmsInvalidState, keyARN + " is unavailable."}, using,
		},
		"a key without material of an older manager": {
			refusal(kmsv1.ReasonKeyUnavailable, "see its conditions"), said{bad, kmsInvalidState, "orders is unavailable."}, using,
		},
		"a dry run":                   {refusal(kmsv1.ReasonDryRun, "dry_run is set"), said{bad, dryRunOperation, messageDryRun}, using},
		"too many calls":              {refusal(kmsv1.ReasonThrottled, "too many"), said{bad, throttling, "too many"}, nil},
		"try again, using a key":      {refusal(kmsv1.ReasonUnavailable, "try again"), said{retry, keyUnavailable, unreachable}, using},
		"try again, telling of keys":  {refusal(kmsv1.ReasonUnavailable, "try again"), said{later, dependencyTimeout, unreachable}, telling},
		"a fault":                     {refusal(kmsv1.ReasonInternal, "internal error"), said{retry, kmsInternal, failed}, nil},
		"a reason that is new":        {refusal("NEW", "new"), said{retry, kmsInternal, failed}, nil},
		"no connection, using a key":  {status.Error(codes.Unavailable, "dial tcp"), said{retry, keyUnavailable, unreachable}, using},
		"no connection, telling":      {status.Error(codes.Unavailable, "dial tcp"), said{later, dependencyTimeout, unreachable}, telling},
		"no answer in time":           {status.Error(codes.DeadlineExceeded, "context"), said{later, dependencyTimeout, tooLate}, others},
		"no answer in time, no gRPC":  {context.DeadlineExceeded, said{later, dependencyTimeout, tooLate}, others},
		"no key pair in time":         {status.Error(codes.DeadlineExceeded, "context"), said{later, dependencyTimeout, pairTooLate}, pairs},
		"no gRPC at all":              {errors.New("secret details"), said{retry, kmsInternal, failed}, nil},
		"a code alone, of a field":    {status.Error(codes.InvalidArgument, "a rule"), said{bad, validation, "a rule"}, nil},
		"a code alone, of permission": {status.Error(codes.PermissionDenied, "a verb"), said{bad, accessDenied, "a verb"}, nil},
		"a code alone, of a state":    {status.Error(codes.FailedPrecondition, "a state"), said{bad, kmsInvalidState, "a state"}, using},
		"a code alone, of too much":   {status.Error(codes.ResourceExhausted, "too large"), said{bad, throttling, "too large"}, nil},
	} {
		for operation := range operations {
			if c.only != nil && !slices.Contains(c.only, operation) {
				continue
			}
			t.Run(name+"/"+operation, func(t *testing.T) {
				got := saidBy(t, ask(t, newDoor(&fakeService{err: c.err}), operation, usual[operation]))
				if got != c.want {
					t.Errorf("got %+v, want %+v", got, c.want)
				}
				always := []string{accessDenied, throttling, unrecognizedClient, validation}
				if !slices.Contains(modelled[operation], got.Type) && !slices.Contains(always, got.Type) {
					t.Errorf("%s is not in the model of %s", got.Type, operation)
				}
			})
		}
	}
}

func except(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(some, s) })
}

// ofKey is a refusal for the state of the key.
func ofKey(reason string) error {
	s, err := status.New(reasonCodes[reason], "MasterKey").WithDetails(&errdetails.ErrorInfo{
		Domain: kmsv1.ErrorDomain, Reason: reason, Metadata: map[string]string{kmsv1.MetadataKey: keyARN},
	})
	if err != nil {
		return err
	}
	return s.Err()
}

// TestHowAKeyIsNamedThatIsNotThere: in the words of AWS KMS, by the form of the name.
func TestHowAKeyIsNamedThatIsNotThere(t *testing.T) {
	const arn = "arn:datakeys:kms:other:team-a:key/" + keyID
	const aliasARN = "arn:datakeys:kms:other:team-a:alias/x"
	for name, c := range map[string]struct{ operation, key, reason, want, message string }{
		"a key ID":       {"Encrypt", keyID, kmsv1.ReasonKeyNotFound, notFound, "Key '" + keyID + "' does not exist"},
		"an ARN":         {"Encrypt", arn, kmsv1.ReasonKeyNotFound, notFound, "Key '" + arn + "' does not exist"},
		"an alias":       {"Encrypt", "alias/x", kmsv1.ReasonKeyNotFound, notFound, "Alias alias/x is not found."},
		"an alias's ARN": {"DescribeKey", aliasARN, kmsv1.ReasonKeyNotFound, notFound, "Alias " + aliasARN + " is not found."},
		"no name":        {"Encrypt", "Orders!", kmsv1.ReasonInvalidKeyName, notFound, "Invalid keyId 'Orders!'"},
		"no alias":       {"Encrypt", "alias/!", kmsv1.ReasonInvalidKeyName, notFound, "Alias alias/! is not found."},
		"no ARN of ours": {"Encrypt", "arn:aws:x", kmsv1.ReasonInvalidKeyName, notFound, "Invalid arn 'arn:aws:x'"},
		"no ARN of ours, to be told of": {
			"DescribeKey", "arn:aws:x", kmsv1.ReasonInvalidKeyName, invalidArn, "Invalid arn 'arn:aws:x': it must be " + arnRule,
		},
	} {
		t.Run(name, func(t *testing.T) {
			body := `{"KeyId":"` + c.key + `","Plaintext":"c2VjcmV0"}`
			got := saidBy(t, ask(t, newDoor(&fakeService{err: refusal(c.reason, "key_id: whatever")}), c.operation, body))
			if want := (said{http.StatusBadRequest, c.want, c.message}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// TestWhichKeyOfReEncryptIsNoName: the one of the field that the key service names.
func TestWhichKeyOfReEncryptIsNoName(t *testing.T) {
	const body = `{"CiphertextBlob":"c2VjcmV0","SourceKeyId":"Orders!","DestinationKeyId":"Payments!"}`
	for field, want := range map[string]string{
		"source_key_id": "Invalid keyId 'Orders!'", "destination_key_id": "Invalid keyId 'Payments!'",
	} {
		got := saidBy(t, ask(t, newDoor(&fakeService{err: refusal(kmsv1.ReasonInvalidKeyName, field+": must be")}), "ReEncrypt", body))
		if want := (said{http.StatusBadRequest, notFound, want}); got != want {
			t.Errorf("%s: got %+v, want %+v", field, got, want)
		}
	}
}

// TestAnAnswerWithoutWhatItIsForIsNoSuccess: clients take an empty member for an empty key.
func TestAnAnswerWithoutWhatItIsForIsNoSuccess(t *testing.T) {
	for operation, members := range map[string][]string{
		"GenerateDataKey":                     {"key_id", "ciphertext_blob", "plaintext"},
		"GenerateDataKeyWithoutPlaintext":     {"key_id", "ciphertext_blob"},
		"GenerateDataKeyPair":                 {"key_id", "private_key_ciphertext_blob", "private_key_plaintext", "public_key"},
		"GenerateDataKeyPairWithoutPlaintext": {"key_id", "private_key_ciphertext_blob", "public_key"},
		"Encrypt":                             {"key_id", "ciphertext_blob"},
		"Decrypt":                             {"key_id", "plaintext"},
		"ReEncrypt":                           {"key_id", "source_key_id", "ciphertext_blob"},
		"GenerateRandom":                      {"plaintext"},
		"DescribeKey":                         {"key"},
	} {
		for _, member := range members {
			t.Run(operation+" without "+member, func(t *testing.T) {
				f := &fakeService{}
				f.seal(secretBytes, nil)
				f.alter = func(answer proto.Message) {
					m := answer.ProtoReflect()
					field := m.Descriptor().Fields().ByTextName(member)
					if !m.Has(field) {
						t.Errorf("the answer had no %s", member)
					}
					m.Clear(field)
				}
				got := saidBy(t, ask(t, newDoor(f), operation, usual[operation]))
				if want := (said{http.StatusInternalServerError, kmsInternal, "internal error"}); got != want {
					t.Errorf("got %+v, want %+v", got, want)
				}
			})
		}
	}
}

// TestADryRunNeverSucceeds, whatever the key service answers.
func TestADryRunNeverSucceeds(t *testing.T) {
	for operation, o := range operations {
		if !slices.Contains(o.members, memberDryRun) {
			continue
		}
		t.Run(operation, func(t *testing.T) {
			body := strings.TrimSuffix(usual[operation], "}") + `,"DryRun":true}`
			f := &fakeService{}
			f.seal(secretBytes, nil)
			if got := saidBy(t, ask(t, newDoor(f), operation, body)); got != (said{http.StatusBadRequest, dryRunOperation, messageDryRun}) {
				t.Errorf("got %+v", got)
			}
			f.alter = func(proto.Message) {} // and an answer in spite of DryRun
			w := ask(t, newDoor(f), operation, body)
			if got := saidBy(t, w); got.Type != kmsInternal || strings.Contains(w.Body.String(), b64(secretBytes)) {
				t.Errorf("got %+v", got)
			}
			f.checkCleared(t)
		})
	}
}

// TestAKeyServiceThatDoesNotAnswerIsLeft after 5 s, or 15 s for a key pair, and the client is told to try again.
func TestAKeyServiceThatDoesNotAnswerIsLeft(t *testing.T) {
	for operation := range operations {
		synctest.Test(t, func(t *testing.T) {
			patience, start := 5*time.Second, time.Now()
			if strings.HasPrefix(operation, "GenerateDataKeyPair") {
				patience = 15 * time.Second
			}
			got := saidBy(t, ask(t, newDoor(&fakeService{hang: true}), operation, usual[operation]))
			text := fmt.Sprintf("the key service did not answer in %v: try again", patience)
			if want := (said{http.StatusServiceUnavailable, dependencyTimeout, text}); got != want || time.Since(start) != patience {
				t.Errorf("%s: got %+v after %v, want %+v", operation, got, time.Since(start), want)
			}
		})
	}
}
