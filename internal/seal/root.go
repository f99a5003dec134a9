package seal

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/datakeys/datakeys/internal/envelope"
)

// DefaultRootKey is the URI of the embedded root key.
const DefaultRootKey = "secret://datakeys-root-key"

// ErrOtherRootKey is what Unwrap returns for bytes that another root key wrapped.
var ErrOtherRootKey = errors.New("wrapped by another root key")

// RootKey wraps sealing keys. Each provider of root keys has a file of its own. It is safe for concurrent use.
type RootKey interface {
	// ID names the key for ever, for errors, logs and the entries of the Secret with the sealing keys; it is not secret.
	// What ID wrapped, a root key of the same ID unwraps.
	ID() string
	// Embedded reports whether the key lies in the cluster beside what it protects.
	Embedded() bool
	// Wrap encrypts p and binds ad to it. What it returns says by itself which key and version has to unwrap it. A
	// provider that knows no associated data puts ad into what it encrypts.
	Wrap(ctx context.Context, p envelope.Plaintext, ad []byte) ([]byte, error)
	// Unwrap opens what Wrap returned with the same ad. The error is ErrOtherRootKey where that can be told, and
	// envelope.ErrBroken for what does not authenticate; any other is worth another try.
	Unwrap(ctx context.Context, wrapped, ad []byte) (envelope.Plaintext, error)
	// Close drops the key and ends what it runs in the background.
	Close() error
}

// staler is a RootKey that can tell that what it wrapped still opens but should be wrapped anew, because the key behind
// its ID was rotated.
type staler interface {
	Stale(wrapped []byte) bool
}

// Schemes of the URIs of root keys.
const (
	schemeSecret = "secret"
)

// rootKeyForms say what the URI of a root key may look like, in the order of the documentation.
var rootKeyForms = []string{
	"secret://NAME",
	"file:///PATH",
	"kmsv2:///SOCKET",
	"transit://HOST:PORT/MOUNT/KEY",
	"awskms://REGION/KEY",
	"alicloudkms://REGION/KEY",
}

// RootKeyForms says what the URI of a root key may look like.
func RootKeyForms() []string { return slices.Clone(rootKeyForms) }

// openRootKey opens the root key that uri names. It makes one only where create says so, and only where the root key lies in
// the cluster. ctx bounds the opening.
func (c Config) openRootKey(ctx context.Context, uri string, create bool) (RootKey, error) {
	scheme, rest, found := strings.Cut(uri, "://")
	if !found {
		return nil, fmt.Errorf("root key %q: must be a URI such as %s: use one of %s", uri, DefaultRootKey, strings.Join(rootKeyForms, ", "))
	}
	if c.OpenRootKey != nil && scheme != schemeSecret {
		return c.OpenRootKey(ctx, uri)
	}
	switch scheme {
	case schemeSecret:
		return c.openSecretRoot(ctx, rest, create)
	case schemeFile:
		return openFileRoot(rest)
	case schemeKMSv2:
		return openKMSv2Root(ctx, rest, c.Logger)
	case schemeTransit, schemeAWSKMS, schemeAlicloudKMS:
		u, err := url.Parse(uri)
		if err != nil {
			// The error of the parser repeats what it was given, and somebody may have put a password there.
			return nil, fmt.Errorf("root key %s://...: must be a URI such as %s", scheme, strings.Join(rootKeyForms, ", "))
		}
		return openWrappingRoot(ctx, u)
	default:
		return nil, fmt.Errorf("root key %q: the scheme %q is not known: use one of %s", uri, scheme, strings.Join(rootKeyForms, ", "))
	}
}
