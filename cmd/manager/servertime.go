package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"k8s.io/client-go/rest"
)

// serverTime reads the clock of the API server off an answer to a request that costs it nothing, to the second. Whoever sits in between
// may answer with a time of its own: what depends on it needs the manager's clock too.
func serverTime(config *rest.Config, client *http.Client) func(context.Context) (time.Time, error) {
	return func(ctx context.Context) (time.Time, error) {
		base, _, err := rest.DefaultServerUrlFor(config)
		if err != nil {
			return time.Time{}, err
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, base.ResolveReference(&url.URL{Path: "/version"}).String(), http.NoBody) //nolint:gosec // the API server is whom the flags name
		if err != nil {
			return time.Time{}, err
		}
		response, err := client.Do(request) //nolint:gosec // as above
		if err != nil {
			return time.Time{}, err
		}
		defer response.Body.Close() //nolint:errcheck // only its header is read
		date, err := http.ParseTime(response.Header.Get("Date"))
		if err != nil {
			return time.Time{}, fmt.Errorf("the API server's answer has no time: %w", err)
		}
		return date, nil
	}
}
