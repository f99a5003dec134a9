package envelope

import (
	"bytes"
	"cmp"
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// Commit new vectors only with a change of docs/format.md that explains them: an old vector never changes.
var update = flag.Bool("update", false, "rewrite testdata/vectors.json and messages.json")

const vectorsFile = "testdata/vectors.json"

// vectors is the file of test vectors. It needs none of this package's code to be read: docs/format.md says how.
type vectors struct {
	Good    []goodVector    `json:"good"`
	Bad     []badVector     `json:"bad"`
	Invalid []invalidVector `json:"invalid"`
}

type goodVector struct {
	Name     string       `json:"name"`
	Material hexBytes     `json:"material"`
	Header   vectorHeader `json:"header"`
	vectorAssociated
	Plaintext  hexBytes `json:"plaintext"`
	Salt       hexBytes `json:"salt"`
	IV         hexBytes `json:"iv"`
	Info       hexBytes `json:"info"`
	Key        hexBytes `json:"key"`
	Commitment hexBytes `json:"commitment"`
	Blob       hexBytes `json:"blob"`
}

type badVector struct {
	Name     string   `json:"name"`
	Material hexBytes `json:"material"`
	vectorAssociated
	Caller *vectorKey `json:"caller,omitempty"` // the key that the caller holds; without it, the one that the header names
	Blob   hexBytes   `json:"blob"`
	Error  string     `json:"error"` // "not mine" or "broken"
}

// invalidVector is associated data that no blob can be bound to.
type invalidVector struct {
	Name string `json:"name"`
	vectorAssociated
}

type vectorKey struct {
	KeyID      string   `json:"keyId"`
	KeyVersion uint32   `json:"keyVersion"`
	MaterialID hexBytes `json:"materialId"`
}

type vectorHeader struct {
	Kind       uint8        `json:"kind"`
	KeyID      string       `json:"keyId"`
	KeyVersion uint32       `json:"keyVersion"`
	MaterialID hexBytes     `json:"materialId"`
	Scope      *vectorScope `json:"scope,omitempty"`
}

type vectorScope struct {
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	Generation uint32 `json:"generation"`
}

type vectorAssociated struct {
	Context map[string]string `json:"context,omitempty"`
	Raw     hexBytes          `json:"raw,omitempty"`
}

type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

func (h vectorHeader) header(t testing.TB) Header {
	t.Helper()
	id, err := ParseKeyID(h.KeyID)
	if err != nil {
		t.Fatal(err)
	}
	out := Header{Kind: Kind(h.Kind), KeyID: id, KeyVersion: h.KeyVersion, MaterialID: MaterialID(h.MaterialID)}
	if h.Scope != nil {
		out.Scope = Scope(*h.Scope)
	}
	return out
}

func (k vectorKey) id(t testing.TB) (KeyID, uint32, MaterialID) {
	t.Helper()
	id, err := ParseKeyID(k.KeyID)
	if err != nil {
		t.Fatal(err)
	}
	return id, k.KeyVersion, MaterialID(k.MaterialID)
}

func (a vectorAssociated) data() AssociatedData {
	return AssociatedData{Context: a.Context, Raw: a.Raw}
}

func readVectors(t testing.TB) vectors {
	t.Helper()
	b, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// straight is a second implementation of docs/format.md, written for reading: it shares no code with the package, and
// takes the salt and the IV that Seal draws at random. Of a message, material is the data key.
type straight struct {
	label              string // "" for that of blobs
	material, salt, iv []byte
	header             []byte
	associated         []byte
	plaintext          []byte

	additional       []byte // what a wrong writer might give to AES-GCM; the format gives it nothing
	changeCommitment bool
}

func (s straight) info() []byte {
	return slices.Concat([]byte(cmp.Or(s.label, "datakeys.io/blob/v1\x00")), s.header, s.associated)
}

func (s straight) derive() (key, commitment []byte) {
	mac := func(key []byte, message ...[]byte) []byte {
		h := hmac.New(sha256.New, key)
		h.Write(slices.Concat(message...))
		return h.Sum(nil)
	}
	prk := mac(s.salt, s.material)
	key = mac(prk, s.info(), []byte{1})
	commitment = mac(prk, key, s.info(), []byte{2})
	return key, commitment
}

func (s straight) blob() []byte {
	key, commitment := s.derive()
	if s.changeCommitment {
		commitment[0] ^= 1
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	var sealed []byte
	// Under fips140=only nobody may choose an IV, but a vector has one that repeats.
	fips140.WithoutEnforcement(func() {
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			panic(err)
		}
		sealed = gcm.Seal(nil, s.iv, s.plaintext, s.additional)
	})
	return slices.Concat(s.header, s.salt, commitment, s.iv, sealed)
}

func be32(n int) []byte { return []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)} }

