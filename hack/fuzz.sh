#!/usr/bin/env bash
# Runs every fuzz target of the module for the given time each, which `go test -fuzz` does for one target only.
set -euo pipefail
cd "$(dirname "$0")/.."
fuzztime=${1:?"usage: hack/fuzz.sh TIME"}

# Fuzz targets are looked up in the sources: `go test -list` would compile every test of the module.
grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n1 dirname | sort -u | while read -r package; do
	for target in $(cat "$package"/*_test.go | sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p'); do
		echo "== $package $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$fuzztime" "$package" </dev/null
	done
done
