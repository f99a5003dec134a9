package sidecar

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/datakeys/datakeys/internal/envelope"
	"github.com/datakeys/datakeys/sidecar/internal/keystore"
)

// The members of JSON bodies.
const (
	memberPlaintext  = "plaintext"
	memberCiphertext = "ciphertext"
	memberAssociated = "associatedData"
)

// crypt answers POST /v1/data-keys/{name}/encrypt and /decrypt. The data key is looked for when the body is there: one that is revoked
// while a body comes slowly is not used any more.
func (a *api) crypt(w http.ResponseWriter, r *http.Request, to route, name string) int {
	member, most := memberPlaintext, maxPlaintext
	if to == decryptRoute {
		member, most = memberCiphertext, maxPlaintext+envelope.MessageOverhead
	}
	in := bodyMedia(r.Header)
	other := mediaJSON
	switch in {
	case mediaBytes:
	case mediaJSON:
		other, most = mediaBytes, maxJSONBody
	default:
		return newProblem(http.StatusUnsupportedMediaType, reasonUnsupportedMedia, fmt.Sprintf("the header Content-Type must be %s or %s, "+
			"without Content-Encoding", mediaBytes, mediaJSON)).write(w)
	}
	out := negotiate(r.Header, in, other)
	if out == "" {
		return notAcceptable(w, mediaJSON+" or "+mediaBytes)
	}
	associated, err := associatedOf(r.Header)
	if err == nil && in == mediaJSON && r.Header[associatedHeader] != nil {
		err = fmt.Errorf("is for a body of %s: a body of %s has the member %s", mediaBytes, mediaJSON, memberAssociated)
	}
	if err != nil {
		return newProblem(http.StatusBadRequest, reasonInvalidParameter, fmt.Sprintf("the header %s %v", associatedHeader, err)).write(w)
	}

	body, problem := a.readBody(r, most)
	if problem != nil {
		if problem.Status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "1")
		}
		return problem.write(w)
	}
	defer body.free()
	if !unclearEnd(r) {
		delete(w.Header(), "Connection") // see ServeHTTP
	}
	given := body.bytes()
	if in == mediaJSON {
		if given, associated, err = readCrypt(body, member); err != nil {
			return newProblem(http.StatusBadRequest, reasonBodyInvalid, err.Error()).write(w)
		}
	}
	c := crypting{w: w, r: r, name: name, json: out == mediaJSON, associated: envelope.AssociatedData{Raw: associated}}
	if to == encryptRoute {
		if len(given) > maxPlaintext {
			return bodyTooLarge(maxPlaintext).write(w)
		}
		return a.encrypt(c, given)
	}
	if len(given) > maxPlaintext+envelope.MessageOverhead {
		return bodyTooLarge(maxPlaintext + envelope.MessageOverhead).write(w)
	}
	return a.decrypt(c, given)
}

// readCrypt reads a JSON body. What it returns is gone when the body is freed.
func readCrypt(b *body, member string) (given, associated []byte, err error) {
	b.decoded = hide(make([]byte, len(b.bytes())))
	there := false
	err = readMembers(b.bytes(), b.decoded(), []string{member, memberAssociated}, func(name string, value []byte) {
		if name == member {
			given, there = value, true
		} else {
			associated = value
		}
	})
	if err == nil && !there {
		err = fmt.Errorf("the member %q is missing", member)
	}
	if err == nil {
		if err = checkAssociated(associated); err != nil {
			err = fmt.Errorf("the member %q %w", memberAssociated, err)
		}
	}
	return given, associated, err
}

// crypting is a request to encrypt or decrypt, and how to answer it.
type crypting struct {
	w          http.ResponseWriter
	r          *http.Request
	name       string
	json       bool
	associated envelope.AssociatedData
}

