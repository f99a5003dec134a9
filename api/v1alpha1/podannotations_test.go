package v1alpha1

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// FuzzParseNames: whatever is accepted is a list of different valid names that says the same again, and whatever is refused
// is refused with an error of bounded length.
func FuzzParseNames(f *testing.F) {
	for _, seed := range []string{
		"", ",", "orders", " orders , payments", "orders,orders", "a,,b", "-", "..", "a/b", "ö", strings.Repeat("a,", 200),
		strings.Repeat("a", 300), "a\x00b", "\xff",
	} {
		f.Add(seed)
	}
	path := field.NewPath("list")
	f.Fuzz(func(t *testing.T, value string) {
		names, errs := parseNames(path, value, MaxDataKeys, "a name", validation.IsDNS1123Subdomain)
		if (len(names) > 0) == (len(errs) > 0) {
			t.Fatalf("parseNames(%q) = %v, %v: want names or errors", value, names, errs)
		}
		for _, err := range errs {
			if len(err.Error()) > 1024 {
				t.Errorf("parseNames(%q): an error of %d bytes", value, len(err.Error()))
			}
		}
		if len(errs) > 0 {
			return
		}
		seen := map[string]bool{}
		for _, name := range names {
			if len(validation.IsDNS1123Subdomain(name)) > 0 || seen[name] {
				t.Errorf("parseNames(%q) accepts %q", value, name)
			}
			seen[name] = true
		}
		again, errs := parseNames(path, strings.Join(names, ","), MaxDataKeys, "a name", validation.IsDNS1123Subdomain)
		if diff := cmp.Diff(names, again); diff != "" || len(errs) > 0 {
			t.Errorf("parseNames of its own result: %v %s", errs, diff)
		}
	})
}

// FuzzLoopbackPort: what is accepted is a port in its one spelling, and what is refused is refused with an error of bounded length.
func FuzzLoopbackPort(f *testing.F) {
	for _, seed := range []string{"", "0", "1023", "1024", "8200", "65535", "65536", "08200", "+8200", " 8200", "8200 ", "0x2008", "8_200", "-1", "ö"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		pod := &metav1.ObjectMeta{Annotations: map[string]string{AnnotationLoopbackPort: value}}
		port, err := LoopbackPort(pod)
		if (port == 0) != (err != nil) || err != nil && len(err.Error()) > 256 {
			t.Fatalf("LoopbackPort(%q) = %d, %v: want a port or a short error", value, port, err)
		}
		if err == nil && (port < MinLoopbackPort || port > 65535 || fmt.Sprint(port) != value) {
			t.Errorf("LoopbackPort(%q) = %d", value, port)
		}
	})
}

// A pod is warned of an annotation that PodAnnotations lacks: each constant that is "on a pod" is among them.
func TestPodAnnotationsAreAllThatThereAre(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "labels.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	ast.Inspect(file, func(n ast.Node) bool {
		c, ok := n.(*ast.ValueSpec)
		if ok && strings.HasPrefix(c.Doc.Text(), c.Names[0].Name+" on a pod") && strings.HasPrefix(c.Names[0].Name, "Annotation") {
			value, err := strconv.Unquote(c.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			want = append(want, value)
		}
		return true
	})
	if diff := cmp.Diff(want, PodAnnotations()); diff != "" || len(want) == 0 {
		t.Errorf("-constants +PodAnnotations:\n%s", diff)
	}
}
