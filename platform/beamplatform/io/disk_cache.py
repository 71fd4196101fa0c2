"""What was found out before, of the same content: kept in the user's cache folder, so that a plan is there at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beamplatform.io.storage import write_text

LARGE = 2**26
"""Bytes of a file that is read again only when its size or age has changed."""


def cached_json(kind: str, about: object, find_out: Callable[[], Any]) -> Any:
    """What `find_out` returned for the same `about`, or returns now: plain values, as JSON gives them back.

    Args:
        kind: a folder of the cache, `$XDG_CACHE_HOME/beamlora` or `~/.cache/beamlora`.
        about: all that decides the answer; only its text counts.
    """
    folder = _cache()
    if folder is None:
        return json.loads(json.dumps(find_out()))
    file = folder / "beamlora" / kind / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    text = json.dumps(find_out())
    with contextlib.suppress(OSError):  # a home folder that is full or cannot be written to: found out anew next time
        write_text(str(file), text)
    return json.loads(text)


def cached_for_file(kind: str, file: Path, find_out: Callable[[], Any]) -> Any:
    """As `known`, about the content of a file. A large file is told by path, size and age; a small one is read anew."""
    about = file.stat()
    if about.st_size <= LARGE:
        return find_out()
    return cached_json(kind, (str(file.resolve()), about.st_size, about.st_mtime_ns), find_out)


def _cache() -> Path | None:
    """The user's cache folder; None where there is no home folder to have it."""
    if place := os.environ.get("XDG_CACHE_HOME"):
        return Path(place)
    home = os.path.expanduser("~")  # `~` itself for a user whom the system does not know
    return Path(home) / ".cache" if os.path.isabs(home) and os.path.isdir(home) else None
