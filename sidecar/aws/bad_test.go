package aws

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// do asks with a request that is changed.
func do(t testing.TB, h http.Handler, method string, body io.Reader, change func(*http.Request)) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "/", body)
	r.Header.Set("X-Amz-Target", targetPrefix+"Encrypt")
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	checkAnswer(t, w)
	return w
}

// TestWhatIsNoOperation is an UnknownOperationException.
func TestWhatIsNoOperation(t *testing.T) {
	for name, c := range map[string]struct {
		method string
		target []string
	}{
		"no target":         {http.MethodPost, nil},
		"an empty target":   {http.MethodPost, []string{""}},
		"two targets":       {http.MethodPost, []string{"TrentService.Encrypt", "TrentService.Encrypt"}},
		"the name alone":    {http.MethodPost, []string{"Encrypt"}},
		"another service":   {http.MethodPost, []string{"DynamoDB_20120810.Encrypt"}},
		"the service alone": {http.MethodPost, []string{"TrentService."}},
		"another case":      {http.MethodPost, []string{"TrentService.encrypt"}},
		"a new operation":   {http.MethodPost, []string{"TrentService.BrandNew"}},
		"one of ours":       {http.MethodPost, []string{"TrentService.BatchDecrypt"}},
		"a long name":       {http.MethodPost, []string{strings.Repeat("é", 4000)}},
		"GET":               {http.MethodGet, []string{"TrentService.Encrypt"}},
		"PUT":               {http.MethodPut, []string{"TrentService.Encrypt"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeService{}
			w := do(t, newDoor(f), c.method, strings.NewReader(usual["Encrypt"]), func(r *http.Request) { r.Header["X-Amz-Target"] = c.target })
			got := saidBy(t, w)
			if got.Status != http.StatusBadRequest || got.Type != unknownOperation || len(got.Message) > 1000 || f.last != nil {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// largest is the largest legal request: every byte of the contexts is escaped.
func largest() string {
	context := func(n byte) string {
		b := []byte(`{`)
		for i := range maxContextPairs {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, fmt.Sprintf(`"\u%04x\u%04x\u%04x":"`, 'a'+i/676%26, 'a'+i/26%26, 'a'+i%26)...)
			b = append(b, strings.Repeat(fmt.Sprintf(`\u%04x`, n), maxContextSize/maxContextPairs-3)...)
			b = append(b, '"')
		}
		return string(append(b, '}'))
	}
	token := `"` + strings.Repeat("t", maxGrantToken) + `"`
	key := `"` + strings.Repeat("k", maxKeyID) + `"`
	return `{"CiphertextBlob":"` + b64(make([]byte, maxBlob)) + `","SourceEncryptionContext":` + context('a') +
		`,"DestinationEncryptionContext":` + context('b') + `,"SourceKeyId":` + key + `,"DestinationKeyId":` + key +
		`,"SourceEncryptionAlgorithm":"SYMMETRIC_DEFAULT","DestinationEncryptionAlgorithm":"SYMMETRIC_DEFAULT","DryRun":true,` +
		`"GrantTokens":[` + strings.Repeat(token+",", maxGrantTokens-1) + token + `]}`
}

// TestTheLargestRequestIsRead, and 8 KiB more, and no byte more than that.
func TestTheLargestRequestIsRead(t *testing.T) {
	body := largest()
	if room := maxBody - len(body); room < 4<<10 || room > 12<<10 {
		t.Errorf("the largest legal request has %d bytes, and %d are read", len(body), maxBody)
	}
	padded := body + strings.Repeat(" ", maxBody-len(body))
	const tooLong = serialization
	for name, c := range map[string]struct{ body, want string }{
		"the largest":       {body, invalidGrantToken},
		"as large as it is": {padded, invalidGrantToken},
		"a byte more":       {padded + " ", tooLong},
		"much more":         {strings.Repeat(" ", 4<<20), tooLong},
	} {
		for how, reader := range map[string]func(string) io.Reader{
			"with its length":    func(s string) io.Reader { return strings.NewReader(s) },
			"without its length": func(s string) io.Reader { return io.MultiReader(strings.NewReader(s)) },
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				d := newDoor(&fakeService{})
				w := do(t, d, http.MethodPost, reader(c.body), func(r *http.Request) { r.Header.Set("X-Amz-Target", "TrentService.ReEncrypt") })
				if got := saidBy(t, w); got.Type != c.want || got.Status != http.StatusBadRequest {
					t.Errorf("got %+v, want %s", got, c.want)
				}
				if closes := w.Header().Get("Connection") == "close"; closes != (c.want == tooLong) {
					t.Errorf("the connection is closed: %t", closes)
				}
				if held := d.large.Load(); held != 0 {
					t.Errorf("%d bytes count as held", held)
				}
			})
		}
	}
}

// TestLargeRequestsAreNotHeldWithoutEnd, and small ones are answered beside them.
func TestLargeRequestsAreNotHeldWithoutEnd(t *testing.T) {
	d := newDoor(&fakeService{})
	d.large.Store(maxLarge - maxBody/2)
	large := `{"KeyId":"orders","Plaintext":"c2VjcmV0"}` + strings.Repeat(" ", maxBody*3/4)
	w := ask(t, d, "Encrypt", large)
	if got := saidBy(t, w); got.Type != throttling || got.Status != http.StatusBadRequest || w.Header().Get("Connection") != "close" {
		t.Errorf("got %+v", got)
	}
	if w := ask(t, d, "Encrypt", usual["Encrypt"]); w.Code != http.StatusOK {
		t.Errorf("of a small request: status %d: %s", w.Code, w.Body)
	}
	d.large.Store(0)
	if w := ask(t, d, "Encrypt", large); w.Code != http.StatusOK {
		t.Errorf("when they are gone: status %d: %s", w.Code, w.Body)
	}
}

// TestASlowBodyHoldsWhatHasCome, and not what it was announced as.
func TestASlowBodyHoldsWhatHasCome(t *testing.T) {
	for name, length := range map[string]int64{"with its length": maxBody, "without its length": -1} {
		t.Run(name, func(t *testing.T) {
			d := newDoor(&fakeService{})
			come, most := 0, int64(0)
			body := readerFunc(func(p []byte) (int, error) {
				if held := d.large.Load(); come < usualBody && held > 0 || held > int64(2*come) {
					t.Errorf("%d bytes are held when %d have come", held, come)
				}
				most = max(most, d.large.Load())
				n := min(len(p), 1000, maxBody-come)
				if come += n; come == maxBody {
					return n, io.EOF
				}
				return n, nil
			})
			do(t, d, http.MethodPost, body, func(r *http.Request) { r.ContentLength = length })
			if most < maxBody/2 || d.large.Load() != 0 {
				t.Errorf("%d bytes were held at most, and %d are", most, d.large.Load())
			}
		})
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestAClientThatLeavesLeavesNothing of the plaintext that it had sent, while its call waited.
func TestAClientThatLeavesLeavesNothing(t *testing.T) {
	ctx, leave := context.WithCancel(t.Context())
	f := &fakeService{hang: true}
	d := newDoor(f)
	x := newExchange()
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/", strings.NewReader(strings.Replace(usual["Encrypt"], "c2Vj", `c2\u0056j`, 1)))
	r.Header.Set("X-Amz-Target", targetPrefix+"Encrypt")
	leave()
	e := d.serve(x, r)
	if e == nil || f.last == nil {
		t.Fatalf("got %+v; asked was %v", e, f.last)
	}
	d.answer(httptest.NewRecorder(), r, x, e)
	held := [][]byte{x.body, x.out, x.parser.unescaped, x.request.plaintext}
	x.release()
	for i, b := range held {
		if b = b[:cap(b)]; len(b) == 0 || !bytes.Equal(b, make([]byte, len(b))) {
			t.Errorf("buffer %d still holds %q", i, b)
		}
	}
}

// TestABodyThatEndsEarly is no request.
func TestABodyThatEndsEarly(t *testing.T) {
	for name, body := range map[string]io.Reader{
		"with its end":  strings.NewReader(usual["Encrypt"]),
		"with an error": io.MultiReader(strings.NewReader(usual["Encrypt"]), failingReader{}),
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeService{}
			w := do(t, newDoor(f), http.MethodPost, body, func(r *http.Request) { r.ContentLength = 1000 })
			if got := saidBy(t, w); got.Type != serialization || f.last != nil {
				t.Errorf("got %+v", got)
			}
		})
	}
	w := do(t, newDoor(&fakeService{}), http.MethodPost, io.MultiReader(strings.NewReader(usual["Encrypt"]), failingReader{}), nil)
	if got := saidBy(t, w); got.Type != serialization {
		t.Errorf("without its length: got %+v", got)
	}
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errors.New("gone") }

// TestNothingSecretStays where a request and its answer were.
func TestNothingSecretStays(t *testing.T) {
	for operation, body := range usual {
		t.Run(operation, func(t *testing.T) {
			f := &fakeService{}
			f.seal(secretBytes, nil)
			d := newDoor(f)
			x := newExchange()
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(strings.Replace(body, "c2Vj", `c2\u0056j`, 1)))
			r.Header.Set("X-Amz-Target", targetPrefix+operation)
			e := d.serve(x, r)
			if e != nil {
				t.Fatalf("got %+v", e)
			}
			d.answer(httptest.NewRecorder(), r, x, e)
			held := [][]byte{x.body, x.out, x.parser.unescaped, x.request.plaintext}
			x.release()
			f.checkCleared(t)
			for i, b := range append(held, f.plain) {
				if b = b[:cap(b)]; !bytes.Equal(b, make([]byte, len(b))) {
					t.Errorf("buffer %d still holds %q", i, b)
				}
			}
		})
	}
}

// TestOnlySomeOperationsCanAnswerAPlaintext: the answers that the key service has for the others have no field for one.
func TestOnlySomeOperationsCanAnswerAPlaintext(t *testing.T) {
	for operation, message := range map[string]proto.Message{
		"GenerateDataKeyWithoutPlaintext":     &kmsv1.GenerateDataKeyWithoutPlaintextResponse{},
		"GenerateDataKeyPairWithoutPlaintext": &kmsv1.GenerateDataKeyPairWithoutPlaintextResponse{},
		"Encrypt":                             &kmsv1.EncryptResponse{},
		"ReEncrypt":                           &kmsv1.ReEncryptResponse{},
	} {
		fields := message.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			if strings.Contains(string(fields.Get(i).Name()), "plaintext") {
				t.Errorf("the key service answers %s with a %s", operation, fields.Get(i).Name())
			}
		}
		f := &fakeService{}
		f.seal(secretBytes, nil)
		if w := ask(t, newDoor(f), operation, usual[operation]); w.Code != http.StatusOK || strings.Contains(w.Body.String(), "laintext\"") {
			t.Errorf("%s: status %d: %s", operation, w.Code, w.Body)
		}
	}
}

