package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestThePagesNameTestsThatExist holds every test that any page names, and a row of it behind a slash.
func TestThePagesNameTestsThatExist(t *testing.T) {
	tests := testsOfTheTree(t)
	named := 0
	for _, page := range allPages(t) {
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

// TestTheFuzzingPageHasEveryTarget, by its room.
func TestTheFuzzingPageHasEveryTarget(t *testing.T) {
	named := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` `(Fuzz\\w+)` \\|").FindAllStringSubmatch(read(t, "docs/design/fuzzing.md"), -1) {
		named[row[1]+" "+row[2]] = true
	}
	there := map[string]bool{}
	walkTests(t, func(path, source string) {
		for _, target := range regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`).FindAllStringSubmatch(source, -1) {
			there[filepath.ToSlash(filepath.Dir(path))+" "+target[1]] = true
		}
	})
	if len(there) < 20 {
		t.Errorf("got %d targets, want 20 or more", len(there))
	}
	if diff := cmp.Diff(there, named); diff != "" {
		t.Errorf("the targets that there are, and those of the page (-there +page):\n%s", diff)
	}
}

// TestTheLinksOfThePagesLeadSomewhere: to a file, and where they name one, to a heading of it.
func TestTheLinksOfThePagesLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^()\s]+)\)`)
	code := regexp.MustCompile("(?ms)^ *```.*?^ *```$|`[^`\n]*`")
	followed := 0
	for _, page := range allPages(t) {
		for _, m := range link.FindAllStringSubmatch(code.ReplaceAllString(read(t, page), ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			followed++
			file, heading, _ := strings.Cut(m[1], "#")
			to := page
			if file != "" {
				to = filepath.Join(filepath.Dir(page), file)
			}
			if _, err := os.Stat(filepath.Join(root, to)); err != nil {
				t.Errorf("%s: %s: there is no such file", page, m[1])
			} else if heading != "" && !slices.Contains(headings(t, to), heading) {
				t.Errorf("%s: %s: there is no such heading", page, m[1])
			}
		}
	}
	if followed < 200 {
		t.Errorf("got %d links, want 200 or more", followed)
	}
}

// headings are those of a page, as links name them.
func headings(t *testing.T, page string) (all []string) {
	t.Helper()
	text := regexp.MustCompile("(?ms)^```.*?^```$").ReplaceAllString(read(t, page), "")
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(text, -1) {
		plain := regexp.MustCompile(`[^\p{L}\p{N}_\- ]`).ReplaceAllString(strings.ToLower(m[1]), "")
		all = append(all, strings.ReplaceAll(plain, " ", "-"))
	}
	return all
}

// allPages are the pages for people, by their paths from the root.
func allPages(t *testing.T) []string {
	t.Helper()
	pages := []string{"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}
	for _, pattern := range []string{"docs/*.md", "docs/design/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: got %d pages, %v", pattern, len(found), err)
		}
		for _, path := range found {
			page, err := filepath.Rel(root, path)
			if err != nil {
				t.Fatal(err)
			}
			pages = append(pages, page)
		}
	}
	return pages
}

// TestTheAuditSectionHasEveryMember of a record: whoever collects them decides by these.
func TestTheAuditSectionHasEveryMember(t *testing.T) {
	_, section, _ := strings.Cut(read(t, "docs/operations.md"), "\n## Audit records\n")
	section, _, _ = strings.Cut(section, "\n## ")
	members := regexp.MustCompile(`json:"(\w+)`).FindAllStringSubmatch(read(t, "internal/kms/audit.go"), -1)
	if len(members) < 20 {
		t.Fatalf("got %d members, want 20 or more", len(members))
	}
	for _, m := range members {
		if !regexp.MustCompile("[`\"]" + m[1] + "[`\"]").MatchString(section) {
			t.Errorf("the section does not name %s", m[1])
		}
	}
}

// TestThePagesHaveEveryMetric of manager and sidecar, by its whole name, as it is looked for.
func TestThePagesHaveEveryMetric(t *testing.T) {
	pages := read(t, "docs/operations.md") + read(t, "docs/lifecycle.md") + read(t, "docs/native-api.md")
	metrics := 0
	for _, room := range []string{"internal", "controllers", "cmd", "sidecar"} {
		err := filepath.WalkDir(filepath.Join(root, room), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			source, err := os.ReadFile(path)
			for _, m := range regexp.MustCompile(`"(datakeys_[a-z_]+)"`).FindAllSubmatch(source, -1) {
				metrics++
				if !strings.Contains(pages, string(m[1])) {
					t.Errorf("no page has %s", m[1])
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if metrics < 25 {
		t.Errorf("got %d metrics, want 25 or more", metrics)
	}
}
