package client

import (
	"fmt"
	"log/slog"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/internal/envelope/insecuresecret"
)

// Secret is bytes that must not be seen. Every usual way to print or encode it says "[redacted]". They are in memory that is not swapped
// to disk nor part of a core dump, as far as the process may lock memory. Copies of a Secret share the bytes. It is safe for concurrent
// use. The zero Secret holds none.
type Secret struct{ plaintext envelope.Plaintext }

// Use calls f with the bytes and returns its error; it fails without a call for a Secret that is zero or destroyed. The bytes must not be
// changed, nor kept after f returns: copy them, and clear the copy. Inside f, nothing else may be done with the Secret.
func (s Secret) Use(f func([]byte) error) error {
	return s.plaintext.Use(insecuresecret.Token{}, f)
}

// AppendTo appends a copy of the bytes to dst, and nothing for a Secret that is zero or destroyed. Clearing it is up to the caller.
func (s Secret) AppendTo(dst []byte) []byte { return s.plaintext.AppendTo(insecuresecret.Token{}, dst) }

// Len returns the number of bytes, 0 for a Secret that is zero or destroyed.
func (s Secret) Len() int { return s.plaintext.Len() }

// Destroy clears the bytes, here and in every copy of the Secret. It waits for uses under way, and may be called twice. What is dropped
// without it is cleared when the garbage collector finds out.
func (s Secret) Destroy() { s.plaintext.Destroy() }

// Format implements fmt.Formatter for every verb and flag.
func (s Secret) Format(f fmt.State, verb rune) { s.plaintext.Format(f, verb) }

// String implements fmt.Stringer.
func (s Secret) String() string { return s.plaintext.String() }

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return s.plaintext.GoString() }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return s.plaintext.LogValue() }

// MarshalText implements encoding.TextMarshaler. There is no way back from the text.
func (s Secret) MarshalText() ([]byte, error) { return s.plaintext.MarshalText() }

// MarshalJSON implements json.Marshaler. There is no way back from the JSON.
func (s Secret) MarshalJSON() ([]byte, error) { return s.plaintext.MarshalJSON() }
