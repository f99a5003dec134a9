// Package version says what a command is.
package version

import (
	"crypto/fips140"
	"fmt"
	"runtime"
)

// version is set by the linker where images are built: hack/images.sh.
var version = "dev"

// Command is the first argument by which a command prints String and ends.
const Command = "version"

// String says which version of Datakeys this is, what it was built with and for, and which mode its cryptography is in: off, on or
// only, the values of GODEBUG=fips140, with the version of Go's FIPS 140-3 module, which outside of a FIPS build is "latest".
func String() string {
	mode := "off"
	switch {
	case fips140.Enforced():
		mode = "only"
	case fips140.Enabled():
		mode = "on"
	}
	return fmt.Sprintf("Datakeys %s (%s, %s/%s, fips140=%s, cryptographic module %s)",
		version, runtime.Version(), runtime.GOOS, runtime.GOARCH, mode, fips140.Version())
}
