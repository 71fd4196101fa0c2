# For other scripts to source: `find_uv PYTHON` prints the path of a uv, or nothing where none can be had.
#
# That is the one on PATH if it is recent enough, else one that PYTHON's pip fetches into build/uv. pip takes 5 seconds for
# it and 3 to 6 minutes for this project's packages, for which uv takes less than one.

OLDEST_UV=0.9

recent_uv() {
    local version
    version=$("$1" --version 2>/dev/null) || return 1
    [ "$(printf '%s\n' "$OLDEST_UV" "$(cut -d' ' -f2 <<<"$version")" | sort -V | head -n 1)" = "$OLDEST_UV" ]
}

find_uv() {
    local fetched=build/uv
    if recent_uv uv; then
        command -v uv
    elif recent_uv "$fetched/bin/uv" || {
        "$1" -m pip install -q --disable-pip-version-check --upgrade --target "$fetched" uv >/dev/null 2>&1 &&
            recent_uv "$fetched/bin/uv"
    }; then
        echo "$PWD/$fetched/bin/uv"
    fi
}
