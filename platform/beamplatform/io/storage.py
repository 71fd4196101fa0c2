"""Reads and writes a sweep's storage, which is a local folder or any fsspec URI (s3://, gs://, ...)."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from beamplatform.errors import UserError, first_line

DEFAULT_STORAGE = "runs"
"""The default folder for results, below the working folder."""


def join(base: str, *parts: str) -> str:
    """Return `base` extended by path parts; works for folders and URIs."""
    return "/".join([base.rstrip("/"), *parts])


def is_uri(location: str) -> bool:
    return "://" in location


def reached(location: str) -> tuple[Any, str]:
    """Return the file system of a URI, and the path in it, after the file system has answered once.

    Raises:
        Exception: any error that the file system raises.
    """
    filesystem, path = _there(location)
    with contextlib.suppress(FileNotFoundError):  # not `exists`, which returns False on every error
        filesystem.info(path)
    return filesystem, path


def _there(location: str) -> tuple[Any, str]:
    """Return the file system of a URI, and the path in it.

    Cached listings of the file system are dropped, because other processes write there, too.
    """
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(location)
    filesystem.invalidate_cache()
    return filesystem, path


def read_text(location: str) -> str | None:
    """Return the content of a text file; None if there is no such file."""
    if not is_uri(location):
        path = Path(location)
        return path.read_text(encoding="utf-8") if path.is_file() else None
    filesystem, remote_path = _there(location)
    try:
        return str(filesystem.cat_file(remote_path).decode())
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def undamaged(file: str) -> Iterator[None]:
    """Convert errors while parsing one of a sweep's files to a `UserError` which says that the file is damaged.

    Raises:
        UserError: the file is damaged, for instance because a disk was full or somebody changed it.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, RecursionError) as error:  # pydantic's error is a ValueError
        raise UserError(f"{file}: is damaged ({first_line(error)}); bring back a copy, or start a new sweep") from None


def write_text(location: str, text: str) -> None:
    """Write a text file, and create its folders; the file is written completely or not at all."""
    if not is_uri(location):
        path = Path(location)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".partial")
        aside.write_text(text, encoding="utf-8")
        aside.rename(path)
        return
    filesystem, remote_path = _there(location)
    filesystem.pipe_file(remote_path, text.encode())


def list_folders(location: str) -> list[str]:
    """Return the locations of the folders directly in a folder or URI; empty if it does not exist."""
    if not is_uri(location):
        return sorted(str(path) for path in Path(location).glob("*/"))
    filesystem, remote_path = _there(location)
    if not filesystem.exists(remote_path):
        return []
    entries = filesystem.ls(remote_path, detail=True)
    names = sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory")
    return [join(location, name) for name in names]


def list_files(location: str) -> list[str]:
    """Return the locations of the files directly in a folder or URI; empty if it does not exist."""
    if not is_uri(location):
        return sorted(str(path) for path in Path(location).glob("*") if path.is_file())
    filesystem, remote_path = _there(location)
    if not filesystem.exists(remote_path):
        return []
    entries = filesystem.ls(remote_path, detail=True)
    names = sorted(entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")
    return [join(location, name) for name in names]


def put_folder(local: Path, destination: str, *, last: str | None = None) -> None:
    """Copy the files of `local` to `destination`, replacing what is there.

    A local copy is complete or absent. An object store cannot guarantee that: there the file named `last` is copied
    last, so that a copy that has it is complete.
    """
    if not is_uri(destination):
        target = Path(destination)
        aside = target.with_name(target.name + ".partial")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(local, aside)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        return
    filesystem, path = _there(destination)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)
    for file in sorted(local.rglob("*"), key=lambda file: file.name == last):
        if file.is_file():
            filesystem.put_file(str(file), f"{path}/{file.relative_to(local)}")


def remove_folder(location: str) -> None:
    """Remove a folder with everything in it, if it exists."""
    if not is_uri(location):
        shutil.rmtree(location, ignore_errors=True)
        return
    filesystem, path = _there(location)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


@contextlib.contextmanager
def local_folder(location: str) -> Iterator[Path]:
    """Yield `location` as a folder on this machine.

    A local folder is yielded as it is. A URI's content is copied to a temporary folder, which is deleted afterwards.
    """
    if not is_uri(location):
        yield Path(location)
        return
    filesystem, path = _there(location)
    with tempfile.TemporaryDirectory(prefix="beamplatform-") as name:
        filesystem.get(f"{path}/", name, recursive=True)
        yield Path(name)
