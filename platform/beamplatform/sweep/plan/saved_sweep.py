"""Saves a sweep's settings beside its results, so that `--resume` and `--extend` need at most its name."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from beamplatform.config.suite import Preset
from beamplatform.errors import UserError
from beamplatform.io.storage import join, list_folders, read_text, undamaged, write_text
from beamplatform.io.storage_check import checked_location
from beamplatform.validation import describe_error

_FILE = "sweep.json"


@dataclass(frozen=True)
class SavedSweep:
    """The settings with which a sweep was started or last extended.

    Attributes:
        preset: the resolved preset, including values of the command line.
        content: what the trials depend on; see `beamplatform.config.trial.context`.
        options: options of the command line, so that an extension need not repeat them.
        started: when the sweep was started, in seconds since the epoch.
    """

    name: str
    suite: str
    preset_name: str
    preset: dict[str, Any]
    methods: list[str]
    started: float
    content: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def save(self, storage: str) -> None:
        write_text(join(storage, self.name, _FILE), json.dumps(asdict(self), indent=2))

    def resolved(self) -> Preset:
        """Return the preset.

        Raises:
            UserError: the preset was saved by a version of this program that allowed other values.
        """
        try:
            return Preset.model_validate(self.preset)
        except ValidationError as error:
            location, message = describe_error(error, Preset)
            raise UserError(
                f"the sweep {self.name} has the value {'.'.join(location)}, which this version refuses: {message}; "
                "start a new sweep"
            ) from None


def storage_of(option: str) -> str:
    """Return the storage that `--storage` names: a URI that answers, or an absolute path.

    Raises:
        UserError: see `checked_location`.
    """
    return checked_location("--storage", option)


def saved_sweep(storage: str, name: str) -> SavedSweep | None:
    """Return the sweep called `name`, or None if there is none.

    Raises:
        UserError: the sweep's file is damaged.
    """
    return _in_folder(join(storage, name))


def find_sweep(storage: str, suite: str, name: str | None, option: str = "--resume") -> SavedSweep:
    """Return the suite's sweep called `name`; if `name` is None, the sweep that was started last.

    Raises:
        UserError: the suite has no such sweep, or none at all.
    """
    if name is not None:
        saved = saved_sweep(storage, name)
        if saved is None:
            names = ", ".join(saved.name for saved in _sweeps(storage, suite)) or "none"
            raise UserError(f"{option} {name}: no such sweep in {storage}; sweeps of {suite} there: {names}")
        if saved.suite != suite:
            raise UserError(f"{option} {name}: a sweep of the suite {saved.suite}, not of {suite}")
        return saved
    sweeps = _sweeps(storage, suite)
    if not sweeps:
        raise UserError(f"{option}: no sweep of the suite {suite} in {storage}; start one without {option}")
    return max(sweeps, key=lambda saved: saved.started)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the differences between two contents as lines `key: before -> now`."""
    lines = []
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += [f"{key}.{line}" for line in differences(old, new)]
        elif old != new:
            lines.append(f"{key}: {json.dumps(old)} -> {json.dumps(new)}")
    return lines


def _sweeps(storage: str, suite: str) -> list[SavedSweep]:
    """The sweeps of a suite, sorted by name. A sweep with a damaged file is left out, so that others can go on."""
    sweeps = []
    for folder in list_folders(storage):
        with contextlib.suppress(UserError):
            saved = _in_folder(folder)
            if saved is not None and saved.suite == suite:
                sweeps.append(saved)
    return sorted(sweeps, key=lambda saved: saved.name)


def _in_folder(folder: str) -> SavedSweep | None:
    file = join(folder, _FILE)
    with undamaged(file):
        text = read_text(file)
        return SavedSweep(**json.loads(text)) if text is not None else None


@contextlib.contextmanager
def only_driver(folder: Path, name: str) -> Iterator[None]:
    """Hold the sweep's lock, because two drivers of one sweep would overwrite each other's trials.

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
