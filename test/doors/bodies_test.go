package doors_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/datakeys/datakeys/api/v1alpha1"
	"github.com/datakeys/datakeys/internal/kms"
	"github.com/datakeys/datakeys/internal/porttest"
	"github.com/datakeys/datakeys/sidecar"
	"github.com/datakeys/datakeys/sidecar/sidecartest"
)

// served is a whole sidecar of the pod whose token is app: its socket, and its port of 127.0.0.1.
type served struct{ socket, port string }

// sidecar runs a whole sidecar, with the data key orders, until the test ends.
func (w *world) sidecar(t *testing.T) served {
	t.Helper()
	w.rbac.Grant("system:serviceaccount:team-a:"+app, kms.Access{
		Verb: v1alpha1.VerbDecrypt, Resource: v1alpha1.ResourceDataKeyRequests, Namespace: "team-a",
	})
	declared, err := w.GenerateDataKeyWithoutPlaintext(t.Context(), kms.DataKey{
		MasterKey: ordersKey, Namespace: "team-a", Name: "orders", Generation: 1, Length: 32,
	})
	if err != nil {
		t.Fatal(err)
	}
	mount := sidecartest.NewMount(t)
	mount.Put(t, "orders", map[string][]byte{"ciphertextBlob": declared.CiphertextBlob})
	dir, err := os.MkdirTemp("", "dk") //nolint:usetesting // a short path, for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	token := filepath.Join(dir, "token")
	if err := os.WriteFile(token, []byte(app), 0o600); err != nil {
		t.Fatal(err)
	}
	port := porttest.Reserve(t)
	s := served{socket: filepath.Join(dir, "s"), port: port.String()}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() {
		done <- sidecar.Run(ctx, sidecar.Config{
			DataKeys: []string{"orders"}, KeysDir: mount.Dir, TokenFile: token, Socket: s.socket, LoopbackPort: int(port.Port()), KeyService: w.server.Address,
			Roots: w.server.Root, Leases: sidecar.Leases{Lease: sidecar.DefaultLease, Coast: sidecar.DefaultCoast},
			Logger: slog.New(slog.DiscardHandler),
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	waiting, stopWaiting := context.WithTimeout(t.Context(), time.Minute) // only a failure takes so long
	defer stopWaiting()
	if err := sidecar.Wait(waiting, s.socket); err != nil {
		t.Fatal(err)
	}
	return s
}

// route is an operation of the sidecar, by one of its protocols.
type route struct {
	protocol protocol
	path     string
	name     string   // of the operation
	body     []byte   // that is answered with success
	members  []string // which an answer must have, and have something in them
}

// protocol is how one client of the sidecar talks.
type protocol interface {
	headers(operation string) http.Header
	// malformed is the error of a body that is none, and said the one of an answer that is no success.
	malformed() string
	said(status int, body []byte) (code string, err error)
	// has are the members of an answer with something in them.
	has(body []byte) ([]string, error)
	shapes(body []byte) map[string]shape
}

// shape is a body that a client may send.
type shape struct {
	body      []byte
	malformed bool // it is no body of the protocol
}

func text(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

// TestNoSuccessWithNothingInIt sends bodies of every shape to each operation of both doors and of the native API. Whatever is answered with
// success has all that the operation promises, and nothing is answered but with success or an error in the client's own words.
func TestNoSuccessWithNothingInIt(t *testing.T) {
	w := newWorld(t)
	s := w.sidecar(t)
	clients := s.clients(t)
	for _, r := range w.routes(t, clients["socket"], s) {
		t.Run(fmt.Sprintf("%T %s", r.protocol, r.name), func(t *testing.T) {
			all := r.protocol.shapes(r.body)
			all["as it should be"] = shape{body: r.body}
			for name, c := range clients {
				if name == "port" && r.path != "/" {
					continue
				}
				if status, body := send(t, c, s, r, r.body); status != http.StatusOK {
					t.Errorf("as it should be: got %d: %q", status, body)
				}
				for what, shape := range all {
					status, body := send(t, c, s, r, shape.body)
					if status == http.StatusOK {
						has, err := r.protocol.has(body)
						if err != nil {
							t.Errorf("%s: %v", what, err)
						}
						for _, m := range r.members {
							if !slices.Contains(has, m) {
								t.Errorf("%s: success without %s", what, m)
							}
						}
						if shape.malformed {
							t.Errorf("%s: got success", what)
						}
						continue
					}
					code, err := r.protocol.said(status, body)
					if err != nil || code == "" || status < 400 || status >= 500 {
						t.Errorf("%s: got status %d, %v: %q", what, status, err, body)
					}
					if shape.malformed && code != r.protocol.malformed() {
						t.Errorf("%s: got %s, want %s", what, code, r.protocol.malformed())
					}
				}
			}
		})
	}
}

// clients are those of the socket and of the port.
func (s served) clients(t *testing.T) map[string]*http.Client {
	t.Helper()
	clients := map[string]*http.Client{
		"socket": {Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", s.socket)
		}}},
		"port": {Transport: &http.Transport{}},
	}
	for _, c := range clients {
		c.Timeout = time.Minute // only a failure takes so long
		t.Cleanup(c.CloseIdleConnections)
	}
	return clients
}

// TestWhatNobodyOffers is told in the client's own words.
func TestWhatNobodyOffers(t *testing.T) {
	s := newWorld(t).sidecar(t)
	for name, c := range s.clients(t) {
		for what, each := range map[string]struct {
			route
			want string
		}{
			"a new operation of AWS KMS":        {route{protocol: awsJSON{}, path: "/", name: "BrandNew"}, "UnknownOperationException"},
			"an operation of AWS KMS elsewhere": {route{protocol: awsJSON{}, path: "/", name: "CreateKey"}, "UnsupportedOperationException"},
			"no operation of AWS KMS":           {route{protocol: awsJSON{}, path: "/"}, "UnknownOperationException"},
			"a new operation of Alibaba's":      {route{protocol: alibabaProtobuf{}, path: "/", name: "BrandNew"}, "InvalidApiName"},
			"an operation of Alibaba's":         {route{protocol: alibabaProtobuf{}, path: "/", name: "Sign"}, "UnsupportedOperation"},
			"no operation of Alibaba's":         {route{protocol: alibabaProtobuf{}, path: "/"}, "InvalidApiName"},
			"a path":                            {route{protocol: nativeJSON{}, path: "/v2/data-keys"}, "UnknownPath"},
			"no protocol":                       {route{protocol: nativeJSON{}, path: "/"}, "UnknownProtocol"},
		} {
			for _, body := range []string{"", "{}", "\x0a\x01k", strings.Repeat("x", 16<<10)} {
				status, answer := send(t, c, s, each.route, []byte(body))
				if code, err := each.protocol.said(status, answer); err != nil || code != each.want || status < 400 || status >= 500 {
					t.Errorf("%s, on the %s, with %d bytes: got %d %s, %v; want %s", what, name, len(body), status, code, err, each.want)
				}
			}
		}
	}
}

func send(t *testing.T, c *http.Client, s served, r route, body []byte) (status int, answer []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+s.port+r.path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header = r.protocol.headers(r.name)
	response, err := c.Do(request)
	if err != nil {
		t.Fatalf("no answer to %d bytes: %v", len(body), err)
	}
	defer func() { _ = response.Body.Close() }()
	if answer, err = io.ReadAll(response.Body); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, answer
}

// routes are the operations, each with a body that is right.
func (w *world) routes(t *testing.T, c *http.Client, s served) []route {
	t.Helper()
	const key = `"KeyId":"alias/main"`
	made := []string{"CiphertextBlob", "KeyId", "KeyMaterialId"}
	pair := []string{"PrivateKeyCiphertextBlob", "PublicKey", "KeyId", "KeyPairSpec"}
	all := []route{
		{awsJSON{}, "/", "GenerateDataKey", []byte(`{` + key + `,"KeySpec":"AES_256"}`), append([]string{"Plaintext"}, made...)},
		{awsJSON{}, "/", "GenerateDataKeyWithoutPlaintext", []byte(`{` + key + `,"NumberOfBytes":32,"EncryptionContext":{"a":"b"}}`), made},
		{awsJSON{}, "/", "GenerateDataKeyPair", []byte(`{` + key + `,"KeyPairSpec":"ECC_NIST_P256"}`), append([]string{"PrivateKeyPlaintext"}, pair...)},
		{awsJSON{}, "/", "GenerateDataKeyPairWithoutPlaintext", []byte(`{` + key + `,"KeyPairSpec":"ECC_NIST_P256"}`), pair},
		{awsJSON{}, "/", "Encrypt", []byte(`{` + key + `,"Plaintext":"aGVsbG8="}`), []string{"CiphertextBlob", "KeyId", "EncryptionAlgorithm"}},
		{awsJSON{}, "/", "GenerateRandom", []byte(`{"NumberOfBytes":32}`), []string{"Plaintext"}},
		{awsJSON{}, "/", "DescribeKey", []byte(`{` + key + `}`), []string{"KeyMetadata"}},
		{awsJSON{}, "/", "ListKeys", []byte(`{"Limit":10}`), []string{"Keys"}},
		{awsJSON{}, "/", "ListAliases", []byte(`{"Limit":10}`), []string{"Aliases"}},
	}
	field := func(n protowire.Number, v string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, n, protowire.BytesType), v)
	}
	number := func(n protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), v)
	}
	message := func(fields ...[]byte) []byte { return slices.Concat(fields...) }
	main := field(1, "alias/main")
	fields := strings.Fields
	for name, r := range map[string]struct {
		body []byte
		has  string
	}{
		"GenerateDataKey":                     {message(main, number(3, 32), field(4, "aad")), "1 2 3 4 5 6"},
		"AdvanceGenerateDataKey":              {message(main, number(2, 32), field(3, "aad")), "1 2 3 4 5 6 7"},
		"Encrypt":                             {message(main, field(2, "hello")), "1 2 3 4 5"},
		"AdvanceEncrypt":                      {message(main, field(2, "hello")), "1 2 3 4 5 7"},
		"GenerateRandom":                      {number(1, 32), "1 2"},
		"AdvanceGenerateDataKeyPair":          {message(main, field(2, "EC_P256"), field(3, "PEM")), "1 2 3 4 5 6 7"},
		"GenerateDataKeyPairWithoutPlaintext": {message(main, field(3, "EC_P256"), field(4, "DER")), "1 2 3 4 5 6"},
	} {
		all = append(all, route{alibabaProtobuf{}, "/", name, r.body, fields(r.has)})
	}
	all = append(all, route{nativeJSON{}, "/v1/data-keys/orders/encrypt", "encrypt", []byte(`{"plaintext":"aGVsbG8=","associatedData":"YQ=="}`),
		[]string{"name", "generation", "ciphertext"}})

	// What opens is what the others have made.
	ask := func(name string) []byte {
		t.Helper()
		r := all[slices.IndexFunc(all, func(r route) bool { return r.name == name })]
		status, body := send(t, c, s, r, r.body)
		if status != http.StatusOK {
			t.Fatalf("%s: got %d: %s", name, status, body)
		}
		return body
	}
	var a struct {
		CiphertextBlob []byte
		Ciphertext     string
	}
	for _, name := range []string{"encrypt", "GenerateDataKeyWithoutPlaintext"} {
		if err := json.Unmarshal(ask(name), &a); err != nil {
			t.Fatal(err)
		}
	}
	blob, context := text(a.CiphertextBlob), `{"a":"b"}`
	advanced := parsed(t, ask("AdvanceEncrypt"))
	return append(all,
		route{awsJSON{}, "/", "Decrypt", []byte(`{"CiphertextBlob":"` + blob + `","EncryptionContext":` + context + `}`),
			[]string{"KeyId", "Plaintext", "EncryptionAlgorithm"}},
		route{awsJSON{}, "/", "ReEncrypt", []byte(`{"CiphertextBlob":"` + blob + `","SourceEncryptionContext":` + context + `,"DestinationKeyId":"other"}`),
			[]string{"CiphertextBlob", "SourceKeyId", "KeyId", "SourceEncryptionAlgorithm", "DestinationEncryptionAlgorithm"}},
		route{alibabaProtobuf{}, "/", "AdvanceDecrypt", field(1, string(advanced[2])), fields("1 2 3 4 6")},
		route{nativeJSON{}, "/v1/data-keys/orders/decrypt", "decrypt", []byte(`{"ciphertext":"` + a.Ciphertext + `","associatedData":"YQ=="}`),
			[]string{"name", "generation", "plaintext"}},
	)
}

