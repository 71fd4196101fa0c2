"""Prints as options of uv, one to a line, where this machine's own pip is set to look for packages.

    python scripts/pip_settings.py

uv does not read pip's configuration (`pip config list`: files and PIP_* variables), so a mirror, a folder of wheels or
a constraint that an administrator set would be passed over in silence. Nothing is printed where pip has no settings.
"""

from __future__ import annotations

import ast
import subprocess
import sys

OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "constraint": "--constraint",
    "trusted-host": "--allow-insecure-host",
}
"""pip's setting -> uv's option, once for each of its values."""


def main() -> None:
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():  # from the most general file to the environment; the last one counts
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in ("global", "install", ":env:") and value:
            settings[key] = ast.literal_eval(value)
    for key, option in OPTIONS.items():
        for value in settings.get(key, "").split():
            print(f"{option}={value}")
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        print("--no-index")


if __name__ == "__main__":
    main()