func straightHeader(h vectorHeader) []byte {
	id, err := hex.DecodeString(strings.ReplaceAll(h.KeyID, "-", ""))
	if err != nil {
		panic(err)
	}
	scope := vectorScope{}
	if h.Scope != nil {
		scope = *h.Scope
	}
	return slices.Concat(
		[]byte{1, 1, h.Kind},
		id,
		be32(int(h.KeyVersion)),
		h.MaterialID,
		[]byte{byte(len(scope.Namespace))}, []byte(scope.Namespace),
		[]byte{byte(len(scope.Name))}, []byte(scope.Name),
		be32(int(scope.Generation)),
	)
}

func straightAssociated(a vectorAssociated) []byte {
	if len(a.Raw) > 0 {
		return slices.Concat([]byte{2}, be32(len(a.Raw)), a.Raw)
	}
	if len(a.Context) == 0 {
		return []byte{0}
	}
	var keys []string
	for k := range a.Context {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, strings.Compare) // byte by byte
	out := append([]byte{1}, be32(len(keys))...)
	for _, k := range keys {
		v := a.Context[k]
		out = slices.Concat(out, be32(len(k)), []byte(k), be32(len(v)), []byte(v))
	}
	return out
}

// counted returns n bytes that count up from first: values to recognize, in vectors only.
func counted(first byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

var (
	vectorMaterial = counted(0x00, 32)
	vectorSalt     = counted(0x40, 32)
	vectorIV       = counted(0xa0, 12)
	vectorTeam     = &vectorScope{Namespace: "team-a", Name: "orders", Generation: 1}
)

func kindHeader(kind Kind, scope *vectorScope) vectorHeader {
	return vectorHeader{
		Kind:       uint8(kind),
		KeyID:      "6ba7b810-9dad-41d1-80b4-00c04fd430c8",
		KeyVersion: 1,
		MaterialID: counted(0x20, 16),
		Scope:      scope,
	}
}

func makeVectors() vectors {
	long := &vectorScope{
		Namespace:  strings.Repeat("n", 63),
		Name:       strings.Repeat("a", 126) + "." + strings.Repeat("b", 126),
		Generation: 4294967295,
	}
	lastVersion := kindHeader(KindDataKey, long)
	lastVersion.KeyVersion = 4294967295
	masterKeyID, err := hex.DecodeString("0d1f4d2c6e5f4a3b9c8d7e6f5a4b3c2d")
	if err != nil {
		panic(err)
	}
	none := vectorAssociated{}
	context := vectorAssociated{Context: map[string]string{"tenant": "a", "purpose": "orders"}}
	raw := vectorAssociated{Raw: hexBytes("raw associated data")}
	material := slices.Concat(counted(0x60, 16), counted(0xc0, 32))

	var v vectors
	good := func(name string, header vectorHeader, associated vectorAssociated, plaintext []byte) {
		s := straight{
			material: vectorMaterial, salt: vectorSalt, iv: vectorIV,
			header: straightHeader(header), associated: straightAssociated(associated), plaintext: plaintext,
		}
		key, commitment := s.derive()
		v.Good = append(v.Good, goodVector{
			Name: name, Material: s.material, Header: header, vectorAssociated: associated, Plaintext: plaintext,
			Salt: s.salt, IV: s.iv, Info: s.info(), Key: key, Commitment: commitment, Blob: s.blob(),
		})
	}
	for _, c := range []struct {
		name       string
		header     vectorHeader
		associated vectorAssociated
		plaintext  []byte
	}{
		{"data key without associated data", kindHeader(KindDataKey, vectorTeam), none, counted(0x80, 32)},
		{"data key with a context", kindHeader(KindDataKey, vectorTeam), context, counted(0x80, 32)},
		{"data key with raw associated data", kindHeader(KindDataKey, vectorTeam), raw, counted(0x80, 16)},
		{"longest scope, last key version and generation", lastVersion, context, counted(0x80, 32)},
		{"AWS door", kindHeader(KindAWS, nil), context, counted(0x80, 32)},
		{
			"context of an empty key and an empty value", kindHeader(KindAWS, nil),
			vectorAssociated{Context: map[string]string{"": "", "a": ""}},
			counted(0x80, 32),
		},
		{
			"context whose order differs between UTF-8 and UTF-16", kindHeader(KindAWS, nil),
			vectorAssociated{Context: map[string]string{"\uff5e": "first", "\U0001f511": "second", "\u00fc": "zeroth"}},
			counted(0x80, 32),
		},
		{"one byte of plaintext", kindHeader(KindAWS, nil), none, []byte{0x80}},
		{"largest plaintext", kindHeader(KindAWS, nil), none, counted(0x80, 4096)},
		{
			"more info than some libraries' HKDF takes", kindHeader(KindAWS, nil),
			vectorAssociated{Raw: counted(0x00, 2500)},
			counted(0x80, 32),
		},
		{"Alibaba initial", kindHeader(KindAlibabaInitial, nil), raw, counted(0x80, 32)},
		{"Alibaba advance", kindHeader(KindAlibabaAdvance, nil), raw, counted(0x80, 32)},
		{
			"master key version", kindHeader(KindMasterKeyVersion, &vectorScope{Namespace: "team-a", Name: "orders", Generation: 2}),
			vectorAssociated{Raw: masterKeyID},
			material,
		},
		{"sealing key", kindHeader(KindSealingKey, nil), none, material},
	} {
		good(c.name, c.header, c.associated, c.plaintext)
	}
	moreGoodVectors(good)

	bad := func(name, class string, associated vectorAssociated, change func(*straight)) {
		s := straight{
			material: vectorMaterial, salt: vectorSalt, iv: vectorIV,
			header:     straightHeader(kindHeader(KindDataKey, vectorTeam)),
			associated: straightAssociated(associated), plaintext: counted(0x80, 32),
		}
		change(&s)
		v.Bad = append(v.Bad, badVector{
			Name: name, Material: vectorMaterial, vectorAssociated: associated, Blob: s.blob(), Error: class,
		})
	}
	// The blobs of this block authenticate: only a reader that checks every field refuses them.
	header := func(name, class string, h vectorHeader, change func([]byte)) {
		bad(name, class, none, func(s *straight) {
			s.header = straightHeader(h)
			if change != nil {
				change(s.header)
			}
		})
	}
	dataKey, aws := kindHeader(KindDataKey, vectorTeam), kindHeader(KindAWS, nil)
	header("format version 0", "not mine", dataKey, func(b []byte) { b[0] = 0 })
	header("format version 2", "not mine", dataKey, func(b []byte) { b[0] = 2 })
	header("algorithm 0", "not mine", dataKey, func(b []byte) { b[1] = 0 })
	header("algorithm 2", "not mine", dataKey, func(b []byte) { b[1] = 2 })
	header("kind 0", "broken", aws, func(b []byte) { b[2] = 0 })
	header("kind 7", "broken", aws, func(b []byte) { b[2] = 7 })
	header("kind 255", "broken", aws, func(b []byte) { b[2] = 255 })
	header("nil key ID", "broken", aws, func(b []byte) { clear(b[3:19]) })
	header("key version 0", "broken", aws, func(b []byte) { clear(b[19:23]) })
	header("zero material ID", "broken", aws, func(b []byte) { clear(b[23:39]) })
	header("data key without scope", "broken", kindHeader(KindDataKey, nil), nil)
	header("master key version without scope", "broken", kindHeader(KindMasterKeyVersion, nil), nil)
	for _, kind := range []Kind{KindAWS, KindAlibabaInitial, KindAlibabaAdvance, KindSealingKey} {
		header(kind.String()+" with a scope", "broken", kindHeader(kind, vectorTeam), nil)
		header(kind.String()+" with a generation alone", "broken", kindHeader(kind, &vectorScope{Generation: 1}), nil)
	}
	for name, scope := range map[string]vectorScope{
		"scope without generation":                  {"team-a", "orders", 0},
		"scope without namespace":                   {"", "orders", 1},
		"scope without name":                        {"team-a", "", 1},
		"scope namespace with a capital letter":     {"Team-a", "orders", 1},
		"scope namespace with a dot":                {"team.a", "orders", 1},
		"scope namespace that starts with a hyphen": {"-team", "orders", 1},
		"scope namespace that ends with a hyphen":   {"team-", "orders", 1},
		"scope namespace of 64 bytes":               {strings.Repeat("n", 64), "orders", 1},
		"scope name with a slash":                   {"team-a", "or/ders", 1},
		"scope name with an underscore":             {"team-a", "or_ders", 1},
		"scope name with an empty label":            {"team-a", "or..ders", 1},
		"scope name that ends with a dot":           {"team-a", "orders.", 1},
		"scope name with a hyphen before a dot":     {"team-a", "or-.ders", 1},
		"scope name outside ASCII":                  {"team-a", "\u00f6rders", 1},
		"scope name of 254 bytes":                   {"team-a", strings.Repeat("a", 254), 1},
	} {
		header(name, "broken", kindHeader(KindDataKey, &scope), nil)
	}
	slices.SortFunc(v.Bad, func(a, b badVector) int { return strings.Compare(a.Name, b.Name) })
	bad("empty plaintext", "broken", none, func(s *straight) { s.plaintext = nil })
	bad("plaintext of 4097 bytes", "broken", none, func(s *straight) { s.plaintext = make([]byte, 4097) })

	bad("another context", "broken", context, func(s *straight) {
		s.associated = straightAssociated(vectorAssociated{Context: map[string]string{"tenant": "b", "purpose": "orders"}})
	})
	bad("a pair less", "broken", context, func(s *straight) {
		s.associated = straightAssociated(vectorAssociated{Context: map[string]string{"tenant": "a"}})
	})
	bad("context cut between key and value elsewhere", "broken", vectorAssociated{Context: map[string]string{"a": "bc"}}, func(s *straight) {
		s.associated = straightAssociated(vectorAssociated{Context: map[string]string{"ab": "c"}})
	})
	bad("raw associated data that spells an encoded context", "broken", vectorAssociated{Raw: straightAssociated(context)},
		func(s *straight) { s.associated = straightAssociated(context) })
	bad("context in UTF-16 order", "broken", vectorAssociated{Context: map[string]string{"\uff5e": "", "\U0001f511": ""}}, func(s *straight) {
		s.associated = slices.Concat([]byte{1}, be32(2),
			be32(4), []byte("\U0001f511"), be32(0), be32(3), []byte("\uff5e"), be32(0))
	})
	bad("empty raw associated data encoded as such", "broken", none, func(s *straight) { s.associated = []byte{2, 0, 0, 0, 0} })
	bad("empty context encoded as such", "broken", none, func(s *straight) { s.associated = []byte{1, 0, 0, 0, 0} })
	bad("other material", "broken", none, func(s *straight) { s.material = counted(0x01, 32) })
	bad("header as additional data of AES-GCM", "broken", none, func(s *straight) { s.additional = s.header })
	bad("commitment to another key", "broken", none, func(s *straight) { s.changeCommitment = true })

	bytesOf := func(name, class string, change func([]byte) []byte) {
		v.Bad = append(v.Bad, badVector{Name: name, Material: vectorMaterial, Blob: change(slices.Clone(v.Good[0].Blob)), Error: class})
	}
	bytesOf("no bytes", "broken", func([]byte) []byte { return nil })
	bytesOf("trailing byte", "broken", func(b []byte) []byte { return append(b, 0) })
	bytesOf("last byte missing", "broken", func(b []byte) []byte { return b[:len(b)-1] })
	bytesOf("one generation later", "broken", func(b []byte) []byte { b[39+1+6+1+6+3]++; return b })
	bytesOf("another namespace", "broken", func(b []byte) []byte { b[39+1+5] = 'b'; return b })
	bytesOf("data key relabelled as master key version", "broken", func(b []byte) []byte { b[2] = byte(KindMasterKeyVersion); return b })
	bytesOf("changed salt", "broken", func(b []byte) []byte { b[57] ^= 1; return b })
	bytesOf("changed IV", "broken", func(b []byte) []byte { b[57+64] ^= 1; return b })
	bytesOf("changed ciphertext", "broken", func(b []byte) []byte { b[57+64+12] ^= 1; return b })
	bytesOf("changed tag", "broken", func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
	relabelled := slices.Clone(v.Good[4].Blob)
	relabelled[2] = byte(KindAlibabaAdvance)
	v.Bad = append(v.Bad, badVector{
		Name: "AWS relabelled as Alibaba advance", Material: vectorMaterial,
		vectorAssociated: context, Blob: relabelled, Error: "broken",
	})

	moreBadVectors(header, bytesOf)
	v.Bad = append(v.Bad, vectorsOfOtherCallers(v.Good[0])...)
	v.Invalid = invalidVectors()
	return v
}

func moreGoodVectors(good func(name string, header vectorHeader, associated vectorAssociated, plaintext []byte)) {
	none := vectorAssociated{}
	context := vectorAssociated{Context: map[string]string{"tenant": "a", "purpose": "orders"}}
	raw := vectorAssociated{Raw: hexBytes("raw associated data")}
	for _, kind := range []Kind{KindAWS, KindAlibabaInitial, KindAlibabaAdvance} {
		good(kind.String()+", no associated data", kindHeader(kind, nil), none, counted(0x80, 32))
		good(kind.String()+", context", kindHeader(kind, nil), context, counted(0x80, 32))
		good(kind.String()+", raw associated data", kindHeader(kind, nil), raw, counted(0x80, 32))
	}

	sealingKeyID := hexBytes{0x7d, 0x44, 0x48, 0x40, 0x9d, 0xc0, 0x41, 0xd1, 0xb2, 0x45, 0x5f, 0xfd, 0xce, 0x74, 0xfa, 0xd2}
	good("sealing key, bound to its key ID, version 3 and installation", kindHeader(KindSealingKey, nil),
		vectorAssociated{Raw: slices.Concat(sealingKeyID, be32(3), []byte("14ece6b5b7c4"))},
		slices.Concat(counted(0x60, 16), counted(0xc0, 32)))

	longest := kindHeader(KindDataKey, &vectorScope{
		Namespace: strings.Repeat("n", 63), Name: strings.Repeat("a.", 126) + "b", Generation: 1,
	})
	good("largest blob", longest, none, counted(0x80, 4096))
	good("shortest scope", kindHeader(KindDataKey, &vectorScope{Namespace: "a", Name: "0", Generation: 1}), none, counted(0x80, 24))
	good("scope with hyphens and dots", kindHeader(KindDataKey, &vectorScope{Namespace: "0-a--9", Name: "a-0.b--c.9", Generation: 65536}),
		none, counted(0x80, 32))
	good("1024 bytes of plaintext", kindHeader(KindDataKey, vectorTeam), none, counted(0x80, 1024))

	good("context in which one key begins another", kindHeader(KindAWS, nil),
		vectorAssociated{Context: map[string]string{"ab": "c", "a": "bc", "a\x00": "NUL", "A": "case counts"}}, counted(0x80, 32))
	good("context composed and decomposed, which are two keys", kindHeader(KindAWS, nil),
		vectorAssociated{Context: map[string]string{"\u00e9": "composed", "e\u0301": "decomposed"}}, counted(0x80, 32))
	good("context of values that look like something else", kindHeader(KindAWS, nil),
		vectorAssociated{Context: map[string]string{"json": `{"a":"b"}`, "list": "1,b=2", "null": "null", "line": "a\r\nb", "__proto__": "a name"}},
		counted(0x80, 32))
	good("context of 1024 pairs and 8192 bytes", kindHeader(KindAWS, nil), vectorAssociated{Context: numberedPairs(1024)}, counted(0x80, 32))
	good("raw associated data of one byte", kindHeader(KindAlibabaAdvance, nil), vectorAssociated{Raw: hexBytes{0}}, counted(0x80, 32))
	good("raw associated data of 8192 bytes", kindHeader(KindAlibabaAdvance, nil), vectorAssociated{Raw: counted(0x00, 8192)}, counted(0x80, 32))
}

// numberedPairs returns n pairs of 8 bytes each.
func numberedPairs(n int) map[string]string {
	pairs := make(map[string]string, n)
	for i := range n {
		pairs[fmt.Sprintf("%04d", i)] = fmt.Sprintf("%04x", i)
	}
	return pairs
}

func moreBadVectors(
	header func(name, class string, h vectorHeader, change func([]byte)),
	bytesOf func(name, class string, change func([]byte) []byte),
) {
	for _, kind := range []Kind{KindAWS, KindAlibabaInitial, KindAlibabaAdvance, KindSealingKey} {
		header(kind.String()+" with a namespace alone", "broken", kindHeader(kind, &vectorScope{Namespace: "team-a"}), nil)
		header(kind.String()+" with a name alone", "broken", kindHeader(kind, &vectorScope{Name: "orders"}), nil)
	}
	for _, c := range []struct {
		name  string
		scope vectorScope
	}{
		{"scope namespace outside ASCII", vectorScope{"t\u00e9am", "orders", 1}},
		{"scope namespace that ends with a line feed", vectorScope{"team-a\n", "orders", 1}},
		{"scope namespace with a zero byte", vectorScope{"team\x00a", "orders", 1}},
		{"scope name that starts with a dot", vectorScope{"team-a", ".orders", 1}},
		{"scope name that starts with a hyphen", vectorScope{"team-a", "-orders", 1}},
		{"scope name that ends with a hyphen", vectorScope{"team-a", "orders-", 1}},
		{"scope name with a hyphen behind a dot", vectorScope{"team-a", "or.-ders", 1}},
		{"scope name with a capital letter", vectorScope{"team-a", "Orders", 1}},
		{"scope name that ends with a line feed", vectorScope{"team-a", "orders\n", 1}},
		{"scope name with a space", vectorScope{"team-a", "or ders", 1}},
	} {
		header(c.name, "broken", kindHeader(KindDataKey, &c.scope), nil)
	}
	header("master key version without generation", "broken", kindHeader(KindMasterKeyVersion, &vectorScope{"team-a", "orders", 0}), nil)

	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }
	bytesOf("format version alone", "broken", cut(1))
	bytesOf("another format version alone", "not mine", func([]byte) []byte { return []byte{2} })
	bytesOf("format version and algorithm alone", "broken", cut(2))
	bytesOf("format version and another algorithm alone", "not mine", func([]byte) []byte { return []byte{1, 2} })
	bytesOf("header cut within the material ID", "broken", cut(30))
	bytesOf("header cut before the generation", "broken", cut(53))
	bytesOf("header alone", "broken", cut(57))
	bytesOf("cut before the ciphertext", "broken", cut(57+76))
	bytesOf("cut before the tag", "broken", cut(57+76+32))
	bytesOf("namespace that is longer than the blob", "broken", func(b []byte) []byte { b = b[:57]; b[39] = 63; return b })
	bytesOf("name that is longer than the blob", "broken", func(b []byte) []byte { b = b[:57]; b[46] = 253; return b })
	tooLong := func(version byte) func([]byte) []byte {
		return func(b []byte) []byte { b[0] = version; return append(b, make([]byte, 6145-len(b))...) }
	}
	bytesOf("6145 bytes", "broken", tooLong(1))
	bytesOf("6145 bytes of another format version", "broken", tooLong(2))
	bytesOf("base64 of a blob", "not mine", func(b []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(b)) })
}

