package sidecar

import (
	"mime"
	"net/http"
	"strconv"
	"strings"
)

const (
	mediaJSON  = "application/json"
	mediaBytes = "application/octet-stream"
)

// negotiate returns the first of the offered media types that the Accept header likes best (RFC 9110, section 12.5.1),
// or "" where it likes none of them. No header accepts everything; a range that is malformed accepts nothing.
func negotiate(header http.Header, offers ...string) string {
	values := header["Accept"]
	if len(values) == 0 {
		return offers[0]
	}
	if len(values) == 1 { // what clients send, spared the parsing
		for _, offer := range offers {
			if values[0] == offer {
				return offer
			}
		}
		if values[0] == "*/*" {
			return offers[0]
		}
	}
	best, bestQuality := "", 0.0
	for _, offer := range offers {
		if q := quality(values, offer); q > bestQuality {
			best, bestQuality = offer, q
		}
	}
	return best
}

// quality is the weight that the most specific range for the offer has.
func quality(values []string, offer string) float64 {
	quality, specificity := 0.0, 0
	family, _, _ := strings.Cut(offer, "/")
	for _, value := range values {
		for element := range strings.SplitSeq(value, ",") {
			media, params, err := mime.ParseMediaType(element)
			if err != nil {
				continue
			}
			s := 0
			switch media {
			case offer:
				s = 3
			case family + "/*":
				s = 2
			case "*/*":
				s = 1
			}
			if s <= specificity {
				continue
			}
			q, ok := weight(params["q"])
			if !ok {
				continue
			}
			quality, specificity = q, s
		}
	}
	return quality
}

// weight reads a qvalue (RFC 9110, section 12.4.2); none is 1.
func weight(s string) (float64, bool) {
	if s == "" {
		return 1, true
	}
	q, err := strconv.ParseFloat(s, 64)
	return q, err == nil && q >= 0 && q <= 1
}
