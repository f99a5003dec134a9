#!/usr/bin/env bash
# Installs the Debian packages that are named and missing: hack/apt.sh buildah runc
set -euo pipefail

missing=()
for package; do
	[[ $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true) == "install ok installed" ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

if ! command -v apt-get >/dev/null; then
	echo "missing: ${missing[*]}, as Debian calls them; there is no apt-get here: install what your distribution calls them" >&2
	exit 1
fi
if ((EUID != 0)); then
	echo "missing: ${missing[*]}; install them as root: apt-get install ${missing[*]}" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive

# On a machine that has just started something else is often installing, which is waited for.
install() {
	apt-get -o DPkg::Lock::Timeout=600 install -qq -y --no-install-recommends "${missing[@]}" </dev/null >/dev/null
}
echo "installing the Debian packages ${missing[*]}" >&2
# The lists of what there is may be old, or absent.
install 2>/dev/null || { apt-get update -qq && install; }