// awsJSON is AWS KMS.
type awsJSON struct{}

func (awsJSON) headers(operation string) http.Header {
	return http.Header{"X-Amz-Target": {"TrentService." + operation}, "Content-Type": {"application/x-amz-json-1.1"}}
}

func (awsJSON) malformed() string { return "SerializationException" }

func (awsJSON) said(_ int, body []byte) (string, error) {
	var e struct {
		Type string `json:"__type"`
	}
	err := json.Unmarshal(body, &e)
	return e.Type, err
}

func (awsJSON) has(body []byte) ([]string, error) { return membersOf(body) }

func (awsJSON) shapes(body []byte) map[string]shape { return shapesOfJSON(body) }

// nativeJSON is the native API.
type nativeJSON struct{}

func (nativeJSON) headers(string) http.Header {
	return http.Header{"Content-Type": {"application/json"}}
}

func (nativeJSON) malformed() string { return "BodyInvalid" }

func (nativeJSON) said(status int, body []byte) (string, error) {
	var p struct {
		Status int
		Reason string
	}
	err := json.Unmarshal(body, &p)
	if p.Status != status {
		return "", fmt.Errorf("the problem is of status %d", p.Status)
	}
	return p.Reason, err
}

func (nativeJSON) has(body []byte) ([]string, error) { return membersOf(body) }

