package sidecar

import (
	"net/http"
	"testing"
)

func TestNegotiate(t *testing.T) {
	for name, test := range map[string]struct {
		accept []string
		want   string
	}{
		"no header takes the first offer":               {nil, mediaJSON},
		"what curl sends takes the first offer":         {[]string{"*/*"}, mediaJSON},
		"nothing but JSON":                              {[]string{"application/json"}, mediaJSON},
		"nothing but bytes":                             {[]string{"application/octet-stream"}, mediaBytes},
		"bytes before anything else":                    {[]string{"application/octet-stream, */*;q=0.1"}, mediaBytes},
		"the order does not count, the weight does":     {[]string{"application/json;q=0.5, application/octet-stream"}, mediaBytes},
		"equal weights take the first offer":            {[]string{"application/octet-stream, application/json"}, mediaJSON},
		"a family takes the first offer":                {[]string{"application/*"}, mediaJSON},
		"the most specific range counts":                {[]string{"*/*, application/json;q=0"}, mediaBytes},
		"headers add up":                                {[]string{"text/html", "application/octet-stream"}, mediaBytes},
		"capitals are the same":                         {[]string{"Application/JSON"}, mediaJSON},
		"a parameter of the media type is ignored":      {[]string{"application/json; charset=utf-8"}, mediaJSON},
		"nothing that is there":                         {[]string{"text/html"}, ""},
		"refused by its weight":                         {[]string{"application/json;q=0"}, ""},
		"a weight that is no number accepts nothing":    {[]string{"application/json;q=high"}, ""},
		"a weight over 1 accepts nothing":               {[]string{"application/json;q=2"}, ""},
		"a malformed range accepts nothing":             {[]string{"application"}, ""},
		"an empty header accepts nothing":               {[]string{""}, ""},
		"a malformed range leaves the others as is":     {[]string{"@@, application/octet-stream"}, mediaBytes},
		"everything but what is there is not something": {[]string{"text/*, image/png"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := negotiate(http.Header{"Accept": test.accept}, mediaJSON, mediaBytes); got != test.want {
				t.Errorf("Accept %q: got %q, want %q", test.accept, got, test.want)
			}
		})
	}
}
