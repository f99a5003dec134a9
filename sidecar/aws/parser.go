package aws

import (
	"bytes"
	"encoding/base64"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxDepth is how deep objects and arrays may be in one another. Those of known members are at most two deep.
const maxDepth = 16

// parser reads JSON (RFC 8259), and nothing that two readers might take for different things: names are exact and stand once in an
// object, a surrogate has its other half, and nothing follows the end. encoding/json takes keyid for KeyId, and of two the last.
//
// Its errors tell where, and never what: a plaintext may be there.
type parser struct {
	in    []byte // valid UTF-8
	at    int
	depth int
	// unescaped holds the strings with escapes. It has room for all that are in in, so that it never moves.
	unescaped []byte
}

// wipe clears what was unescaped.
func (p *parser) wipe() { clear(p.unescaped) }

func (p *parser) fail(what string) *exception {
	return newException(serialization, "the body of the request, at byte %d: %s", p.at, what)
}

// whole reads an object that is all there is.
func (p *parser) whole(read func(name []byte) *exception) *exception {
	if !utf8.Valid(p.in) {
		return newException(serialization, "the body of the request must be UTF-8")
	}
	p.space()
	if e := p.object(read); e != nil {
		return e
	}
	p.space()
	if p.at < len(p.in) {
		return p.fail("nothing may follow the object")
	}
	return nil
}

func (p *parser) space() {
	for p.at < len(p.in) {
		switch p.in[p.at] {
		case ' ', '\t', '\n', '\r':
			p.at++
		default:
			return
		}
	}
}

// take reads c if it is next.
func (p *parser) take(c byte) bool {
	if p.at < len(p.in) && p.in[p.at] == c {
		p.at++
		return true
	}
	return false
}

// literal reads true, false or null if it is next. What follows is for the next step to look at.
func (p *parser) literal(word string) bool {
	if bytes.HasPrefix(p.in[p.at:], []byte(word)) {
		p.at += len(word)
		return true
	}
	return false
}

// object reads an object, and has each of its values read.
func (p *parser) object(read func(name []byte) *exception) *exception {
	var seen names
	return p.list('{', '}', "must be an object", func() *exception {
		name, e := p.text()
		switch {
		case e != nil:
			return e
		case !seen.add(name):
			return p.fail("this member is there twice")
		}
		p.space()
		if !p.take(':') {
			return p.fail("must be a colon")
		}
		p.space()
		return read(name)
	})
}

// array reads an array, and has each of its values read.
func (p *parser) array(read func() *exception) *exception {
	return p.list('[', ']', "must be an array", read)
}

func (p *parser) list(begin, end byte, must string, item func() *exception) *exception {
	if !p.take(begin) {
		return p.fail(must)
	}
	if p.depth++; p.depth > maxDepth {
		return p.fail("is nested too deep")
	}
	p.space()
	if !p.take(end) {
		for {
			p.space()
			if e := item(); e != nil {
				return e
			}
			p.space()
			if p.take(end) {
				break
			}
			if !p.take(',') {
				return p.fail("must be a comma or the end")
			}
		}
	}
	p.depth--
	return nil
}

// skip reads a value of any type.
func (p *parser) skip() *exception {
	if p.at == len(p.in) {
		return p.fail("must be a value")
	}
	switch c := p.in[p.at]; {
	case c == '{':
		return p.object(func([]byte) *exception { return p.skip() })
	case c == '[':
		return p.array(p.skip)
	case c == '"':
		_, e := p.text()
		return e
	case p.literal("true"), p.literal("false"), p.literal("null"):
		return nil
	}
	_, e := p.number()
	return e
}

// number reads a number and returns its text.
func (p *parser) number() (string, *exception) {
	start := p.at
	digits := func() (n int) {
		for ; p.at < len(p.in) && '0' <= p.in[p.at] && p.in[p.at] <= '9'; n++ {
			p.at++
		}
		return n
	}
	p.take('-')
	whole := p.take('0') || digits() > 0
	fraction := !p.take('.') || digits() > 0
	exponent := true
	if p.take('e') || p.take('E') {
		_ = p.take('+') || p.take('-')
		exponent = digits() > 0
	}
	if !whole || !fraction || !exponent {
		return "", p.fail("must be a value")
	}
	return string(p.in[start:p.at]), nil
}

// integer reads a number of 32 bits with neither fraction nor exponent.
func (p *parser) integer() (int32, *exception) {
	if p.at == len(p.in) || p.in[p.at] != '-' && (p.in[p.at] < '0' || p.in[p.at] > '9') {
		return 0, p.fail("must be a number")
	}
	text, e := p.number()
	if e != nil {
		return 0, e
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return 0, p.fail("must be an integer of 32 bits")
	}
	return int32(n), nil
}

// boolean reads true or false.
func (p *parser) boolean() (bool, *exception) {
	if p.literal("true") {
		return true, nil
	}
	if p.literal("false") {
		return false, nil
	}
	return false, p.fail("must be true or false")
}

// text reads a string. It is valid for as long as the body is.
func (p *parser) text() ([]byte, *exception) {
	if !p.take('"') {
		return nil, p.fail("must be a string")
	}
	start := p.at
	for ; p.at < len(p.in); p.at++ {
		switch c := p.in[p.at]; {
		case c == '"':
			p.at++
			return p.in[start : p.at-1], nil
		case c == '\\':
			return p.escaped(start)
		case c < ' ':
			return nil, p.fail("a control character in a string must be escaped")
		}
	}
	return nil, p.fail("the string has no end")
}

// escaped goes on with a string that began at start, at its first escape.
func (p *parser) escaped(start int) ([]byte, *exception) {
	if p.unescaped == nil {
		p.unescaped = make([]byte, 0, len(p.in)) // an escape is longer than what it stands for
	}
	begin := len(p.unescaped)
	p.unescaped = append(p.unescaped, p.in[start:p.at]...)
	for p.at < len(p.in) {
		c := p.in[p.at]
		p.at++
		switch {
		case c == '"':
			return p.unescaped[begin:], nil
		case c < ' ':
			p.at--
			return nil, p.fail("a control character in a string must be escaped")
		case c != '\\':
			p.unescaped = append(p.unescaped, c)
			continue
		}
		if e := p.escape(); e != nil {
			return nil, e
		}
	}
	return nil, p.fail("the string has no end")
}

// escape reads an escape behind its backslash.
func (p *parser) escape() *exception {
	const short, means = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
	if p.at < len(p.in) {
		if i := strings.IndexByte(short, p.in[p.at]); i >= 0 {
			p.at++
			p.unescaped = append(p.unescaped, means[i])
			return nil
		}
	}
	r, ok := p.hex()
	if ok && utf16.IsSurrogate(r) {
		second, isHex := rune(0), p.take('\\')
		if isHex {
			second, isHex = p.hex()
		}
		r = utf16.DecodeRune(r, second)
		ok = isHex && r != utf8.RuneError
	}
	if !ok {
		return p.fail("this is no escape of a character")
	}
	p.unescaped = utf8.AppendRune(p.unescaped, r)
	return nil
}

// hex reads u and four hexadecimal digits.
func (p *parser) hex() (rune, bool) {
	const size = len("u0000")
	if len(p.in)-p.at < size || p.in[p.at] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range p.in[p.at+1 : p.at+size] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	p.at += size
	return r, true
}

var strictBase64 = base64.StdEncoding.Strict()

// blob reads bytes in base64, of which there is one spelling only. Whoever takes them clears them if they are secret.
func (p *parser) blob() ([]byte, *exception) {
	text, e := p.text()
	if e != nil {
		return nil, e
	}
	b := make([]byte, strictBase64.DecodedLen(len(text)))
	n, err := strictBase64.Decode(b, text)
	if err != nil || base64.StdEncoding.EncodedLen(n) != len(text) { // Decode passes over ends of lines
		clear(b)
		return nil, p.fail("must be base64 with padding (RFC 4648, section 4)")
	}
	return b[:n], nil
}

// names are those that an object had so far.
type names struct {
	few  [16][]byte
	n    int
	many map[string]struct{} // those beyond few
}

// add reports whether the name is new.
func (s *names) add(name []byte) bool {
	for _, known := range s.few[:s.n] {
		if bytes.Equal(known, name) {
			return false
		}
	}
	if s.n < len(s.few) {
		s.few[s.n] = name
		s.n++
		return true
	}
	if _, known := s.many[string(name)]; known {
		return false
	}
	if s.many == nil {
		s.many = map[string]struct{}{}
	}
	s.many[string(name)] = struct{}{}
	return true
}