func (nativeJSON) shapes(body []byte) map[string]shape { return shapesOfJSON(body) }

// membersOf are the members of an object that have something in them.
func membersOf(body []byte) ([]string, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(body, &all); err != nil {
		return nil, err
	}
	maps.DeleteFunc(all, func(_ string, v json.RawMessage) bool {
		return slices.Contains([]string{`""`, "null", "[]", "{}", "0"}, string(v))
	})
	return slices.Collect(maps.Keys(all)), nil
}

// shapesOfJSON are bodies that an object may be mistaken for.
func shapesOfJSON(body []byte) map[string]shape {
	whole := string(body)
	inner := whole[1 : len(whole)-1]
	deep := func(n int, begin, end string) string { return strings.Repeat(begin, n) + strings.Repeat(end, n) }
	all := map[string]shape{}
	bad := func(name, body string) { all[name] = shape{[]byte(body), true} }
	odd := func(name, body string) { all[name] = shape{body: []byte(body)} }
	for name, body := range map[string]string{
		"nothing": "", "a space": " ", "null": "null", "a number": "7", "a string": `"x"`, "true": "true", "an array": "[" + whole + "]",
		"text": "KeyId=alias/main&KeySpec=AES_256", "XML": "<KeyId>alias/main</KeyId>", "zero bytes": strings.Repeat("\x00", 100),
		"something behind": whole + "x", "another object behind": whole + whole, "a zero byte behind": whole + "\x00",
		"a byte order mark": "\ufeff" + whole, "UTF-16": "\xff\xfe{\x00}\x00", "a comma too many": "{" + inner + ",}",
		"every member twice": "{" + inner + "," + inner + "}", "single quotes": strings.ReplaceAll(whole, `"`, `'`),
		"a comment": "{/* */" + inner + "}", "no UTF-8": strings.Replace(whole, `"`, "\"\xff", 1),
		"an object in depth": strings.Repeat(`{"a":`, 20_000), "an array in depth": deep(40_000, "[", "]"),
		"a member in depth": "{" + inner + `,"New":` + deep(20_000, "[", "]") + "}", "a name without an end": whole[:2],
		"a name in depth": "{" + inner + `,"New":` + strings.Repeat(`{"a":`, 5_000) + "1" + strings.Repeat("}", 5_000) + "}",
	} {
		bad(name, body)
	}
	for at := 1; at < len(whole); at += max(1, len(whole)/16) {
		bad(fmt.Sprint("cut off at byte ", at), whole[:at])
	}
	odd("an empty object", "{}")
	odd("with room", " \r\n\t"+whole+"\r\n ")
	odd("8 KiB more", whole+strings.Repeat(" ", 8<<10))
	odd("256 KiB more", whole+strings.Repeat(" ", 256<<10))
	odd("1 MiB of a string", `{"KeyId":"`+strings.Repeat("x", 1<<20)+`"}`)
	odd("a new member", "{"+inner+`,"New":{"a":[1,null]}}`)
	odd("10,000 new members", "{"+inner+newMembers(10_000)+"}")
	var members map[string]json.RawMessage
	_ = json.Unmarshal(body, &members)
	for name, value := range members {
		for _, other := range []string{
			"null", "true", "0", "-1", "1e999", "4294967328", `""`, `"x"`, `"\u0000"`, `"\ud800"`, "[]", "{}", `["x"]`, `{"x":"y"}`, `"/+=="`,
			`"` + strings.Repeat("A", 8<<10) + `"`,
		} {
			odd(fmt.Sprintf("%s is %.20s", name, other), strings.Replace(whole, `"`+name+`":`+string(value), `"`+name+`":`+other, 1))
		}
		odd("another case of "+name, strings.Replace(whole, name, strings.ToUpper(name), 1))
	}
	for at := range body {
		flipped := bytes.Clone(body)
		flipped[at] ^= 1 << (at % 8)
		all[fmt.Sprint("another bit in byte ", at)] = shape{body: flipped}
	}
	return all
}

