"""JSON cache of slow look-ups, keyed by content, in the user's cache folder; it makes a repeated plan fast."""

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
"""Size in bytes above which a file is read again only if its size or modification time has changed."""


def cached_json(kind: str, about: object, find_out: Callable[[], Any]) -> Any:
    """Return the cached result of `find_out` for this `about`, or else call `find_out` and cache its result.

    Args:
        kind: name of a folder in the cache, which is `$XDG_CACHE_HOME/beamlora` or `~/.cache/beamlora`.
        about: everything that determines the result. Only its `repr` counts.
        find_out: does the slow look-up.

    Returns:
        The result as plain values, as JSON gives them back.
    """
    folder = _cache()
    if folder is None:
        return json.loads(json.dumps(find_out()))
    file = folder / "beamlora" / kind / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(file.read_text(encoding="utf-8"))
    text = json.dumps(find_out())
    with contextlib.suppress(OSError):  # a full or read-only disk: the look-up is repeated next time
        write_text(str(file), text)
    return json.loads(text)


def cached_for_file(kind: str, file: Path, find_out: Callable[[], Any]) -> Any:
    """Return the cached result of `find_out`, which depends on the content of `file`.

    A large file is identified by path, size and modification time. For a small file `find_out` is called each time.
    """
    about = file.stat()
    if about.st_size <= LARGE:
        return find_out()
    return cached_json(kind, (str(file.resolve()), about.st_size, about.st_mtime_ns), find_out)


def _cache() -> Path | None:
    """Return the user's cache folder; None if there is no home folder to hold it."""
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder)
    home = os.path.expanduser("~")  # still `~` for a user whom the system does not know
    return Path(home) / ".cache" if os.path.isabs(home) and os.path.isdir(home) else None
