#!/usr/bin/env bash
# Runs a command as on a machine of its own: processes, network (loopback only), /tmp and the home folder are the box's
# and end with it; everything else is this machine's. It needs bubblewrap.
#
#     scripts/in_a_box.sh COMMAND ...
set -euo pipefail

command -v bwrap >/dev/null || { echo "bubblewrap is needed (apt-get install bubblewrap)" >&2; exit 2; }

box=$(mktemp -d)
trap 'rm -rf "$box"' EXIT
home=/tmp/home
mkdir -p "$box/tmp/home"

# Programs such as ssh look a home folder up here, whatever HOME says.
awk -F: -v OFS=: -v id="$(id -u)" -v home="$home" '$3 == id {$6 = home; $7 = "/bin/bash"} {print}' /etc/passwd >"$box/passwd"

folder=$(pwd -P)
administrator=()
[[ $(id -u) -ne 0 ]] || administrator=(--cap-add ALL) # sshd changes its user
bwrap --dev-bind / / --unshare-pid --unshare-net --unshare-ipc --die-with-parent "${administrator[@]}" \
    --proc /proc --tmpfs /dev/shm --bind "$box/tmp" /tmp --bind "$folder" "$folder" --ro-bind "$box/passwd" /etc/passwd \
    --setenv HOME "$home" --setenv BEAMLORA_BOX 1 --chdir "$folder" "$@"
