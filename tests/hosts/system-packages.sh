#!/usr/bin/env bash
# Install what the test hosts need from Debian's packages; quick when it is all there.
set -euo pipefail

declare -A package_of=([podman]=podman [runc]=runc [mmdebstrap]=mmdebstrap [ssh]=openssh-client [ssh-keygen]=openssh-client [git]=git [iptables]=iptables)
missing=()
for program in "${!package_of[@]}"; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "$program" >/dev/null || missing+=("${package_of[$program]}")
done
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
# podman's default network needs these two, and iptables above; Debian only recommends them.
[[ -x /usr/lib/podman/netavark ]] || missing+=(netavark)
[[ -x /usr/lib/podman/aardvark-dns ]] || missing+=(aardvark-dns)
[[ ${#missing[@]} -eq 0 ]] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "system-packages: this machine has no apt-get; install by hand: ${missing[*]}" >&2
    exit 1
fi
as_root=()
if [[ $EUID -ne 0 ]]; then
    command -v sudo >/dev/null || {
        echo "system-packages: run it as root, or install sudo; wanted: ${missing[*]}" >&2
        exit 1
    }
    as_root=(sudo)
fi
echo "  installing Debian packages: ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
