#!/usr/bin/env bash
# Installs the Debian packages that are named and missing: hack/apt.sh buildah runc
set -euo pipefail

missing=()
for package; do
	[[ $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true) == "install ok installed" ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

if ((EUID != 0)); then
	echo "missing: ${missing[*]}; install them as root: apt-get install ${missing[*]}" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