// TestTheLogTellsWhatFailedAndNothingSecret: a fault of the key service once a second, with how many there were, and the rest for who debugs.
func TestTheLogTellsWhatFailedAndNothingSecret(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	f := &fakeService{}
	d := New(Config{KeyService: f, Logger: log})
	f.seal(secretBytes, nil)
	for operation, body := range usual {
		ask(t, d, operation, body)
		ask(t, d, operation, body[:len(body)-1]+`,"GrantTokens":["token-of-a-client"],"Plaintext":"c2VjcmV0"}`)
	}
	f.err = refusal(kmsv1.ReasonDenied, "app needs the verb encrypt")
	ask(t, d, "Encrypt", usual["Encrypt"])
	f.err = refusal(kmsv1.ReasonInternal, "internal error")
	for range 5 {
		ask(t, d, "Encrypt", usual["Encrypt"])
	}
	text := out.String()
	for _, secret := range []string{"c2VjcmV0", "secret", b64(secretBytes), string(secretBytes), "token-of-a-client", b64(firstBlob())} {
		if strings.Contains(text, secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
	levels := map[string]int{}
	for line := range strings.Lines(text) {
		var entry struct{ Level, Exception, RequestID, Operation, Error string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatal(err)
		}
		levels[entry.Level+" "+entry.Exception]++
		if entry.Exception == accessDenied && (entry.Operation != "Encrypt" || entry.RequestID == "" || entry.Error == "") {
			t.Errorf("got %+v", entry)
		}
	}
	if levels["WARN "+kmsInternal] != 1 || levels["DEBUG "+kmsInternal] != 4 || levels["DEBUG "+accessDenied] != 1 {
		t.Errorf("got %v", levels)
	}
}

// FuzzDoor: whatever comes, an answer that a client understands. There is never a 2xx without what it is for.
func FuzzDoor(f *testing.F) {
	for operation, body := range usual {
		f.Add(targetPrefix+operation, []byte(body))
	}
	f.Add(targetPrefix+"ReEncrypt", []byte(largest()))
	f.Add(targetPrefix+"CreateKey", []byte("{}"))
	f.Add("", []byte(nil))
	f.Add(targetPrefix+"Decrypt", []byte(`{"CiphertextBlob":"YQ==","CiphertextBlob":"YQ=="}`))
	f.Fuzz(func(t *testing.T, target string, body []byte) {
		fake := &fakeService{}
		fake.seal(secretBytes, nil)
		d := newDoor(fake)
		var counted []string
		d.count = func(operation, code string) { counted = append(counted, operation, code) }
		w := do(t, d, http.MethodPost, bytes.NewReader(body), func(r *http.Request) { r.Header["X-Amz-Target"] = []string{target} })
		var answer map[string]json.RawMessage
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
			t.Fatal(err)
		}
		o := operations[strings.TrimPrefix(target, targetPrefix)]
		if w.Code == http.StatusOK && (o == nil || fake.last == nil || !json.Valid(body)) {
			t.Errorf("success of %q with %q", target, body)
		}
		if w.Code != http.StatusOK && len(answer["__type"]) < len(`"x"`) {
			t.Errorf("no exception of %q with %q", target, body)
		}
		operation, code := "other", cmp.Or(w.Header().Get("X-Amzn-Errortype"), "OK")
		if o != nil {
			operation = o.name
		}
		if len(counted) != 2 || counted[1] != code || counted[0] != operation && (counted[0] != "other" || code == "OK") {
			t.Errorf("counted %q, want %s, %s", counted, operation, code)
		}
		fake.checkCleared(t)
	})
}
