package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestTheGoOfTheKeyServicePageIsWhatCompiles holds the program of the page against the example that the compiler sees.
func TestTheGoOfTheKeyServicePageIsWhatCompiles(t *testing.T) {
	_, program, found := strings.Cut(read(t, "docs/key-service.md"), "```go\n")
	program, _, closed := strings.Cut(program, "```\n")
	if !found || !closed {
		t.Fatal("the page has no program")
	}
	if !strings.Contains(read(t, "test/docs/keyservice_example_test.go"), program) {
		t.Errorf("test/docs/keyservice_example_test.go does not hold, as it is,\n%s", program)
	}
}

func TestTheKeyServicePageHasEveryReason(t *testing.T) {
	declared := regexp.MustCompile(`Reason\w+ += "([A-Z_]+)"`).FindAllStringSubmatch(read(t, "api/kms/v1/reasons.go"), -1)
	if len(declared) < 10 {
		t.Fatalf("got %d reasons, want 10 or more", len(declared))
	}
	page := read(t, "docs/key-service.md")
	for _, reason := range declared {
		if !strings.Contains(page, "`"+reason[1]+"`") {
			t.Errorf("the reason %s is missing", reason[1])
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
