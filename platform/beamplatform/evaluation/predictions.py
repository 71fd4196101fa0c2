"""Predictions as files: everything a score was made of, so that it can be made again without the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from beamplatform.tasks.record import Record


@dataclass(frozen=True)
class Prediction:
    """One question as it was asked, and what came of it.

    Attributes:
        document: a hash of the record, the same whatever it was asked with.
        prompt: the text the model was given.
        completion: the text it gave back, without the prompt.
        extracted: the answer found in the completion, None when there is none.
        answer: the gold answer.
        correct: whether the two agree.
        sample: which of the question's completions this is, from 0.
    """

    document: str
    prompt: str
    completion: str
    extracted: str | None
    answer: str
    correct: bool
    sample: int = 0

    @property
    def prompt_hash(self) -> str:
        return digest(self.prompt)


def digest(text: str) -> str:
    """16 hex digits of SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def document_hash(record: Record) -> str:
    """Of a record's whole content."""
    return digest(json.dumps(asdict(record), sort_keys=True))


def rows(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """One plain row for each, with the prompt's hash."""
    return [{**asdict(prediction), "prompt_hash": prediction.prompt_hash} for prediction in predictions]


def by_question(predictions: Sequence[Prediction]) -> list[list[Prediction]]:
    """Each question's predictions: one, or all samples of it."""
    found: list[list[Prediction]] = []
    for prediction in predictions:
        if prediction.sample == 0:
            found.append([])
        found[-1].append(prediction)
    return found


def write_predictions(predictions: Sequence[Prediction], path: Path) -> None:
    """A Parquet file with a row for each prediction, in their order."""
    import pyarrow
    from pyarrow import parquet

    text, names = pyarrow.string(), ("document", "prompt_hash", "prompt", "completion", "extracted", "answer")
    schema = pyarrow.schema(
        [*((name, text) for name in names), ("correct", pyarrow.bool_()), ("sample", pyarrow.int32())]
    )
    parquet.write_table(pyarrow.Table.from_pylist(rows(predictions), schema=schema), path)


def read_predictions(path: Path) -> list[Prediction]:
    """What `write_predictions` wrote."""
    from pyarrow import parquet

    found = parquet.read_table(path).to_pylist()
    return [Prediction(**{name: value for name, value in row.items() if name != "prompt_hash"}) for row in found]
