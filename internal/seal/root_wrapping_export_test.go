package seal

import (
	"context"
	"net/url"
)

// OpenWrappingRoot opens the root key that a URI names.
func OpenWrappingRoot(ctx context.Context, uri string) (RootKey, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	return openWrappingRoot(ctx, u)
}
