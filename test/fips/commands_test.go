//go:build fips140v1.0

package fips_test

import (
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// What `make build-fips` builds.
const commands = "../../bin/fips"

func TestCommandsAreBuiltWithTheCertifiedModule(t *testing.T) {
	for _, name := range []string{"manager", "sidecar"} {
		info, err := buildinfo.ReadFile(filepath.Join(commands, name))
		if err != nil {
			t.Fatalf("%v: run make build-fips", err)
		}
		got := map[string]string{}
		for _, s := range info.Settings {
			got[s.Key] = s.Value
		}
		// The version of the module, then a digest of its source.
		if module := got["GOFIPS140"]; module != "v1.0.0" && !strings.HasPrefix(module, "v1.0.0-") {
			t.Errorf("%s: GOFIPS140: got %q, want v1.0.0", name, module)
		}
		if got["DefaultGODEBUG"] != "fips140=on" {
			t.Errorf("%s: DefaultGODEBUG: got %q, want fips140=on", name, got["DefaultGODEBUG"])
		}
	}
}

// The module tests itself at the start of the process, and ends it where something is wrong.
func TestCommandsStartInFIPSMode(t *testing.T) {
	for name, test := range map[string]struct{ godebug, want string }{
		"by itself":                             {"", "fips140=on, cryptographic module v1.0.0)"},
		"where only what is approved is let by": {"fips140=only", "fips140=only, cryptographic module v1.0.0)"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, command := range []string{"manager", "sidecar"} {
				cmd := exec.CommandContext(t.Context(), filepath.Join(commands, command), "version")
				cmd.Env = append(os.Environ(), "GODEBUG="+test.godebug)
				out, err := cmd.CombinedOutput()
				if err != nil || !strings.Contains(string(out), test.want) {
					t.Errorf("%s version: got %q, %v, want %q", command, out, err, test.want)
				}
			}
		})
	}
}
