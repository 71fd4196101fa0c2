"""Checks a location for results, which is a folder or an fsspec URI, before anything is written there."""

from __future__ import annotations

import os
import re
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

from beamplatform.errors import UserError, first_line, shortened
from beamplatform.io.storage import is_uri, join, reached

SECONDS = 20.0
"""Seconds that an object store may take to answer; its client by itself tries for minutes."""

LEAST_FREE = 64 * 2**20
"""Least free space of a disk, in bytes; with less it is full within the first minutes of a sweep."""


def checked_location(option: str, location: str) -> str:
    """Return the location as a URI that answers, or as an absolute path.

    Args:
        option: the option of the command line that names the location, for messages.
        location: a folder or an fsspec URI.

    Raises:
        UserError: the URI has an unknown kind, names no bucket, or does not answer, for instance without credentials.
    """
    typed = location
    if location.startswith(("file://", "local://")):
        location = location.partition("://")[2]
        if not location:
            raise UserError(f"{option} {typed}: names no folder; give one, such as file:///data/sweeps")
    if any(ord(character) < 32 for character in location):
        raise UserError(f"{option} {shortened(repr(location))}: must be without line breaks and control characters")
    if not is_uri(location):
        begun = re.match(r"([a-z0-9]{2,}):", location)
        if begun and begun[1] in _kinds():
            raise UserError(
                f"{option} {location}: a URI begins with {begun[1]}://; a folder of this name is ./{location}"
            )
        return str(Path(os.path.expanduser(location)).resolve())
    kind, _, path = location.partition("://")
    if not path.strip("/"):
        raise UserError(f"{option} {location}: names no bucket or folder; give one, such as {kind}://BUCKET/sweeps")
    if kind.rpartition(":")[2] == "memory":
        raise UserError(
            f"{option} {location}: other processes do not see what is in memory; give a folder, or s3://..."
        )
    _within(SECONDS, option, location, lambda: reached(location))
    return location


def check_writable(option: str, location: str) -> None:
    """Check that files can be written below the location; the check leaves nothing behind.

    Raises:
        UserError: no file can be written there, or the disk is full.
    """
    if is_uri(location):
        _within(SECONDS, option, location, lambda: _write(location))
        return
    existing = _nearest(Path(location))
    if not existing.is_dir():
        subject = "" if existing == Path(location).absolute() else f"{existing} "
        raise UserError(f"{option} {location}: {subject}is a file; name a folder, which is made where it is missing")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{option} {location}: the folder {existing} cannot be written to; name another one")
    check_free(f"{option} {location}", existing)


def check_free(what: str, folder: Path) -> None:
    """Check that the disk of a folder has room for files.

    Args:
        what: the beginning of the message, which says what needs the room.
        folder: a folder on the disk, which need not exist yet.

    Raises:
        UserError: the disk is full.
    """
    disk = os.statvfs(_nearest(folder))
    free = disk.f_bavail * disk.f_frsize
    if free < LEAST_FREE:
        raise UserError(
            f"{what}: the disk is full: {free / 2**20:.0f} MiB are free, and {LEAST_FREE // 2**20} MiB are the least "
            "to begin with; remove something, or name a folder on another disk"
        )
    if disk.f_files and not disk.f_favail:
        raise UserError(f"{what}: the disk has no room for another file (inodes); remove some, or name another disk")


def _kinds() -> list[str]:
    from fsspec import available_protocols

    return list(available_protocols())


def _nearest(path: Path) -> Path:
    """Return the path if it exists, or else the nearest folder above it that does."""
    path = path.absolute()
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _write(location: str) -> None:
    filesystem, path = reached(join(location, f"writable-{uuid.uuid4().hex}"))
    filesystem.pipe_file(path, b"")
    filesystem.rm(path)


def _within(seconds: float, option: str, location: str, work: Callable[[], object]) -> None:
    """Call `work` in another thread, and raise UserError if it fails or takes more than `seconds`."""
    outcome: list[Exception | None] = []

    def run() -> None:
        try:
            work()
            outcome.append(None)
        except Exception as error:  # an object store may raise errors of its own
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    error = outcome[0] if outcome else TimeoutError(f"no answer in {seconds:.0f} s")
    if error is not None:
        raise UserError(
            f"{option} {location}: cannot be used ({type(error).__name__}: {first_line(error)}); see its spelling, its "
            "credentials (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) and the network"
        ) from None
