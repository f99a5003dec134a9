package rootkey

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/seal"
)

// withSum appends the checksum that makes b whole.
func withSum(b string) []byte {
	sum := sha256.Sum256([]byte(b))
	return append([]byte(b), sum[:]...)
}

func TestWhatAPluginMadeIsStoredInOneForm(t *testing.T) {
	const label = "datakeys.io/kmsv2/v1\x00"
	most := map[string][]byte{}
	for i := range maxPluginAnnotations / 7 {
		most[fmt.Sprintf("%05x.a", i)] = []byte{}
	}
	for name, c := range map[string]struct {
		value  pluginWrapped
		stored []byte // nil: not written out
	}{
		"no annotations": {
			pluginWrapped{keyID: "k", ciphertext: []byte{0xff}},
			withSum(label + "\x00\x01k" + "\x00\x01\xff" + "\x00\x00"),
		},
		"annotations sorted by key": {
			pluginWrapped{keyID: "k", ciphertext: []byte{0xff}, annotations: map[string][]byte{"b.c": {1, 2}, "a.b": {}}},
			withSum(label + "\x00\x01k" + "\x00\x01\xff" + "\x00\x02" + "\x00\x03a.b\x00\x00" + "\x00\x03b.c\x00\x02\x01\x02"),
		},
		"everything at its limit": {
			pluginWrapped{
				keyID: strings.Repeat("k", 1024), ciphertext: make([]byte, 1024),
				annotations: map[string][]byte{"a.b": make([]byte, 32*1024-3)},
			}, nil,
		},
		"many annotations": {pluginWrapped{keyID: "k", ciphertext: []byte{1}, annotations: most}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if problem := c.value.check(); problem != "" {
				t.Fatal(problem)
			}
			stored := c.value.marshal()
			if c.stored != nil && !bytes.Equal(stored, c.stored) {
				t.Errorf("got  %x\nwant %x", stored, c.stored)
			}
			if len(stored) > maxPluginWrapped {
				t.Errorf("%d bytes, more than the limit of %d", len(stored), maxPluginWrapped)
			}
			got, err := parsePluginWrapped(stored)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.value, got, cmp.AllowUnexported(pluginWrapped{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("read back (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatNoPluginMadeIsNotRead(t *testing.T) {
	const (
		label = "datakeys.io/kmsv2/v1\x00"
		front = label + "\x00\x01k" + "\x00\x01\xff"
	)
	for name, c := range map[string]struct {
		stored []byte
		want   error
	}{
		"nothing":                      {nil, seal.ErrOtherRootKey},
		"another label":                {withSum("datakeys.io/kmsv2/v2\x00\x00\x01k\x00\x01\xff\x00\x00"), seal.ErrOtherRootKey},
		"the label alone":              {withSum(label), envelope.ErrBroken},
		"no checksum":                  {[]byte(front + "\x00\x00"), envelope.ErrBroken},
		"another checksum":             {append([]byte(front+"\x00\x00"), make([]byte, 32)...), envelope.ErrBroken},
		"no number of annotations":     {withSum(front), envelope.ErrBroken},
		"half a number":                {withSum(front + "\x00"), envelope.ErrBroken},
		"an annotation too few":        {withSum(front + "\x00\x01"), envelope.ErrBroken},
		"an annotation too many":       {withSum(front + "\x00\x00" + "\x00\x03a.b\x00\x00"), envelope.ErrBroken},
		"a trailing byte":              {withSum(front + "\x00\x00\x00"), envelope.ErrBroken},
		"a length past the end":        {withSum(label + "\xff\xffk"), envelope.ErrBroken},
		"65535 annotations of nothing": {withSum(front + "\xff\xff" + strings.Repeat("\x00\x00\x00\x00", 16_000)), envelope.ErrBroken},
		"an annotation twice":          {withSum(front + "\x00\x02" + "\x00\x03a.b\x00\x00" + "\x00\x03a.b\x00\x00"), envelope.ErrBroken},
		"annotations out of order":     {withSum(front + "\x00\x02" + "\x00\x03b.c\x00\x00" + "\x00\x03a.b\x00\x00"), envelope.ErrBroken},
		"an annotation without a key":  {withSum(front + "\x00\x01" + "\x00\x00\x00\x00"), envelope.ErrBroken},
		"a key that is no domain name": {withSum(front + "\x00\x01" + "\x00\x03a_b\x00\x00"), envelope.ErrBroken},
		"no key_id":                    {withSum(label + "\x00\x00" + "\x00\x01\xff" + "\x00\x00"), envelope.ErrBroken},
		"a key_id that is too long":    {withSum(label + "\x04\x01" + strings.Repeat("k", 1025) + "\x00\x01\xff" + "\x00\x00"), envelope.ErrBroken},
		"a key_id that is no UTF-8":    {withSum(label + "\x00\x01\xff" + "\x00\x01\xff" + "\x00\x00"), envelope.ErrBroken},
		"no ciphertext":                {withSum(label + "\x00\x01k" + "\x00\x00" + "\x00\x00"), envelope.ErrBroken},
		"a ciphertext that is too long": {
			withSum(label + "\x00\x01k" + "\x04\x01" + strings.Repeat("c", 1025) + "\x00\x00"), envelope.ErrBroken,
		},
		"more bytes than any": {withSum(front + "\x00\x00" + strings.Repeat("\x00", maxPluginWrapped)), envelope.ErrBroken},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parsePluginWrapped(c.stored)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if got.keyID != "" || got.ciphertext != nil || got.annotations != nil {
				t.Error("something came back beside an error")
			}
		})
	}
}

// TestTheBindingIsPinned holds the digest in front of a plaintext to bytes made apart, in another language.
func TestTheBindingIsPinned(t *testing.T) {
	binding := bindingOf([]byte("plaintext"), []byte("associated data"))
	if got := hex.EncodeToString(binding[:]); got != pinnedBinding {
		t.Errorf("got %s, want %s", got, pinnedBinding)
	}
	if bindingOf([]byte("bc"), []byte("a")) == bindingOf([]byte("c"), []byte("ab")) {
		t.Error("associated data and plaintext may be cut at another place")
	}
}

const pinnedBinding = "3ba41faaa613814ed5034b0d38f4825a4e1e35fe102306a9e183e99f817ff7a9"
