package sidecar

import (
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/datakeys/datakeys/sidecar/internal/keystore"
)

// Reasons of problems that are no data key's. They are stable: programs may decide by them.
const (
	reasonNotReady          = "NotReady"
	reasonUnknownDataKey    = "UnknownDataKey"
	reasonUnknownGeneration = "UnknownGeneration"
	reasonUnknownPath       = "UnknownPath"
	reasonMethodNotAllowed  = "MethodNotAllowed"
	reasonNotAcceptable     = "NotAcceptable"
	reasonInvalidParameter  = "InvalidParameter"
	reasonBodyNotAllowed    = "BodyNotAllowed"
	reasonBodyTooLarge      = "BodyTooLarge"
	reasonBodyIncomplete    = "BodyIncomplete"
	reasonBodyInvalid       = "BodyInvalid"
	reasonUnsupportedMedia  = "UnsupportedMediaType"
	reasonUnsuitableDataKey = "UnsuitableDataKey"
	reasonUnknownFormat     = "UnknownFormat"
	reasonCiphertextBroken  = "CiphertextBroken"
	reasonBusy              = "Busy"
	reasonInternalError     = "InternalError"
	reasonURITooLong        = "URITooLong"
	reasonUnknownProtocol   = "UnknownProtocol"
	reasonUnknownHost       = "UnknownHost"
	reasonWebPage           = "WebPage"
)

// problem is an error as the native API answers it: problem details (RFC 9457) of type about:blank, told apart by the
// extension member reason.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Reason string `json:"reason"`
	// DataKeys are, where the problem is about several, the data keys that are not issued.
	DataKeys []keystore.Status `json:"dataKeys,omitempty"`
}

func newProblem(status int, reason, detail string) problem {
	return problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail, Reason: reason}
}

func (p problem) ref() *problem { return &p }

func (p problem) render() []byte { return append(object(p), '\n') }

// write answers with the problem and returns its status. Headers that the status asks for are set before.
func (p problem) write(w http.ResponseWriter) int {
	body := p.render()
	h := w.Header()
	h["Content-Type"] = problemType
	h["Cache-Control"] = noStore
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(p.Status)
	_, _ = w.Write(body) //nolint:gosec // JSON, and a client that is gone needs no answer
	return p.Status
}

// object encodes structs of strings, numbers and bytes, for which JSON has no error.
func object(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return []byte("{}")
	}
	return b
}
