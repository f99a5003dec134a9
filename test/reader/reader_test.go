// Package reader_test runs a reader of blobs and messages that shares nothing with Datakeys but docs/format.md: another language,
// another crypto library, another author of the check. Where the two disagree, one of them or the document is wrong.
package reader_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	reader   = "reader.mjs"
	testdata = "../../internal/envelope/testdata/"
)

// vectorFiles are the files of vectors, each with its lists.
var vectorFiles = map[string][]string{
	"vectors.json":  {"good", "bad", "invalid"},
	"messages.json": {"goodMessages", "badMessages", "invalidMessages"},
}

// verdict is what the reader says of one vector.
type verdict struct {
	List    string  `json:"list"`
	Name    string  `json:"name"`
	Failure *string `json:"failure"`
}

func TestIndependentReaderAgreesOnEveryVector(t *testing.T) {
	for file := range vectorFiles {
		verdicts, err := run(t, reader, file, "flip")
		if err != nil {
			t.Fatal(err)
		}
		var seen []string
		for _, v := range verdicts {
			seen = append(seen, v.List+": "+v.Name)
			t.Run(v.List+"/"+v.Name, func(t *testing.T) {
				if v.Failure != nil {
					t.Error(*v.Failure)
				}
			})
		}
		if diff := cmp.Diff(vectorNames(t, file), seen); diff != "" {
			t.Errorf("the vectors of %s that the reader ran (-want +got):\n%s", file, diff)
		}
	}
}

// A rule of the format that no vector needs is one that a reader may forget unnoticed.
func TestEveryRuleOfTheReaderIsNeededByAVector(t *testing.T) {
	source, err := os.ReadFile(reader)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(source), "\n")
	rules := 0
	for i, line := range lines {
		if !strings.HasSuffix(line, "// rule") {
			continue
		}
		rules++
		t.Run(strings.TrimSpace(line), func(t *testing.T) {
			t.Parallel()
			without := strings.Join(append(append([]string{}, lines[:i]...), lines[i+1:]...), "\n")
			forgetful := filepath.Join(t.TempDir(), reader)
			if err := os.WriteFile(forgetful, []byte(without), 0o600); err != nil {
				t.Fatal(err)
			}
			for file := range vectorFiles {
				verdicts, err := run(t, forgetful, file)
				if err != nil {
					t.Fatal(err)
				}
				for _, v := range verdicts {
					if v.Failure != nil {
						return
					}
				}
			}
			t.Error("a reader without this line passes every vector")
		})
	}
	if rules < 40 {
		t.Errorf("got %d lines that end in \"// rule\", want 40 or more", rules)
	}
}

func run(t *testing.T, script, file string, args ...string) ([]verdict, error) {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal("Node.js 18 or newer is missing: hack/apt.sh nodejs")
	}
	out, err := exec.CommandContext(t.Context(), node, append([]string{script, testdata + file}, args...)...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		t.Logf("%s", exit.Stderr)
	}
	if err != nil {
		return nil, err
	}
	var verdicts []verdict
	return verdicts, json.Unmarshal(out, &verdicts)
}

// vectorNames lists the vectors in the order of the file.
func vectorNames(t *testing.T, file string) []string {
	t.Helper()
	b, err := os.ReadFile(testdata + file)
	if err != nil {
		t.Fatal(err)
	}
	var vectors map[string][]struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(b, &vectors); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, list := range vectorFiles[file] {
		if len(vectors[list]) == 0 {
			t.Errorf("%s has no vectors in the list %q", file, list)
		}
		for _, v := range vectors[list] {
			names = append(names, list+": "+v.Name)
		}
	}
	return names
}
