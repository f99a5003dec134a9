#!/usr/bin/env bash
# Proves that the linters still enforce the rules of .golangci.yml: in a module of its own, with this module's path and empty
# packages for everything that is imported, each rule is broken once and the linter has to say so, in that file; and what is
# allowed has to pass.
set -euo pipefail
cd "$(dirname "$0")/.."
own=github.com/datakeys/datakeys
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf 'module %s\n\ngo 1.26.0\n' "$own" >"$work/go.mod"
cp .golangci.yml "$work/"

count=0
expected=()

# stub PATH makes an empty package that can be imported; one of another module becomes a module of its own.
stub() {
	[[ $1 == *.*/* ]] || return 0 # the standard library
	local dir=${1#"$own/"} name=${1##*/}
	if [[ $1 != "$own"/* ]]; then
		dir=stubs/$1
		grep -qF "replace $1 =>" "$work/go.mod" ||
			printf 'require %s v0.0.0\n\nreplace %s => ./%s\n' "$1" "$1" "$dir" >>"$work/go.mod"
		mkdir -p "$work/$dir"
		printf 'module %s\n\ngo 1.26.0\n' "$1" >"$work/$dir/go.mod"
	fi
	mkdir -p "$work/$dir"
	printf '// Package %s is empty.\npackage %s\n' "${name//[.-]/}" "${name//[.-]/}" >"$work/$dir/doc.go"
}

# file DIR[/_test.go] writes stdin as a file of a package of its own in DIR, so that cases make no import cycle, and sets $path
# to its name.
file() {
	count=$((count + 1))
	path=${1%/_test.go}/case$count/linted.go
	[[ $1 != */_test.go ]] || path=${path%.go}_test.go
	mkdir -p "$work/${path%/*}"
	{ printf 'package case%d\n\n' "$count" && cat; } >"$work/$path"
}

# imports WHERE IMPORT: WHERE is a directory, or a directory and /_test.go.
imports() {
	stub "$2"
	file "$1" <<<"import _ \"$2\" // linted"
}

refused() { # refused WHERE IMPORT MESSAGE
	imports "$1" "$2"
	expected+=("$path|$3")
}

allowed() { # allowed WHERE IMPORT
	imports "$1" "$2"
	expected+=("$path|")
}

calls() { # calls WHERE IMPORT STATEMENT MESSAGE; an empty message: allowed
	file "$1" <<<"$(printf 'import %s\n\nfunc case%d(%s) { %s }\n' "$2" "$((count + 1))" "${5-}" "$3")"
	expected+=("$path|$4")
}

insecure=$own/internal/envelope/insecuresecret

# 1. The crypto core imports the standard library and cannot log.
refused internal/envelope k8s.io/apimachinery/pkg/runtime "not allowed from list 'envelope'"
refused internal/envelope "$own/api/v1alpha1" "not allowed from list 'envelope'"
refused internal/envelope github.com/go-logr/logr "not allowed from list 'envelope'"
refused internal/envelope log "what cannot log cannot leak"
calls internal/envelope '"log/slog"' 'slog.Info("opened")' "what cannot log cannot leak"
refused internal/envelope/_test.go k8s.io/apimachinery/pkg/runtime "not allowed from list 'envelope-tests'"
allowed internal/envelope crypto/hkdf
allowed internal/envelope "$insecure"
allowed internal/envelope/_test.go github.com/google/go-cmp/cmp

# 2. The API imports apimachinery; the contract with the sidecar, protobuf and gRPC.
refused api/v1alpha1 "$own/internal/kms" "not allowed from list 'api'"
refused api/v1alpha1 sigs.k8s.io/controller-runtime "not allowed from list 'api'"
refused api/kms/v1 "$own/internal/envelope" "not allowed from list 'api-kms'"
refused api/kms/v1 k8s.io/apimachinery/pkg/runtime "not allowed from list 'api-kms'"
allowed api/v1alpha1 k8s.io/apimachinery/pkg/runtime
allowed api/kms/v1 google.golang.org/grpc

# 3. Controllers never see key bytes.
for room in envelope kms rootkey seal; do
	refused controllers "$own/internal/$room" "controllers import api and declare the interfaces that they need"
	refused controllers/_test.go "$own/internal/$room" "controllers import api and declare the interfaces that they need"
	refused internal/inject "$own/internal/$room" "the injector imports api alone"
done
refused controllers "$insecure" "raw key bytes are read by"
allowed controllers "$own/api/v1alpha1"
allowed controllers sigs.k8s.io/controller-runtime

# 4. The key service reaches Kubernetes through interfaces of its own.
for library in k8s.io/client-go/kubernetes sigs.k8s.io/controller-runtime k8s.io/api/core; do
	refused internal/kms "$library" "the key service reaches Kubernetes through interfaces that it declares"
done
refused internal/kms "$own/controllers" "the key service imports envelope, seal and api"
allowed internal/kms "$own/internal/envelope"
allowed internal/kms "$own/internal/seal"
allowed internal/kms "$own/api/kms/v1"
allowed internal/kms "$insecure"
for test in "" /_test.go; do
	refused "internal/kms$test" google.golang.org/grpc "internal/kms/kmsgrpc is where the key service meets gRPC"
done
allowed internal/kms/kmsgrpc google.golang.org/grpc
allowed internal/kms/kmsgrpc "$insecure"
refused internal/kms/kmsgrpc "$own/controllers" "the key service imports envelope, seal and api"
for test in "" /_test.go; do
	refused "internal/kms$test" "$own/internal/rootkey" "the key service imports envelope, seal and api"
	for library in "$own/internal/kms" "$own/internal/rootkey" k8s.io/client-go/kubernetes sigs.k8s.io/controller-runtime \
		google.golang.org/grpc k8s.io/kms github.com/hashicorp/vault/api github.com/aws/aws-sdk-go/aws; do
		refused "internal/seal$test" "$library" "not allowed from list 'seal'"
	done
done
allowed internal/seal "$own/api/v1alpha1"
allowed internal/seal "$insecure"
refused internal/rootkey "$own/internal/kms" "root keys import seal and envelope"
refused internal/rootkey "$own/api/v1alpha1" "root keys import seal and envelope"
for library in k8s.io/client-go/kubernetes sigs.k8s.io/controller-runtime k8s.io/api/core; do
	refused internal/rootkey "$library" "root keys do not reach Kubernetes"
done
allowed internal/rootkey "$own/internal/seal"
allowed internal/rootkey "$insecure"
allowed internal/rootkey github.com/hashicorp/vault/api
refused internal/version "$own/internal/rootkey" "the manager alone opens root keys"
refused cmd/sidecar "$own/internal/rootkey" "the manager alone opens root keys"
allowed cmd/manager "$own/internal/rootkey"
allowed test/e2e/_test.go "$own/internal/rootkey"
refused internal/certs "$own/internal/kms" "the serving certificates import api alone"
allowed internal/certs "$own/api/v1alpha1"

# 5. The sidecar links no Kubernetes library.
for room in sidecar cmd/sidecar; do
	refused "$room" k8s.io/client-go/kubernetes "the sidecar links no Kubernetes library"
	refused "$room" sigs.k8s.io/controller-runtime "the sidecar links no Kubernetes library"
	refused "$room" "$own/controllers" "the sidecar imports envelope and api/kms"
	refused "$room" "$own/internal/kms" "the sidecar imports envelope and api/kms"
	refused "$room" "$own/internal/rootkey" "the sidecar imports envelope and api/kms"
	allowed "$room" "$own/api/kms/v1"
done
refused sidecar/aws "$own/sidecar" "not allowed from list 'sidecar-aws'"
refused sidecar/aws "$own/sidecar/internal/keyservice" "not allowed from list 'sidecar-aws'"
refused sidecar/aws "$own/internal/envelope" "not allowed from list 'sidecar-aws'"
refused sidecar/aws github.com/aws/aws-sdk-go-v2/aws "not allowed from list 'sidecar-aws'"
allowed sidecar/aws "$own/api/kms/v1"
allowed sidecar/aws google.golang.org/grpc/status
allowed sidecar/aws/_test.go github.com/aws/aws-sdk-go-v2/service/kms
refused cmd/sidecar "$insecure" "raw key bytes are read by"
allowed sidecar "$insecure"
refused sidecar/alibaba "$own/sidecar" "not allowed from list 'sidecar-alibaba'"
refused sidecar/alibaba "$own/internal/envelope" "not allowed from list 'sidecar-alibaba'"
refused sidecar/alibaba github.com/aliyun/alibabacloud-dkms-gcs-go-sdk/sdk "not allowed from list 'sidecar-alibaba'"
allowed sidecar/alibaba "$own/api/kms/v1"
allowed sidecar/alibaba google.golang.org/grpc/status
allowed cmd/sidecar "$own/internal/coredump"
allowed cmd/sidecar "$own/internal/version"
for library in "$own/sidecar" "$own/api/kms/v1" "$own/internal/coredump" google.golang.org/grpc github.com/google/go-cmp/cmp; do
	refused client "$library" "not allowed from list 'client'"
done
refused client/_test.go k8s.io/client-go/kubernetes "not allowed from list 'client-tests'"
allowed client "$own/internal/envelope"
allowed client "$insecure"
allowed client/_test.go "$own/sidecar"
allowed client/_test.go "$own/internal/secrettest"
refused sidecar "$own/internal/secrettest" "tests alone look for secrets"
refused sidecar "$own/internal/porttest" "tests alone reserve ports"
allowed sidecar/_test.go "$own/internal/porttest"

# 6. Only cmd/* read flags and environment or exit; hack/ and tests are not shipped.
for room in client controllers sidecar internal/kms internal/inject internal/envelope internal/rootkey internal/seal; do
	refused "$room" flag "only cmd/\* read flags"
	calls "$room" '"os"' 'os.Exit(1)' "only cmd/\* read flags and environment or exit"
	calls "$room" '"os"' '_ = os.Getenv("HOME")' "only cmd/\* read flags and environment or exit"
	calls "$room" '"os"' '_ = os.Args' "only cmd/\* read flags and environment or exit"
done
allowed cmd/manager flag
calls cmd/manager '"os"' 'os.Exit(1)' ""
calls hack/cluster '"os"' '_ = os.Getenv("HOME")' ""

# Other rules that hold everywhere.
for library in github.com/stretchr/testify/require github.com/onsi/ginkgo github.com/onsi/gomega; do
	refused internal/kms/_test.go "$library" "tests use the testing package and go-cmp"
done
refused internal/kms k8s.io/klog "log through logr or log/slog"
refused internal/kms math/rand "use crypto/rand"
allowed cmd/manager/_test.go "$insecure"
calls internal/kms '"context"' '_ = context.Background()' "take the caller's context"
calls internal/kms '"context"' '_ = context.TODO()' "take the caller's context"
calls cmd/manager '"context"' '_ = context.Background()' ""
calls sidecar '"time"' 'time.Sleep(1)' "wait on a watch, a channel or an injected clock"
calls sidecar/_test.go '"testing"' 't.Skip("later")' "a test that is skipped proves nothing" "t *testing.T"
calls sidecar/_test.go '"testing"' 'b.Skipf("later")' "a test that is skipped proves nothing" "b *testing.B"
calls sidecar '_ "embed"' 'panic("bad request")' "one bad request must not end the process"
calls client '_ "embed"' 'panic("bad answer")' "one bad request must not end the process"
calls sidecar '"fmt"' 'fmt.Println("key")' "stdout belongs to cmd/\*"

output=$work/findings
linter=$(go tool -modfile=hack/tools/golangci-lint/go.mod -n golangci-lint-kube-api-linter)
(cd "$work" && GOFLAGS=-mod=mod GOPROXY=off "$linter" run --enable-only depguard,forbidigo --output.text.path "$output" \
	--output.text.print-issued-lines=false ./...) >"$work/log" 2>&1 || [[ $? == 1 ]] || { cat "$work/log" && exit 1; }
! grep typecheck "$output" || exit 1

failures=0
for case in "${expected[@]}"; do
	path=${case%%|*} message=${case#*|}
	if [[ -n $message ]] && ! grep -q "^$path:.*$message" "$output"; then
		echo "not reported: \"$message\" for:" && sed 's/^/    /' "$work/$path"
		failures=$((failures + 1))
	elif [[ -z $message ]] && grep "^$path:" "$output"; then
		echo "reported, but allowed:" && sed 's/^/    /' "$work/$path"
		failures=$((failures + 1))
	fi
done
((failures == 0)) || { echo "lint self-test: $failures of $count cases failed" >&2 && exit 1; }
echo "lint self-test: $count cases passed"
