#!/usr/bin/env bash
# Makes a virtual environment with this project in it, editable.
#
#     scripts/install.sh FOLDER EXTRAS [REQUIREMENT ...]
#
# EXTRAS are pyproject.toml's, comma separated, or "" for beamlora alone. "platform,dev" without more is the recommended
# environment, whose versions are locked in requirements/cpu.txt and cuda.txt; anything else is resolved anew.
#
# PYTHON=/path/to/python3.12  chooses the interpreter
# BACKEND=cpu or cuda         chooses the build of torch (default: cuda where nvidia-smi finds a GPU, else cpu)
# INSTALLER=pip               does without uv
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/uv.sh

folder=$1
extras=${2:+[$2]}
locked=no
[ "$2" = platform,dev ] && [ $# -eq 2 ] && locked=yes
shift 2

pytorch=https://download.pytorch.org/whl/cpu
log=$(mktemp)
trap 'rm -f "$log"' EXIT

recent_enough() {
    command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if recent_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.11 or newer is needed, and ${PYTHON:-python3} is older or absent: install one," \
        "or name one with PYTHON=/path/to/python make ..." >&2
    exit 2
}

make_environment() {
    # Asking for pip, not for the folder: what was interrupted leaves a folder without it.
    if recent_enough "$folder/bin/python" && "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    echo "Making $folder with $("$python" --version)"
    [ -z "$uv" ] || ! "$uv" venv -q --seed --allow-existing --python "$python" "$folder" 2>>"$log" || return 0
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        echo "$python has no venv module: install it first (on Debian and Ubuntu the package python3-venv)." >&2
        exit 2
    fi
    "$python" -m venv "$folder"
}

# uv_install OPTION ...: a terminal sees uv's own progress.
uv_install() {
    local quiet=-q
    [ ! -t 2 ] || quiet=
    "$uv" pip install $quiet --python "$folder/bin/python" "$@" 2> >(tee -a "$log" >&"$shown")
}

pip_install() {
    "$folder/bin/python" -m pip install -qq --disable-pip-version-check "$@" 2>>"$log"
}

# The locked versions, from wherever torch's build can be had: where pip is set to look, PyTorch's own index, PyPI.
# The hashes say what is right (uv and pip check each that a file gives), so it does not matter which index has it.
install_locked() {
    local settings=()
    if [ -n "$uv" ]; then
        mapfile -t settings < <("$folder/bin/python" scripts/pip_settings.py)
        local everywhere=(--index-strategy unsafe-best-match ${settings[@]+"${settings[@]}"})
        if [ "$backend" = cpu ] && [ ${#settings[@]} -gt 0 ]; then
            uv_install "${everywhere[@]}" -r requirements/cpu.txt && return
        fi
        if [ "$backend" = cpu ]; then
            uv_install "${everywhere[@]}" --torch-backend cpu -r requirements/cpu.txt && return
            echo "torch's CPU build cannot be reached: trying the CUDA build, of 5 GB. It works without a GPU, too."
        fi
        uv_install "${everywhere[@]}" -r requirements/cuda.txt && return
    fi
    if [ "$backend" = cpu ]; then
        pip_install --require-hashes --extra-index-url "$pytorch" -r requirements/cpu.txt && return
    fi
    pip_install --require-hashes -r requirements/cuda.txt
}

python=$(find_python)
uv=
[ "${INSTALLER:-uv}" = pip ] || uv=$(find_uv "$python")
backend=${BACKEND:-$(nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)}
case $backend in cpu | cuda) ;; *) echo "BACKEND=$backend: allowed are cpu and cuda" >&2 && exit 2 ;; esac
exec {shown}>/dev/null
[ ! -t 2 ] || exec {shown}>&2

make_environment
SECONDS=0
if [ "$locked" = yes ]; then
    if [ -n "$uv" ]; then how="uv, usually within a minute"; else how="pip, usually in 3 to 6 minutes"; fi
    if [ "$backend" = cpu ]; then size="2 GB, CPU build"; else size="6 GB, CUDA build"; fi
    echo "Installing the locked packages ($size) into $folder with $how ..."
    if ! install_locked; then
        echo "The locked versions do not fit this machine ($(tail -n 1 "$log")); pip resolves pyproject.toml's anew ..."
        locked=no
    fi
fi
if [ "$locked" = yes ] && [ -n "$uv" ]; then
    uv_install --no-deps --editable .
elif [ "$locked" = yes ]; then
    pip_install --no-deps --editable .
else
    echo "Installing ${extras:-beamlora alone} into $folder with pip: usually 3 to 6 minutes ..."
    "$folder/bin/python" -m pip install -qq --disable-pip-version-check --editable ".$extras" "$@"
fi
echo "Installed in $SECONDS s."
