package envelope

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestMessagesComeBack: of every size around what the format and AES have for limits.
func TestMessagesComeBack(t *testing.T) {
	p, ad := newPlaintext(t, 32), AssociatedData{Raw: []byte("row 42")}
	for _, n := range []int{0, 1, 15, 16, 17, 1024, 4096, 4097, MaxMessageSize} {
		data := counted(byte(n), n)
		sealed, err := p.SealMessage([]byte("before"), 7, ad, data)
		if err != nil || len(sealed) != len("before")+MessageOverhead+n {
			t.Fatalf("%d bytes: got %d bytes, %v", n, len(sealed), err)
		}
		message, ok := bytes.CutPrefix(sealed, []byte("before"))
		if !ok {
			t.Errorf("%d bytes: what was there before is gone", n)
		}
		m, err := ParseMessage(message)
		if err != nil || m.Generation != 7 || m.Size() != n {
			t.Fatalf("%d bytes: got %+v, %v", n, m, err)
		}
		room := make([]byte, 0, n+len("before"))
		got, err := p.OpenMessage(append(room, "before"...), m, ad)
		if err != nil || !bytes.Equal(got, append([]byte("before"), data...)) {
			t.Errorf("%d bytes: got %d other ones, %v", n, len(got), err)
		}
		if &got[0] != &room[:1][0] {
			t.Errorf("%d bytes: there was room, and it was not used", n)
		}
	}
}

func TestMessageLimits(t *testing.T) {
	p := newPlaintext(t, 32)
	for name, test := range map[string]struct {
		seal func() ([]byte, error)
		want string
	}{
		"a byte too many": {
			func() ([]byte, error) { return p.SealMessage(nil, 1, AssociatedData{}, make([]byte, MaxMessageSize+1)) },
			"message of 1048577 bytes: must be at most 1048576 bytes",
		},
		"no generation": {
			func() ([]byte, error) { return p.SealMessage(nil, 0, AssociatedData{}, nil) }, "generation 0: must be 1 or more",
		},
		"a data key that is too short": {
			func() ([]byte, error) { return newPlaintext(t, 15).SealMessage(nil, 1, AssociatedData{}, nil) },
			"data key of 15 bytes: must be 16 to 1024 bytes",
		},
		"a data key that is too long": {
			func() ([]byte, error) { return newPlaintext(t, 1025).SealMessage(nil, 1, AssociatedData{}, nil) },
			"data key of 1025 bytes: must be 16 to 1024 bytes",
		},
		"a context": {
			func() ([]byte, error) {
				return p.SealMessage(nil, 1, AssociatedData{Context: map[string]string{"vvv": ""}}, nil)
			},
			"context: a message takes raw associated data alone",
		},
		"too much associated data": {
			func() ([]byte, error) { return p.SealMessage(nil, 1, AssociatedData{Raw: make([]byte, 8193)}, nil) },
			"must be at most 8192 bytes",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.seal()
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), test.want) || got != nil {
				t.Errorf("got %d bytes, %v; want ErrInvalid that says %q", len(got), err, test.want)
			}
			if strings.Contains(fmt.Sprint(err), "vvv") {
				t.Error("the error repeats the context")
			}
		})
	}
}

