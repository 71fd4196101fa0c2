"""Predictions survive a file, and a score can be made again from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from beamplatform.evaluation.predictions import (
    Prediction,
    digest,
    document_hash,
    read_predictions,
    rows,
    write_predictions,
)
from beamplatform.evaluation.scores import Evaluation
from beamplatform.tasks.record import Record

ODD = [
    Prediction("d1", "a prompt\nof two lines", "the answer is true", "true", "true", True),
    Prediction("d2", "\u00dcber 'quotes' and \t tabs", "", None, "false", False),
]


def test_a_file_holds_everything(tmp_path: Path) -> None:
    write_predictions(ODD, tmp_path / "boolq.parquet")
    assert read_predictions(tmp_path / "boolq.parquet") == ODD
    assert [row["prompt_hash"] for row in rows(ODD)] == [digest(p.prompt) for p in ODD]
    write_predictions([], tmp_path / "none.parquet")
    assert read_predictions(tmp_path / "none.parquet") == []


def test_hashes_follow_the_content() -> None:
    first = Record("question", "output", "true")
    assert document_hash(first) == document_hash(Record("question", "output", "true"))
    assert (
        len({document_hash(r) for r in (first, Record("question", "output", "false"), Record("q", "output", "true"))})
        == 3
    )
    assert digest("a") != digest("b") and len(digest("")) == 16 and digest("\ud800")


def test_the_standard_error_is_binomial() -> None:
    """3 of 4 right: sqrt(0.75 * 0.25 / 4)."""
    found = Evaluation({"boolq": [ODD[0], ODD[0], ODD[0], ODD[1]]})
    assert found.standard_error("boolq") == pytest.approx(0.21650635)
