package rootkey

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
)

// maxRootIDSize bounds the ID of a wrapping root, and so its URI without the parameters.
const maxRootIDSize = 1024

var errRootCredentials = errors.New("has credentials in it: take them out; they come from the environment or from files, " +
	"because a URI shows in process lists, manifests and logs")

// withoutCredentials is as much of a URI as may be shown: parameters may hold anything.
func withoutCredentials(u *url.URL) string {
	return u.Scheme + "://" + u.Host + u.Path
}

// wrappingParameters returns the parameters of the URI of a root key, none of them twice, empty or other than known.
func wrappingParameters(u *url.URL, known ...string) (map[string]string, error) {
	if u.User != nil {
		return nil, errRootCredentials
	}
	if u.Fragment != "" || u.RawFragment != "" || u.Opaque != "" {
		return nil, fmt.Errorf("must be %s://HOST/PATH?PARAMETERS, without a fragment", u.Scheme)
	}
	if u.EscapedPath() != u.Path {
		return nil, errors.New("must name the key in plain characters: take the percent signs out")
	}
	if len(withoutCredentials(u)) > maxRootIDSize/2 {
		return nil, fmt.Errorf("must be at most %d bytes long without its parameters", maxRootIDSize/2)
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, errors.New("has parameters that cannot be read: write NAME=VALUE, with & between them")
	}
	parameters := make(map[string]string, len(query))
	for name, values := range query {
		switch {
		case !slices.Contains(known, name) && looksSecret(name):
			return nil, fmt.Errorf("parameter %q: %w", name, errRootCredentials)
		case !slices.Contains(known, name):
			return nil, fmt.Errorf("parameter %q is not known: use %s", name, strings.Join(known, ", "))
		case len(values) != 1 || values[0] == "":
			return nil, fmt.Errorf("parameter %q must have one value", name)
		case strings.HasSuffix(name, "-file") && (!filepath.IsAbs(values[0]) || filepath.Clean(values[0]) != values[0]):
			return nil, fmt.Errorf("parameter %q must be the absolute path of a file in its shortest form", name)
		}
		parameters[name] = values[0]
	}
	return parameters, nil
}

// looksSecret goes by the names under which SDKs and wrappers take credentials.
func looksSecret(name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc([]string{"token", "secret", "password", "passwd", "credential", "access", "auth"}, func(word string) bool {
		return strings.Contains(name, word)
	})
}

// loopback reports whether host is an IP address of this machine: an agent in the pod may be spoken to without TLS.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
