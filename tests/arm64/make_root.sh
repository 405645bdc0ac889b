#!/usr/bin/env bash
# Make a Debian arm64 userland with what Edgewise needs, from Debian packages and aarch64 wheels; it runs here through qemu-user.
#
#   sudo tests/arm64/make_root.sh [FOLDER]      (default /tmp/edgewise-arm64; about 1.3 GB)
#
# Exit codes: 0 made (or there already), 77 not permitted here, with the reason on stderr; anything else is a failure.
# torch 2.10 is the newest release whose aarch64 wheel carries no CUDA libraries; ONNX Runtime is the one of this environment.
set -euo pipefail
root=${1:-/tmp/edgewise-arm64}
repository=$(cd "$(dirname "$0")/../.." && pwd)

skip() { echo "skipped: $*" >&2; exit 77; }

[ -f "$root/ready" ] && { echo "$root is ready"; exit 0; }
[ "$(id -u)" = 0 ] || skip "a userland of another architecture needs root"
command -v apt-get >/dev/null || skip "no apt-get: the userland is made of Debian packages"
command -v uv >/dev/null || skip "uv is not on the path"
needed=(mmdebstrap qemu-user-static binfmt-support arch-test gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
if ! dpkg -s "${needed[@]}" >/dev/null 2>&1; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq "${needed[@]}"; } >&2 ||
        skip "apt-get could not install ${needed[*]}"
fi
[ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc || skip "binfmt_misc cannot be mounted"
[ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || update-binfmts --enable qemu-aarch64 || skip "the arm64 handler cannot be enabled"
arch-test arm64 >/dev/null || skip "arm64 programs do not run here"

# A folder that was left half made is made again.
rm -rf "$root"
mmdebstrap --arch=arm64 --variant=apt --dpkgopt=force-unsafe-io --include=python3,ca-certificates bookworm "$root" >&2
# Wheels are chosen and unpacked here: pip inside would run emulated. Edgewise itself is copied by compare.py, as it is then.
uv pip install --quiet --no-sources --python-platform aarch64-manylinux_2_36 --python-version 3.11 --target "$root/opt/edgewise" \
    "torch==2.10.0" "torchvision==0.25.0" \
    "edge-shared[torch] @ file://$repository/shared" >&2
touch "$root/ready"
echo "$root is ready"
