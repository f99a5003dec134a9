#!/usr/bin/env bash
# Everything that can be checked without running it. Writes all generated files anew and ends with a look at the work tree, so
# it wants to be run on committed changes.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

step generated files
make --no-print-directory generate manifests

step module files
# hack/tools/buf is left out: tidy asks for the tests of its dependencies, and some of their modules cannot be had.
git ls-files '*go.mod' | grep -vx hack/tools/buf/go.mod | while read -r mod; do
	go -C "$(dirname "$mod")" mod tidy -diff
done
go mod verify

step vet
go vet -tags e2e,measured ./...

step linters
make --no-print-directory lint

step linters report what they should
hack/lint-selftest.sh

step tests that sleep
if sleeping=$(git grep -l 'time\.Sleep(' -- '*_test.go' | xargs -r grep -L '"testing/synctest"') && [[ -n $sleeping ]]; then
	printf 'wait on a watch or a channel, or sleep on the clock of testing/synctest:\n%s\n' "$sleeping" >&2
	exit 1
fi

step licences
make --no-print-directory licences

step reach of the rooms
# The linter sees what a room imports itself; this, what it reaches through others.
unreachable() { # unreachable ROOM WHY PATTERN
	local deps reached
	deps=$(go list -deps "$1") # a room that is not there reaches nothing, and must not pass
	if reached=$(grep -E "$3" <<<"$deps"); then
		printf '%s %s, but reaches:\n%s\n' "$1" "$2" "$reached" >&2
		return 1
	fi
}
own=github.com/datakeys/datakeys
unreachable ./controllers "must not see key bytes" "^$own/internal/(envelope|kms|seal)(/|$)"
unreachable ./internal/inject "must not see key bytes" "^$own/internal/(envelope|kms|seal)(/|$)"
unreachable ./internal/kms/kmsgrpc "reaches Kubernetes through interfaces of its own" '^(k8s\.io/client-go|sigs\.k8s\.io/controller-runtime)/'
unreachable ./cmd/sidecar "links no Kubernetes library and no cloud SDK" '^(k8s\.io|sigs\.k8s\.io|github\.com/(aws|aliyun|hashicorp))/'

step chart and kustomize
helm=$(go run ./hack/cluster bin helm)
"$helm" lint --quiet --strict charts/datakeys
"$helm" template datakeys charts/datakeys --namespace datakeys-system >/dev/null
go tool -modfile=hack/tools/go.mod kustomize build config/default >/dev/null
go run ./hack/compare-installs

step work tree
if [[ -n $(git status --porcelain) ]]; then
	echo "Generated files are out of date, or something is not committed:" >&2
	git status --short >&2
	git --no-pager diff >&2
	exit 1
fi
echo "clean"
