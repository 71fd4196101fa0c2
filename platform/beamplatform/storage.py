"""Copying folders to and from a sweep's storage, a local folder or any fsspec URI (s3://, gs://, ...)."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def join(base: str, *parts: str) -> str:
    """`base` extended by path parts; works for folders and URIs."""
    return "/".join([base.rstrip("/"), *parts])


def is_uri(location: str) -> bool:
    return "://" in location


def put_folder(local: Path, destination: str) -> None:
    """Copy the files of `local` to `destination`, replacing what is there. A local copy is complete or absent."""
    if not is_uri(destination):
        target = Path(destination)
        aside = target.with_name(target.name + ".partial")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(local, aside)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
        return
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(destination)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)
    filesystem.put(f"{local}/", path, recursive=True)


@contextlib.contextmanager
def local_folder(location: str) -> Iterator[Path]:
    """`location` as a folder on this machine: itself, or a copy of what lies at the URI, deleted afterwards."""
    if not is_uri(location):
        yield Path(location)
        return
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(location)
    with tempfile.TemporaryDirectory(prefix="beamplatform-") as name:
        filesystem.get(f"{path}/", name, recursive=True)
        yield Path(name)
