#!/usr/bin/env bash
# Installs the Debian packages that the tests (or the benchmarks) use, where they are missing.
# Nothing is started: Debian's own services of these packages are kept from running.
set -euo pipefail

case "${1:-test}" in
test) packages=(busybox-static docker-registry skopeo umoci debootstrap iproute2 nftables procps attr libcap2-bin openssl e2fsprogs kmod iptables libseccomp2 systemd qemu-system-x86 qemu-user docker.io crun runc) ;;
bench) packages=(busybox-static docker-registry skopeo debootstrap docker.io podman containerd runc crun) ;;
*)
	echo "setup: $1: test and bench are known" >&2
	exit 2
	;;
esac

missing=()
for p in "${packages[@]}"; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
done
[ "${#missing[@]}" -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
	echo "setup: this is no Debian: install these yourself: ${missing[*]}" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "setup: root is needed to install: ${missing[*]}" >&2
	exit 1
fi

# Packages with services would start them; policy-rc.d is how Debian is asked not to (its exit
# code 101 means "forbidden"). A policy of the operator's stays as it is.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 0755 "$policy"
	trap 'rm -f "$policy"' EXIT
fi
echo "setup: installing ${missing[*]}"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