// TestEveryChangeOfAMessageFails flips every bit and cuts to every length.
func TestEveryChangeOfAMessageFails(t *testing.T) {
	p, ad := newPlaintext(t, 32), AssociatedData{Raw: []byte("row 42")}
	message, err := p.SealMessage(nil, 1, ad, []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	for bit := range 8 * len(message) {
		flipped := bytes.Clone(message)
		flipped[bit/8] ^= 1 << (bit % 8)
		want := ErrBroken
		if bit < 16 {
			want = ErrNotMine
		}
		if _, err := openMessage(t, p, flipped, ad); err != want {
			t.Errorf("bit %d flipped: got %v, want %v", bit, err, want)
		}
	}
	for n := range message {
		if _, err := openMessage(t, p, message[:n], ad); err != ErrBroken {
			t.Errorf("cut to %d bytes: got %v", n, err)
		}
	}
	if _, err := openMessage(t, p, append(bytes.Clone(message), 0), ad); err != ErrBroken {
		t.Errorf("a byte behind: got %v", err)
	}
	for name, other := range map[string]AssociatedData{
		"none": {}, "a byte less": {Raw: []byte("row 4")}, "a byte more": {Raw: []byte("row 42 ")},
	} {
		if _, err := openMessage(t, p, message, other); err != ErrBroken {
			t.Errorf("other associated data, %s: got %v", name, err)
		}
	}
	if _, err := openMessage(t, newPlaintext(t, 32), message, ad); err != ErrBroken {
		t.Errorf("another data key: got %v", err)
	}
}

// Two messages of the same bytes share neither salt nor IV nor anything behind.
func TestMessagesDiffer(t *testing.T) {
	p := newPlaintext(t, 32)
	seen := map[string]bool{}
	for range 100 {
		message, err := p.SealMessage(nil, 1, AssociatedData{}, []byte("the same"))
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range [][]byte{message[6:38], message[38:70], message[70:82], message[82:90]} {
			if seen[string(part)] {
				t.Fatal("a part of a message came twice")
			}
			seen[string(part)] = true
		}
	}
}

// TestMessagesAndBlobsAreApart: neither is read as the other. That the label keeps their keys apart, the vectors hold.
func TestMessagesAndBlobsAreApart(t *testing.T) {
	m := NewMaterial()
	blob := mustSeal(t, m, testHeader(KindAWS), AssociatedData{}, newPlaintext(t, 32))
	if _, err := ParseMessage(blob); err != ErrNotMine {
		t.Errorf("a blob as a message: got %v", err)
	}
	message, err := newPlaintext(t, 32).SealMessage(nil, 1, AssociatedData{}, make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Parse(message); err != ErrNotMine {
		t.Errorf("a message as a blob: got %v", err)
	}
}

func TestMessageOfNobodyIsRefused(t *testing.T) {
	p := newPlaintext(t, 32)
	for name, m := range map[string]*Message{"nil": nil, "a literal": {Generation: 1}} {
		if got, err := p.OpenMessage(nil, m, AssociatedData{}); err != ErrBroken || got != nil || m.Marshal() != nil {
			t.Errorf("%s: got %v", name, err)
		}
	}
	message, err := p.SealMessage(nil, 1, AssociatedData{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := ParseMessage(message)
	if err != nil {
		t.Fatal(err)
	}
	m.Generation = 0
	if _, err := p.OpenMessage(nil, m, AssociatedData{}); err != ErrBroken || m.Marshal() != nil {
		t.Errorf("without its generation: got %v", err)
	}
	p.Destroy()
	if _, err := p.OpenMessage(nil, m, AssociatedData{}); err != ErrDestroyed {
		t.Errorf("with a data key that was destroyed: got %v", err)
	}
	if _, err := p.SealMessage(nil, 1, AssociatedData{}, nil); err != ErrDestroyed {
		t.Errorf("sealing with a data key that was destroyed: got %v", err)
	}
}

// FuzzMessage holds that Marshal undoes ParseMessage, that errors are bare and come alone, and that nothing opens but
// the vectors.
func FuzzMessage(f *testing.F) {
	v := readMessages(f)
	for _, good := range v.Good {
		if len(good.Message) < 512 && len(good.Raw) < 512 {
			f.Add([]byte(good.Message), []byte(good.Raw))
		}
	}
	for _, bad := range v.Bad {
		f.Add([]byte(bad.Message), []byte(bad.Raw))
	}
	p := plaintextOf(f, vectorDataKey)
	f.Fuzz(func(t *testing.T, message, raw []byte) {
		given := bytes.Clone(message)
		m, err := ParseMessage(message)
		if err == nil && (!bytes.Equal(m.Marshal(), message) || m.Generation == 0 || m.Size() != len(message)-MessageOverhead) {
			t.Fatal("Marshal does not return what ParseMessage read")
		}
		ad := AssociatedData{Raw: raw}
		if ad.Validate() != nil {
			return
		}
		_, err = openMessage(t, p, message, ad)
		if !bytes.Equal(message, given) {
			t.Fatal("the message was changed")
		}
		if err != nil {
			return
		}
		for _, good := range v.Good {
			if bytes.Equal(good.Message, message) && bytes.Equal(good.Raw, raw) {
				return
			}
		}
		for _, bad := range v.Bad { // some of which were sealed, with other associated data than the vector states
			if bytes.Equal(bad.Message, message) {
				return
			}
		}
		t.Fatalf("%x opens with %x and was never sealed", message, raw)
	})
}

// The bare primitives of bench_test.go, for messages of 1 KiB and of the most that the sidecar takes.

func forMessageSizes(b *testing.B, run func(b *testing.B, n int)) {
	for _, n := range []int{1 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("%dB", n), func(b *testing.B) { run(b, n) })
	}
}

func BenchmarkSealMessageAgainstBare(b *testing.B) {
	forMessageSizes(b, func(b *testing.B, n int) {
		p, ad, data := newPlaintext(b, 32), AssociatedData{Raw: []byte("row 42")}, make([]byte, n)
		key, salt, info := make([]byte, 32), make([]byte, 32), messageLabel+string(make([]byte, 6))+string(encode(ad))
		ours, bare := make([]byte, 0, MessageOverhead+n), make([]byte, 0, MessageOverhead+n)
		against(b, func() {
			if _, err := p.SealMessage(ours, 1, ad, data); err != nil {
				b.Fatal(err)
			}
		}, func() {
			rand.Read(salt)
			okm, err := hkdf.Key(sha256.New, key, salt, info, 64)
			if err != nil {
				b.Fatal(err)
			}
			bareGCM(b, okm[:32]).Seal(bare, nil, data, nil)
		})
	})
}

func BenchmarkOpenMessageAgainstBare(b *testing.B) {
	forMessageSizes(b, func(b *testing.B, n int) {
		p, ad := newPlaintext(b, 32), AssociatedData{Raw: []byte("row 42")}
		message, err := p.SealMessage(nil, 1, ad, make([]byte, n))
		if err != nil {
			b.Fatal(err)
		}
		key, salt, info := make([]byte, 32), make([]byte, 32), messageLabel+string(make([]byte, 6))+string(encode(ad))
		okm, err := hkdf.Key(sha256.New, key, salt, info, 64)
		if err != nil {
			b.Fatal(err)
		}
		sealed := bareGCM(b, okm[:32]).Seal(nil, nil, make([]byte, n), nil)
		ours, bare := make([]byte, 0, n), make([]byte, 0, n)
		against(b, func() {
			m, err := ParseMessage(message)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := p.OpenMessage(ours, m, ad); err != nil {
				b.Fatal(err)
			}
		}, func() {
			okm, err := hkdf.Key(sha256.New, key, salt, info, 64)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := bareGCM(b, okm[:32]).Open(bare, nil, sealed, nil); err != nil {
				b.Fatal(err)
			}
		})
	})
}
