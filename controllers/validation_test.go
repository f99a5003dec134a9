package controllers_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/datakeys/datakeys/api/v1alpha1"
)

// parse reads an object from YAML. The API server chooses the name.
func parse(t *testing.T, namespace, kind, spec string) *unstructured.Unstructured {
	t.Helper()
	object := &unstructured.Unstructured{}
	text := fmt.Sprintf("apiVersion: datakeys.io/v1alpha1\nkind: %s\nmetadata: {generateName: x-, namespace: %s}\n", kind, namespace)
	if spec != "" {
		text += "spec: " + spec + "\n"
	}
	if err := yaml.Unmarshal([]byte(text), &object.Object); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return object
}

func pairs(n int, key, value string) string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("%s%d: %q", key, i, value))
	}
	return "{" + strings.Join(out, ", ") + "}"
}

// What the API server refuses, with the field and the rule named.
func TestRefusedAtCreation(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	const (
		request = "DataKeyRequest"
		either  = `spec: Invalid value: exactly one of keySpec, numberOfBytes and keyPairSpec is required`
	)
	aad := func(n int) string {
		return fmt.Sprintf("{masterKeyRef: {name: k}, keySpec: AES_256, aad: %q}", base64.StdEncoding.EncodeToString(make([]byte, n)))
	}
	cases := map[string]struct {
		kind, spec string
		// want are parts of the message; without any the object is taken.
		want []string
	}{
		"a request by keySpec is taken":                    {request, `{masterKeyRef: {name: k}, keySpec: AES_128}`, nil},
		"a request of 1 byte is taken":                     {request, `{masterKeyRef: {name: k}, numberOfBytes: 1}`, nil},
		"a request of 1024 bytes is taken":                 {request, `{masterKeyRef: {name: k}, numberOfBytes: 1024}`, nil},
		"a request with all fields is taken":               {request, `{masterKeyRef: {namespace: other, name: k.example}, numberOfBytes: 64, encryptionContext: {a: ""}, deletionPolicy: Delete}`, nil},
		"a request without a spec":                         {request, ``, []string{"spec: Required value"}},
		"a request without a masterKeyRef":                 {request, `{keySpec: AES_256}`, []string{"spec.masterKeyRef: Required value"}},
		"a request with neither keySpec nor numberOfBytes": {request, `{masterKeyRef: {name: k}}`, []string{either}},
		"a request with both keySpec and numberOfBytes":    {request, `{masterKeyRef: {name: k}, keySpec: AES_256, numberOfBytes: 32}`, []string{either}},
		"0 bytes":                                          {request, `{masterKeyRef: {name: k}, numberOfBytes: 0}`, []string{"spec.numberOfBytes", "greater than or equal to 1"}},
		"1025 bytes":                                       {request, `{masterKeyRef: {name: k}, numberOfBytes: 1025}`, []string{"spec.numberOfBytes", "less than or equal to 1024"}},
		"-1 bytes":                                         {request, `{masterKeyRef: {name: k}, numberOfBytes: -1}`, []string{"spec.numberOfBytes", "greater than or equal to 1"}},
		"half a byte":                                      {request, `{masterKeyRef: {name: k}, numberOfBytes: 1.5}`, []string{"spec.numberOfBytes", "integer"}},
		"bytes beyond 32 bits":                             {request, `{masterKeyRef: {name: k}, numberOfBytes: 4294967297}`, []string{"spec.numberOfBytes"}},
		"an unknown keySpec":                               {request, `{masterKeyRef: {name: k}, keySpec: AES_512}`, []string{"spec.keySpec", `Unsupported value: "AES_512"`, `"AES_256", "AES_128"`}},
		"an empty keySpec":                                 {request, `{masterKeyRef: {name: k}, keySpec: ""}`, []string{"spec.keySpec", "Unsupported value"}},
		"an unknown deletionPolicy":                        {request, `{masterKeyRef: {name: k}, keySpec: AES_256, deletionPolicy: Orphan}`, []string{"spec.deletionPolicy", `Unsupported value: "Orphan"`, `"Retain", "Delete"`}},
		"a masterKeyRef without a name":                    {request, `{masterKeyRef: {namespace: n}, keySpec: AES_256}`, []string{"spec.masterKeyRef.name: Required value"}},
		"a masterKeyRef with an empty name":                {request, `{masterKeyRef: {name: ""}, keySpec: AES_256}`, []string{"spec.masterKeyRef.name", "at least 1"}},
		"a masterKeyRef with a bad name":                   {request, `{masterKeyRef: {name: Not_A_Name}, keySpec: AES_256}`, []string{"spec.masterKeyRef.name", "name must be a lower-case DNS subdomain (RFC 1123)"}},
		"a masterKeyRef with a long name":                  {request, `{masterKeyRef: {name: ` + strings.Repeat("a", 254) + `}, keySpec: AES_256}`, []string{"spec.masterKeyRef.name", "253"}},
		"a masterKeyRef with a bad namespace":              {request, `{masterKeyRef: {namespace: a.b, name: k}, keySpec: AES_256}`, []string{"spec.masterKeyRef.namespace", "namespace must be a lower-case DNS label (RFC 1123)"}},
		"a masterKeyRef with an empty namespace":           {request, `{masterKeyRef: {namespace: "", name: k}, keySpec: AES_256}`, []string{"spec.masterKeyRef.namespace", "at least 1"}},
		"an empty encryption context":                      {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: {}}`, []string{"spec.encryptionContext", "at least 1"}},
		"an encryption context of 64 pairs is taken":       {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: ` + pairs(64, "k", "v") + `}`, nil},
		"an encryption context of 65 pairs":                {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: ` + pairs(65, "k", "v") + `}`, []string{"spec.encryptionContext", "64"}},
		"an encryption context with an empty key":          {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: {"": v}}`, []string{"spec.encryptionContext", "a key of encryptionContext has 1 to 1024 bytes"}},
		"an encryption context with a long key":            {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: {? ` + strings.Repeat("k", 1025) + ` : v}}`, []string{"spec.encryptionContext", "a key of encryptionContext has 1 to 1024 bytes"}},
		"an encryption context with a long value":          {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: {k: ` + strings.Repeat("v", 4097) + `}}`, []string{"spec.encryptionContext.k: Too long: may not be more than 4096"}},
		"an encryption context with a value of many bytes": {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: {k: ` + strings.Repeat("é", 2049) + `}}`, []string{"spec.encryptionContext", "a value of encryptionContext has at most 4096 bytes"}},
		"an encryption context that is long in all":        {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: ` + pairs(3, "k", strings.Repeat("v", 2730)) + `}`, []string{"spec.encryptionContext", "encryptionContext has at most 8192 bytes in all"}},
		"an encryption context whose bytes are too many":   {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: ` + pairs(3, "k", strings.Repeat("é", 1365)) + `}`, []string{"spec.encryptionContext", "encryptionContext has at most 8192 bytes in all"}},
		"an encryption context that is just right":         {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: ` + pairs(2, "k", strings.Repeat("é", 2047)) + `}`, nil},
		"an encryption context with a number":              {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: {k: 1}}`, []string{"spec.encryptionContext.k", "string"}},
		"a request with neither, but an aad":               {request, `{masterKeyRef: {name: k}, aad: AA==}`, []string{either}},
		"keySpec beside keyPairSpec":                       {request, `{masterKeyRef: {name: k}, keySpec: AES_256, keyPairSpec: RSA_2048}`, []string{either}},
		"numberOfBytes beside keyPairSpec":                 {request, `{masterKeyRef: {name: k}, numberOfBytes: 32, keyPairSpec: RSA_2048}`, []string{either}},
		"all three of them":                                {request, `{masterKeyRef: {name: k}, keySpec: AES_256, numberOfBytes: 32, keyPairSpec: RSA_2048}`, []string{either}},
		"an unknown keyPairSpec":                           {request, `{masterKeyRef: {name: k}, keyPairSpec: RSA_1024}`, []string{"spec.keyPairSpec", `Unsupported value: "RSA_1024"`, `"RSA_2048", "RSA_3072", "RSA_4096"`}},
		"an empty keyPairSpec":                             {request, `{masterKeyRef: {name: k}, keyPairSpec: ""}`, []string{"spec.keyPairSpec", "Unsupported value"}},
		"a keyPairSpec in lower case":                      {request, `{masterKeyRef: {name: k}, keyPairSpec: ecc_nist_p256}`, []string{"spec.keyPairSpec", "Unsupported value"}},
		"a key pair with an encryption context is taken":   {request, `{masterKeyRef: {name: k}, keyPairSpec: ECC_NIST_P256, encryptionContext: {a: b}}`, nil},
		"a key pair with an aad is taken":                  {request, `{masterKeyRef: {name: k}, keyPairSpec: ECC_NIST_P256, aad: AAEC}`, nil},
		"an aad beside an encryption context":              {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: {a: b}, aad: AAEC}`, []string{"spec", "at most one of encryptionContext and aad is allowed"}},
		"an empty aad":                                     {request, aad(0), []string{"spec.aad", "at least 1"}},
		"an aad with a plus and a slash is taken":          {request, `{masterKeyRef: {name: k}, keySpec: AES_256, aad: "+/+/"}`, nil},
		"an aad with padding in its middle":                {request, `{masterKeyRef: {name: k}, keySpec: AES_256, aad: "AA==AAEC"}`, []string{"spec.aad", "aad must be base64"}},
		"an aad of 1 byte is taken":                        {request, aad(1), nil},
		"an aad of 8192 bytes is taken":                    {request, aad(8192), nil},
		"an aad of 8193 bytes":                             {request, aad(8193), []string{"spec.aad", "aad has at most 8192 bytes"}},
		"an aad that is far too long":                      {request, aad(8194), []string{"spec.aad", "10924"}},
		"an aad that is no base64":                         {request, `{masterKeyRef: {name: k}, keySpec: AES_256, aad: "not base64!"}`, []string{"spec.aad", "aad must be base64 with padding (RFC 4648, section 4)"}},
		"an aad in the alphabet of URLs":                   {request, `{masterKeyRef: {name: k}, keySpec: AES_256, aad: "__-_"}`, []string{"spec.aad", "aad must be base64 with padding (RFC 4648, section 4)"}},
		"an aad without its padding":                       {request, `{masterKeyRef: {name: k}, keySpec: AES_256, aad: AA}`, []string{"spec.aad", "aad must be base64 with padding (RFC 4648, section 4)"}},
		"an aad of two lines":                              {request, `{masterKeyRef: {name: k}, keySpec: AES_256, aad: "AAEC\nAAEC"}`, []string{"spec.aad", "aad must be base64 with padding (RFC 4648, section 4)"}},
		"an aad that is a number":                          {request, `{masterKeyRef: {name: k}, keySpec: AES_256, aad: 7}`, []string{"spec.aad", "must be of type string"}},
		"an unknown field":                                 {request, `{masterKeyRef: {name: k}, keySpec: AES_256, keySpecs: AES_256}`, []string{`unknown field "spec.keySpecs"`}},

		"a MasterKey without a spec is taken":        {"MasterKey", ``, nil},
		"a MasterKey with an empty spec is taken":    {"MasterKey", `{}`, nil},
		"a MasterKey with all fields is taken":       {"MasterKey", `{description: for the orders, keySpec: AES_256}`, nil},
		"a MasterKey of an unknown keySpec":          {"MasterKey", `{keySpec: RSA_2048}`, []string{"spec.keySpec", `Unsupported value: "RSA_2048"`, `"AES_256"`}},
		"a MasterKey with an empty description":      {"MasterKey", `{description: ""}`, []string{"spec.description", "at least 1"}},
		"a MasterKey with a long description":        {"MasterKey", `{description: ` + strings.Repeat("d", 8193) + `}`, []string{"spec.description", "8192"}},
		"a MasterKey with an unknown field":          {"MasterKey", `{states: Disabled}`, []string{`unknown field "spec.states"`}},
		"a MasterKey with a description of a number": {"MasterKey", `{description: 1}`, []string{"spec.description", "string"}},
	}
	for _, spec := range v1alpha1.KeyPairSpecs() {
		c := cases["a request by keySpec is taken"]
		c.spec = fmt.Sprintf("{masterKeyRef: {name: k}, keyPairSpec: %s}", spec)
		cases["a request for "+string(spec)+" is taken"] = c
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := c.client.Create(t.Context(), parse(t, c.namespace, tc.kind, tc.spec), client.DryRunAll, client.FieldValidation("Strict"))
			checkRefusal(t, err, tc.want)
		})
	}
}

