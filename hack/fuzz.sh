#!/usr/bin/env bash
# Runs every fuzz target of the module for the given time each, which `go test -fuzz` does for one target only.
set -euo pipefail
cd "$(dirname "$0")/.."
fuzztime=${1:?"usage: hack/fuzz.sh TIME"}

# Fuzz targets are looked up in the sources: `go test -list` would compile every test of the module.
grep -rl --include='*_test.go' '^func Fuzz' . | while read -r file; do
	sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file" | while read -r target; do
		echo "== ${file%/*} $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$fuzztime" "${file%/*}" </dev/null
	done
done
