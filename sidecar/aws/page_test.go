package aws

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestThePageHasEveryOperationAndException, with its status.
func TestThePageHasEveryOperationAndException(t *testing.T) {
	b, err := os.ReadFile("../../docs/aws-kms.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for operation := range operations {
		if !strings.Contains(page, "`"+operation+"`") {
			t.Errorf("the operation %s is missing", operation)
		}
	}
	for operation := range elsewhere {
		if !strings.Contains(page, "`"+operation+"`") {
			t.Errorf("the operation %s is missing", operation)
		}
	}
	source, err := os.ReadFile("exception.go")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`= "(\w+Exception)"`).FindAllStringSubmatch(string(source), -1)
	if len(names) != 21 {
		t.Errorf("got %d exceptions, want 21", len(names))
	}
	rows := regexp.MustCompile("\n\\| `(\\w+Exception)` \\| (\\d+) \\|").FindAllStringSubmatch(page, -1)
	statuses := map[string]string{}
	for _, row := range rows {
		statuses[row[1]] = row[2]
	}
	for _, name := range names {
		e := exception{name: name[1]}
		if want := map[int]string{400: "400", 500: "500", 503: "503"}[e.status()]; statuses[name[1]] != want {
			t.Errorf("%s has the status %q, want %s", name[1], statuses[name[1]], want)
		}
	}
	if len(rows) != len(names) {
		t.Errorf("the page has %d exceptions, want %d", len(rows), len(names))
	}
}