// vectorsOfOtherCallers ask a caller for a blob who holds another key than the one that made it.
func vectorsOfOtherCallers(good goodVector) []badVector {
	own := vectorKey{KeyID: good.Header.KeyID, KeyVersion: good.Header.KeyVersion, MaterialID: good.Header.MaterialID}
	otherKey, otherVersion, otherMaterial := own, own, own
	otherKey.KeyID = "7d444840-9dc0-41d1-b245-5ffdce74fad2"
	otherVersion.KeyVersion = 2
	otherMaterial.MaterialID = counted(0x21, 16)
	return []badVector{
		{Name: "asked of another key", Material: good.Material, Caller: &otherKey, Blob: good.Blob, Error: "not mine"},
		{Name: "asked of another version of the key", Material: good.Material, Caller: &otherVersion, Blob: good.Blob, Error: "not mine"},
		{Name: "asked of the same version with other material", Material: good.Material, Caller: &otherMaterial, Blob: good.Blob, Error: "not mine"},
		{Name: "asked of another key and malformed", Material: good.Material, Caller: &otherKey, Blob: good.Blob[:100], Error: "broken"},
	}
}

func invalidVectors() []invalidVector {
	return []invalidVector{
		{"context and raw", vectorAssociated{Context: map[string]string{"a": "b"}, Raw: hexBytes{1}}},
		{"context of 1025 pairs", vectorAssociated{Context: fewer(numberedPairs(1025))}},
		{"context of 8193 bytes", vectorAssociated{Context: map[string]string{"tenant": strings.Repeat("a", 8193-len("tenant"))}}},
		{"context of 8193 bytes in fewer characters", vectorAssociated{Context: map[string]string{"a": strings.Repeat("\u00e9", 4096)}}},
		{"raw of 8193 bytes", vectorAssociated{Raw: counted(0x00, 8193)}},
	}
}

