"""The version of the code that decides what comes out of a trial."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

_PARTS = ("baselines", "data", "inference", "methods", "tasks", "training", "world")
_FILES = ("models.py", "schedule.py", "trial.py")
"""Of beamplatform; not its reports, tracking and search, which change nothing about a trial."""


def code_version(tasks: Sequence[str] = ()) -> str:
    """Eight hex digits of the sources of beamlora, of what trains and scores here, and of task files of the user's own.

    Not the commit: most commits change no number, and an installed package has none.

    Args:
        tasks: as a suite names them; those that are files count.
    """
    own = [Path(task).read_bytes() for task in tasks if task.endswith(".py")]
    return hashlib.sha256(b"\0".join([_sources().encode(), *own])).hexdigest()[:8]


@functools.cache
def _sources() -> str:
    found = importlib.util.find_spec("beamlora")  # not imported: that takes seconds
    assert found is not None and found.origin is not None
    method, here = Path(found.origin).resolve().parent, Path(__file__).resolve().parent
    files = [*method.rglob("*.py"), *(here / name for name in _FILES)]
    files += [file for part in _PARTS for file in (here / part).rglob("*.py")]
    sha = hashlib.sha256()
    for name, file in sorted((file.relative_to(_root(file, method, here)).as_posix(), file) for file in files):
        sha.update(f"{name}\0".encode() + file.read_bytes() + b"\0")
    return sha.hexdigest()


def _root(file: Path, *packages: Path) -> Path:
    return next(package.parent for package in packages if file.is_relative_to(package))