func newMembers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"m%d":0`, i)
	}
	return b.String()
}

// alibabaProtobuf is an instance of Alibaba Cloud KMS. The members of its answers are the numbers of fields.
type alibabaProtobuf struct{}

func (alibabaProtobuf) headers(operation string) http.Header {
	return http.Header{
		"X-Kms-Apiname": {operation}, "X-Kms-Apiversion": {"dkms-gcs-0.2"}, "Content-Type": {"application/x-protobuf"},
	}
}

func (alibabaProtobuf) malformed() string { return "InvalidParameter" }

func (alibabaProtobuf) said(status int, body []byte) (string, error) {
	all, err := fieldsOf(body)
	if n, _ := protowire.ConsumeVarint(all[1]); n != uint64(status) || len(all[3]) == 0 || len(all[4]) == 0 {
		return "", fmt.Errorf("an error of status %d: %q", n, all)
	}
	return string(all[2]), err
}

func (alibabaProtobuf) has(body []byte) (has []string, err error) {
	all, err := fieldsOf(body)
	for n, v := range all {
		if len(v) > 0 {
			has = append(has, fmt.Sprint(n))
		}
	}
	return has, err
}

// fieldsOf are the fields of a message, the bytes of those that have a length.
func fieldsOf(b []byte) (map[protowire.Number][]byte, error) {
	all := map[protowire.Number][]byte{}
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return nil, protowire.ParseError(size)
		}
		b = b[size:]
		if size = protowire.ConsumeFieldValue(n, kind, b); size < 0 {
			return nil, protowire.ParseError(size)
		}
		all[n] = b[:size]
		if kind == protowire.BytesType {
			all[n], _ = protowire.ConsumeBytes(b)
		}
		b = b[size:]
	}
	return all, nil
}

func parsed(t *testing.T, b []byte) map[protowire.Number][]byte {
	t.Helper()
	all, err := fieldsOf(b)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (alibabaProtobuf) shapes(body []byte) map[string]shape {
	all := map[string]shape{}
	for name, more := range map[string]string{
		"a tag that does not end":          "\x80",
		"a tag of eleven bytes":            strings.Repeat("\x80", 10) + "\x01",
		"field 0":                          "\x00\x00",
		"a field beyond all numbers":       "\xf8\xff\xff\xff\x7f\x00",
		"a number that does not end":       "\x98\x06\xff\xff",
		"a number of eleven bytes":         "\x98\x06" + strings.Repeat("\xff", 10) + "\x01",
		"a length over the end":            "\x9a\x06\x05abcd",
		"a length of 2 GiB":                "\x9a\x06\x80\x80\x80\x80\x08abcd",
		"a length of 2^63":                 "\x9a\x06\xff\xff\xff\xff\xff\xff\xff\xff\x7fabcd",
		"a length below zero":              "\x9a\x06\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01abcd",
		"the first field, and no length":   "\x0a",
		"the first field of 4 GiB":         "\x0a\xff\xff\xff\xff\x0fabcd",
		"32 bits of which some":            "\x9d\x06\x01",
		"64 bits of which some":            "\x99\x06\x01\x02",
		"a group that does not end":        "\x9b\x06",
		"a group that did not begin":       "\x9c\x06",
		"a group that ends as another":     "\x9b\x06\xa4\x06",
		"groups in depth":                  strings.Repeat("\x9b\x06", 11_000),
		"groups in depth, all of them end": strings.Repeat("\x9b\x06", 11_000) + strings.Repeat("\x9c\x06", 11_000),
		"a kind that is none":              "\x9e\x06",
		"another kind that is none":        "\x9f\x06",
	} {
		all[name] = shape{append(bytes.Clone(body), more...), true}
		all[name+", alone"] = shape{[]byte(more), true}
	}
	for name, more := range map[string]string{
		"once more":                    string(body),
		"a field that is not known":    "\x9a\x06\x04abcd",
		"a group that is not known":    "\x9b\x06\x08\x01\x9c\x06",
		"the first field of all kinds": "\x08\x01\x09\x01\x02\x03\x04\x05\x06\x07\x08\x0d\x01\x02\x03\x04",
		"the first field empty":        "\x0a\x00",
		"the first field as no UTF-8":  "\x0a\x02\xff\xfe",
		"the first field as 20 KiB":    "\x0a\x80\xa0\x01" + strings.Repeat("k", 20<<10),
		"1 MiB that is not known":      "\x9a\x06\x80\x80\x40" + strings.Repeat("x", 1<<20),
		"the second field too long":    "\x12\x80\xa0\x01" + strings.Repeat("k", 20<<10),
		"a number below zero":          "\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
		"a number of 2^31":             "\x10\x80\x80\x80\x80\x08\x18\x80\x80\x80\x80\x08",
		"a number that is longer":      "\x10\xa0\x80\x80\x00",
	} {
		all[name] = shape{body: append(bytes.Clone(body), more...)}
		all[name+", alone"] = shape{body: []byte(more)}
	}
	all["nothing"] = shape{}
	all["JSON"] = shape{body: []byte(`{"KeyId":"alias/main"}`)}
	for at := range body {
		flipped := bytes.Clone(body)
		flipped[at] ^= 1 << (at % 8)
		all[fmt.Sprint("another bit in byte ", at)] = shape{body: flipped}
		all[fmt.Sprint("cut off at byte ", at)] = shape{body: body[:at]}
	}
	return all
}
