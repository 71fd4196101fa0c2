"""The records of a trial: what it trains on, validates on and is tested on."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from beamplatform.data.records import Record, Split, load_records, read_rows
from beamplatform.errors import UserError
from beamplatform.tasks.registry import get_task

if TYPE_CHECKING:
    from beamplatform.sections import DataSection


@dataclass(frozen=True)
class TrainingRecords:
    """Disjoint records: `train` is learnt from, `validation` chooses between configurations."""

    train: list[Record]
    validation: list[Record]


def training_records(data: DataSection, tasks: Sequence[str]) -> TrainingRecords:
    """All training records of the suite, shuffled and split with `data.split_seed` (the same for every trial).

    Tasks without a training split in a data folder are left out, as long as one has it: the published test sets
    come with training splits for some tasks only.

    Raises:
        UserError: nothing to train on, or fewer records than the validation split asks for.
    """
    records = _mixture(data.train_source, data.columns) if data.train_source else _of_tasks(data, tasks)
    random.Random(data.split_seed).shuffle(records)
    if len(records) <= data.validation_records:
        raise UserError(
            f"data.validation_records ({data.validation_records}) leaves nothing to train on: "
            f"{len(records)} training records in all"
        )
    validation, train = records[: data.validation_records], records[data.validation_records :]
    return TrainingRecords(train[: data.train_records], validation)


def test_records(data: DataSection, tasks: Sequence[str], limit: int | None) -> dict[str, list[Record]]:
    """The first `limit` test records of every task (None = all).

    Raises:
        UserError: no source, or a task's test split is missing or malformed.
    """
    if not tasks:
        return {}
    return {get_task(task).name: _records_of(task, "test", data.source)[:limit] for task in tasks}


def _of_tasks(data: DataSection, tasks: Sequence[str]) -> list[Record]:
    if data.source is None:
        raise UserError(
            "data.source: missing, so there is nothing to train on; give --data-dir FOLDER or set data.train_source"
        )
    folder = Path(data.source).expanduser()
    if folder.is_dir():
        present = [t for t in tasks if (folder / _place(t, "train")).is_file()]
        if not present:
            raise UserError(f"{folder}: none of the suite's tasks has a training split there ({', '.join(tasks)})")
        tasks = present
    return [record for task in tasks for record in _records_of(task, "train", data.source)]


def _place(name: str, split: Split) -> str:
    """Where a data folder has the records of a task; absolute for a task of the user's own that says so itself."""
    task = get_task(name)
    return task.files.format(name=task.name, split=split)


def _records_of(name: str, split: Split, source: str | None) -> list[Record]:
    task, place = get_task(name), Path(_place(name, split))
    if place.is_absolute():
        source = place.anchor
    if source is None:
        raise UserError(f"data.source: missing, so there is no {place} of the task {task.name}; give --data-dir FOLDER")
    return load_records(task.name, split, source, files=task.files, parse=task.parse)


def _mixture(source: str, columns: Mapping[Literal["instruction", "output"], str]) -> list[Record]:
    """A training set that is not divided by task: a JSON list, JSON lines or a hub data set."""
    path = Path(source).expanduser()
    if path.suffix in {".json", ".jsonl"}:
        if not path.is_file():
            raise UserError(f"data.train_source: no file {path}")
        try:
            rows = read_rows(path)
        except UserError as error:
            raise UserError(f"data.train_source: {error}") from None
    else:
        import datasets

        datasets.disable_progress_bars()
        try:
            rows = datasets.load_dataset(source, split="train")
        # The hub's client raises errors of several libraries, with no common base below Exception.
        except Exception as error:
            raise UserError(
                f"data.train_source: reading {source} from the Hugging Face hub failed ({type(error).__name__}); "
                "check the id and the network, or give a .json or .jsonl file"
            ) from error
    instruction, output = columns.get("instruction", "instruction"), columns.get("output", "output")
    records = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping) or not all(isinstance(row.get(key), str) for key in (instruction, output)):
            found = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
            raise UserError(
                f"{source}, record {number}: needs the text fields {instruction!r} and {output!r} "
                f"(data.columns names them), found {found}"
            )
        records.append(Record(row[instruction], row[output], answer="", input=row.get("input") or ""))
    return records
