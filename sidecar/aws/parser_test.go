package aws

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
)

// TestWhatIsNoRequest is a SerializationException that says where, and never what: the plaintext of Encrypt may be there.
func TestWhatIsNoRequest(t *testing.T) {
	nested := func(n int) string { return `{"New":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + `}` }
	for name, c := range map[string]struct{ body, want string }{
		"nothing":                        {"", "at byte 0: must be an object"},
		"a space":                        {" ", "at byte 1: must be an object"},
		"no JSON":                        {"KeyId=orders", "at byte 0: must be an object"},
		"an array":                       {`[{}]`, "at byte 0: must be an object"},
		"null":                           {`null`, "at byte 0: must be an object"},
		"a byte order mark":              {"\ufeff{}", "at byte 0: must be an object"},
		"no UTF-8":                       {"{\"KeyId\":\"\xff\"}", "must be UTF-8"},
		"two objects":                    {`{} {}`, "at byte 3: nothing may follow the object"},
		"a zero behind it":               {"{}\x00", "at byte 2: nothing may follow the object"},
		"no end":                         {`{"KeyId":"secret"`, "at byte 17: must be a comma or the end"},
		"a comma at the end":             {`{"KeyId":"secret",}`, "at byte 18: must be a string"},
		"no comma":                       {`{"KeyId":"secret" "a":1}`, "at byte 18: must be a comma or the end"},
		"no colon":                       {`{"KeyId" "secret"}`, "at byte 9: must be a colon"},
		"no name":                        {`{KeyId:"secret"}`, "at byte 1: must be a string"},
		"a string with no end":           {`{"KeyId":"secret`, "at byte 16: the string has no end"},
		"an escape with no end":          {`{"KeyId":"secret\`, "at byte 17: this is no escape of a character"},
		"an escape that is none":         {`{"KeyId":"sec\ret\x"}`, "at byte 18: this is no escape of a character"},
		"a short escape":                 {`{"KeyId":"\u12"}`, "at byte 11: this is no escape of a character"},
		"half a surrogate":               {`{"KeyId":"\ud800"}`, "this is no escape of a character"},
		"the second half first":          {`{"KeyId":"\udc00\ud800"}`, "this is no escape of a character"},
		"a surrogate and no other":       {`{"KeyId":"\ud800\u0041"}`, "this is no escape of a character"},
		"a line in a string":             {"{\"KeyId\":\"sec\nret\"}", "at byte 13: a control character in a string must be escaped"},
		"a tab behind an escape":         {"{\"KeyId\":\"\\\"\t\"}", "at byte 12: a control character in a string must be escaped"},
		"a member twice":                 {`{"KeyId":"a","KeyId":"b"}`, "this member is there twice"},
		"a member twice, once as null":   {`{"KeyId":null,"KeyId":"b"}`, "this member is there twice"},
		"a member twice, by an escape":   {`{"KeyId":"a","\u004beyId":"b"}`, "this member is there twice"},
		"a new member twice":             {`{"New":1,"New":2}`, "this member is there twice"},
		"a new member with one twice":    {`{"New":[{"a":1,"a":2}]}`, "this member is there twice"},
		"the 30th member twice":          {many(30, `,"29":0`), "this member is there twice"},
		"a pair twice":                   {`{"EncryptionContext":{"a":"1","a":"2"}}`, "this member is there twice"},
		"nested too deep":                {nested(maxDepth + 1), "is nested too deep"},
		"nested much too deep":           {nested(10000), "is nested too deep"},
		"a number for a string":          {`{"KeyId":1}`, "at byte 9: must be a string"},
		"a boolean for a string":         {`{"KeyId":true}`, "must be a string"},
		"an object for a string":         {`{"KeyId":{}}`, "must be a string"},
		"a string for a number":          {`{"NumberOfBytes":"32"}`, "must be a number"},
		"a fraction":                     {`{"NumberOfBytes":32.0}`, "must be an integer of 32 bits"},
		"an exponent":                    {`{"NumberOfBytes":1e2}`, "must be an integer of 32 bits"},
		"a number too large":             {`{"NumberOfBytes":2147483648}`, "must be an integer of 32 bits"},
		"a number that begins with zero": {`{"NumberOfBytes":032}`, "must be a comma or the end"},
		"a number that begins with plus": {`{"NumberOfBytes":+32}`, "must be a number"},
		"a minus alone":                  {`{"NumberOfBytes":-}`, "must be a value"},
		"no digit behind the point":      {`{"New":1.}`, "must be a value"},
		"no digit of an exponent":        {`{"New":1e+}`, "must be a value"},
		"a word":                         {`{"New":nul}`, "must be a value"},
		"a longer word":                  {`{"DryRun":trueish}`, "must be a comma or the end"},
		"a string for a boolean":         {`{"DryRun":"true"}`, "must be true or false"},
		"a number for a boolean":         {`{"DryRun":1}`, "must be true or false"},
		"a string for a context":         {`{"EncryptionContext":"a=b"}`, "must be an object"},
		"an array for a context":         {`{"EncryptionContext":["a","b"]}`, "must be an object"},
		"a number in a context":          {`{"EncryptionContext":{"a":1}}`, "must be a string"},
		"null in a context":              {`{"EncryptionContext":{"a":null}}`, "must be a string"},
		"an object in a context":         {`{"EncryptionContext":{"a":{}}}`, "must be a string"},
		"a string for a list":            {`{"GrantTokens":"a"}`, "must be an array"},
		"null in a list":                 {`{"GrantTokens":[null]}`, "must be a string"},
		"a list with no end":             {`{"GrantTokens":["a"}`, "must be a comma or the end"},
		"no base64":                      {`{"Plaintext":"secret!!"}`, "must be base64 with padding"},
		"base64 without padding":         {`{"Plaintext":"c2VjcmU"}`, "must be base64 with padding"},
		"base64 for URLs":                {`{"Plaintext":"_-__"}`, "must be base64 with padding"},
		"base64 with bits at its end":    {`{"Plaintext":"c2VjcmV="}`, "must be base64 with padding"},
		"base64 in lines":                {`{"Plaintext":"c2Vj\ncmV0"}`, "must be base64 with padding"},
		"a number for bytes":             {`{"Plaintext":1}`, "must be a string"},
		"bytes for bytes":                {`{"Plaintext":[1,2]}`, "must be a string"},
		"a recipient that is none":       {`{"Recipient":"me"}`, "must be an object"},
	} {
		t.Run(name, func(t *testing.T) {
			// An operation each that has the member.
			operation := "Encrypt"
			if strings.Contains(c.body, "NumberOfBytes") {
				operation = "GenerateDataKey"
			}
			f := &fakeService{}
			got := saidBy(t, ask(t, newDoor(f), operation, c.body))
			if got.Status != http.StatusBadRequest || got.Type != serialization || !strings.Contains(got.Message, c.want) {
				t.Errorf("got %+v, want %q", got, c.want)
			}
			if strings.Contains(got.Message, "secret") || strings.Contains(got.Message, "c2V") {
				t.Errorf("the message repeats the request: %s", got.Message)
			}
			if f.last != nil {
				t.Errorf("the key service was asked: %v", f.last)
			}
		})
	}
}

// many is an object of that many members that are new, and more.
func many(n int, more string) string {
	b := []byte(`{`)
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '"', byte('0'+i/10), byte('0'+i%10), '"', ':', '0')
	}
	return string(b) + more + `}`
}

// TestWhatIsPassedOver: clients are newer than we are. Names are exact.
func TestWhatIsPassedOver(t *testing.T) {
	for name, more := range map[string]string{
		"nothing":                    ``,
		"a new member":               `,"New":"x"`,
		"new members of every type":  `,"A":[1,-0.5e+3,true,false,null,"\u00e9\b"],"B":{"C":{},"D":[[]]}`,
		"another case":               `,"numberofbytes":7,"NUMBEROFBYTES":"x","keyId":3`,
		"null members":               `,"NumberOfBytes":null,"Recipient":null,"DryRun":null,"GrantTokens":null,"EncryptionContext":null`,
		"30 members":                 strings.TrimSuffix(","+many(30, "")[1:], "}"),
		"as deep as may be":          `,"New":` + strings.Repeat("[", maxDepth-1) + strings.Repeat("]", maxDepth-1),
		"a member of another one":    `,"CiphertextBlob":7`,
		"an empty list and contexts": `,"GrantTokens":[],"EncryptionContext":{}`,
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeService{}
			w := ask(t, newDoor(f), "GenerateDataKey", `{"KeyId":"orders","KeySpec":"AES_256"`+more+`}`)
			if got, ok := f.last.(*kmsv1.GenerateDataKeyRequest); w.Code != http.StatusOK || !ok || got.GetNumberOfBytes() != 0 {
				t.Errorf("status %d: %s; asked was %v", w.Code, w.Body, f.last)
			}
		})
	}
}

// TestEscapesAreRead: of a context, whose every byte counts.
func TestEscapesAreRead(t *testing.T) {
	f := &fakeService{}
	ask(t, newDoor(f), "Encrypt", `{"KeyId":"\u006f\u0072ders","Plaintext":"\/\/8\u003d","EncryptionContext":{`+
		`"":"","\"\\\/\b\f\n\r\t":"\u0000\u001F\u007f","\u00e9é":"\uD83D\ude00😀","\uffff\ufffd":"\u20AC"}}`)
	want := map[string]string{"": "", "\"\\/\b\f\n\r\t": "\x00\x1f\x7f", "éé": "😀😀", "\uffff\ufffd": "€"}
	got, ok := f.last.(*kmsv1.EncryptRequest)
	if !ok || got.GetKeyId() != "orders" || string(got.GetPlaintext()) != "\xff\xff" {
		t.Fatalf("got %v", f.last)
	}
	if diff := cmp.Diff(want, got.GetEncryptionContext()); diff != "" {
		t.Errorf("the context (-want +got):\n%s", diff)
	}
}

// FuzzParser holds the parser to encoding/json: what it takes, that one reads alike.
func FuzzParser(f *testing.F) {
	for _, body := range usual {
		f.Add([]byte(body))
	}
	f.Add([]byte(`{"a":"\ud83d\ude00\/","b":[{"c":-1.5e3}],"d":null,"e":"\u0000"}`))
	f.Add([]byte(`{"a":"\ud83d"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		p := parser{in: body}
		read := map[string]string{}
		e := p.whole(func(name []byte) *exception {
			if p.at == len(p.in) || p.in[p.at] != '"' {
				return p.skip()
			}
			text, e := p.text()
			read[string(name)] = string(text)
			return e
		})
		var want map[string]any
		err := json.Unmarshal(body, &want)
		if e != nil {
			if e.name != serialization || e.message == "" {
				t.Errorf("refused with %+v", e)
			}
			return
		}
		if err != nil {
			t.Fatalf("read what is no JSON: %v", err)
		}
		for name, v := range want {
			if text, isText := v.(string); isText && read[name] != text {
				t.Errorf("read %q, want %q", read[name], text)
			} else if isText {
				delete(read, name)
			}
		}
		if len(read) > 0 {
			t.Errorf("read strings that are none: %q", read)
		}
	})
}
