package docs_test

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestThePagesNameTestsThatExist holds every test that any page names, and a row of it behind a slash.
func TestThePagesNameTestsThatExist(t *testing.T) {
	tests := testsOfTheTree(t)
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, page := range pages {
		page = "docs/" + filepath.Base(page)
		for _, m := range regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w*)(?:/([^`]*))?`").FindAllStringSubmatch(read(t, page), -1) {
			named++
			source, found := tests[m[1]]
			if !found {
				t.Errorf("%s: there is no test %s", page, m[1])
			} else if m[2] != "" && !strings.Contains(source, `"`+m[2]+`"`) {
				t.Errorf("%s: %s has no row %q", page, m[1], m[2])
			}
		}
	}
	if named < 100 {
		t.Errorf("got %d names, want 100 or more", named)
	}
}

// TestThePagesHaveEveryReason: of conditions and of events, in a table, and no condition has another.
func TestThePagesHaveEveryReason(t *testing.T) {
	declared := regexp.MustCompile(`\n\t(?:Reason|Condition)\w+ += "(\w+)"`).FindAllStringSubmatch(read(t, "api/v1alpha1/conditions.go"), -1)
	if len(declared) < 40 {
		t.Fatalf("got %d reasons, want 40 or more", len(declared))
	}
	known := map[string]bool{}
	pages := read(t, "docs/lifecycle.md") + read(t, "docs/operations.md")
	for _, reason := range declared {
		known[reason[1]] = true
		if !regexp.MustCompile("(?m)^(\\|.*|\\*\\*)`" + reason[1] + "`").MatchString(pages) {
			t.Errorf("no table has %s", reason[1])
		}
	}
	_, conditions, _ := strings.Cut(read(t, "docs/lifecycle.md"), "\n## Conditions\n")
	conditions, _, _ = strings.Cut(conditions, "\n## ")
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\|").FindAllStringSubmatch(conditions, -1) {
		if !known[row[1]] {
			t.Errorf("there is no reason %s", row[1])
		}
	}
}

// TestTheNetworkSectionHasEveryPort of the manager's container.
func TestTheNetworkSectionHasEveryPort(t *testing.T) {
	_, section, _ := strings.Cut(read(t, "docs/operations.md"), "\n### Network\n")
	section, _, _ = strings.Cut(section, "\n#")
	ports := regexp.MustCompile(`containerPort: (\d+)`).FindAllStringSubmatch(read(t, "config/manager/deployment.yaml"), -1)
	if len(ports) < 4 {
		t.Fatalf("got %d ports, want 4 or more", len(ports))
	}
	for _, port := range ports {
		if !strings.Contains(section, "TCP "+port[1]) {
			t.Errorf("the section does not say who connects to port %s", port[1])
		}
	}
}
