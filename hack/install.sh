#!/usr/bin/env bash
# Installs Datakeys from the images in dist/ (make images). The demo and the end-to-end tests both do it with this script.
#
#   hack/install.sh                 start the local Kubernetes, load the images into it, install the chart
#   hack/install.sh up              only start it and load the images
#   hack/install.sh chart [ARG...]  only install the chart, or upgrade it; ARG... go to Helm
#
# DATAKEYS_CLUSTER is the state folder of the local Kubernetes (see hack/cluster); the default is .cluster.
# DATAKEYS_KUBECONFIG names another cluster for the chart, one whose nodes have the images already.
# DIST is another folder with images and CHART another chart: those of an older commit (hack/images.sh COMMIT) are dist/COMMIT and
# dist/COMMIT/datakeys.
set -euo pipefail
cd "$(dirname "$0")/.."
dist=${DIST:-dist}
archives=("$dist/manager.tar" "$dist/sidecar.tar" "$dist/demo-reader.tar")
kubeconfig=${DATAKEYS_KUBECONFIG:-${DATAKEYS_CLUSTER:-.cluster}/kubeconfig}

up() {
	go run ./hack/cluster up
	local archive
	for archive in "${archives[@]}"; do
		go run ./hack/cluster load "$archive"
	done
}

chart() {
	local helm images
	helm=$(go run ./hack/cluster bin helm)
	# The images always have the tag dev: their fingerprint in an annotation lets Kubernetes see that their content changed.
	images=$(sha256sum "${archives[@]}" | sha256sum | head -c 16)
	exec "$helm" upgrade --install datakeys "${CHART:-charts/datakeys}" --kubeconfig="$kubeconfig" --namespace=datakeys-system --create-namespace \
		--set-string=podAnnotations.checksum/images="$images" --wait --timeout=3m "$@"
}

case ${1:-all} in
all) up && chart ;;
up) up ;;
chart) chart "${@:2}" ;;
*)
	sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
	exit 2
	;;
esac
