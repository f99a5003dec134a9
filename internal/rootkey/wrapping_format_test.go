package rootkey

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
)

func TestWrappedIsReadOneWay(t *testing.T) {
	b := &wrapping.BlobInfo{
		KeyInfo:    &wrapping.KeyInfo{KeyId: "k", WrappedKey: []byte("data key")},
		Iv:         bytes.Repeat([]byte{7}, 12),
		Ciphertext: []byte("ciphertext"),
	}
	good, err := marshalWrapped("awskms://eu-west-1/k", b)
	if err != nil {
		t.Fatal(err)
	}
	id, read, err := parseWrapped(good)
	if err != nil {
		t.Fatal(err)
	}
	if id != "awskms://eu-west-1/k" || read.GetKeyInfo().GetKeyId() != "k" || string(read.GetKeyInfo().GetWrappedKey()) != "data key" ||
		!bytes.Equal(read.GetIv(), b.GetIv()) || string(read.GetCiphertext()) != "ciphertext" {
		t.Errorf("read %q %v", id, read)
	}
	for n := range good {
		if _, _, err := parseWrapped(good[:n]); !errors.Is(err, envelope.ErrBroken) {
			t.Errorf("cut to %d bytes: %v, want ErrBroken", n, err)
		}
	}
	for name, bad := range map[string][]byte{
		"nothing":         nil,
		"a trailing byte": append(bytes.Clone(good), 0),
		"another version": append([]byte{2}, good[1:]...),
		"too much":        append(bytes.Clone(good), make([]byte, maxWrappedSize)...),
		"a longer nonce":  bytes.Replace(good, append([]byte{0, 12}, b.GetIv()...), append([]byte{0, 13, 7}, b.GetIv()...), 1),
	} {
		if _, _, err := parseWrapped(bad); !errors.Is(err, envelope.ErrBroken) {
			t.Errorf("%s: %v, want ErrBroken", name, err)
		}
	}
}

func TestWrappedHasLimits(t *testing.T) {
	for name, b := range map[string]*wrapping.BlobInfo{
		"no key of the service": {Ciphertext: []byte("c")},
		"no ciphertext":         {KeyInfo: &wrapping.KeyInfo{KeyId: "k"}},
		"a long ciphertext":     {KeyInfo: &wrapping.KeyInfo{KeyId: "k"}, Ciphertext: make([]byte, 1<<17)},
		"a long data key":       {KeyInfo: &wrapping.KeyInfo{KeyId: "k", WrappedKey: make([]byte, 9<<10)}, Ciphertext: []byte("c")},
		"a long name":           {KeyInfo: &wrapping.KeyInfo{KeyId: strings.Repeat("k", 4096)}, Ciphertext: []byte("c")},
	} {
		if _, err := marshalWrapped("awskms://eu-west-1/k", b); err == nil {
			t.Errorf("%s: was written", name)
		}
	}
}

// FuzzParseWrapped looks for bytes that are read and written again as others.
func FuzzParseWrapped(f *testing.F) {
	seed, err := marshalWrapped("transit://vault.example.com:8200/transit/root", &wrapping.BlobInfo{
		KeyInfo: &wrapping.KeyInfo{KeyId: "v1"}, Ciphertext: []byte("vault:v1:AAAA"),
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{wrappedVersion})
	f.Fuzz(func(t *testing.T, in []byte) {
		id, b, err := parseWrapped(in)
		if err != nil {
			if !errors.Is(err, envelope.ErrBroken) {
				t.Errorf("%v, want ErrBroken", err)
			}
			return
		}
		out, err := marshalWrapped(id, b)
		if err != nil || !bytes.Equal(in, out) {
			t.Errorf("read %x, wrote %x: %v", in, out, err)
		}
		for _, p := range []wrappingProvider{
			&transitProvider{mount: "transit", key: "root"},
			&awsProvider{region: "eu-west-1", key: "k"},
			&alicloudProvider{region: "eu-central-1", key: "k"},
		} {
			if err := p.check(b); err != nil && !errors.Is(err, envelope.ErrBroken) && !errors.Is(err, seal.ErrOtherRootKey) {
				t.Errorf("%T: %v, want one of the two errors", p, err)
			}
		}
	})
}
