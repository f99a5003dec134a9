// Command golangci-lint is golangci-lint with Kube-API-Linter linked in. Kube-API-Linter is a module plugin: it has to be
// compiled into the linter's own binary, and this is the smallest program that does so.
package main

import (
	"os"
	"runtime"
	"runtime/debug"

	"github.com/golangci/golangci-lint/v2/pkg/commands"
	"github.com/golangci/golangci-lint/v2/pkg/exitcodes"
	_ "sigs.k8s.io/kube-api-linter"
)

func main() {
	info := commands.BuildInfo{Version: linterVersion(), GoVersion: runtime.Version()}
	if err := commands.Execute(info); err != nil {
		_, _ = os.Stderr.WriteString("golangci-lint: " + err.Error() + "\n")
		os.Exit(exitcodes.Failure)
	}
}

// linterVersion reads the pinned version from this binary's own module list, so that it stands in go.mod alone.
func linterVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range info.Deps {
			if dep.Path == "github.com/golangci/golangci-lint/v2" {
				return dep.Version
			}
		}
	}
	return "unknown"
}
