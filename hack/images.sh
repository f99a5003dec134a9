#!/usr/bin/env bash
# Builds the images as OCI archives dist/NAME.tar, each with one manifest an architecture:
#   ARCHES="amd64 arm64" VERSION=v1.2.3 hack/images.sh
# DIST is where binaries and archives go, dist by default. GOFIPS140, which Go reads, makes a FIPS build (make images-fips).
#   hack/images.sh COMMIT
# builds those of an older commit, with the tag COMMIT, and leaves them with its chart in dist/COMMIT, unless they are there already.
# The binaries are cross-compiled by Go and copied onto scratch, so nothing is emulated, pulled or run, with the licences of all
# that is linked into them. The same source gives the same archives, byte for byte.
set -euo pipefail
cd "$(dirname "$0")/.."
read -ra arches <<<"${ARCHES:-$(go env GOARCH)}"
version=${VERSION:-dev}
dist=${DIST:-dist}

# One at a time: a demo and a test may both be building.
mkdir -p "$dist"
exec 9>"$dist/.lock"
flock 9

# older COMMIT: by the script that the commit has itself, in a folder of its own.
older() {
	local commit=$1
	[[ ! -d $dist/$commit ]] || return 0
	# A shallow clone may still be told where the rest is.
	git cat-file -e "$commit^{commit}" 2>/dev/null || git fetch --quiet origin "$commit" || git fetch --quiet --unshallow ||
		{ echo "Commit $commit is not in this clone: fetch it, for example with git fetch --unshallow." >&2 && return 1; }
	source=$(mktemp -d -p "$dist" .older.XXXXXX) # with a dot, so that no tool of Go looks into it
	trap 'rm -rf "$source"' EXIT
	git archive "$commit" | tar --extract --directory "$source"
	(cd "$source" && env -u DIST VERSION="$commit" hack/images.sh)
	mkdir "$source/done"
	mv "$source"/dist/*.tar "$source/charts/datakeys" "$source/done/"
	mv "$source/done" "$dist/$commit" # all of it or nothing
	rm -rf "$source"
}

if (($# > 0)); then
	older "$1"
	exit
fi

# gRPC without golang.org/x/net/trace, which nobody reads here: its html/template calls methods by their names, so the linker could leave
# none out.
export GOFLAGS="${GOFLAGS:-} -tags=grpcnotrace"

command -v buildah >/dev/null || hack/apt.sh buildah

# vfs copies each layer, which costs nothing for images of one layer and needs no support from the kernel; the storage
# lives only as long as this script.
storage=$(mktemp -d)
trap 'rm -rf "$storage"' EXIT
buildah=(buildah --root "$storage/root" --runroot "$storage/run" --storage-driver vfs)

# image NAME PACKAGE DOCKERFILE: the Dockerfile's target has the image's name.
image() {
	local name=$1 package=$2 dockerfile=$3 arch platforms=()
	for arch in "${arches[@]}"; do
		CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -trimpath -buildvcs=false \
			-ldflags "-s -w -X github.com/datakeys/datakeys/internal/version.version=$version" -o "$dist/linux-$arch/$name" "$package"
		go run ./hack/licenses -arch "$arch" -o "$dist/linux-$arch/$name.licences" "$package"
		platforms+=("linux/$arch")
	done
	local log=$storage/$name.log ref=datakeys/$name:$version
	{
		"${buildah[@]}" bud --isolation chroot --timestamp 0 --file "$dockerfile" --target "$name" --build-arg VERSION="$version" --build-arg DIST="$dist" \
			--platform "$(IFS=, && echo "${platforms[*]}")" --manifest "$ref" . &&
			"${buildah[@]}" manifest push --all "$ref" "oci:$storage/$name:$ref" &&
			tar --create --file "$dist/$name.tar" --directory "$storage/$name" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner .
	} >"$log" 2>&1 || { cat "$log" >&2 && return 1; }
	echo "$dist/$name.tar: $ref (${platforms[*]})"
}

image manager ./cmd/manager Dockerfile
image sidecar ./cmd/sidecar Dockerfile
image demo-reader ./hack/demo/reader hack/demo/Dockerfile
