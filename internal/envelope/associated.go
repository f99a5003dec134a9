package envelope

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	// MaxRawSize is the most bytes of raw associated data (Alibaba Cloud KMS, Decrypt: Aad).
	MaxRawSize = 8192
	// MaxContextSize is the most bytes of a context, all keys and values together (the size that Alibaba Cloud KMS
	// allows its EncryptionContext; AWS KMS publishes none).
	MaxContextSize = 8192
	// MaxContextPairs is the most pairs of a context. No reference publishes a number; this one bounds the work.
	MaxContextPairs = 1024
)

// The first byte of the encoded associated data.
const (
	associatedNone    = 0
	associatedContext = 1
	associatedRaw     = 2
)

// AssociatedData is what a blob is bound to besides its header: an encryption context, or raw bytes for systems that
// have no map, or neither. It is not secret, and the blob does not hold it: whoever opens the blob states it again.
//
// An empty context or empty raw bytes are the same as none.
type AssociatedData struct {
	// Context holds UTF-8 strings, compared byte by byte: case counts and nothing is normalized. Its order is nothing.
	Context map[string]string
	// Raw is any bytes. At most one of Context and Raw is set.
	Raw []byte
}

// Validate returns an error that names the field and the limit if no blob can be bound to this associated data.
func (ad AssociatedData) Validate() error {
	_, _, err := ad.check(nil)
	return err
}

// pair is one of a context.
type pair struct{ key, value string }

// check returns the pairs of the context in no order, appended to pairs, and the number of bytes that write writes.
func (ad AssociatedData) check(pairs []pair) (_ []pair, size int, err error) {
	if len(ad.Raw) > 0 && len(ad.Context) > 0 {
		return nil, 0, fmt.Errorf("%w: context and raw associated data: only one of them may be set", ErrInvalid)
	}
	if n := len(ad.Raw); n > MaxRawSize {
		return nil, 0, fmt.Errorf("%w: raw associated data of %d bytes: must be at most %d bytes", ErrInvalid, n, MaxRawSize)
	}
	if n := len(ad.Context); n > MaxContextPairs {
		return nil, 0, fmt.Errorf("%w: context of %d pairs: must be at most %d pairs", ErrInvalid, n, MaxContextPairs)
	}
	for k, v := range ad.Context {
		size += len(k) + len(v)
		if size > MaxContextSize {
			return nil, 0, fmt.Errorf("%w: context: keys and values must be at most %d bytes together", ErrInvalid, MaxContextSize)
		}
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return nil, 0, fmt.Errorf("%w: context: keys and values must be valid UTF-8", ErrInvalid)
		}
		pairs = append(pairs, pair{k, v})
	}
	switch {
	case len(ad.Raw) > 0:
		return nil, 1 + 4 + len(ad.Raw), nil
	case len(ad.Context) > 0:
		return pairs, 1 + 4 + 2*4*len(pairs) + size, nil
	}
	return nil, 1, nil
}

// write writes an encoding that is injective and says its own end, of associated data that check accepts, whose pairs
// it returned.
func (ad AssociatedData) write(w *strings.Builder, pairs []pair) {
	switch {
	case len(ad.Raw) > 0:
		w.WriteByte(associatedRaw)
		writeLen(w, len(ad.Raw))
		w.Write(ad.Raw)
	case len(pairs) > 0:
		w.WriteByte(associatedContext)
		writeLen(w, len(pairs))
		slices.SortFunc(pairs, func(a, b pair) int { return strings.Compare(a.key, b.key) })
		for _, p := range pairs {
			writeLen(w, len(p.key))
			w.WriteString(p.key)
			writeLen(w, len(p.value))
			w.WriteString(p.value)
		}
	default:
		w.WriteByte(associatedNone)
	}
}

func writeLen(w *strings.Builder, n int) {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	w.Write(b[:])
}
