package rootkey

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/go-logr/logr"

	"github.com/datakeys/datakeys/internal/seal"
)

// forms say what the URI of a root key may look like, in the order of the documentation.
var forms = []string{
	"secret://NAME",
	"file:///PATH",
	"kmsv2:///SOCKET",
	"transit://HOST:PORT/MOUNT/KEY",
	"awskms://REGION/KEY",
	"alicloudkms://REGION/KEY",
}

// Forms says what the URI of a root key may look like, the embedded one included.
func Forms() []string { return slices.Clone(forms) }

// Open opens the root key that uri names, as seal.Config.OpenRootKey: one of any kind but the embedded one. ctx bounds the opening;
// log is told of what changes later.
func Open(ctx context.Context, uri string, log logr.Logger) (seal.RootKey, error) {
	scheme, rest, found := strings.Cut(uri, "://")
	if !found {
		// It is not repeated: it may be a key, by somebody who took the flag for the place of one.
		return nil, fmt.Errorf("root key: must be a URI such as %s: use one of %s", seal.DefaultRootKey, strings.Join(forms, ", "))
	}
	switch scheme {
	case schemeFile, schemeKMSv2:
		if !strings.HasPrefix(rest, "/") {
			return nil, fmt.Errorf("root key %s: must be an absolute path: write %s:///PATH", seal.ShownURI(uri), scheme)
		}
		if path, more, found := strings.Cut(rest, "?"); found {
			if name, _, _ := strings.Cut(more, "="); looksSecret(name) {
				return nil, fmt.Errorf("root key %s://%s: parameter %q: %w", scheme, path, name, errRootCredentials)
			}
			return nil, fmt.Errorf("root key %s://%s: takes no parameters: take out what follows the question mark", scheme, path)
		}
		if scheme == schemeFile {
			return openFileRoot(rest)
		}
		return openKMSv2Root(ctx, rest, log)
	case schemeTransit, schemeAWSKMS, schemeAlicloudKMS:
		u, err := url.Parse(uri)
		if err != nil {
			// The error of the parser repeats what it was given, and somebody may have put a password there.
			return nil, fmt.Errorf("root key %s://...: must be a URI such as %s", scheme, strings.Join(forms, ", "))
		}
		return openWrappingRoot(ctx, u)
	default:
		return nil, fmt.Errorf("root key %s: the scheme %q is not known: use one of %s", seal.ShownURI(uri), scheme, strings.Join(forms, ", "))
	}
}
