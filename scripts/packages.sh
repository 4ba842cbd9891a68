#!/usr/bin/env bash
# Installs the Debian packages that vmkeep needs. Usage: scripts/packages.sh run|build|test [more packages]
#   run    what a host needs to run VMs (QEMU, libvirt, firmware, image tools)
#   build  run + what the Rust build needs
#   test   build + what the tests need
# Idempotent and quick when all is there. Uses only the apt sources that are already configured; on Debian 12 where
# qemu-utils already comes from backports it adds the backports suite at the same URI (and says so).
set -euo pipefail
level=${1:-run}
shift || true
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

run=(qemu-system-x86 qemu-utils libvirt-daemon-system libvirt-clients libvirt-daemon-driver-qemu ovmf swtpm swtpm-tools seabios
  dnsmasq-base mmdebstrap e2fsprogs dosfstools mtools gdisk fdisk zstd busybox-static genisoimage iproute2 nftables
  syslinux syslinux-common extlinux grub-efi-amd64-bin grub-pc-bin grub2-common openssh-client ca-certificates procps cpio kmod xz-utils)
build=(libvirt-dev pkg-config gcc libc6-dev git protobuf-compiler libprotobuf-dev)
tests=(etcd-server etcd-client keepalived socat libxml2-utils curl jq apparmor xfsprogs tcpdump)
case $level in
  run) want=("${run[@]}") ;;
  build) want=("${run[@]}" "${build[@]}") ;;
  test) want=("${run[@]}" "${build[@]}" "${tests[@]}") ;;
  *) echo "usage: $0 run|build|test [package...]" >&2; exit 2 ;;
esac
want+=("$@")

missing=()
for p in "${want[@]}"; do
  dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
# shellcheck disable=SC1091
. /etc/os-release
target=()
if [ "${VERSION_CODENAME:-}" = bookworm ] && dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null | grep -q bpo12; then
  list=/etc/apt/sources.list.d/vmkeep-backports.sources
  if ! grep -rqsE '^[^#]*bookworm-backports' /etc/apt/sources.list /etc/apt/sources.list.d/; then
    uri=$(awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources)
    key=$(awk '/^Signed-By:/{print $2; exit}' /etc/apt/sources.list.d/debian.sources)
    echo "vmkeep: qemu-utils is from bookworm-backports: adding that suite ($list)" >&2
    printf 'Types: deb\nURIs: %s\nSuites: bookworm-backports\nComponents: main\nSigned-By: %s\n' "$uri" "$key" | as_root tee "$list" >/dev/null
  fi
  target=(-t bookworm-backports)
fi
echo "vmkeep: installing ${missing[*]}" >&2
log=$(mktemp)
made_policy=
cleanup() { rm -f "$log"; [ -z "$made_policy" ] || as_root rm -f "$policy"; }
policy=/usr/sbin/policy-rc.d
trap cleanup EXIT
trap 'exit 130' INT TERM
as_root apt-get update -q >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
# Services must not start by installing: tests and the demo start their own. A host that shall run VMs ('run') wants libvirt started.
# What runs already under systemd may be restarted by its own upgrade.
if [ ! -e $policy ] && { [ "$level" != run ] || [ ! -d /run/systemd/system ]; }; then
  made_policy=1
  printf '#!/bin/sh\n[ "$2" = restart ] && [ -d /run/systemd/system ] && exit 0\nexit 101\n' | as_root tee $policy >/dev/null
  as_root chmod 755 $policy
fi
ok=0
as_root apt-get install -q -y --no-install-recommends "${target[@]}" "${missing[@]}" >"$log" 2>&1 || ok=$?
if [ $ok -ne 0 ]; then cat "$log" >&2; fi
exit $ok