func (a *api) encrypt(c crypting, plaintext []byte) int {
	g, status := a.held(c.w, c.name, 0)
	if g == nil {
		return status
	}
	defer g.Issued.Release()
	if g.KeyPairSpec != "" {
		return unsuitable(c.w, c.name, "is a key pair")
	}
	message, err := g.Issued.Plaintext.SealMessage(make([]byte, 0, envelope.MessageOverhead+len(plaintext)), g.Number, c.associated, plaintext)
	if err != nil {
		return cannot(c.w, g, err)
	}
	if !c.json {
		return respond(c.w, bytesType, message)
	}
	head, tail := c.around(g.Number, memberCiphertext)
	answer := make([]byte, 0, len(head)+base64.StdEncoding.EncodedLen(len(message))+len(tail))
	answer = base64.StdEncoding.AppendEncode(append(answer, head...), message)
	return respond(c.w, jsonType, append(answer, tail...))
}

func (a *api) decrypt(c crypting, ciphertext []byte) int {
	m, err := envelope.ParseMessage(ciphertext)
	switch {
	case errors.Is(err, envelope.ErrNotMine):
		return newProblem(http.StatusBadRequest, reasonUnknownFormat, "the ciphertext is of another format, or of a version of it that this "+
			"sidecar does not read").write(c.w)
	case err != nil:
		return ciphertextBroken(c.w)
	}
	g, status := a.held(c.w, c.name, m.Generation)
	if g == nil {
		return status
	}
	defer g.Issued.Release()
	if g.KeyPairSpec != "" {
		return unsuitable(c.w, c.name, "is a key pair")
	}
	plaintext, err := g.Issued.Plaintext.OpenMessage(make([]byte, 0, m.Size()), m, c.associated)
	if err != nil {
		return cannot(c.w, g, err)
	}
	defer clear(plaintext)
	answer := &decrypted{plaintext: hide(plaintext), json: c.json}
	h := c.w.Header()
	h["Content-Type"], h["Cache-Control"] = bytesType, noStore
	if c.json {
		answer.head, answer.tail = c.around(g.Number, memberPlaintext)
		h["Content-Type"] = jsonType
	}
	h["Content-Length"] = []string{strconv.Itoa(answer.Size())}
	a.send(c.w, c.r, c.name, answer)
	return http.StatusOK
}

// around is the JSON of an answer before and after what it has of bytes. The name is a DNS subdomain.
func (c crypting) around(generation uint32, member string) (head, tail string) {
	return `{"name":"` + c.name + `","generation":` + strconv.FormatUint(uint64(generation), 10) + `,"` + member + `":"`, "\"}\n"
}

// cannot answers why envelope has refused.
func cannot(w http.ResponseWriter, g *keystore.Generation, err error) int {
	switch {
	case errors.Is(err, envelope.ErrBroken):
		return ciphertextBroken(w)
	case errors.Is(err, envelope.ErrInvalid): // all but the data key has been looked at
		return unsuitable(w, g.Name, fmt.Sprintf("has %d bytes", g.Issued.Plaintext.Len()))
	default:
		return newProblem(http.StatusInternalServerError, reasonInternalError, "this must not happen").write(w)
	}
}

func ciphertextBroken(w http.ResponseWriter) int {
	return newProblem(http.StatusBadRequest, reasonCiphertextBroken, "the ciphertext is damaged, or was made with another data key or with "+
		"other associated data").write(w)
}

func unsuitable(w http.ResponseWriter, name, why string) int {
	return newProblem(http.StatusConflict, reasonUnsuitableDataKey, fmt.Sprintf("the data key %s %s: encrypting takes a symmetric one "+
		"of %d to %d bytes; ask for this one with GET", quote(name), why, envelope.MinMessageKeySize, envelope.MaxMessageKeySize)).write(w)
}

// decrypted is the answer with what was decrypted.
type decrypted struct {
	plaintext  hidden
	json       bool
	head, tail string
}

func (d *decrypted) Size() int {
	if d.json {
		return len(d.head) + base64.StdEncoding.EncodedLen(len(d.plaintext())) + len(d.tail)
	}
	return len(d.plaintext())
}

func (d *decrypted) AppendTo(out []byte) []byte {
	out = slices.Grow(out, d.Size())
	if !d.json {
		return append(out, d.plaintext()...)
	}
	return append(base64.StdEncoding.AppendEncode(append(out, d.head...), d.plaintext()), d.tail...)
}
