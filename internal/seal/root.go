package seal

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/datakeys/datakeys/internal/envelope"
)

// DefaultRootKey is the URI of the embedded root key.
const DefaultRootKey = embeddedPrefix + "datakeys-root-key"

// ErrOtherRootKey is what Unwrap returns for bytes that another root key wrapped.
var ErrOtherRootKey = errors.New("wrapped by another root key")

// RootKey wraps sealing keys. The embedded one is of this package, all others are of package rootkey. It is safe for
// concurrent use.
type RootKey interface {
	// ID names the key for ever, for errors, logs and the entries of the Secret with the sealing keys; it is not secret.
	// What ID wrapped, a root key of the same ID unwraps.
	ID() string
	// Wrap encrypts p and binds ad to it. What it returns says by itself which key and version has to unwrap it. A
	// provider that knows no associated data puts ad into what it encrypts.
	Wrap(ctx context.Context, p envelope.Plaintext, ad []byte) ([]byte, error)
	// Unwrap opens what Wrap returned with the same ad. The error is ErrOtherRootKey where that can be told, and
	// envelope.ErrBroken for what does not authenticate; any other is worth another try.
	Unwrap(ctx context.Context, wrapped, ad []byte) (envelope.Plaintext, error)
	// Close drops the key and ends what it runs in the background.
	Close() error
}

// ShownURI is as much as errors show of the URI of a root key that could not be opened: neither user nor password nor parameters,
// since nobody has refused those that are credentials.
func ShownURI(uri string) string {
	scheme, _, found := strings.Cut(uri, "://")
	if !found {
		return "without a scheme"
	}
	u, err := url.Parse(uri)
	if err != nil || strings.Contains(u.Path, "@") {
		return scheme + "://..."
	}
	return scheme + "://" + u.Host + u.Path
}

// Staler is a RootKey that can tell that what it wrapped still opens but should be wrapped anew, because the key behind
// its ID was rotated.
type Staler interface {
	RootKey
	// Stale reports whether wrapped was wrapped under an earlier key.
	Stale(wrapped []byte) bool
}

// KeyTeller is a RootKey that can tell by which key of its service something was wrapped.
type KeyTeller interface {
	RootKey
	// KeyOf returns the service's name of the key, or key version, that wrapped it, in quotes and fit for one line; empty where
	// that cannot be told.
	KeyOf(wrapped []byte) string
}

// openRootKey opens the root key that uri names. It makes one only where create says so, and only where the root key lies in
// the cluster. ctx bounds the opening.
func (c Config) openRootKey(ctx context.Context, uri string, create bool) (RootKey, error) {
	if name, found := strings.CutPrefix(uri, embeddedPrefix); found {
		return c.openEmbedded(ctx, name, create)
	}
	if c.OpenRootKey == nil {
		return nil, fmt.Errorf("root key %q: only %sNAME can be opened here: nothing is set that opens others", uri, embeddedPrefix)
	}
	return c.OpenRootKey(ctx, uri, c.Logger)
}
