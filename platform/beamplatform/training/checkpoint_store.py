"""The store of a run's checkpoints, in a folder or at any fsspec URI.

A checkpoint is either complete or absent, and its files are verified before it is used. The layout is

    <location>/step-00000040/worker-00000.safetensors, worker-00000.json, ..., state.json, manifest.json

A local checkpoint is written to a temporary folder, which is then renamed. An object store cannot rename. There the
manifest is written last, and a checkpoint without a manifest does not exist.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from beamplatform.io.storage import is_uri, join, remove_folder

log = logging.getLogger(__name__)

CHECKPOINTS_KEPT = 2
"""Number of checkpoints that are kept: the newest, and an older one in case the newest is damaged."""

_MANIFEST = "manifest.json"
_PARTIAL = ".partial"


class DamagedCheckpoint(ValueError):
    """A checkpoint differs from what was written; the message says which file, and how."""


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        location: a folder or fsspec URI for this run alone; it is created at the first write.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self._remote = is_uri(location)

    @contextlib.contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Yield a local folder into which one worker writes its files of a checkpoint.

        In a local store, all workers share one folder. For a URI, each worker has its own folder, whose files are
        uploaded at the end.

        Raises:
            OSError: the store cannot be written to.
        """
        if not self._remote:
            folder = Path(self._checkpoint_path(step) + _PARTIAL)
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="beamplatform-") as name:
            yield Path(name)
            for path in Path(name).iterdir():
                self._filesystem().put_file(str(path), f"{self._remote_place(step)}/{path.name}")

    def commit(self, step: int, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Complete the checkpoint after all workers have written their files; only one worker calls this.

        Args:
            step: the optimizer step of the checkpoint.
            files: file name -> what `describe` says about the file.
        """
        text = json.dumps({"step": step, "files": dict(files)}, indent=2)
        if self._remote:
            with self._filesystem().open(f"{self._remote_place(step)}/{_MANIFEST}", "w") as file:
                file.write(text)
        else:
            partial, final = Path(self._checkpoint_path(step) + _PARTIAL), Path(self._checkpoint_path(step))
            (partial / _MANIFEST).write_text(text, encoding="utf-8")
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        self._prune()

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, newest first."""
        if self._remote:
            filesystem = self._filesystem()
            root = filesystem._strip_protocol(self.location)
            names = [path.split("/")[-2] for path in filesystem.glob(f"{root}/step-*/{_MANIFEST}")]
        else:
            names = [path.parent.name for path in Path(self.location).glob(f"step-*/{_MANIFEST}")]
        return sorted((int(name.removeprefix("step-")) for name in names if not name.endswith(_PARTIAL)), reverse=True)

    @contextlib.contextmanager
    def open(self, step: int) -> Iterator[Path]:
        """Yield a local folder with the checkpoint; for a URI this is a copy that is deleted afterwards."""
        if not self._remote:
            yield Path(self._checkpoint_path(step))
            return
        with tempfile.TemporaryDirectory(prefix="beamplatform-") as name:
            self._filesystem().get(f"{self._remote_place(step)}/", name, recursive=True)
            yield Path(name)

    def newest(self) -> int | None:
        """The step of the newest intact checkpoint, or None; damaged ones are skipped with a warning."""
        for step in self.steps():
            try:
                with self.open(step) as folder:
                    verify(folder)
            except (DamagedCheckpoint, OSError) as error:
                log.warning("checkpoint %s is not used: %s", self._checkpoint_path(step), error)
                continue
            return step
        return None

    def clear(self) -> None:
        """Delete every checkpoint, after the run is done."""
        remove_folder(self.location)

    def _prune(self) -> None:
        """Delete all but the newest checkpoints, and checkpoints that an interrupted run left half-written."""
        for step in self.steps()[CHECKPOINTS_KEPT:]:
            if self._remote:
                self._filesystem().rm(self._remote_place(step), recursive=True)
            else:
                shutil.rmtree(self._checkpoint_path(step), ignore_errors=True)
        if not self._remote:
            for partial in Path(self.location).glob(f"step-*{_PARTIAL}"):
                shutil.rmtree(partial, ignore_errors=True)

    def _checkpoint_path(self, step: int) -> str:
        return join(self.location, f"step-{step:08}")

    def _remote_place(self, step: int) -> str:
        return str(self._filesystem()._strip_protocol(self._checkpoint_path(step)))

    def _filesystem(self) -> Any:
        import fsspec

        filesystem = fsspec.core.url_to_fs(self.location)[0]
        filesystem.invalidate_cache()  # other workers write there too
        return filesystem


def describe(path: Path) -> dict[str, Any]:
    """A file's entry in the manifest: its size in bytes and its SHA-256 as hexadecimal digits."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def verify(folder: Path) -> None:
    """Compare every file of a checkpoint with its manifest.

    Raises:
        DamagedCheckpoint: a file is missing, truncated or altered.
    """
    try:
        files = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{_MANIFEST} cannot be read ({error})") from None
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpoint(f"{name} is missing")
        if path.stat().st_size != expected["bytes"]:
            raise DamagedCheckpoint(f"{name} has {path.stat().st_size} bytes instead of {expected['bytes']}")
        if describe(path)["sha256"] != expected["sha256"]:
            raise DamagedCheckpoint(f"{name} was altered: its SHA-256 differs")
