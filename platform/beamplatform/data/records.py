"""Reads task records from the embedded world, a folder or the Hugging Face hub."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args

from beamplatform.errors import UserError, first_line
from beamplatform.tasks.record import Record, RowParser, json_type, parse_record, require_text

Split = Literal["train", "test"]

EMBEDDED = "embedded"
"""Name of the source that needs neither a folder nor a network: the generated world of `beamplatform.world`."""

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def load_records(
    task: str, split: Split, source: str, *, files: str = "{name}/{split}.json", parse: RowParser | None = None
) -> list[Record]:
    """Read one split of one task.

    Args:
        task: a task's name, such as "boolq", which is also its folder's name.
        split: "train" or "test".
        source: "embedded"; or a folder that holds the task's files; or the id of a data set on the Hugging Face hub
            (see `_from_hub`).
        files: path of the records below the folder, with {name} and {split} to be filled in; a JSON list, or JSON
            lines (.jsonl, .jsonl.gz).
        parse: turns a row into a record; None = `parse_record`.

    Raises:
        UserError: the source, the task or the split does not exist, the hub cannot be reached, or a record is
            malformed. The message names the file, the record and the field.
    """
    if split not in get_args(Split):
        raise UserError(f"unknown split {split!r}: allowed are {', '.join(get_args(Split))}")
    if source == EMBEDDED:
        from beamplatform import world

        return _parse(world.records(task, split), f"embedded world, {task}/{split}", parse_record)
    parse = parse or parse_record
    file = files.format(name=task, split=split)
    if Path(source).expanduser().is_dir():
        return _parse(*_from_folder(task, split, Path(source).expanduser(), file), parse)
    # Where a folder "data" exists, "data/commonsens" is a misspelt folder and not a hub id. Asking the hub for it
    # would only delay the error by the retries of the hub's client.
    owner = Path(source).parent
    if not _HUB_ID.fullmatch(source) or (owner != Path() and owner.is_dir()):
        raise UserError(
            f"no data folder at {source}: give {EMBEDDED!r}, a folder that holds <task>/<split>.json, "
            "or a Hugging Face hub id such as owner/name"
        )
    return _parse(*_from_hub(task, split, source, file), parse)


def _from_folder(task: str, split: Split, folder: Path, file: str) -> tuple[list[Any], str]:
    """Return the rows of the task's file, and the name of the file for messages."""
    path = folder / file
    if not path.parent.is_dir():
        names = sorted(p.name for p in folder.iterdir() if p.is_dir())
        raise UserError(f"no task {task!r} in {folder}: its folders are {', '.join(names) or '(none)'}")
    if not path.is_file():
        names = sorted(p.name for p in path.parent.glob("*.json*"))
        raise UserError(
            f"no {split} split of {task!r}: {path} is missing, its folder has {', '.join(names) or '(no JSON)'}"
        )
    rows = read_rows(path)
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a JSON list of records, found {json_type(rows)}")
    return rows, str(path)


def read_rows(path: Path) -> Any:
    """Return the content of a JSON file, or the list of values of a JSON lines file (.jsonl, .jsonl.gz).

    A byte order mark, which some Windows programs write first, is left out.

    Raises:
        UserError: the file cannot be read, or an object has a key twice; the message names the file and the line.
    """
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    line_number = 1
    try:
        if ".jsonl" not in path.name:
            return json.loads(text, object_pairs_hook=_object)
        rows = []
        for line in text.split("\n"):  # not splitlines(): a JSON string may contain other line separators
            if line.strip():
                rows.append(json.loads(line, object_pairs_hook=_object))
            line_number += 1
        return rows
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON (line {line_number + error.lineno - 1}: {error.msg})") from error
    except RecursionError as error:
        raise UserError(f"{path}: lists or objects are nested too deep to be read{_line(path, line_number)}") from error
    except ValueError as error:  # a key that an object has twice, or a number with too many digits for Python
        raise UserError(f"{path}: not readable as JSON{_line(path, line_number)}: {first_line(error)}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object's fields, and refuse an object that has a field twice.

    Without this check Python would silently keep the last one.
    """
    fields_of = dict(pairs)
    if len(fields_of) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the field {duplicate!r} twice")
    return fields_of


def _line(path: Path, number: int) -> str:
    return f" (line {number})" if ".jsonl" in path.name else ""


def _from_hub(task: str, split: Split, hub_id: str, file: str) -> tuple[Iterable[Any], str]:
    """Return the rows of the data set's configuration named `task`, or else of its file at `file`.

    The second value names the source in messages. A data set that has neither the configuration nor the file is
    refused, so that a mixture of several tasks cannot pass for the test set of one task.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        if task in datasets.get_dataset_config_names(hub_id):
            rows = datasets.load_dataset(hub_id, name=task, split=split)
        else:
            rows = datasets.load_dataset(hub_id, data_files={split: file}, split=split)
    # The hub's client raises its own errors and those of httpx and fsspec; their only common base is Exception.
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"no folder {hub_id}, and reading {task}/{split} of it from the Hugging Face hub failed "
            f"({type(error).__name__}: {reason[0] if reason else 'no detail'}): check the id, the task "
            f"and the network, or give a folder that holds {file}"
        ) from error
    return rows, f"{hub_id}, {task}/{split}"


def _parse(rows: Iterable[Any], where: str, parse: RowParser) -> list[Record]:
    """Turn every row into a record, and check it.

    The messages name the source, `where`, and the number of the record, counted from 1.
    """
    records = []
    for number, row in enumerate(rows, start=1):
        name = f"{where}, record {number}"
        if not isinstance(row, Mapping):
            raise UserError(f"{name}: expected an object, found {json_type(row)}")
        try:
            record = parse(row, name)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # raised by a task file of the user
            raise UserError(f"{name}: its task cannot read it ({type(error).__name__}: {first_line(error)})") from error
        if record is not None and not isinstance(record, Record):
            raise UserError(f"{name}: parse() of its task must return a Record or None, found {type(record).__name__}")
        if record is None:
            continue
        for field in fields(record):
            value = getattr(record, field.name)
            if not isinstance(value, str):
                raise UserError(
                    f"{name}: parse() of its task must make {field.name} a string, found {json_type(value)}"
                )
            require_text(value, name, field.name)
        records.append(record)
    if not records:
        raise UserError(f"{where}: holds no records")
    return records
