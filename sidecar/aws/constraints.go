package aws

import (
	"fmt"
	"strconv"
	"strings"
)

// violations are what is wrong with each member by itself. AWS KMS tells all of it in one message.
type violations []string

// check returns what each member of the request breaks of its own constraints.
func (r *request) check(o *operation) *exception {
	var v violations
	for _, m := range o.members {
		switch {
		case r.given(m):
			v.checkMember(m, members[m].at(r))
		case m == memberCiphertextBlob && len(r.dryRunModifiers) > 0: // which may stand for it, and are refused later
		case o.requires(m):
			v.add("Value null at '%s' failed to satisfy constraint: Member must not be null", members[m].field)
		}
	}
	if len(v) == 0 {
		return nil
	}
	errors := "errors"
	if len(v) == 1 {
		errors = "error"
	}
	return newException(validation, "%d validation %s detected: %s", len(v), errors, strings.Join(v, "; "))
}

func (v *violations) add(format string, args ...any) { *v = append(*v, fmt.Sprintf(format, args...)) }

func (v *violations) checkMember(m member, value any) {
	c := &members[m]
	switch value := value.(type) {
	case *string:
		if c.enum != nil {
			if !isOneOf(c.enum, *value) {
				v.add("Value '%s' at '%s' failed to satisfy constraint: Member must satisfy enum value set: [%s]",
					shorten(*value), c.field, strings.Join(c.enum, ", "))
			}
			return
		}
		v.length(m, " '"+shorten(*value)+"'", len(*value))
	case *[]byte:
		v.length(m, "", len(*value))
	case *int32:
		v.bound(m, " '"+strconv.Itoa(int(*value))+"'", "value", int(*value))
	case *map[string]string:
		if n := len(*value); n > maxContextPairs {
			v.add("Value at '%s' failed to satisfy constraint: Map must have at most %d pairs", c.field, maxContextPairs)
		}
		if contextSize(*value) > maxContextSize {
			v.add("Value at '%s' failed to satisfy constraint: Map must have at most %d bytes of keys and values", c.field, maxContextSize)
		}
	case *[]string:
		v.length(m, "", len(*value))
		v.items(m, *value)
	}
}

// items checks the items of a list, of which the first that is wrong is told.
func (v *violations) items(m member, list []string) {
	c := &members[m]
	for _, item := range list {
		if c.enum == nil && (len(item) < 1 || len(item) > maxGrantToken) {
			v.add("Value at '%s' failed to satisfy constraint: Member must satisfy constraint: [Member must have length less than or "+
				"equal to %d, Member must have length greater than or equal to 1]", c.field, maxGrantToken)
			return
		}
		if !isOneOf(c.enum, item) {
			v.add("Value at '%s' failed to satisfy constraint: Member must satisfy constraint: [Member must satisfy enum value set: [%s]]",
				c.field, strings.Join(c.enum, ", "))
			return
		}
	}
}

func (v *violations) length(m member, shown string, n int) { v.bound(m, shown, "length", n) }

// bound checks a value or a length, which begins the constraint's name. What is shown of the value is nothing where it may be secret.
func (v *violations) bound(m member, shown, what string, n int) {
	c := &members[m]
	switch {
	case n < c.min:
		v.add("Value%s at '%s' failed to satisfy constraint: Member must have %s greater than or equal to %d", shown, c.field, what, c.min)
	case c.max > 0 && n > c.max:
		v.add("Value%s at '%s' failed to satisfy constraint: Member must have %s less than or equal to %d", shown, c.field, what, c.max)
	}
}