// What cannot be changed, with the field and the rule named.
func TestRefusedAtUpdate(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	const (
		request = "DataKeyRequest"
		either  = "keySpec, numberOfBytes and keyPairSpec are immutable: make another DataKeyRequest instead"
		context = "encryptionContext is immutable: make another DataKeyRequest instead"
		aad     = "aad is immutable: make another DataKeyRequest instead"
	)
	for name, tc := range map[string]struct {
		kind, from, to string
		want           []string
	}{
		"the deletionPolicy may change":             {request, `{masterKeyRef: {name: k}, keySpec: AES_256}`, `{masterKeyRef: {name: k}, keySpec: AES_256, deletionPolicy: Delete}`, nil},
		"the same again is taken":                   {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: {a: b}}`, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: {a: b}}`, nil},
		"another keySpec":                           {request, `{masterKeyRef: {name: k}, keySpec: AES_256}`, `{masterKeyRef: {name: k}, keySpec: AES_128}`, []string{"spec.keySpec", "keySpec is immutable: make another DataKeyRequest instead"}},
		"another numberOfBytes":                     {request, `{masterKeyRef: {name: k}, numberOfBytes: 1}`, `{masterKeyRef: {name: k}, numberOfBytes: 2}`, []string{"spec.numberOfBytes", "numberOfBytes is immutable: make another DataKeyRequest instead"}},
		"numberOfBytes instead of keySpec":          {request, `{masterKeyRef: {name: k}, keySpec: AES_256}`, `{masterKeyRef: {name: k}, numberOfBytes: 32}`, []string{"spec", either}},
		"keySpec instead of numberOfBytes":          {request, `{masterKeyRef: {name: k}, numberOfBytes: 32}`, `{masterKeyRef: {name: k}, keySpec: AES_256}`, []string{"spec", either}},
		"another MasterKey":                         {request, `{masterKeyRef: {name: k}, keySpec: AES_256}`, `{masterKeyRef: {name: l}, keySpec: AES_256}`, []string{"spec.masterKeyRef", "masterKeyRef is immutable: make another DataKeyRequest instead"}},
		"a namespace for the MasterKey":             {request, `{masterKeyRef: {name: k}, keySpec: AES_256}`, `{masterKeyRef: {namespace: other, name: k}, keySpec: AES_256}`, []string{"spec.masterKeyRef", "masterKeyRef is immutable"}},
		"no namespace for the MasterKey":            {request, `{masterKeyRef: {namespace: other, name: k}, keySpec: AES_256}`, `{masterKeyRef: {name: k}, keySpec: AES_256}`, []string{"spec.masterKeyRef", "masterKeyRef is immutable"}},
		"another value in the context":              {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: {a: b}}`, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: {a: c}}`, []string{"spec.encryptionContext", context}},
		"another pair in the context":               {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: {a: b}}`, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: {a: b, c: d}}`, []string{"spec.encryptionContext", context}},
		"a context where there was none":            {request, `{masterKeyRef: {name: k}, keySpec: AES_256}`, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: {a: b}}`, []string{"spec", context}},
		"no context where there was one":            {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: {a: b}}`, `{masterKeyRef: {name: k}, keySpec: AES_256}`, []string{"spec", context}},
		"another keyPairSpec":                       {request, `{masterKeyRef: {name: k}, keyPairSpec: RSA_2048}`, `{masterKeyRef: {name: k}, keyPairSpec: RSA_3072}`, []string{"spec.keyPairSpec", "keyPairSpec is immutable: make another DataKeyRequest instead"}},
		"keyPairSpec instead of keySpec":            {request, `{masterKeyRef: {name: k}, keySpec: AES_256}`, `{masterKeyRef: {name: k}, keyPairSpec: RSA_2048}`, []string{"spec", either}},
		"numberOfBytes instead of keyPairSpec":      {request, `{masterKeyRef: {name: k}, keyPairSpec: RSA_2048}`, `{masterKeyRef: {name: k}, numberOfBytes: 32}`, []string{"spec", either}},
		"another aad":                               {request, `{masterKeyRef: {name: k}, keySpec: AES_256, aad: AAEC}`, `{masterKeyRef: {name: k}, keySpec: AES_256, aad: AAED}`, []string{"spec.aad", aad}},
		"an aad where there was none":               {request, `{masterKeyRef: {name: k}, keySpec: AES_256}`, `{masterKeyRef: {name: k}, keySpec: AES_256, aad: AAEC}`, []string{"spec", aad}},
		"no aad where there was one":                {request, `{masterKeyRef: {name: k}, keySpec: AES_256, aad: AAEC}`, `{masterKeyRef: {name: k}, keySpec: AES_256}`, []string{"spec", aad}},
		"an aad instead of a context":               {request, `{masterKeyRef: {name: k}, keySpec: AES_256, encryptionContext: {a: b}}`, `{masterKeyRef: {name: k}, keySpec: AES_256, aad: AAEC}`, []string{"spec", aad, context}},
		"the same key pair again is taken":          {request, `{masterKeyRef: {name: k}, keyPairSpec: RSA_2048, aad: AAEC}`, `{masterKeyRef: {name: k}, keyPairSpec: RSA_2048, aad: AAEC, deletionPolicy: Delete}`, nil},
		"the description of a MasterKey may change": {"MasterKey", `{description: a}`, `{description: b}`, nil},
		"the description of a MasterKey may go":     {"MasterKey", `{description: a}`, ``, nil},
		"another keySpec of a MasterKey":            {"MasterKey", ``, `{keySpec: AES_128}`, []string{"spec.keySpec", "Unsupported value"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before, after := parse(t, c.namespace, tc.kind, tc.from), parse(t, c.namespace, tc.kind, tc.to)
			if err := c.client.Create(t.Context(), before); err != nil {
				t.Fatal(err)
			}

			after.SetName(before.GetName())
			after.SetResourceVersion(before.GetResourceVersion())
			checkRefusal(t, c.client.Update(t.Context(), after, client.DryRunAll), tc.want)
		})
	}
}

func checkRefusal(t *testing.T, err error, want []string) {
	t.Helper()
	if want == nil {
		if err != nil {
			t.Errorf("got error %v, want none", err)
		}
		return
	}
	if !apierrors.IsInvalid(err) && !apierrors.IsBadRequest(err) {
		t.Fatalf("got error %v, want a refusal", err)
	}
	for _, part := range want {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("got error %v, want it to say %s", err, part)
		}
	}
}
