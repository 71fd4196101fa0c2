"""What can be wrong with a place for results, a folder or an fsspec URI, found before anything is written there."""

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
"""How long an object store may take to answer; its client by itself tries for minutes."""

LEAST_FREE = 64 * 2**20
"""Bytes; a disk that has less free is full within the first minutes of a sweep."""


def checked_location(option: str, location: str) -> str:
    """The location: a URI that answers, or an absolute path.

    Args:
        option: the command line's, for messages.

    Raises:
        UserError: a URI of no known kind, without a bucket or without the credentials that it takes.
    """
    given = location
    if location.startswith(("file://", "local://")):
        location = location.partition("://")[2]
        if not location:
            raise UserError(f"{option} {given}: names no folder; give one, such as file:///data/sweeps")
    if any(ord(character) < 32 for character in location):
        raise UserError(f"{option} {shortened(repr(location))}: must be without line breaks and control characters")
    if not is_uri(location):
        begun = re.match(r"([a-z0-9]{2,}):", location)
        if begun and begun[1] in _kinds():
            raise UserError(
                f"{option} {location}: a URI begins with {begun[1]}://; a folder of this name is ./{location}"
            )
        return str(Path(os.path.expanduser(location)).resolve())
    kind, _, place = location.partition("://")
    if not place.strip("/"):
        raise UserError(f"{option} {location}: names no bucket or folder; give one, such as {kind}://BUCKET/sweeps")
    if kind.rpartition(":")[2] == "memory":
        raise UserError(
            f"{option} {location}: other processes do not see what is in memory; give a folder, or s3://..."
        )
    _within(SECONDS, option, location, lambda: reached(location))
    return location


def check_writable(option: str, location: str) -> None:
    """See that something can be written below the location; leaves nothing behind.

    Raises:
        UserError: it cannot, or a disk is full.
    """
    if is_uri(location):
        _within(SECONDS, option, location, lambda: _write(location))
        return
    there = _nearest(Path(location))
    if not there.is_dir():
        what = "" if there == Path(location).absolute() else f"{there} "
        raise UserError(f"{option} {location}: {what}is a file; name a folder, which is made where it is missing")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{option} {location}: the folder {there} cannot be written to; name another one")
    check_free(f"{option} {location}", there)


def check_free(what: str, folder: Path) -> None:
    """See that the disk of a folder has room.

    Raises:
        UserError: it is full.
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
    """The path, or the nearest of the folders above it that exists."""
    path = path.absolute()
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _write(location: str) -> None:
    filesystem, place = reached(join(location, f"writable-{uuid.uuid4().hex}"))
    filesystem.pipe_file(place, b"")
    filesystem.rm(place)


def _within(seconds: float, option: str, location: str, work: Callable[[], object]) -> None:
    """Do it in another thread, which is left alone when it takes too long."""
    found: list[Exception | None] = []

    def run() -> None:
        try:
            work()
            found.append(None)
        except Exception as error:  # any of an object store's own
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    error = found[0] if found else TimeoutError(f"no answer in {seconds:.0f} s")
    if error is not None:
        raise UserError(
            f"{option} {location}: cannot be used ({type(error).__name__}: {first_line(error)}); see its spelling, its "
            "credentials (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) and the network"
        ) from None
