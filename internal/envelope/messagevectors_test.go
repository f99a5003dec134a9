package envelope

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"testing"
)

const messagesFile = "testdata/messages.json"

// messageVectors is the file of test vectors of messages, as vectors is that of blobs.
type messageVectors struct {
	Good    []goodMessage    `json:"goodMessages"`
	Bad     []badMessage     `json:"badMessages"`
	Invalid []invalidMessage `json:"invalidMessages"`
}

type goodMessage struct {
	Name       string   `json:"name"`
	DataKey    hexBytes `json:"dataKey"`
	Generation uint32   `json:"generation"`
	Raw        hexBytes `json:"raw,omitempty"`
	Plaintext  hexBytes `json:"plaintext"`
	Salt       hexBytes `json:"salt"`
	IV         hexBytes `json:"iv"`
	Info       hexBytes `json:"info"`
	Key        hexBytes `json:"key"`
	Commitment hexBytes `json:"commitment"`
	Message    hexBytes `json:"message"`
}

type badMessage struct {
	Name    string   `json:"name"`
	DataKey hexBytes `json:"dataKey"`
	Raw     hexBytes `json:"raw,omitempty"`
	Message hexBytes `json:"message"`
	Zeros   int      `json:"zeros,omitempty"` // so many zero bytes follow
	Error   string   `json:"error"`           // "not mine" or "broken"
}

// invalidMessage is a data key or associated data that no message can be encrypted with.
type invalidMessage struct {
	Name    string   `json:"name"`
	DataKey hexBytes `json:"dataKey"`
	vectorAssociated
}

func readMessages(t testing.TB) messageVectors {
	t.Helper()
	b, err := os.ReadFile(messagesFile)
	if err != nil {
		t.Fatal(err)
	}
	var v messageVectors
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

var vectorDataKey = counted(0x10, 32)

func makeMessageVectors() messageVectors {
	var v messageVectors
	straightMessage := func(dataKey []byte, generation int, raw, plaintext []byte) straight {
		return straight{
			label: "datakeys.io/message/v1\x00", material: dataKey, salt: vectorSalt, iv: vectorIV,
			header: slices.Concat([]byte{129, 1}, be32(generation)), associated: straightAssociated(vectorAssociated{Raw: raw}),
			plaintext: plaintext,
		}
	}
	raw, hello := []byte("row 42, column name"), []byte("hello, world")
	for _, c := range []struct {
		name           string
		dataKey        []byte
		generation     int
		raw, plaintext []byte
	}{
		{"no associated data", vectorDataKey, 1, nil, hello},
		{"associated data", vectorDataKey, 3, raw, hello},
		{"no bytes", vectorDataKey, 1, nil, nil},
		{"no bytes, with associated data", vectorDataKey, 1, raw, nil},
		{"a block of AES and a byte", vectorDataKey, 1, raw, counted(0x80, 17)},
		{"5000 bytes", vectorDataKey, 1, raw, counted(0x80, 5000)},
		{"the last generation", vectorDataKey, 4294967295, raw, hello},
		{"the shortest data key", counted(0x10, 16), 1, raw, hello},
		{"a data key of 24 bytes", counted(0x10, 24), 1, raw, hello},
		{"a data key as long as a block of SHA-256", counted(0x10, 64), 1, raw, hello},
		{"a data key longer than a block of SHA-256", counted(0x10, 65), 1, raw, hello},
		{"the longest data key", counted(0x10, 1024), 1, raw, hello},
		{"one byte of associated data", vectorDataKey, 1, []byte{0}, hello},
		{"the most associated data", vectorDataKey, 1, counted(0x00, 8192), hello},
	} {
		s := straightMessage(c.dataKey, c.generation, c.raw, c.plaintext)
		key, commitment := s.derive()
		v.Good = append(v.Good, goodMessage{
			Name: c.name, DataKey: c.dataKey, Generation: uint32(c.generation), Raw: c.raw, Plaintext: c.plaintext,
			Salt: s.salt, IV: s.iv, Info: s.info(), Key: key, Commitment: commitment, Message: s.blob(),
		})
	}

	// These authenticate: only a reader that checks every field refuses them.
	bad := func(name, class string, change func(*straight)) {
		s := straightMessage(vectorDataKey, 1, raw, hello)
		change(&s)
		v.Bad = append(v.Bad, badMessage{Name: name, DataKey: vectorDataKey, Raw: raw, Message: s.blob(), Error: class})
	}
	bad("format version 0", "not mine", func(s *straight) { s.header[0] = 0 })
	bad("format version 1, that of blobs", "not mine", func(s *straight) { s.header[0] = 1 })
	bad("format version 130", "not mine", func(s *straight) { s.header[0] = 130 })
	bad("algorithm 0", "not mine", func(s *straight) { s.header[1] = 0 })
	bad("algorithm 2", "not mine", func(s *straight) { s.header[1] = 2 })
	bad("generation 0", "broken", func(s *straight) { clear(s.header[2:]) })
	bad("another label", "broken", func(s *straight) { s.label = "datakeys.io/blob/v1\x00" })
	bad("another data key", "broken", func(s *straight) { s.material = counted(0x11, 32) })
	bad("a data key that begins the other", "broken", func(s *straight) { s.material = vectorDataKey[:16] })
	bad("other associated data", "broken", func(s *straight) {
		s.associated = straightAssociated(vectorAssociated{Raw: []byte("row 43, column name")})
	})
	bad("without the associated data", "broken", func(s *straight) { s.associated = []byte{0} })
	bad("associated data without its length", "broken", func(s *straight) { s.associated = raw })
	bad("header as additional data of AES-GCM", "broken", func(s *straight) { s.additional = s.header })
	bad("commitment to another key", "broken", func(s *straight) { s.changeCommitment = true })

	bytesOf := func(name, class string, change func([]byte) []byte) {
		v.Bad = append(v.Bad, badMessage{
			Name: name, DataKey: vectorDataKey, Raw: raw, Message: change(slices.Clone(v.Good[1].Message)), Error: class,
		})
	}
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }
	bytesOf("no bytes", "broken", cut(0))
	bytesOf("format version alone", "broken", cut(1))
	bytesOf("another format version alone", "not mine", func([]byte) []byte { return []byte{130} })
	bytesOf("format version and algorithm alone", "broken", cut(2))
	bytesOf("format version and another algorithm alone", "not mine", func([]byte) []byte { return []byte{129, 2} })
	bytesOf("header alone", "broken", cut(6))
	bytesOf("cut before the IV", "broken", cut(70))
	bytesOf("cut within the tag of no bytes", "broken", cut(97))
	bytesOf("cut to the size of no bytes", "broken", cut(98))
	bytesOf("last byte missing", "broken", func(b []byte) []byte { return b[:len(b)-1] })
	bytesOf("trailing byte", "broken", func(b []byte) []byte { return append(b, 0) })
	bytesOf("one generation later", "broken", func(b []byte) []byte { b[5]++; return b })
	bytesOf("changed salt", "broken", func(b []byte) []byte { b[6] ^= 1; return b })
	bytesOf("changed commitment", "broken", func(b []byte) []byte { b[38] ^= 1; return b })
	bytesOf("changed IV", "broken", func(b []byte) []byte { b[70] ^= 1; return b })
	bytesOf("changed ciphertext", "broken", func(b []byte) []byte { b[82] ^= 1; return b })
	bytesOf("changed tag", "broken", func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
	bytesOf("base64 of a message", "not mine", func(b []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(b)) })
	const most = 1<<20 + 98
	v.Bad = append(
		v.Bad,
		badMessage{Name: "a byte too many", DataKey: vectorDataKey, Message: []byte{129, 1, 0, 0, 0, 1}, Zeros: most - 5, Error: "broken"},
		badMessage{
			Name: "a byte too many, of another format version", DataKey: vectorDataKey, Message: []byte{130}, Zeros: most, Error: "broken",
		},
	)

	v.Invalid = []invalidMessage{
		{"a data key of 15 bytes", counted(0x10, 15), vectorAssociated{}},
		{"a data key of 1025 bytes", counted(0x10, 1025), vectorAssociated{}},
		{"a context", vectorDataKey, vectorAssociated{Context: map[string]string{"tenant": "a"}}},
		{"raw of 8193 bytes", vectorDataKey, vectorAssociated{Raw: counted(0x00, 8193)}},
	}
	return v
}

