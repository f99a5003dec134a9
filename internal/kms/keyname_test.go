package kms

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	kmsv1 "github.com/datakeys/datakeys/api/kms/v1"
	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal/sealtest"
)

// namingService is a Service that can read names, and the beginning of its ARNs.
func namingService(t testing.TB) (s *Service, arn string) {
	t.Helper()
	ring, err := sealtest.OpenEmbedded(t.Context(), &sealtest.Store{})
	if err != nil {
		t.Fatal(err)
	}
	return &Service{seal: ring}, "arn:datakeys:kms:" + ring.InstallID() + ":"
}

func TestParseKeyName(t *testing.T) {
	const uuid = "11111111-1111-4111-8111-111111111111"
	id, err := envelope.ParseKeyID(uuid)
	if err != nil {
		t.Fatal(err)
	}
	s, arn := namingService(t)
	long := strings.Repeat("a", 250)
	const (
		form  = "key_id: must be a key ID (a UUID in lower case), an ARN, alias/NAME, or the name of a MasterKey"
		arns  = "key_id: an ARN must have the form arn:datakeys:kms:<install>:<namespace>:key/<key ID>"
		alias = "key_id: an alias must be alias/ and then 1 to 250 letters, digits, slashes, underscores or dashes"
	)
	for name, c := range map[string]struct {
		text string
		want keyName // without text and field
		says string  // of the error
	}{
		"a key ID":                        {text: uuid, want: keyName{id: id}},
		"a key's ARN":                     {text: arn + "team-a:key/" + uuid, want: keyName{id: id, namespace: "team-a"}},
		"a name":                          {text: "orders", want: keyName{name: "orders"}},
		"a name with dots":                {text: "orders.v2-x", want: keyName{name: "orders.v2-x"}},
		"a name that is the word alias":   {text: "alias", want: keyName{name: "alias"}},
		"a name that is the word arn":     {text: "arn", want: keyName{name: "arn"}},
		"an alias":                        {text: "alias/orders", want: keyName{alias: "orders"}},
		"an alias of every character":     {text: "alias/aZ0/_-", want: keyName{alias: "aZ0/_-"}},
		"the longest alias":               {text: "alias/" + long, want: keyName{alias: long}},
		"an alias like a key ID":          {text: "alias/" + uuid, want: keyName{alias: uuid}},
		"an alias that nobody can have":   {text: "alias/aws/s3", want: keyName{alias: "aws/s3"}},
		"an alias's ARN":                  {text: arn + "team-a:alias/orders/x", want: keyName{alias: "orders/x", namespace: "team-a"}},
		"an ARN of another installation":  {text: "arn:datakeys:kms:0123456789ab:team-a:key/" + uuid, want: keyName{id: id, namespace: "team-a", elsewhere: true}},
		"an alias's ARN of another one":   {text: "arn:datakeys:kms:0123456789ab:team-a:alias/a", want: keyName{alias: "a", namespace: "team-a", elsewhere: true}},
		"an installation in upper case":   {text: strings.ToUpper(arn), says: form},
		"a key ID in upper case":          {text: "AAAAAAAA-1111-4111-8111-111111111111", says: form},
		"a key ID with a space":           {text: uuid + " ", says: form},
		"a name in upper case":            {text: "Orders", says: form},
		"a name with a slash":             {text: "team-a/orders", says: form},
		"key/ and a key ID":               {text: "key/" + uuid, says: form},
		"a multi-Region key of AWS":       {text: "mrk-1234abcd12ab34cd56ef1234567890ab", want: keyName{name: "mrk-1234abcd12ab34cd56ef1234567890ab"}},
		"another alphabet":                {text: "заказы", says: form},
		"no UTF-8":                        {text: "\xff", says: form},
		"an alias of nothing":             {text: "alias/", says: alias},
		"an alias that is too long":       {text: "alias/" + long + "a", says: alias},
		"an alias with a colon":           {text: "alias/a:b", says: alias},
		"an alias with a dot":             {text: "alias/a.b", says: alias},
		"an alias with a space":           {text: "alias/a b", says: alias},
		"Alias in upper case":             {text: "Alias/orders", says: form},
		"an ARN of AWS":                   {text: "arn:aws:kms:eu-west-1:111122223333:key/" + uuid, says: arns},
		"an ARN of another service":       {text: strings.Replace(arn, ":kms:", ":s3:", 1) + "team-a:key/" + uuid, says: arns},
		"an ARN without an installation":  {text: "arn:datakeys:kms::team-a:key/" + uuid, says: arns},
		"an ARN without a namespace":      {text: arn + ":key/" + uuid, says: arns},
		"an ARN with no namespace's name": {text: arn + "Team_A:key/" + uuid, says: arns},
		"an ARN with one part more":       {text: arn + "team-a:key/" + uuid + ":x", says: arns},
		"an ARN with one part less":       {text: arn + "key/" + uuid, says: arns},
		"an ARN of a bare key ID":         {text: arn + "team-a:" + uuid, says: arns},
		"an ARN of no key ID":             {text: arn + "team-a:key/orders", says: arns},
		"an ARN of a key ID in capitals":  {text: arn + "team-a:key/AAAAAAAA-1111-4111-8111-111111111111", says: arns},
		"an ARN of an alias of nothing":   {text: arn + "team-a:alias/", says: alias},
		"an ARN of an alias with a dot":   {text: arn + "team-a:alias/a.b", says: alias},
		"the longest that is read":        {text: strings.Repeat("a", 2048), says: form},
		"too long":                        {text: strings.Repeat("a", 2049), says: "key_id: must be at most 2048 bytes"},
		"nothing":                         {text: "", says: "key_id: must name a key"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := s.parseKeyName("key_id", c.text)
			if c.says == "" {
				c.want.field, c.want.text = "key_id", c.text
				if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(keyName{})); err != nil || diff != "" {
					t.Errorf("got error %v and (-want +got)\n%s", err, diff)
				}
				return
			}
			if CodeOf(err) != CodeInvalidArgument || !strings.Contains(err.Error(), c.says) || got != (keyName{}) {
				t.Errorf("got %+v and %v, want an error that says %q", got, err, c.says)
			}
			if reason := ReasonOf(err); reason != kmsv1.ReasonInvalidKeyName && c.text != "" && len(c.text) <= maxKeyName {
				t.Errorf("got the reason %s", reason)
			}
			if strings.Contains(err.Error(), s.seal.InstallID()) {
				t.Error("the error tells who has no token yet which installation this is")
			}
		})
	}
}

