// Command licenses writes the licences, notices and patent grants of everything that is linked into a binary: one text, to
// travel with it.
//
//	go run ./hack/licenses -arch amd64 -o FILE PACKAGE
//
// The texts are those of the modules in Go's module cache: of each package that is linked, what lies in its directory and in
// those above it, up to the module's root. A module without any is an error. Which licences are allowed is not asked here but in
// hack/verify.sh.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

func main() {
	arch := flag.String("arch", runtime.GOARCH, "`architecture` that the binary is for; its system is Linux")
	out := flag.String("o", "", "`file` to write; the default is the standard output")
	flag.Parse()
	if err := run(context.Background(), *arch, *out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "licenses:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arch, out string, arguments []string) error {
	if len(arguments) != 1 {
		return errors.New("name one package: that of the command that is linked")
	}
	packages, err := linked(ctx, arch, arguments[0])
	if err != nil {
		return err
	}
	golang, err := toolchain(ctx)
	if err != nil {
		return err
	}
	notices, err := gather(golang, packages)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	writeAll(&text, notices)
	if out == "" {
		_, err = text.WriteTo(os.Stdout)
		return err
	}
	return os.WriteFile(out, text.Bytes(), 0o644)
}

// goPackage is what go list says of a package.
type goPackage struct {
	Dir        string    `json:"Dir"`
	ImportPath string    `json:"ImportPath"`
	Standard   bool      `json:"Standard"`
	Module     *goModule `json:"Module"`
}

type goModule struct {
	Path    string    `json:"Path"`
	Version string    `json:"Version"`
	Dir     string    `json:"Dir"`
	Main    bool      `json:"Main"`
	Replace *goModule `json:"Replace"`
}

// linked lists the package and all that it imports, built as hack/images.sh builds it.
func linked(ctx context.Context, arch, name string) ([]goPackage, error) {
	list, err := output(ctx, []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch},
		"list", "-deps", "-json=Dir,ImportPath,Standard,Module", name)
	if err != nil {
		return nil, err
	}
	var packages []goPackage
	for decoder := json.NewDecoder(bytes.NewReader(list)); ; {
		var p goPackage
		switch err := decoder.Decode(&p); {
		case errors.Is(err, io.EOF):
			return packages, nil
		case err != nil:
			return nil, fmt.Errorf("go list: %w", err)
		}
		packages = append(packages, p)
	}
}

// toolchain is Go itself, whose runtime and standard library are in every binary.
func toolchain(ctx context.Context) (goModule, error) {
	env, err := output(ctx, nil, "env", "GOVERSION", "GOROOT")
	if err != nil {
		return goModule{}, err
	}
	version, root, _ := strings.Cut(strings.TrimSpace(string(env)), "\n")
	return goModule{Path: "Go's standard library and runtime", Version: version, Dir: root}, nil
}

func output(ctx context.Context, env []string, arguments ...string) ([]byte, error) {
	command := exec.CommandContext(ctx, "go", arguments...)
	command.Env = append(command.Environ(), env...)
	command.Stderr = os.Stderr
	out, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w", arguments[0], err)
	}
	return out, nil
}
