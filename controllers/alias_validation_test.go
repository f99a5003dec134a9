package controllers_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

func aliases(t *testing.T, names ...string) string {
	t.Helper()
	list, err := json.Marshal(names) // JSON is YAML
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("{aliases: %s}", list)
}

// What the API server takes and refuses as aliases of a MasterKey, with the field and the rule named.
func TestAliases(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	many := make([]string, 51)
	for i := range many {
		many[i] = strings.Repeat("a", 247) + fmt.Sprintf("%03d", i) // 50 of the greatest length are not too much for the rules
	}
	const (
		characters = "an alias has letters, digits, slashes, underscores and dashes only"
		prefixes   = "an alias is written without alias/ in front, and does not begin with aws/"
	)
	for name, tc := range map[string]struct {
		spec string
		want []string
	}{
		"one":                     {aliases(t, "orders-prod"), nil},
		"every kind of character": {aliases(t, "aZ09/_-"), nil},
		"one character":           {aliases(t, "a"), nil},
		"a slash":                 {aliases(t, "/"), nil},
		"250 characters":          {aliases(t, strings.Repeat("a", 250)), nil},
		"50 of 250 characters":    {aliases(t, many[:50]...), nil},
		"aws without a slash":     {aliases(t, "aws-orders", "aws", "x/aws/"), nil},
		"alias without a slash":   {aliases(t, "alias", "aliases/a"), nil},
		"two that differ in case": {aliases(t, "Orders", "orders"), nil},
		"no alias":                {`{aliases: []}`, []string{"spec.aliases", "at least 1"}},
		"51":                      {aliases(t, many...), []string{"spec.aliases", "at most 50 items"}},
		"an empty one":            {aliases(t, ""), []string{"spec.aliases[0]", "at least 1"}},
		"251 characters":          {aliases(t, strings.Repeat("a", 251)), []string{"spec.aliases[0]", "250"}},
		"the same twice":          {aliases(t, "a", "b", "a"), []string{"spec.aliases[2]", "Duplicate value"}},
		"a colon":                 {aliases(t, "a:b"), []string{"spec.aliases", characters}},
		"a dot":                   {aliases(t, "ok", "a.b"), []string{"spec.aliases", characters}},
		"a space":                 {aliases(t, "a b"), []string{"spec.aliases", characters}},
		"a line break at its end": {aliases(t, "a\n"), []string{"spec.aliases", characters}},
		"a letter with an accent": {aliases(t, "é"), []string{"spec.aliases", characters}},
		"alias/ in front":         {aliases(t, "alias/orders"), []string{"spec.aliases", prefixes}},
		"aws/ in front":           {aliases(t, "ok", "aws/s3"), []string{"spec.aliases", prefixes}},
		"a number":                {`{aliases: [1]}`, []string{"spec.aliases[0]", "string"}},
		"a text":                  {`{aliases: orders}`, []string{"spec.aliases", "array"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := c.client.Create(t.Context(), parse(t, c.namespace, "MasterKey", tc.spec), client.DryRunAll, client.FieldValidation("Strict"))
			checkRefusal(t, err, tc.want)
		})
	}
}

// Aliases come and go at any time.
func TestAliasesMayChange(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	object := parse(t, c.namespace, "MasterKey", "{description: d}")
	if err := c.client.Create(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	for _, spec := range []string{aliases(t, "a"), aliases(t, "b", "a"), aliases(t, "b"), "{description: d}"} {
		next := parse(t, c.namespace, "MasterKey", spec)
		next.SetName(object.GetName())
		next.SetResourceVersion(object.GetResourceVersion())
		if err := c.client.Update(t.Context(), next); err != nil {
			t.Fatalf("%s: %v", spec, err)
		}
		object = next
	}
}
