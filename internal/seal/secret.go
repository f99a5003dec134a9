package seal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
)

var (
	// ErrSecretNotFound is what a Store returns for a Secret that does not exist.
	ErrSecretNotFound = errors.New("the Secret does not exist")
	// ErrSecretExists is what a Store returns from Create where there is a Secret of that name.
	ErrSecretExists = errors.New("the Secret exists already")
	// ErrSecretChanged is what a Store returns from Update where the Secret is not any more as it was read.
	ErrSecretChanged = errors.New("the Secret was changed since it was read")
)

// Store keeps the Secrets of the manager's namespace. Reads are live, never from a cache: what Create made, the next Get
// of any manager returns.
type Store interface {
	// Get returns the Secret of that name, or an error that is ErrSecretNotFound.
	Get(ctx context.Context, name string) (Secret, error)
	// Create makes a Secret and changes none: where there is one of that name, the error is ErrSecretExists. After any
	// other error the Secret may have been made.
	Create(ctx context.Context, s Secret) error
	// Update replaces the data of a Secret and nothing else of it. s.ResourceVersion is the one that was read: where the
	// Secret is not as it was then, nothing is written and the error is ErrSecretChanged, or ErrSecretNotFound where it is
	// gone. After any other error it may have been written.
	Update(ctx context.Context, s Secret) error
	// List returns the names of all Secrets of that type, sorted.
	List(ctx context.Context, secretType string) ([]string, error)
	// Any reports whether there is a Secret of that type.
	Any(ctx context.Context, secretType string) (bool, error)
}

// Secret is the part of a Kubernetes Secret that this project reads and writes. The embedded root key's holds a key in
// clear, so a Secret prints its name and the names of its entries, and nothing of their values. Do not keep one in an
// unexported field: fmt calls no method there and prints everything.
type Secret struct {
	Name   string
	Type   string
	Labels map[string]string
	// Annotations are only read, never written.
	Annotations map[string]string
	// ResourceVersion is opaque: which state of the Secret was read.
	ResourceVersion string
	// Immutable asks the API server to refuse every change of the data.
	Immutable bool
	Data      map[string][]byte
}

func (s Secret) describe() string {
	return fmt.Sprintf("Secret %s of type %s with entries [%s]", s.Name, s.Type,
		strings.Join(slices.Sorted(maps.Keys(s.Data)), " "))
}

// Format implements fmt.Formatter for every verb and flag.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.describe()) }

// String implements fmt.Stringer.
func (s Secret) String() string { return s.describe() }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.describe()) }

// MarshalText implements encoding.TextMarshaler, and so JSON. There is no way back from the text.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.describe()), nil }

// SecretError reports a Secret that is missing or altered and that nothing but a restore mends.
type SecretError struct {
	// Secret is the name of the Secret in the manager's namespace.
	Secret string
	// Problem says what is wrong with it.
	Problem string
	// Remedy says what to do.
	Remedy string
}

func (e *SecretError) Error() string {
	return fmt.Sprintf("Secret %s %s: %s", e.Secret, e.Problem, e.Remedy)
}

var _ error = (*SecretError)(nil)
