package main

import (
	"io"
	"strings"
	"testing"
)

func TestWrongOptionsAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"no sidecar image":               {[]string{"--namespace=n"}, "--sidecar-image"},
		"no namespace":                   {[]string{"--sidecar-image=i"}, "--namespace"},
		"an empty root key":              {[]string{"--namespace=n", "--sidecar-image=i", "--root-key="}, "--root-key"},
		"a pull policy of none":          {[]string{"--namespace=n", "--sidecar-image=i", "--sidecar-image-pull-policy=Sometimes"}, "--sidecar-image-pull-policy"},
		"an address without a port":      {[]string{"--namespace=n", "--sidecar-image=i", "--key-service-bind=localhost"}, "--key-service-bind"},
		"a word that is no flag":         {[]string{"--namespace=n", "--sidecar-image=i", "serve"}, `"serve"`},
		"a kubeconfig that is not there": {[]string{"--namespace=n", "--sidecar-image=i", "--kubeconfig=/does/not/exist"}, "--kubeconfig"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseOptions(test.args, func(string) string { return "" }, io.Discard)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error that names %s", err, test.want)
			}
		})
	}
}
