#!/usr/bin/env bash
# Makes a virtual environment with this project in it, editable.
#
#     scripts/install.sh FOLDER EXTRAS [REQUIREMENT ...]
#
# EXTRAS are pyproject.toml's, comma separated, or "" for beamlora alone.
# PYTHON=/path/to/python3.12 chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$1
extras=${2:+[$2]}
shift 2

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

# Asking for pip, not for the folder: a `python -m venv` that was interrupted leaves a folder without it.
if ! recent_enough "$folder/bin/python" || ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        echo "$python has no venv module: install it first (on Debian and Ubuntu the package python3-venv)." >&2
        exit 2
    fi
    echo "Making $folder with $("$python" --version)"
    "$python" -m venv "$folder"
fi

echo "Installing ${extras:-beamlora alone} into $folder: usually 2 to 3 minutes and 3 GB, more where torch is a CUDA build ..."
"$folder/bin/python" -m pip install -qq --disable-pip-version-check --editable ".$extras" "$@"
echo "Installed."
