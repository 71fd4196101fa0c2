"""Loads and splits the training, validation and test records of a trial."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from beamplatform.data.records import Split, load_records, read_rows
from beamplatform.errors import UserError
from beamplatform.tasks.record import Record, json_type, require_text
from beamplatform.tasks.registry import get_task

if TYPE_CHECKING:
    from beamplatform.config.sections import DataSection


@dataclass(frozen=True)
class TrainingRecords:
    """The training records and, disjoint from them, the validation records.

    Attributes:
        train: the model is trained on these.
        validation: the loss on these chooses between configurations.
        unscorable: task -> (records whose gold answer the task cannot score, all its records).
    """

    train: list[Record]
    validation: list[Record]
    unscorable: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def training_records(data: DataSection, tasks: Sequence[str]) -> TrainingRecords:
    """Return the suite's training records, shuffled and split with `data.split_seed`.

    The split is the same for every trial. Tasks without a training split in a data folder are left out, as long as one
    task has one: the published test sets come with training splits for some tasks only.

    Raises:
        UserError: there are no records to train on, or the validation split leaves none.
    """
    by_task = {} if data.train_source else _of_tasks(data, tasks)
    records = [record for part in by_task.values() for record in part]
    if data.train_source:
        records = _mixture(data.train_source, data.columns)
    random.Random(data.split_seed).shuffle(records)
    if len(records) <= data.validation_records:
        raise UserError(
            f"data.validation_records ({data.validation_records}) leaves nothing to train on: "
            f"{len(records)} training records in all"
        )
    validation, train = records[: data.validation_records], records[data.validation_records :]
    unscorable = count_unscorable(tasks, by_task)
    return TrainingRecords(train[: data.train_records], validation, unscorable)


def count_unscorable(tasks: Sequence[str], records: Mapping[str, Sequence[Record]]) -> dict[str, tuple[int, int]]:
    """Count the gold answers that no completion can match.

    Args:
        tasks: names or files of the tasks, as in a suite.
        records: name of a task -> its records.

    Returns:
        Name of a task -> (records with such a gold answer, all records).
    """
    scorable = {get_task(task).name: get_task(task).can_score for task in tasks}
    return {name: (sum(not scorable[name](record) for record in part), len(part)) for name, part in records.items()}


def test_records(data: DataSection, tasks: Sequence[str], limit: int | None) -> dict[str, list[Record]]:
    """Return the first `limit` test records of every task (None = all), by the task's name.

    Raises:
        UserError: there is no source, or a task's test split is missing or malformed.
    """
    if not tasks:
        return {}
    return {get_task(task).name: _records_of(task, "test", data.source)[:limit] for task in tasks}


def _of_tasks(data: DataSection, tasks: Sequence[str]) -> dict[str, list[Record]]:
    if data.source is None:
        raise UserError(
            "data.source: missing, so there is nothing to train on; give --data-dir FOLDER or set data.train_source"
        )
    folder = Path(data.source).expanduser()
    if folder.is_dir():
        present = [t for t in tasks if (folder / _records_path(t, "train")).is_file()]
        if not present:
            raise UserError(f"{folder}: none of the suite's tasks has a training split there ({', '.join(tasks)})")
        tasks = present
    return {get_task(task).name: _records_of(task, "train", data.source) for task in tasks}


def _records_path(name: str, split: Split) -> str:
    """Return the path of a task's records below a data folder.

    A task of the user's own may name an absolute path instead.
    """
    task = get_task(name)
    return task.files.format(name=task.name, split=split)


def _records_of(name: str, split: Split, source: str | None) -> list[Record]:
    task, path = get_task(name), Path(_records_path(name, split))
    if path.is_absolute():
        source = path.anchor
    if source is None:
        raise UserError(f"data.source: missing, so there is no {path} of the task {task.name}; give --data-dir FOLDER")
    return load_records(task.name, split, source, files=task.files, parse=task.parse)


def _mixture(source: str, columns: Mapping[Literal["instruction", "output"], str]) -> list[Record]:
    """Read training records that are not divided by task from a JSON list, JSON lines or a hub data set."""
    path = Path(source).expanduser()
    if path.name.endswith((".json", ".jsonl", ".json.gz", ".jsonl.gz")):
        if not path.is_file():
            problem = "is a folder, which data.source or --data-dir takes" if path.is_dir() else "does not exist"
            raise UserError(f"data.train_source: {path} {problem}; it must be a .json or .jsonl file, or .gz of one")
        try:
            rows = read_rows(path)
        except UserError as error:
            raise UserError(f"data.train_source: {error}") from None
        if not isinstance(rows, list):
            raise UserError(f"data.train_source: {path}: expected a JSON list of records, found {json_type(rows)}")
    elif path.exists():
        raise UserError(
            f"data.train_source: {path} must be a .json or .jsonl file, or .gz of one"
            + ("; it is a folder, which data.source or --data-dir takes" if path.is_dir() else "")
        )
    else:
        rows = _from_hub(source)
    records = [_mixed(row, f"{source}, record {number}", columns) for number, row in enumerate(rows, start=1)]
    if not records:
        raise UserError(f"data.train_source: {source} holds no records")
    return records


def _from_hub(source: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(source, split="train")
    # The hub's client raises errors of several libraries; their only common base is Exception.
    except Exception as error:
        raise UserError(
            f"data.train_source: reading {source} from the Hugging Face hub failed ({type(error).__name__}); "
            "check the id and the network, or give a .json or .jsonl file"
        ) from error


def _mixed(row: Any, where: str, columns: Mapping[Literal["instruction", "output"], str]) -> Record:
    """Turn a row of `data.train_source` into a record.

    The output may be empty: the plan counts such records (`beamplatform.data.quality`).
    """
    instruction, output = columns.get("instruction", "instruction"), columns.get("output", "output")
    for key in (instruction, output):
        if isinstance(row, Mapping) and key in row and not isinstance(row[key], str):
            raise UserError(f"{where}: field {key!r} must be a string, found {json_type(row[key])}")
    if not isinstance(row, Mapping) or not all(key in row for key in (instruction, output)):
        fields = ", ".join(map(str, row)) if isinstance(row, Mapping) else json_type(row)
        raise UserError(
            f"{where}: needs the text fields {instruction!r} and {output!r} (data.columns names them), found {fields}"
        )
    input_text = row.get("input")
    if input_text is not None and not isinstance(input_text, str):
        raise UserError(f"{where}: field 'input' must be a string, found {json_type(input_text)}")
    for name, value in ((instruction, row[instruction]), (output, row[output]), ("input", input_text or "")):
        require_text(value, where, name)
    return Record(row[instruction], row[output], answer="", input=input_text or "")
