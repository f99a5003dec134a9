package aws

import (
	"fmt"
	"net/http"
	"strings"
)

// Names of exceptions. Clients decide by them.
const (
	accessDenied           = "AccessDeniedException"
	customKeyStoreNotFound = "CustomKeyStoreNotFoundException"
	dependencyTimeout      = "DependencyTimeoutException"
	disabled               = "DisabledException"
	dryRunOperation        = "DryRunOperationException"
	incorrectKey           = "IncorrectKeyException"
	invalidArn             = "InvalidArnException"
	invalidCiphertext      = "InvalidCiphertextException"
	invalidGrantToken      = "InvalidGrantTokenException"
	invalidKeyUsage        = "InvalidKeyUsageException"
	invalidMarker          = "InvalidMarkerException"
	keyUnavailable         = "KeyUnavailableException"
	kmsInternal            = "KMSInternalException"
	kmsInvalidState        = "KMSInvalidStateException"
	notFound               = "NotFoundException"
	serialization          = "SerializationException"
	throttling             = "ThrottlingException"
	unknownOperation       = "UnknownOperationException"
	unrecognizedClient     = "UnrecognizedClientException"
	unsupportedOperation   = "UnsupportedOperationException"
	validation             = "ValidationException"
)

// exception is an error as AWS KMS says it. It is no error of Go: it goes to the client and nowhere else, and nil is success.
type exception struct {
	name    string
	message string // empty: the answer has none
}

func newException(name, format string, args ...any) *exception {
	return &exception{name, fmt.Sprintf(format, args...)}
}

// status is 400 for whatever the client can do something about, as AWS KMS has it on the wire. Clients try again on 5xx.
func (e *exception) status() int {
	switch e.name {
	case kmsInternal, keyUnavailable:
		return http.StatusInternalServerError
	case dependencyTimeout:
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest
}

// appendTo appends the body of the answer. The name stands in it because some clients read it nowhere else.
func (e *exception) appendTo(out []byte) []byte {
	out = append(out, `{"__type":"`...)
	out = append(out, e.name...)
	out = append(out, '"')
	if e.message != "" {
		out = append(out, `,"message":`...)
		out = appendString(out, e.message)
	}
	return append(out, '}')
}

// shorten bounds what is repeated of what a client sent.
func shorten(s string) string {
	const most = 256
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
