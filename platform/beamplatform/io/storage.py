"""Copying folders to and from a sweep's storage, a local folder or any fsspec URI (s3://, gs://, ...)."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from beamplatform.errors import UserError, first_line

DEFAULT_STORAGE = "runs"
"""The folder that results go to, below the working folder."""


def join(base: str, *parts: str) -> str:
    """`base` extended by path parts; works for folders and URIs."""
    return "/".join([base.rstrip("/"), *parts])


def is_uri(location: str) -> bool:
    return "://" in location


def reached(location: str) -> tuple[Any, str]:
    """The file system of a URI, once it has answered, and the path in it.

    Raises:
        Exception: any of the file system's own.
    """
    filesystem, path = _there(location)
    with contextlib.suppress(FileNotFoundError):  # not `exists`, which takes every error for a "no"
        filesystem.info(path)
    return filesystem, path


def _there(location: str) -> tuple[Any, str]:
    """The file system of a URI and the path in it; what it remembers of listings is dropped: others write there too."""
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(location)
    filesystem.invalidate_cache()
    return filesystem, path


def read_text(location: str) -> str | None:
    """A text file's content; None where there is no such file."""
    if not is_uri(location):
        path = Path(location)
        return path.read_text(encoding="utf-8") if path.is_file() else None
    filesystem, path_there = _there(location)
    try:
        return str(filesystem.cat_file(path_there).decode())
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def undamaged(file: str) -> Iterator[None]:
    """What is read in here is what a sweep has written to the file.

    Raises:
        UserError: it is not, as after a disk was full or somebody changed it.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, RecursionError) as error:  # pydantic's error is a ValueError
        raise UserError(f"{file}: is damaged ({first_line(error)}); bring back a copy, or start a new sweep") from None


def write_text(location: str, text: str) -> None:
    """Write a text file, its folders included; complete or not at all."""
    if not is_uri(location):
        path = Path(location)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".partial")
        aside.write_text(text, encoding="utf-8")
        aside.rename(path)
        return
    filesystem, path_there = _there(location)
    filesystem.pipe_file(path_there, text.encode())


def list_folders(location: str) -> list[str]:
    """The folders directly in a folder or URI, as locations; none where it does not exist."""
    if not is_uri(location):
        return sorted(str(path) for path in Path(location).glob("*/"))
    filesystem, path_there = _there(location)
    if not filesystem.exists(path_there):
        return []
    entries = filesystem.ls(path_there, detail=True)
    names = sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory")
    return [join(location, name) for name in names]


def list_files(location: str) -> list[str]:
    """The files directly in a folder or URI, as locations; none where it does not exist."""
    if not is_uri(location):
        return sorted(str(path) for path in Path(location).glob("*") if path.is_file())
    filesystem, path_there = _there(location)
    if not filesystem.exists(path_there):
        return []
    entries = filesystem.ls(path_there, detail=True)
    names = sorted(entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")
    return [join(location, name) for name in names]


def put_folder(local: Path, destination: str, *, last: str | None = None) -> None:
    """Copy the files of `local` to `destination`, replacing what is there. A local copy is complete or absent.

    An object store cannot do that; there the file `last` comes last, so that what has it is complete.
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
    """Remove a folder and all that is in it, where there is one."""
    if not is_uri(location):
        shutil.rmtree(location, ignore_errors=True)
        return
    filesystem, path = _there(location)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


@contextlib.contextmanager
def local_folder(location: str) -> Iterator[Path]:
    """`location` as a folder on this machine: itself, or a copy of what lies at the URI, deleted afterwards."""
    if not is_uri(location):
        yield Path(location)
        return
    filesystem, path = _there(location)
    with tempfile.TemporaryDirectory(prefix="beamplatform-") as name:
        filesystem.get(f"{path}/", name, recursive=True)
        yield Path(name)