func TestGoodMessagesOpen(t *testing.T) {
	for _, v := range readMessages(t).Good {
		t.Run(v.Name, func(t *testing.T) {
			m, err := ParseMessage(v.Message)
			if err != nil {
				t.Fatal(err)
			}
			if m.Generation != v.Generation || m.Size() != len(v.Plaintext) || len(v.Message) != MessageOverhead+m.Size() {
				t.Errorf("got generation %d and %d bytes", m.Generation, m.Size())
			}
			if !bytes.Equal(m.Marshal(), v.Message) {
				t.Error("Marshal does not return what ParseMessage read")
			}
			got, err := plaintextOf(t, v.DataKey).OpenMessage(nil, m, AssociatedData{Raw: v.Raw})
			if err != nil || !bytes.Equal(got, v.Plaintext) {
				t.Errorf("got %x, %v", got, err)
			}
		})
	}
}

func TestBadMessagesFail(t *testing.T) {
	classes := map[string]error{"not mine": ErrNotMine, "broken": ErrBroken}
	for _, v := range readMessages(t).Bad {
		t.Run(v.Name, func(t *testing.T) {
			message := append(v.Message, make([]byte, v.Zeros)...)
			if _, err := openMessage(t, plaintextOf(t, v.DataKey), message, AssociatedData{Raw: v.Raw}); err != classes[v.Error] {
				t.Errorf("got %v, want %v", err, classes[v.Error])
			}
		})
	}
}

func TestInvalidMessageArgumentsAreRefusedOnBothSides(t *testing.T) {
	vectors := readMessages(t)
	m, err := ParseMessage(vectors.Good[0].Message)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vectors.Invalid {
		t.Run(v.Name, func(t *testing.T) {
			p := plaintextOf(t, v.DataKey)
			if got, err := p.SealMessage(nil, 1, v.data(), nil); !errors.Is(err, ErrInvalid) || got != nil {
				t.Errorf("SealMessage: got %d bytes and %v, want ErrInvalid", len(got), err)
			}
			if got, err := p.OpenMessage(nil, m, v.data()); !errors.Is(err, ErrInvalid) || got != nil {
				t.Errorf("OpenMessage: got %d bytes and %v, want ErrInvalid", len(got), err)
			}
		})
	}
}

func plaintextOf(t testing.TB, b []byte) Plaintext {
	t.Helper()
	p, err := PlaintextFromBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// openMessage does for messages what open does for blobs.
func openMessage(t testing.TB, p Plaintext, message []byte, ad AssociatedData) ([]byte, error) {
	t.Helper()
	m, err := ParseMessage(message)
	var data []byte
	if err == nil {
		data, err = p.OpenMessage(nil, m, ad)
		if err != nil && data != nil {
			t.Error("OpenMessage returns bytes beside an error")
		}
	} else if m != nil {
		t.Error("ParseMessage returns a message beside an error")
	}
	if err != nil && err != ErrNotMine && err != ErrBroken {
		t.Errorf("got %v, want ErrNotMine or ErrBroken and nothing more", err)
	}
	return data, err
}
