package rootkey

import "encoding/binary"

// appendSized appends a field: its length in two bytes, big-endian, and its bytes. The caller sees to it that it has at most
// 65,535.
func appendSized[T string | []byte](b []byte, field T) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(field)))
	return append(b, field...)
}

// sizedReader reads numbers and sized fields from the front of rest. Once there is too little, short is true for good and
// everything is empty.
type sizedReader struct {
	rest  []byte
	short bool
}

// take returns the next n bytes, which are not copied; appending to them changes nothing behind them.
func (r *sizedReader) take(n int) []byte {
	if r.short || len(r.rest) < n {
		r.short = true
		return nil
	}
	taken := r.rest[:n:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *sizedReader) uint16() int {
	b := r.take(2)
	if b == nil {
		return 0
	}
	return int(binary.BigEndian.Uint16(b))
}

func (r *sizedReader) sized() []byte { return r.take(r.uint16()) }