// fewer empties all values, so that only the number of pairs is too large.
func fewer(pairs map[string]string) map[string]string {
	for k := range pairs {
		pairs[k] = ""
	}
	return pairs
}

func TestVectorsAreWhatTheDocumentSays(t *testing.T) {
	for file, vectors := range map[string]any{vectorsFile: makeVectors(), messagesFile: makeMessageVectors()} {
		want, err := json.MarshalIndent(vectors, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, '\n')
		if *update {
			if err := os.WriteFile(file, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs from what the straight-line implementation computes", file)
		}
	}
}

func TestGoodVectorsOpen(t *testing.T) {
	for _, v := range readVectors(t).Good {
		t.Run(v.Name, func(t *testing.T) {
			m, err := MaterialFromBytes(v.Material)
			if err != nil {
				t.Fatal(err)
			}
			b, err := Parse(v.Blob)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := b.Header, v.Header.header(t); got != want {
				t.Errorf("header: got %+v, want %+v", got, want)
			}
			if !bytes.Equal(b.Marshal(), v.Blob) {
				t.Error("Marshal does not return what Parse read")
			}
			if !bytes.Equal(b.IV(), v.IV) {
				t.Errorf("IV: got %x, want %x", b.IV(), []byte(v.IV))
			}
			if got, want := overhead(b.Header), len(v.Blob)-len(v.Plaintext); got != want {
				t.Errorf("overhead: got %d, want %d", got, want)
			}
			p, err := m.Open(b, v.data())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(p.AppendTo(insecuresecret.Token{}, nil), v.Plaintext) {
				t.Error("plaintext differs")
			}
		})
	}
}

func TestBadVectorsFail(t *testing.T) {
	classes := map[string]error{"not mine": ErrNotMine, "broken": ErrBroken}
	for _, v := range readVectors(t).Bad {
		t.Run(v.Name, func(t *testing.T) {
			m, err := MaterialFromBytes(v.Material)
			if err != nil {
				t.Fatal(err)
			}
			if v.Caller != nil {
				if b, err := Parse(v.Blob); err == nil {
					err = b.CheckKey(v.Caller.id(t))
					if !errors.Is(err, classes[v.Error]) {
						t.Errorf("CheckKey: got %v, want %v", err, classes[v.Error])
					}
					return
				}
			}
			if err := open(t, m, v.Blob, v.data()); !errors.Is(err, classes[v.Error]) {
				t.Errorf("got %v, want %v", err, classes[v.Error])
			}
		})
	}
}

func TestInvalidAssociatedDataIsRefusedOnBothSides(t *testing.T) {
	vectors := readVectors(t)
	m, err := MaterialFromBytes(vectorMaterial)
	if err != nil {
		t.Fatal(err)
	}
	p, err := PlaintextFromBytes(counted(0x80, 32))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Parse(vectors.Good[0].Blob)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vectors.Invalid {
		t.Run(v.Name, func(t *testing.T) {
			if blob, err := m.Seal(b.Header, v.data(), p); !errors.Is(err, ErrInvalid) || blob != nil {
				t.Errorf("Seal: got %d bytes and %v, want ErrInvalid", len(blob), err)
			}
			if _, err := m.Open(b, v.data()); !errors.Is(err, ErrInvalid) {
				t.Errorf("Open: got %v, want ErrInvalid", err)
			}
		})
	}
}

// open parses and opens, and sees that nothing comes beside an error and that the error is one of the two that a
// damaged blob may give, bare.
func open(t testing.TB, m Material, blob []byte, ad AssociatedData) error {
	t.Helper()
	b, err := Parse(blob)
	if err == nil {
		var p Plaintext
		p, err = m.Open(b, ad)
		if err != nil && !p.IsZero() {
			t.Error("Open returns a plaintext beside an error")
		}
	} else if b != nil {
		t.Error("Parse returns a blob beside an error")
	}
	if err != nil && err != ErrNotMine && err != ErrBroken {
		t.Errorf("got %v, want ErrNotMine or ErrBroken and nothing more", err)
	}
	return err
}
