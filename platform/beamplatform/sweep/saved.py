"""What a sweep was started as, kept beside its results, so that `--resume` needs its name at most."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from beamplatform.errors import UserError
from beamplatform.storage import join, list_folders, read_text, write_text
from beamplatform.suite import Preset

_FILE = "sweep.json"


@dataclass(frozen=True)
class SavedSweep:
    """A sweep as it was started; `preset` is resolved, command-line values included."""

    name: str
    suite: str
    preset_name: str
    preset: dict[str, Any]
    methods: list[str]
    started: float

    def save(self, storage: str) -> None:
        write_text(join(storage, self.name, _FILE), json.dumps(asdict(self), indent=2))

    def resolved(self) -> Preset:
        return Preset.model_validate(self.preset)


def is_started(storage: str, name: str) -> bool:
    """Whether there is a sweep of that name."""
    return read_text(join(storage, name, _FILE)) is not None


def find_sweep(storage: str, suite: str, name: str | None) -> SavedSweep:
    """The sweep `name` of a suite, or the one that was started last.

    Raises:
        UserError: there is none; names those there are.
    """
    if name is not None:
        text = read_text(join(storage, name, _FILE))
        if text is None:
            known = ", ".join(saved.name for saved in _sweeps(storage, suite)) or "none"
            raise UserError(f"--resume {name}: no such sweep in {storage}; sweeps of {suite} there: {known}")
        saved = SavedSweep(**json.loads(text))
        if saved.suite != suite:
            raise UserError(f"--resume {name}: a sweep of the suite {saved.suite}, not of {suite}")
        return saved
    found = _sweeps(storage, suite)
    if not found:
        raise UserError(f"--resume: no sweep of the suite {suite} in {storage}; start one without --resume")
    return max(found, key=lambda saved: saved.started)


def _sweeps(storage: str, suite: str) -> list[SavedSweep]:
    texts = (read_text(join(folder, _FILE)) for folder in list_folders(storage))
    found = [SavedSweep(**json.loads(text)) for text in texts if text is not None]
    return sorted((saved for saved in found if saved.suite == suite), key=lambda saved: saved.name)


@contextlib.contextmanager
def only_driver(folder: Path, name: str) -> Iterator[None]:
    """Hold the sweep's lock: two drivers of one sweep would write each other's trials.

    Raises:
        UserError: another process on this machine runs the sweep.
    """
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise UserError(f"the sweep {name} is running already, as process {file.read().strip()}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
