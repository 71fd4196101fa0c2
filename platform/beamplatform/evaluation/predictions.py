"""Reads and writes predictions, from which a score can be computed again without the model."""

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
    """One question, one completion of its prompt, and the verdict.

    Attributes:
        document: hash of the record, which does not depend on the prompt.
        prompt: the text that the model was given.
        completion: the text that the model generated, without the prompt.
        extracted: the answer in the completion; None if there is none.
        answer: the gold answer.
        correct: whether the extracted answer agrees with the gold answer.
        sample: index of this completion among the question's completions, from 0.
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
    """Return the first 16 hex digits of the text's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def document_hash(record: Record) -> str:
    """Return a hash of the record's whole content."""
    return digest(json.dumps(asdict(record), sort_keys=True))


def rows(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return one row of plain values for each prediction, including the hash of its prompt."""
    return [{**asdict(prediction), "prompt_hash": prediction.prompt_hash} for prediction in predictions]


def by_question(predictions: Sequence[Prediction]) -> list[list[Prediction]]:
    """Group the predictions by question: one prediction each, or all samples of the question."""
    groups: list[list[Prediction]] = []
    for prediction in predictions:
        if prediction.sample == 0:
            groups.append([])
        groups[-1].append(prediction)
    return groups


def write_predictions(predictions: Sequence[Prediction], path: Path) -> None:
    """Write a Parquet file with one row for each prediction, in the given order."""
    import pyarrow
    from pyarrow import parquet

    text, names = pyarrow.string(), ("document", "prompt_hash", "prompt", "completion", "extracted", "answer")
    schema = pyarrow.schema(
        [*((name, text) for name in names), ("correct", pyarrow.bool_()), ("sample", pyarrow.int32())]
    )
    parquet.write_table(pyarrow.Table.from_pylist(rows(predictions), schema=schema), path)


def read_predictions(path: Path) -> list[Prediction]:
    """Read the predictions from a file of `write_predictions`."""
    from pyarrow import parquet

    table = parquet.read_table(path).to_pylist()
    return [Prediction(**{name: value for name, value in row.items() if name != "prompt_hash"}) for row in table]
