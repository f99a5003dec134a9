package sidecar

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// readMembers reads a JSON object whose members are bytes in base64, and calls f for each. It stands in for json.Unmarshal, which takes
// the last of two members of one name, and names in any case and of any kind, and which leaves copies of a plaintext that has
// escapes. What f gets is decoded into into, which has as much room as the object has bytes.
//
// Some clients write the slash and the plus of base64 as escapes.
func readMembers(object, into []byte, names []string, f func(name string, value []byte)) error {
	c := cursor(object)
	seen := make([]string, 0, 4)
	for ok := c.take('{'); ; ok = c.take(',') {
		switch {
		case ok && len(seen) == 0 && c.take('}'), !ok && len(seen) > 0 && c.take('}'):
			if c.space(); len(c) > 0 {
				return errNoObject
			}
			return nil
		case !ok:
			return errNoObject
		}
		literal, ok := c.string()
		if !ok || !c.take(':') {
			return errNoObject
		}
		at := slices.IndexFunc(names, func(name string) bool { return name == string(literal) })
		if at < 0 {
			return fmt.Errorf("the member %s is not known: the members are %q", quote(string(literal)), names)
		}
		name := names[at]
		if slices.Contains(seen, name) {
			return fmt.Errorf("the member %q is there twice", name)
		}
		seen = append(seen, name)
		if literal, ok = c.string(); !ok {
			return fmt.Errorf("the member %q must be a string", name)
		}
		n, ok := decodeBase64(into, literal)
		if !ok {
			return fmt.Errorf("the member %q must be base64 (RFC 4648, section 4)", name)
		}
		f(name, into[:n:n])
		into = into[n:]
	}
}

var errNoObject = errors.New("the body must be one JSON object")

// cursor is what is still to be read of JSON.
type cursor []byte

// space passes over white space.
func (c *cursor) space() {
	b := *c
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t' || b[0] == '\r' || b[0] == '\n') {
		b = b[1:]
	}
	*c = b
}

// take passes over that byte, if it comes next.
func (c *cursor) take(b byte) bool {
	c.space()
	if len(*c) == 0 || (*c)[0] != b {
		return false
	}
	*c = (*c)[1:]
	return true
}

// string passes over a string and returns what stands between its quotes, escapes and all. Whether that may stand there, who knows
// what it must be finds out.
func (c *cursor) string() (literal []byte, ok bool) {
	if !c.take('"') {
		return nil, false
	}
	b := *c
	for end := 0; ; end++ {
		n := bytes.IndexByte(b[end:], '"')
		if n < 0 {
			return nil, false
		}
		end += n
		// A quote behind an odd number of backslashes is one of the string.
		if backslashes := end - len(bytes.TrimRight(b[:end], `\`)); backslashes%2 == 0 {
			*c = b[end+1:]
			return b[:end], true
		}
	}
}

// decodeBase64 decodes the inside of a JSON string into into, and returns how many bytes it is. The literal is changed: its escapes are
// undone where they stand.
func decodeBase64(into, literal []byte) (n int, ok bool) {
	if bytes.IndexByte(literal, '\\') >= 0 {
		if literal, ok = unescape(literal); !ok {
			return 0, false
		}
	}
	if bytes.IndexByte(literal, '\n') >= 0 || bytes.IndexByte(literal, '\r') >= 0 { // which the decoder would pass over
		return 0, false
	}
	n, err := strictBase64.Decode(into, literal)
	return n, err == nil
}

// unescape undoes the escapes that base64 can have.
func unescape(literal []byte) ([]byte, bool) {
	out := literal[:0]
	for i := 0; i < len(literal); i++ {
		if literal[i] != '\\' {
			out = append(out, literal[i])
			continue
		}
		i++ // a backslash is never the last
		switch {
		case literal[i] == '/':
			out = append(out, '/')
		case literal[i] == 'u' && i+4 < len(literal):
			code, err := strconv.ParseUint(string(literal[i+1:i+5]), 16, 16)
			if err != nil || code > 0x7f {
				return nil, false
			}
			out = append(out, byte(code))
			i += 4
		default:
			return nil, false
		}
	}
	return out, true
}
