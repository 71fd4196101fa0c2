"""The comparison by sympy: what it adds to the comparison of texts, and what it must survive."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from beamplatform.data.records import load_records
from beamplatform.tasks import get_task
from beamplatform.tasks.answers import mathematics
from beamplatform.tasks.answers.mathematics import same_mathematics
from beamplatform.tasks.record import Record

EQUAL = [
    (r"\frac{1}{4}", "0.25"), (r"\frac{3}{4}", r"\frac34"), ("x^2+2x+1", "(x+1)^2"), (r"\sqrt{8}", r"2\sqrt{2}"),
    ("3.14159", "3.1416"), (r"\pi", "3.14159"), ("1+2i", "2i+1"), (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"), (r"10\%", "10"), ("1,000", "1000"),
    ("(1,2)", "(1, 2)"), (r"\{1,2,3\}", r"\{3,2,1\}"), ("2^{10}", "1024"), (r"\log_2 8", "3"), ("x=5", "5"),
    (r"(-\infty,3]", r"(-\infty, 3]"), (r"90^\circ", "90"),
]  # fmt: skip
DIFFERENT = [
    (r"\frac{1}{4}", "0.26"), ("x^2+2x+1", "(x-1)^2"), ("[1,2)", "(1,2]"), ("3.14159", "3.15"), ("7", "-7"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"), ("x", "y"), ("1", ""), ("", ""),
    ("5", r"\frac{"), ("0", "0.001"), ("(1,2)", "(1,3)"), (r"\text{east}", r"\text{west}"), ("2", "}{"),
    ("12", "1 2 3"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_the_same_mathematics(gold: str, answer: str) -> None:
    assert same_mathematics(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_other_mathematics(gold: str, answer: str) -> None:
    assert not same_mathematics(gold, answer)


def test_what_does_not_end_is_wrong_and_the_next_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mathematics, "SECONDS", 1.0)
    for hostile in ("9^{9^{9^{9^{9}}}}", "10^{10^{10}}!", "(" * 50_000, r"\int " * 300, "\x00", "1\n2", "\ud800"):
        started = time.monotonic()
        assert not same_mathematics("1", hostile), hostile[:20]
        assert time.monotonic() - started < 20
        assert same_mathematics(r"\frac{1}{2}", "0.5")


def test_math_is_scored_by_text_unless_sympy_is_asked_for() -> None:
    task, record = get_task("MATH"), Record("q", "", r"\frac{1}{4}")
    assert not task.correct("0.25", record)
    asked = task.with_options({"sympy"})
    assert asked.correct("0.25", record) and not asked.correct("0.3", record)
    assert "sympy" in asked.notes([record]) and task.notes([record]) == ""


def test_gold_answers_of_math_equal_themselves(shared_data: Path) -> None:
    """Of the first 300 nearly all can be read; the others' texts are compared without mathematics."""
    task = get_task("MATH")
    records = load_records("MATH", "test", str(shared_data / "math"), files=task.files, parse=task.parse)
    golds = [record.answer for record in records]
    read = [gold for gold in golds[:300] if same_mathematics(gold, gold)]
    assert len(read) >= 290
    shifted = golds[1:301]
    agree = [(a, b) for a, b in zip(golds[:300], shifted, strict=True) if same_mathematics(a, b) and a != b]
    assert len(agree) <= 3, agree
