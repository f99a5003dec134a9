// Command compare-installs proves that the two ways to install Datakeys make the same objects: the Helm chart with its
// default values, and kubectl apply -k config/default. It then renders the chart with other values, good and bad.
//
//	go run ./hack/compare-installs
//
// It runs from the root of the repository and needs no cluster. Helm and kubectl are the pinned ones of hack/cluster,
// unless -helm and -kubectl name others.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

func main() {
	helm := flag.String("helm", "", "helm to use; the default is the pinned one")
	kubectl := flag.String("kubectl", "", "kubectl to use; the default is the pinned one")
	flag.Parse()
	if err := run(context.Background(), *helm, *kubectl); err != nil {
		fmt.Fprintln(os.Stderr, "compare-installs:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, helm, kubectl string) error {
	var err error
	if helm, err = tool(ctx, "helm", helm); err != nil {
		return err
	}
	if kubectl, err = tool(ctx, "kubectl", kubectl); err != nil {
		return err
	}

	chart := func(arguments ...string) ([]byte, error) {
		return output(ctx, helm, append([]string{"template", "datakeys", "charts/datakeys", "--namespace=datakeys-system"}, arguments...)...)
	}
	fromChart, err := chart()
	if err != nil {
		return err
	}
	fromKustomize, err := output(ctx, kubectl, "kustomize", "config/default")
	if err != nil {
		return err
	}
	difference, err := compare(fromChart, fromKustomize)
	if err != nil {
		return err
	}
	if difference != "" {
		return fmt.Errorf("charts/datakeys (-) and config/default (+) make different objects; change the one that is behind:\n%s", difference)
	}

	if _, err := output(ctx, helm, "lint", "--strict", "--quiet", "charts/datakeys"); err != nil {
		return err
	}
	var problems []error
	for sentence, c := range chartCases {
		rendered, err := chart(c.arguments...)
		if err := c.check(rendered, err); err != nil {
			problems = append(problems, fmt.Errorf("the chart with values %q: %s: %w", c.arguments, sentence, err))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	fmt.Printf("charts/datakeys and config/default make the same objects; %d other sets of values render or are refused as they should\n", len(chartCases))
	return nil
}

// compare returns how the objects of two installs differ, and "" where they do not.
func compare(chart, kustomize []byte) (string, error) {
	left, err := objects(chart)
	if err != nil {
		return "", fmt.Errorf("the chart's output: %w", err)
	}
	right, err := objects(kustomize)
	if err != nil {
		return "", fmt.Errorf("kustomize's output: %w", err)
	}
	var all strings.Builder
	for _, key := range slices.Sorted(maps.Keys(union(left, right))) {
		a, inLeft := left[key]
		b, inRight := right[key]
		switch {
		case !inRight:
			fmt.Fprintf(&all, "%s: only the chart makes it\n", key)
		case !inLeft:
			fmt.Fprintf(&all, "%s: only kustomize makes it\n", key)
		case !cmp.Equal(a, b):
			// As text: the difference of two trees shows too much of what is alike.
			textOfA, err := yaml.Marshal(a)
			if err != nil {
				return "", err
			}
			textOfB, err := yaml.Marshal(b)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(&all, "%s:\n%s", key, cmp.Diff(string(textOfA), string(textOfB)))
		}
	}
	return all.String(), nil
}

// union has the keys of both.
func union[V any](a, b map[string]V) map[string]V {
	both := maps.Clone(a)
	maps.Copy(both, b)
	return both
}

// tool returns the path of a pinned command, unless the user names another.
func tool(ctx context.Context, name, named string) (string, error) {
	if named != "" {
		return named, nil
	}
	path, err := output(ctx, "go", "run", "./hack/cluster", "bin", name)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(path)), nil
}

// output runs a command and returns what it printed. What it said on the standard error is in the error.
func output(ctx context.Context, command string, arguments ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	c := exec.CommandContext(ctx, command, arguments...)
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s%s", command, strings.Join(arguments, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.Bytes(), nil
}
