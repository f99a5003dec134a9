package alibaba

import (
	"fmt"
	"net/http"
	"strings"
)

const (
	mediaProtobuf   = "application/x-protobuf"
	apiVersion      = "dkms-gcs-0.2"
	signatureMethod = "RSA_PKCS1_SHA_256"
)

// checkHeader returns the operation of that name, if the request is one of this protocol. Who asks, the key service knows by the pod's
// token: a signature may be missing, and of one that is there only the form is checked. The date is not: it is there to keep a signature
// from being used again.
func checkHeader(h http.Header, name string) (operation, error) {
	o, ok := operations[name]
	if !ok {
		return operation{}, &failure{http.StatusBadRequest, "InvalidApiName", fmt.Sprintf("The ApiName %s is invalid.", quote(name))}
	}
	if version := value(h, "X-Kms-Apiversion"); version != apiVersion {
		return operation{}, &failure{http.StatusBadRequest, "InvalidApiVersion",
			fmt.Sprintf("The ApiVersion %s is invalid. It must be %q.", quote(version), apiVersion)}
	}
	media := value(h, "Content-Type")
	if kind, _, _ := strings.Cut(media, ";"); !strings.EqualFold(strings.TrimSpace(kind), mediaProtobuf) {
		return operation{}, &failure{http.StatusUnsupportedMediaType, "InvalidContentType",
			fmt.Sprintf("Content-Type %s is unsupported. It must be %q.", quote(media), mediaProtobuf)}
	}
	if method := value(h, "X-Kms-Signaturemethod"); method != "" && method != signatureMethod {
		return operation{}, invalidParam("x-kms-signaturemethod")
	}
	if credentials := value(h, "Authorization"); credentials != "" {
		scheme, signature, _ := strings.Cut(credentials, " ")
		if !strings.EqualFold(scheme, "Bearer") && !strings.EqualFold(scheme, "TOKEN") || strings.TrimSpace(signature) == "" {
			return operation{}, invalidParam("Authorization")
		}
	}
	return o, nil
}

// value is the value of a header, or all of them where there are several: that is never one that is expected.
func value(h http.Header, name string) string {
	if values := h[name]; len(values) == 1 {
		return values[0]
	}
	return strings.Join(h[name], ", ")
}

// quote quotes what a client sent, and not all of it.
func quote(s string) string {
	const most = 256
	if len(s) > most {
		s = s[:most] + "…"
	}
	return fmt.Sprintf("%q", s)
}
