package seal

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/datakeys/datakeys/internal/envelope"
)

// DefaultRootKey is the URI of the embedded root key.
const DefaultRootKey = "secret://datakeys-root-key"

// ErrOtherRootKey is what Unwrap returns for bytes that another root key wrapped.
var ErrOtherRootKey = errors.New("wrapped by another root key")

// RootKey wraps sealing keys. Each provider of root keys has a file of its own.
type RootKey interface {
	// ID names the key, for errors and logs; it is not secret.
	ID() string
	// Embedded reports whether the key lies in the cluster beside what it protects.
	Embedded() bool
	// Wrap encrypts p and binds ad to it. What it returns says by itself which key and version has to unwrap it. A
	// provider that knows no associated data puts ad into what it encrypts.
	Wrap(ctx context.Context, p envelope.Plaintext, ad []byte) ([]byte, error)
	// Unwrap opens what Wrap returned with the same ad. The error is ErrOtherRootKey where that can be told, and
	// envelope.ErrBroken for what does not authenticate; any other is worth another try.
	Unwrap(ctx context.Context, wrapped, ad []byte) (envelope.Plaintext, error)
}

// openRootKey opens the root key that uri names. It makes one only where create says that nothing was ever wrapped.
func openRootKey(ctx context.Context, uri string, store Store, create bool) (RootKey, error) {
	scheme, rest, found := strings.Cut(uri, "://")
	if !found {
		return nil, fmt.Errorf("root key %q: must be a URI such as %s", uri, DefaultRootKey)
	}
	switch scheme {
	case schemeSecret:
		return openSecretRoot(ctx, rest, store, create)
	default:
		return nil, fmt.Errorf("root key %q: the scheme %q is not known: use %s", uri, scheme, DefaultRootKey)
	}
}