// FuzzParseKeyName: whatever is taken means one thing, and nothing else is spelt the same.
func FuzzParseKeyName(f *testing.F) {
	s, arn := namingService(f)
	const uuid = "11111111-1111-4111-8111-111111111111"
	for _, text := range []string{
		"", uuid, "orders", "alias/orders", arn + "team-a:key/" + uuid, arn + "team-a:alias/a/b", "arn:datakeys:kms:x:y:key/" + uuid, "arn:aws:kms:::",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := s.parseKeyName("key_id", text)
		if err != nil {
			if CodeOf(err) != CodeInvalidArgument {
				t.Errorf("%q: got %v", text, err)
			}
			return
		}
		spelt := ""
		switch isID := n.id != (envelope.KeyID{}); {
		case isID && n.name == "" && n.alias == "" && n.namespace == "":
			spelt = n.id.String()
		case isID && n.name == "" && n.alias == "":
			spelt = s.keyARN(n.namespace, n.id.String())
		case !isID && n.name != "" && n.alias == "" && n.namespace == "" && !n.elsewhere:
			spelt = n.name
		case !isID && n.name == "" && n.alias != "" && n.namespace == "":
			spelt = aliasPrefix + n.alias
		case !isID && n.name == "" && n.alias != "":
			spelt = s.aliasARN(n.namespace, n.alias)
		default:
			t.Fatalf("%q means %+v", text, n)
		}
		if n.elsewhere {
			_, theirs, _ := strings.Cut(text, "arn:datakeys:kms:")
			install, _, _ := strings.Cut(theirs, ":")
			if install == s.seal.InstallID() {
				t.Errorf("%q is of this installation", text)
			}
			spelt = strings.Replace(spelt, s.seal.InstallID(), install, 1)
		}
		if spelt != text {
			t.Errorf("%q is read as %q", text, spelt)
		}
	})
}
